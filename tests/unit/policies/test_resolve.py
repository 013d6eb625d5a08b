from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.device import capabilities
from kernelmux.errors import BadShape, NoKernel, UnknownOp, UsageError
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import Explicit, resolve
from kernelmux.registry import (
    ANY,
    BACKENDS,
    Aligned,
    Measurement,
    Packages,
    Predicate,
    Registry,
    Rejected,
    SharedMemory,
)

from .toyworld import (
    CHOICE,
    GPUS,
    HERE,
    Choice,
    gpu,
    make_kernel,
    make_op,
    make_policy,
    make_problem,
    rule,
    unlisted_gpu,
    world,
)

NOTHING = Packages({})
PREFER_CUTLASS = make_policy(rule("mix-blackwell", ["cutlass", "triton"], capability=["10.x"]))


def choose(device: str = "b200", problem: Any = None, policy: Policy = PREFER_CUTLASS, **options: Any) -> Any:
    options = {"registry": world(), "packages": NOTHING, **options}
    packages = options.pop("packages")
    return resolve("mix", gpu(device), packages, problem or make_problem(), policy=policy, **options)


def measured(kernel: str, us: float, **changes: Any) -> Measurement:
    facts: dict[str, Any] = {
        "op": "mix",
        "device": gpu("b200").table_name,
        "scheme": "none",
        "dtype": "bfloat16",
        "shape": (("K", 128),),
        "activation": "silu",
        "m_lo": 1,
        "m_hi": 512,
        "when": "2026-03-01T00:00:00Z",
    }
    return Measurement(kernel=kernel, us=us, **{**facts, **changes})


# order of the sources


def test_a_rule_decides_where_one_matches() -> None:
    selection = choose()
    assert (selection.backend, selection.source, selection.rule) == ("cutlass", "policy", "mix-blackwell")
    assert selection.why == "because it was measured"


def test_without_a_rule_the_portable_fallback_is_taken_and_said() -> None:
    selection = choose("h100-sxm")
    assert (selection.backend, selection.source, selection.rule) == ("triton", "fallback", None)
    assert "fallback" in selection.why


def test_the_fallback_goes_on_to_torch_where_triton_cannot_run() -> None:
    registry = Registry([make_op(), make_kernel("triton", ("9.0",)), make_kernel("torch")])
    assert choose("b200", registry=registry).backend == "torch"


def test_a_valid_measurement_outranks_the_policy() -> None:
    found = [measured("toy.mix[cutlass]", 20.0), measured("toy.mix[triton]", 11.5)]
    selection = choose(measurements=found)
    assert (selection.backend, selection.source, selection.evidence) == ("triton", "measured", "measured")
    assert "11.5 us" in selection.why
    assert "cutlass 20.0 us" in selection.why


