from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux import twin
from kernelmux.errors import ConfigFileError
from kernelmux.policies.lint import lint
from kernelmux.policies.policy import RULES_FOLDER, Policy
from kernelmux.policies.rule import read_rule
from kernelmux.registry import ANY, AnyOf, KnownIssue, NeedsPackage, Packages, discovery

from .toyworld import gpu, make_kernel, make_op, make_policy, make_problem, rule, world

GOOD = """rules:
  - id: first
    when: {op: mix, tokens: ">=256"}
    prefer: [triton]
    why: it was faster
    evidence: https://example.org/1
"""


def read(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return Policy.load(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (found,) = read(tmp_path, GOOD).rules
    assert (found.id, found.op, found.prefer, found.why) == ("first", "mix", ("triton",), "it was faster")
    assert found.tokens is not None
    assert found.tokens[0] == 256


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("why: it was faster", "whyy: it was faster", ["line 5", "rule first", "whyy", "why, evidence"]),
        ("    why: it was faster\n", "", ["rule first", "why: is missing"]),
        ("why: it was faster", "why: ''", ["why: is missing"]),
        ("https://example.org/1", "trust me", ["line 6", "evidence", "https link"]),
        ('tokens: ">=256"', "tokens: many", ["line 3", "when.tokens", '"64..256"']),
        ('tokens: ">=256"', "token: 3", ["line 3", "when.token:", "tokens"]),
        ("op: mix, ", "", ["line 3", "when.op", "missing"]),
        ("op: mix, ", "op: mix, capability: '>=9.0', ", ["when.capability", "open-ended"]),
        ("op: mix, ", "op: mix, capability: 9.0, ", ["when.capability", "Quote it"]),
        ("op: mix, ", "op: mix, vendor: intel, ", ["when.vendor", "nvidia, amd, cpu"]),
        ("op: mix, ", "op: mix, dtype: bf17, ", ["when.dtype", "bf17"]),
        ("prefer: [triton]", "prefer: []", ["prefer", "empty"]),
        ("prefer: [triton]", "prefer: [triton, triton]", ["prefer", "twice"]),
        ("prefer: [triton]", "prefer: [[triton]]", ["line 4", "prefer", "text"]),
        ("id: first", "id: First Rule", ["line 2", "id"]),
        ("id: first", "id: first\n    id: second", ["line 3", "'id' stands twice"]),
        ("prefer: [triton]", "prefer: [triton", ["line"]),
        ("rules:", "rulez:", ["one key, rules"]),
        (GOOD, "", ["one key, rules"]),
        (GOOD, "rules: {a: 1}", ["one key, rules"]),
        (GOOD, "rules: [3]", ["rule 1", "mapping"]),
        (GOOD, "a: &x [1]\nrules: *x\n", ["line 2", "alias *x"]),
        (GOOD, "rules: " + "[" * 5000, []),
        (GOOD, "rules: !!python/object:os.system {}", []),
        (GOOD, "? [1, 2]\n: 3\n", ["key must be text"]),
        ("evidence:", "holds_for: {triton: three}\n    evidence:", ["holds_for.triton", ">=3.5,<4"]),
        ("evidence:", "holds_for: triton\n    evidence:", ["holds_for", "map a package"]),
    ],
    ids=lambda value: value.strip()[:30] if isinstance(value, str) else "",
)
def test_a_faulty_file_gets_one_clear_error(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert "mine.yaml" in message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_two_rules_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="'first' stands twice"):
        read(tmp_path, GOOD + GOOD.removeprefix("rules:\n"))


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigFileError, match="alias"):
        read(tmp_path, "\n".join(lines))


def test_what_is_no_policy_file_is_named(tmp_path: Path) -> None:
    for make, words in (
        (lambda p: None, "cannot be read"),
        (lambda p: p.mkdir(), "cannot be read"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda p: p.write_bytes(b"#" * (2 << 20)), "at most"),
    ):
        path = tmp_path / words.replace(" ", "-") / "p.yaml"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            make(path)
        with pytest.raises(ConfigFileError, match=words):
            Policy.load(path)


# matching


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=256", [256, 10**6], [0, 255]),
        (">256", [257], [256]),
        ("<64", [0, 63], [64]),
        ("<=64", [64], [65]),
        ("64..256", [64, 256], [63, 257]),
        ("8", [8], [7, 9]),
        (8, [8], [7, 9]),
        ("=8", [8], [7]),
    ],
)
def test_token_conditions_mean_what_they_say(text: Any, inside: list[int], outside: list[int]) -> None:
    found = read_rule(rule("r", ["triton"], tokens=text))
    for m in inside + outside:
        matched, _ = found.matches(make_op(), gpu("b200"), Packages({}), make_problem({"M": m}))
        assert matched is (m in inside)


