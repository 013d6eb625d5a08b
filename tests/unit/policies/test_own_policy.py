"""A user's policy laid over the built-in rules: prefer, forbid, pin, and where a rule stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmux as km
from kernelmux.cli.app import run
from kernelmux.errors import ConfigFileError, NoKernel
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import Explicit, resolve
from kernelmux.registry import Measurement, Packages

from .toyworld import gpu, make_kernel, make_policy, make_problem, rule, world

MOE: dict[str, Any] = {
    "device": "h100-sxm",
    "dtype": "bfloat16",
    "activation": "silu",
    "shape": {"M": 64, "E": 8, "N": 64, "K": 64, "topk": 2},
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("KERNELMUX_POLICY", raising=False)
    km.refresh()
    yield
    km.refresh()


def write(path: Path, *rules: str) -> Path:
    path.write_text("rules:\n" + "".join(f"  - {text}\n" for text in rules))
    return path


def own(tmp_path: Path, *rules: str) -> Policy:
    return Policy.load(write(tmp_path / "mine.yaml", *rules))


PREFER_TORCH = "{id: mine, when: {op: fused_moe}, prefer: [torch], why: I said so}"
PIN_TORCH = "{id: mine, when: {op: fused_moe}, pin: torch, why: I said so}"
NO_TRITON = "{id: mine, when: {op: fused_moe}, forbid: [triton], why: it broke}"


# the three verbs


def test_an_own_preference_stands_before_the_built_in_rules_and_needs_no_evidence(tmp_path: Path) -> None:
    chosen = km.select_backend("fused_moe", policy=write(tmp_path / "p.yaml", PREFER_TORCH), **MOE)
    assert (chosen.backend, chosen.source, chosen.rule, chosen.why) == ("torch", "policy", "mine", "I said so")
    assert {other.by for other in chosen.outranked} == {"mine"}


def test_an_own_preference_that_cannot_run_leaves_the_choice_to_the_built_in_rules(tmp_path: Path) -> None:
    text = "{id: mine, when: {op: fused_moe}, prefer: [humming], why: I said so}"
    chosen = km.select_backend("fused_moe", policy=write(tmp_path / "p.yaml", text), **MOE)
    assert (chosen.backend, chosen.rule) == ("triton", "fused-moe-unquantized")
    assert any("rule mine applies, but none of what it prefers can run" in note for note in chosen.conditions)


def test_what_is_forbidden_is_rejected_with_the_rule_and_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", NO_TRITON)
    chosen = km.select_backend("fused_moe", policy=path, **MOE)
    (refused,) = [other for other in chosen.rejected if other.backend == "triton"]
    assert chosen.backend != "triton"
    assert refused.code == "forbidden"
    assert "mine" in refused.reason
    assert str(path) in refused.reason
    assert "it broke" in refused.reason


def test_an_explicit_choice_of_what_is_forbidden_raises(tmp_path: Path) -> None:
    with pytest.raises(NoKernel, match="rule mine in .* forbids it: it broke"):
        km.select_backend("fused_moe", policy=write(tmp_path / "p.yaml", NO_TRITON), backend="triton", **MOE)


def test_a_pin_is_honoured_and_outranks_a_measurement() -> None:
    pin = {**rule("mine", ["torch"]), "pin": "torch"}
    del pin["prefer"]
    asked = ("mix", gpu("h100-sxm"), Packages({}), make_problem())
    measured = Measurement(
        op="mix", device=gpu("h100-sxm").table_name, scheme="none", dtype="bfloat16", shape=(("K", 128),),
        activation="silu", m_lo=64, m_hi=64, kernel="toy.mix[triton]", us=1.0,
    )  # fmt: skip
    kept = {"registry": world(), "measurements": [measured]}
    assert resolve(*asked, policy=make_policy(rule("mine", ["torch"])), **kept).backend == "triton"
    chosen = resolve(*asked, policy=make_policy(pin), **kept)
    assert (chosen.backend, chosen.source, chosen.rule) == ("torch", "policy", "mine")
    assert resolve(*asked, policy=make_policy(pin), override=Explicit("triton"), **kept).source == "override"


def test_a_pin_that_cannot_run_raises_with_what_would_work() -> None:
    pin = {**rule("mine", ["cutlass"]), "pin": "cutlass"}
    del pin["prefer"]
    with pytest.raises(NoKernel, match=r"rule mine, which pins it.*What would work: torch, triton"):
        resolve("mix", gpu("h100-sxm"), Packages({}), make_problem(), policy=make_policy(pin), registry=world())


def test_fast_math_can_be_forbidden_as_such() -> None:
    from kernelmux.registry import Numerics

    quick = make_kernel("jit_cuda", numerics=Numerics(fast_math=True))
    forbid = {**rule("precise", ["fast_math"], capability=["10.x"]), "forbid": ["fast_math"]}
    del forbid["prefer"]
    policy = make_policy(forbid, rule("quick", ["jit_cuda"]))
    for device, backend in (("h100-sxm", "jit_cuda"), ("b200", "triton")):
        found = resolve("mix", gpu(device), Packages({}), make_problem(), policy=policy, registry=world([quick]))
        assert found.backend == backend


def test_what_is_forbidden_for_some_tokens_is_forbidden_for_a_range_that_touches_them() -> None:
    forbid = {**rule("big", ["triton"], tokens=">=1024"), "forbid": ["triton"]}
    del forbid["prefer"]
    for tokens, backend in (((1, 512), "triton"), ((1, 2048), "torch"), (4096, "torch")):
        asked = make_problem({"M": tokens, "K": 128})
        found = resolve("mix", gpu("h100-sxm"), Packages({}), asked, policy=make_policy(forbid), registry=world())
        assert found.backend == backend


# where it comes from


def test_the_environment_names_a_policy_and_the_argument_lies_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert km.select_backend("fused_moe", **MOE).backend == "triton"
    monkeypatch.setenv("KERNELMUX_POLICY", str(write(tmp_path / "env.yaml", NO_TRITON)))
    forbidden = km.select_backend("fused_moe", **MOE)
    assert forbidden.backend == "torch"
    argument = write(tmp_path / "arg.yaml", PREFER_TORCH.replace("mine", "other"))
    both = km.select_backend("fused_moe", policy=argument, **MOE)
    assert both.rule == "other"
    assert {other.code for other in both.rejected if other.backend == "triton"} == {"forbidden"}
    monkeypatch.delenv("KERNELMUX_POLICY")
    assert km.select_backend("fused_moe", **MOE).backend == "triton"


def test_the_command_line_takes_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "p.yaml", PIN_TORCH)
    assert run(["select", "fused_moe", "--device", "h100-sxm", "--policy", str(path)]) == 0
    assert "torch" in capsys.readouterr().out


# where a rule stands


def order(tmp_path: Path, *rules: str) -> list[str]:
    base = make_policy(rule("a", ["triton"], tokens="1"), rule("b", ["triton"], tokens="2"), rule("c", ["torch"]))
    return [found.id for found in own(tmp_path, *rules).over(base, "mix").rules]


def at(identity: str, position: str = "") -> str:
    return f"{{id: {identity}, when: {{op: mix}}, prefer: [torch], why: so{', ' if position else ''}{position}}}"


def test_rules_without_a_position_come_first_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert order(tmp_path, at("x"), at("y")) == ["x", "y", "a", "b", "c"]


def test_before_and_after_place_a_rule_beside_another(tmp_path: Path) -> None:
    assert order(tmp_path, at("x", "before: b"), at("y", "after: b")) == ["a", "x", "b", "y", "c"]
    assert order(tmp_path, at("x", "after: c"), at("y", "after: c")) == ["a", "b", "c", "x", "y"]
    assert order(tmp_path, at("x", "after: y"), at("y", "after: b")) == ["a", "b", "y", "x", "c"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([at("x", "before: bb")], ["line 2", "rule x", "before", "no rule 'bb'", "Did you mean b"]),
        ([at("x", "before: a, after: b")], ["line 2", "after", "one of them"]),
        ([at("x", "after: y"), at("y", "after: x")], ["line 2", "after", "cycle", "x after y", "y after x"]),
        ([at("x", "before: x")], ["rule x", "cycle", "x before x"]),
        ([at("y"), at("a")], ["line 3", "rule a", "id", "another"]),
        ([at("x").replace("prefer: [torch]", "prefer: [torch], pin: torch")], ["line 2", "pin", "prefer, forbid, pin"]),
        ([at("x").replace("prefer: [torch], ", "")], ["line 2", "prefer", "prefer, forbid, pin"]),
        ([at("x").replace("op: mix", "op: mix, shape: {K: many}")], ["line 2", "when.shape.K", "64..256"]),
        ([at("x").replace("op: mix", "op: mix, shape: 3")], ["line 2", "when.shape", "map an axis"]),
    ],
)
def test_a_fault_of_a_position_or_verb_is_told_with_file_line_and_key(
    tmp_path: Path, rules: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigFileError) as caught:
        order(tmp_path, *rules)
    message = str(caught.value)
    assert all(word in message for word in ("mine.yaml", *words)), message
    assert "\n" not in message


@given(st.permutations(["x", "y", "z"]), st.data())
def test_a_position_is_always_kept_or_refused(names: list[str], data: Any) -> None:
    anchors = {name: data.draw(st.sampled_from(["", *names, "a", "b"])) for name in names}
    words = {name: data.draw(st.sampled_from(["before", "after"])) for name in names}
    base = make_policy(rule("a", ["triton"], tokens="1"), rule("b", ["triton"], tokens="2"))
    rules = make_policy(*(rule(name, ["torch"]) for name in names)).rules
    placed = Policy(tuple(r.but(position=(words[r.id], anchors[r.id])) if anchors[r.id] else r for r in rules))
    try:
        ids = [found.id for found in placed.over(base).rules]
    except km.errors.UsageError as error:
        assert "cycle" in str(error)
        return
    assert sorted(ids) == sorted([*names, "a", "b"])
    for name, anchor in anchors.items():
        if anchor:
            assert (ids.index(name) < ids.index(anchor)) is (words[name] == "before")


# words nobody knows


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("op: fused_moe", "op: fused_mo", ["line 2", "when.op", "fused_mo is no op", "fused_moe"]),
        ("[torch]", "[trtlm]", ["line 2", "prefer", "'trtlm'", "trtllm"]),
        ("op: fused_moe", "op: fused_moe, scheme: nvfp5", ["line 2", "when.scheme", "nvfp5", "nvfp4"]),
        ("op: fused_moe", "op: fused_moe, activation: tanh", ["line 2", "when.activation", "tanh", "relu2"]),
        ("op: fused_moe", "op: fused_moe, shape: {Q: 3}", ["line 2", "when.shape", "no axis Q", "topk"]),
        ("op: fused_moe", "op: fused_moe, dtype: int8", ["line 2", "when.dtype", "int8", "bfloat16"]),
    ],
)
def test_a_word_nobody_knows_is_refused_with_the_allowed_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: list[str]
) -> None:
    path = write(tmp_path / "mine.yaml", PREFER_TORCH.replace(old, new))
    assert run(["select", "fused_moe", "--device", "cpu", "--policy", str(path)]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in ("mine.yaml", *words)), said
    assert "Traceback" not in said


def test_a_rule_about_another_op_may_name_that_ops_kernels(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "{id: n, when: {op: rms_norm}, prefer: ['kernelmux.rms_norm[torch]'], why: so}")
    assert km.select_backend("fused_moe", policy=path, **MOE).backend == "triton"
    assert km.select_backend("rms_norm", device="h100-sxm", policy=path).kernel == "kernelmux.rms_norm[torch]"


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"rules:\n  - {PREFER_TORCH.replace('prefer', 'perfer')}\n", ["line 2", "perfer", "prefer, forbid, pin"]),
        (f"rules:\n  - {PREFER_TORCH.replace('why', 'id: twice, why')}\n", ["line 2", "'id' stands twice"]),
        (BOMB, ["line 2", "alias"]),
        (
            f"rules:\n  - {PREFER_TORCH.replace('why', 'after: b, why')}\n"
            f"  - {PREFER_TORCH.replace('mine', 'b').replace('why', 'after: mine, why')}\n",
            ["line 2", "cycle", "mine after b, b after mine"],
        ),
    ],
    ids=["typo", "duplicate key", "bomb", "cycle"],
)
def test_a_faulty_policy_is_one_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert run(["select", "fused_moe", "--device", "cpu", "--policy", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert all(word in said.err for word in ("mine.yaml", *words)), said.err
    assert said.err.count("\n") == 1