def test_the_newest_measurement_of_a_kernel_counts() -> None:
    old = measured("toy.mix[cutlass]", 5.0, when="2026-01-01T00:00:00Z")
    found = [measured("toy.mix[cutlass]", 20.0), old, measured("toy.mix[triton]", 11.5)]
    for order in itertools.permutations(found):
        assert choose(measurements=order).backend == "triton"


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "NVIDIA_H100_80GB_HBM3"},
        {"dtype": "float16"},
        {"scheme": "nvfp4"},
        {"activation": "relu"},
        {"shape": (("K", 256),)},
        {"m_hi": 32},
        {"m_lo": 65},
        {"op": "other"},
        {"kernel": "toy.mix[gone]"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_measurement_of_something_else_does_not_count(changes: dict[str, Any]) -> None:
    found = measured("toy.mix[triton]", 1.0).but(**changes)
    assert choose(measurements=[found]).source == "policy"


def test_a_measurement_under_another_release_is_ignored_and_said() -> None:
    found = measured("toy.mix[triton]", 1.0, versions={"triton": "3.5.1"})
    selection = choose(measurements=[found], packages=Packages({"triton": "3.6.0"}))
    assert selection.source == "policy"
    assert any("triton was 3.5.1 and is 3.6.0" in text for text in selection.conditions)


def test_a_build_tag_does_not_make_a_measurement_stale() -> None:
    found = measured("toy.mix[triton]", 1.0, versions={"torch": "2.9.1+cu128"})
    assert choose(measurements=[found], packages=Packages({"torch": "2.9.1+cpu"})).source == "measured"


def test_a_driver_is_compared_where_it_is_known() -> None:
    found = measured("toy.mix[triton]", 1.0, versions={"driver": "580.95.05"})
    assert choose(measurements=[found]).source == "measured"
    for driver, source in (("580.95.05", "measured"), ("570.10", "policy")):
        live = replace(gpu("b200"), live=True, index=0, driver=driver)
        asked = {"policy": PREFER_CUTLASS, "registry": world(), "measurements": [found]}
        assert resolve("mix", live, NOTHING, make_problem(), **asked).source == source


@pytest.mark.parametrize(("then", "source"), [("new", "measured"), ("old", "policy")])
def test_a_measurement_of_other_code_of_the_kernel_is_ignored_and_said(then: str, source: str) -> None:
    registry = Registry([make_op(), make_kernel("triton", source=f"{HERE}:source"), make_kernel("torch")])
    found = measured("toy.mix[triton]", 1.0, versions={"source": then})
    selection = choose(registry=registry, measurements=[found], source_of=lambda _: "new")
    assert selection.source == source
    assert any("source was old and is new" in text for text in selection.conditions) == (then == "old")


def test_where_packages_are_assumed_a_measurement_counts() -> None:
    found = measured("toy.mix[triton]", 1.0, versions={"triton": "3.5.1"})
    assert choose(measurements=[found], packages=Packages.assume_all()).source == "measured"


def test_a_range_of_tokens_needs_a_measurement_of_the_whole_range() -> None:
    found = [measured("toy.mix[triton]", 1.0)]
    assert choose(problem=make_problem({"M": (1, 512), "K": 128}), measurements=found).source == "measured"
    assert choose(problem=make_problem({"M": (1, 513), "K": 128}), measurements=found).source == "policy"


def test_without_a_token_count_measurements_do_not_decide_and_that_is_said() -> None:
    selection = choose(problem=make_problem({"K": 128}), measurements=[measured("toy.mix[triton]", 1.0)])
    assert selection.source == "policy"
    assert any("M was not given" in text for text in selection.conditions)


def test_an_explicit_choice_outranks_a_measurement_and_the_policy() -> None:
    selection = choose(override="torch", measurements=[measured("toy.mix[triton]", 1.0)])
    assert (selection.backend, selection.source) == ("torch", "override")


def test_an_explicit_choice_may_name_a_kernel() -> None:
    assert choose(override="toy.mix[torch]").backend == "torch"


def test_an_explicit_choice_that_cannot_run_raises_with_what_would_work() -> None:
    with pytest.raises(NoKernel, match="What would work: torch, triton") as caught:
        choose("h100-sxm", override=Explicit("cutlass", "KERNELMUX_BACKEND=cutlass in the environment"))
    assert "KERNELMUX_BACKEND=cutlass" in str(caught.value)
    assert [refused.backend for refused in caught.value.rejected] == ["cutlass"]


def test_an_explicit_backend_the_op_lacks_raises() -> None:
    with pytest.raises(NoKernel, match="mix has no kernel on marlin"):
        choose(override="marlin")


def test_an_unknown_backend_word_is_a_usage_error_with_a_near_match() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'tritn'.*Did you mean triton"):
        choose(override="tritn")


def test_a_rule_whose_preferences_cannot_run_falls_through_and_says_so() -> None:
    policy = make_policy(rule("mix-cudnn", ["cudnn"], capability=["12.x"]))
    selection = choose("rtx-5090", policy=policy)
    assert selection.source == "fallback"
    assert any("mix-cudnn applies" in text for text in selection.conditions)


def test_a_kernel_nobody_prefers_is_not_taken_silently() -> None:
    registry = Registry([make_op(), make_kernel("cutlass", ("10.x",))])
    with pytest.raises(NoKernel, match="must be asked for: cutlass"):
        choose(registry=registry, policy=Policy())
    assert choose(registry=registry, policy=Policy(), override="cutlass").backend == "cutlass"


def test_an_op_without_kernels_says_so() -> None:
    with pytest.raises(NoKernel, match="has no kernel at all"):
        choose(registry=Registry([make_op()]))


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(UnknownOp, match="unknown op 'mixx'"):
        resolve("mixx", gpu("b200"), NOTHING, make_problem(), policy=Policy(), registry=world())


# what is said


def test_every_reason_against_a_kernel_is_reported_and_the_first_is_the_headline() -> None:
    registry = world([make_kernel("trtllm", ("9.0",), Aligned("K", 256), SharedMemory(10**7))])
    refused = next(r for r in choose(registry=registry).rejected if r.backend == "trtllm")
    assert [reason.code for reason in refused.decision.every()] == ["capability", "alignment", "shared_memory"]
    assert refused.code == "capability"
    entries = [e for e in choose(registry=registry).to_json()["rejected"] if e["backend"] == "trtllm"]
    assert [entry["code"] for entry in entries] == ["capability", "alignment", "shared_memory"]


def test_the_dtype_is_assumed_and_said_and_is_float16_on_turing() -> None:
    for device, dtype in (("b200", "bfloat16"), ("t4", "float16"), ("cpu", "bfloat16")):
        selection = choose(device, problem=make_problem(dtype=None))
        assert selection.problem.dtype == dtype
        assert f"the dtype was not given: {dtype} is assumed" in selection.conditions


def test_a_missing_axis_makes_the_choice_conditional() -> None:
    registry = world([make_kernel("trtllm", ("10.x",), Aligned("K", 256))])
    selection = choose(problem=make_problem({"M": 1}), registry=registry, override="trtllm")
    assert selection.conditions == ("K was not given: it must be a multiple of 256",)


def test_an_unlisted_gpu_gets_portable_kernels_only_and_the_message_says_untrusted() -> None:
    registry = world([make_kernel("marlin", ("9.0",))])
    selection = resolve("mix", unlisted_gpu(), NOTHING, make_problem(), policy=PREFER_CUTLASS, registry=registry)
    assert selection.backend == "triton"
    refused = next(r for r in selection.rejected if r.backend == "marlin")
    assert refused.code == "untrusted"
    assert any("untrusted" in text for text in selection.conditions)


def test_a_demand_filters_kernels_that_do_not_promise_it() -> None:
    selection = choose(demands=["deterministic"])
    assert selection.backend == "cutlass"
    assert {r.code for r in selection.rejected if r.backend in ("triton", "torch")} == {"numerics"}
    with pytest.raises(NoKernel, match="does not promise batch_invariant"):
        choose(demands=["batch_invariant"])


def test_a_scheme_the_op_does_not_define_is_said_once_for_each_kernel() -> None:
    with pytest.raises(NoKernel, match="mix is not defined for quant mxfp4") as caught:
        choose(problem=make_problem(quant="mxfp4"))
    assert all(len([e for e in r.decision.every() if e.code == "scheme"]) == 1 for r in caught.value.rejected)


def test_a_bare_capability_says_which_card_stands_for_it() -> None:
    selection = choose("sm120")
    assert any("stands for any 12.0 GPU" in text for text in selection.conditions)


def test_evidence_is_looked_up_by_capability() -> None:
    evidence = dict.fromkeys(capabilities("9.0"), "measured")
    registry = Registry([make_op(), make_kernel("triton", ANY, evidence=evidence)])
    assert choose("h100-sxm", registry=registry).evidence == "measured"
    assert choose("b200", registry=registry).evidence == "declared"


def test_the_config_is_looked_up_for_the_chosen_kernel_only() -> None:
    asked: list[str] = []

    def lookup(kernel: Any, *_: Any) -> Any:
        asked.append(kernel.name)
        return CHOICE

    selection = choose("h100-sxm", configs=lookup)
    assert asked == ["toy.mix[triton]"]
    assert (selection.config, selection.config_source, selection.config_grade) == ("config-64", "measured", "exact")
    assert choose("h100-sxm", problem=make_problem({"M": (1, 64)}), configs=lookup).config is None


@pytest.mark.parametrize(
    ("tuned_on", "source", "said"),
    [
        ("new", "measured", ""),
        ("", "imported", ""),
        ("old", "measured", "mine.json was tuned on another version of toy.mix[triton] (source old, here new)"),
        ("old", "predicted", "mine.json was predicted for another version of toy.mix[triton]"),
    ],
)
def test_a_table_of_another_version_of_the_kernel_is_used_and_said(tuned_on: str, source: str, said: str) -> None:
    kernel = make_kernel("triton", configs=f"{HERE}:configs", source=f"{HERE}:source")
    choice = Choice(source=source, path=Path("mine.json"), tuned_on=tuned_on)
    selection = choose(
        "h100-sxm", registry=Registry([make_op(), kernel]), configs=lambda *_: choice, source_of=lambda _: "new"
    )
    found = [condition for condition in selection.conditions if "another version" in condition]
    assert bool(found) == bool(said)
    assert all(said in condition and "tune the shape again" in condition for condition in found)
    assert selection.config == "config-64"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"Q": 1}, "no axis 'Q'"),
        ({"K": 0}, "at least 1"),
        ({"M": -1}, "at least 0"),
        ({"M": (4, 1)}, "pair"),
        ({"K": (1, 4)}, "whole number"),
        ({"K": "x"}, "whole number"),
        ({"K": True}, "whole number"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused_by_axis(shape: dict[str, Any], words: str) -> None:
    with pytest.raises(BadShape, match=words):
        choose(problem=make_problem(shape))


def test_an_unknown_activation_or_dtype_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown activation 'swish'"):
        choose(problem=make_problem(activation="swish"))
    with pytest.raises(UsageError, match="unknown dtype 'bf17'"):
        choose(problem=make_problem(dtype="bf17"))


def test_a_predicate_is_code_by_name() -> None:
    registry = world([make_kernel("trtllm", ("10.x",), Predicate(f"{__name__}:only_even_k", "K is even"))])
    refused = choose(problem=make_problem({"M": 1, "K": 127}), registry=registry).rejected
    assert any(r.code == "odd" for r in refused)


def only_even_k(device: Any, packages: Any, problem: Any) -> Any:
    from kernelmux.registry import ACCEPTED

    return ACCEPTED if problem.shape["K"] % 2 == 0 else Rejected("odd", "K is odd", "pad K")


def test_json_has_the_keys_others_read_and_no_more() -> None:
    keys = "op device scheme backend kernel source evidence why rule config config_source config_grade conditions"
    data = choose("h100-sxm").to_json()
    assert list(data) == [*keys.split(), "outranked", "rejected"]
    assert data["device"] == {"name": "h100-sxm", "capability": "9.0"}
    assert set(data["outranked"][0]) == {"backend", "kernel", "by"}
    assert set(data["rejected"][0]) == {"backend", "code", "reason", "remedy", "link"}


def test_explain_shows_every_candidate() -> None:
    text = choose().explain()
    assert all(name in text for name in ("toy.mix[cutlass]", "toy.mix[cudnn]", "toy.mix[triton]", "toy.mix[torch]"))
    assert all(word in text for word in ("chosen", "outranked", "rejected", "Remedy", "mix-blackwell"))
    assert max(map(len, text.splitlines())) <= 160


# properties

sets = st.one_of(
    st.just(ANY),
    st.lists(st.sampled_from(["7.5", "8.0", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"]), min_size=1).map(
        lambda texts: capabilities(*texts)
    ),
)
kernel_sets = st.dictionaries(st.sampled_from(BACKENDS), sets, min_size=1)
preferences = st.lists(st.sampled_from(BACKENDS), min_size=1, max_size=4, unique=True)


def random_world(declared: dict[str, Any]) -> Registry:
    return Registry([make_op(), *(make_kernel(backend, on) for backend, on in declared.items())])


@given(kernel_sets, st.sampled_from(GPUS), preferences)
def test_a_selection_is_never_outside_its_capability_set(declared: Any, device: str, prefer: list[str]) -> None:
    policy = make_policy(rule("any", prefer))
    here = gpu(device)
    try:
        selection = resolve("mix", here, NOTHING, make_problem(), policy=policy, registry=random_world(declared))
    except NoKernel:
        return
    on = declared[selection.backend]
    assert on is ANY or here.capability in on
    assert {o.backend for o in selection.outranked} | {r.backend for r in selection.rejected} | {
        selection.backend
    } == set(declared)
    assert all(declared[o.backend] is ANY or here.capability in declared[o.backend] for o in selection.outranked)
    assert all(o.by for o in selection.outranked)
    assert all(e.reason and e.remedy and e.code for r in selection.rejected for e in r.decision.every())


@given(kernel_sets, st.sampled_from(GPUS), st.sampled_from(BACKENDS))
def test_an_explicit_choice_is_returned_or_raises(declared: Any, device: str, asked: str) -> None:
    registry = random_world(declared)
    try:
        selection = resolve(
            "mix", gpu(device), NOTHING, make_problem(), policy=Policy(), registry=registry, override=asked
        )
    except NoKernel as error:
        on = declared.get(asked, frozenset())
        assert on is not ANY
        assert gpu(device).capability not in on
        assert str(error)
        return
    assert selection.backend == asked
    assert selection.source == "override"


@given(kernel_sets, st.sampled_from(GPUS), preferences, st.randoms())
def test_the_order_of_registration_decides_nothing(declared: Any, device: str, prefer: list[str], random: Any) -> None:
    policy = make_policy(rule("any", prefer))
    twins = [make_kernel(b, on, name=f"{who}.mix[{b}]") for b, on in declared.items() for who in ("a", "b")]
    outcomes = set()
    for _ in range(3):
        random.shuffle(twins)
        registry = Registry([make_op(), *twins])
        try:
            found = resolve("mix", gpu(device), NOTHING, make_problem(), policy=policy, registry=registry)
            outcomes.add((found.kernel, found.source, found.explain()))
        except NoKernel as error:
            outcomes.add((str(error),))
    assert len(outcomes) == 1


@given(kernel_sets)
def test_12_x_never_receives_a_kernel_of_10_x(declared: Any) -> None:
    only = {b: capabilities("10.x") for b in declared}
    with pytest.raises(NoKernel):
        resolve("mix", gpu("rtx-5090"), NOTHING, make_problem(), policy=Policy(), registry=random_world({**only}))