def test_a_rule_on_tokens_needs_the_whole_range_and_says_when_it_covers_a_part() -> None:
    found = read_rule(rule("r", ["triton"], tokens=">=64"))
    for shape, expected, note in (
        ({"M": (64, 512)}, True, ""),
        ({"M": (1, 512)}, False, "covers only a part"),
        ({"M": (1, 63)}, False, ""),
        ({}, False, "M was not given"),
    ):
        matched, said = found.matches(make_op(), gpu("b200"), Packages({}), make_problem(shape))
        assert matched is expected
        assert (note in said) if note else not said


def test_a_rule_found_for_other_versions_is_passed_over_and_says_so() -> None:
    policy = make_policy(rule("r", ["triton"], holds_for={"triton": ">=3.5,<3.7"}))
    for packages, matched in (({"triton": "3.6.0"}, True), ({"triton": "3.7.0"}, False), ({}, True)):
        found, notes = policy.first(make_op(), gpu("b200"), Packages(packages), make_problem())
        assert (found is not None) is matched
        assert bool(notes) is not matched


def test_conditions_are_all_checked() -> None:
    facts = {"scheme": "none", "capability": ["10.x"], "vendor": "nvidia", "dtype": "bf16", "activation": "silu"}
    found = read_rule(rule("r", ["triton"], **facts))
    op, none = make_op(), Packages({})
    assert found.matches(op, gpu("b200"), none, make_problem())[0]
    assert not found.matches(op, gpu("rtx-5090"), none, make_problem())[0]
    assert not found.matches(op, gpu("mi300x"), none, make_problem())[0]
    for change in ({"quant": "nvfp4"}, {"dtype": "float16"}, {"activation": "relu"}):
        assert not found.matches(op, gpu("b200"), none, make_problem(**change))[0]


conditions = st.fixed_dictionaries(
    {},
    optional={
        "scheme": st.sampled_from([["none"], ["nvfp4"], ["none", "nvfp4"]]),
        "capability": st.sampled_from([["9.0"], ["10.x"], ["9.0", "10.x"]]),
        "tokens": st.sampled_from([">=64", "<64", "1..512", "64..100"]),
        "activation": st.sampled_from([["silu"], ["silu", "relu"]]),
    },
)
problems = st.builds(
    lambda quant, activation, m: make_problem({"M": m}, quant=quant, activation=activation),
    st.sampled_from(["none", "nvfp4"]),
    st.sampled_from(["silu", "relu"]),
    st.integers(0, 600),
)


@given(conditions, conditions, problems, st.sampled_from(["h100-sxm", "b200", "rtx-5090"]))
def test_a_rule_that_covers_another_matches_wherever_it_does(a: Any, b: Any, problem: Any, device: str) -> None:
    one, other = read_rule(rule("one", ["triton"], **a)), read_rule(rule("other", ["torch"], **b))
    asked = (make_op(), gpu(device), Packages({}), problem)
    if one.covers(other) and other.matches(*asked)[0]:
        assert one.matches(*asked)[0]


# the linter


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ([rule("a", ["triton"]), rule("b", ["torch"], capability=["9.0"])], "unreachable"),
        ([rule("a", ["triton"], tokens="<64"), rule("b", ["torch"], tokens="1..8")], "unreachable"),
        ([rule("a", ["tritn"])], "unknown_backend"),
        ([rule("a", ["marlin"])], "no_such_kernel"),
        ([rule("a", ["cutlass"], capability=["12.x"])], "never_satisfied"),
        ([rule("a", ["triton"], scheme="mxfp4")], "unknown_scheme"),
        ([rule("a", ["triton"], dtype="float32")], "unknown_dtype"),
        ([rule("a", ["triton"], activation="tanh")], "unknown_activation"),
        ([rule("a", ["triton"], capability=["9.9"])], "no_gpu"),
        ([rule("a", ["triton"], capability=["9.0"], vendor="amd")], "no_gpu"),
        ([{**rule("a", ["triton"]), "when": {"op": "nix"}}], "unknown_op"),
        ([rule("a", ["triton"], scheme="none"), rule("a", ["triton"], scheme="nvfp4")], "repeated_id"),
    ],
)
def test_the_linter_finds(rules: list[dict[str, Any]], code: str) -> None:
    faults = lint(make_policy(*rules), world())
    assert [fault.code for fault in faults] == [code]
    assert faults[0].message
    assert faults[0].fix


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"when": {"op": "mix", "scheme": "nvfp4"}, "prefer": ["torch"]}, "never_satisfied"),  # torch takes none alone
        ({"when": {"op": "mix", "demands": ["batch_invariant"]}, "prefer": ["cutlass"]}, "never_satisfied"),
        ({"when": {"op": "mix", "dtype": "bf16", "vendor": "amd"}, "prefer": ["cudnn"]}, "never_satisfied"),
        ({"when": {"op": "mix", "shape": {"Q": 3}}}, "unknown_axis"),
        ({"holds_for": {"flashinfer-python": ">=0.7.5,<0.7.6"}}, "dead_window"),
        ({"holds_for": {"triton": ">=99"}}, "dead_window"),
    ],
)
def test_the_linter_tries_every_case_of_a_rule_and_every_released_version(change: dict[str, Any], code: str) -> None:
    assert [fault.code for fault in lint(make_policy({**rule("a", ["triton"]), **change}), world())] == [code]


def test_the_linter_asks_for_evidence_where_a_rule_gives_none() -> None:
    faults = lint(Policy((make_policy(rule("a", ["triton"])).rules[0].but(evidence=""),)), world())
    assert [fault.code for fault in faults] == ["no_evidence"]


def test_the_linter_finds_windows_and_capabilities_of_kernels_that_nothing_falls_into() -> None:
    nowhere = make_kernel("marlin", ("9.9",), KnownIssue(ANY, {"triton": "<0.1"}, "broken", "wait"))
    never = make_kernel("cutile", ANY, AnyOf((NeedsPackage("flashinfer-python", ">=7"),)))
    found = [(fault.rule, fault.code) for fault in lint(Policy(), world([nowhere, never]))]
    assert found == [
        ("toy.mix[cutile]", "dead_window"),
        ("toy.mix[marlin]", "no_gpu"),
        ("toy.mix[marlin]", "dead_window"),
    ]


def test_a_package_without_a_list_of_releases_is_not_judged() -> None:
    assert lint(make_policy(rule("a", ["triton"], holds_for={"unheard-of": ">=99"})), world()) == []


def test_the_linter_is_content_with_narrow_before_wide() -> None:
    rules = [rule("a", ["triton"], capability=["9.0"], tokens="<64"), rule("b", ["torch"], capability=["9.0"])]
    assert lint(make_policy(*rules, rule("c", ["triton", "torch"])), world()) == []


# what ships


def test_the_built_in_policy_has_no_fault() -> None:
    assert lint(Policy.builtin_all(), discovery.registry()) == []


def test_every_built_in_rule_is_about_the_op_its_file_is_named_for() -> None:
    for path in RULES_FOLDER.glob("*.yaml"):
        assert {found.op for found in Policy.load(path).rules} == {path.stem}


def test_the_twins_of_the_yaml_files_are_up_to_date() -> None:
    for path, parse in twin.shipped():
        current = twin.twin_of(path).read_text(encoding="utf-8")
        assert current == twin.render(path, parse), f"run `python -m kernelmux.twin`: {path.name} has changed"


def test_a_twin_that_does_not_fit_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("b")
    for text in (None, "", "[]", "{", '{"of": 1, "data": "stale"}'):
        if text is not None:
            twin.twin_of(path).write_text(text)
        assert twin.read(path, lambda p: p.read_text()) == "b"
    twin.twin_of(path).write_text(twin.render(path, lambda p: p.read_text()))
    assert twin.read(path, lambda p: "parsed") == "b"


def test_unquantized_moe_without_a_library_is_triton_on_every_listed_gpu_and_torch_on_the_cpu() -> None:
    from kernelmux.device import catalog
    from kernelmux.policies.resolve import resolve

    registry, policy = discovery.registry(), Policy.builtin("fused_moe")
    problem = make_problem({"M": 64, "E": 8, "N": 128, "K": 128, "topk": 2})
    packages = Packages({"triton": "3.6.0", "torch": "2.11.0"})
    for device in catalog().values():
        chosen = resolve("fused_moe", device, packages, problem, policy=policy, registry=registry)
        assert chosen.backend == ("torch" if device.vendor == "cpu" else "triton"), device.name
        assert chosen.source == "policy", device.name


def test_neither_the_registry_nor_the_policies_know_an_op_by_name() -> None:
    package = RULES_FOLDER.parents[1]
    names = {op.name for op in discovery.registry().ops()}
    for path in (*(package / "policies").glob("*.py"), *(package / "registry").glob("*.py")):
        if path.name == "discovery.py":  # lists the modules of declarations, and reads nothing of them but the list
            continue
        words = {
            node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if type(node) is ast.Constant
        }
        assert not names & {word for word in words if isinstance(word, str)}, path
