from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.device import capabilities, catalog, resolve_device
from kernelmux.errors import UsageError
from kernelmux.quant import SCHEMES, Scheme
from kernelmux.registry import (
    ACCEPTED,
    ANY,
    BACKENDS,
    ActivationIn,
    Aligned,
    AllOf,
    AnyOf,
    Conditional,
    DtypeIn,
    Kernel,
    KnownIssue,
    NeedsPackage,
    OnCapability,
    Op,
    Packages,
    Predicate,
    Problem,
    Registry,
    Rejected,
    SchemeIn,
    SharedMemory,
    Tolerance,
    VendorIn,
    combine,
    dtype_name,
)

H100, B200, CPU, RTX = map(resolve_device, ("h100-sxm", "b200", "cpu", "rtx-5090"))
NONE = Scheme.of(None)
PROBLEM = Problem("mix", NONE, "bfloat16", {"M": 64, "K": 96}, "silu")
BARE = Problem("mix", NONE)


def check(requirement: Any, device: Any = H100, packages: dict[str, str] | None = None, problem: Any = PROBLEM) -> Any:
    return requirement.check(device, Packages(packages or {}), problem)


CASES: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (OnCapability(capabilities("9.0"), "wgmma"), {}, {"device": B200}, "capability"),
    (OnCapability(capabilities("10.x")), {"device": B200}, {"device": RTX}, "capability"),
    (OnCapability(capabilities("9.0")), {}, {"device": CPU}, "capability"),
    (VendorIn(frozenset({"nvidia", "amd"}), "compiles for GPUs"), {}, {"device": CPU}, "vendor"),
    (NeedsPackage("toy", ">=2", "its API"), {"packages": {"toy": "2.1"}}, {}, "package_missing"),
    (NeedsPackage("toy", ">=2"), {"packages": {"toy": "2.1"}}, {"packages": {"toy": "1.9"}}, "package_version"),
    (DtypeIn(frozenset({"bfloat16"})), {}, {"problem": PROBLEM.but(dtype="float32")}, "dtype"),
    (SchemeIn(frozenset({"none"})), {}, {"problem": PROBLEM.but(scheme=Scheme.of("mxfp4"))}, "scheme"),
    (ActivationIn(frozenset({"silu"})), {}, {"problem": PROBLEM.but(activation="relu")}, "activation"),
    (Aligned("K", 32), {}, {"problem": PROBLEM.but(shape={"K": 33})}, "alignment"),
    (Aligned("M", 1), {}, {"problem": PROBLEM.but(shape={"M": (1, 64)})}, "alignment"),
    (SharedMemory(200_000), {}, {"device": RTX}, "shared_memory"),
    (
        KnownIssue(capabilities("12.x"), {"toy": "<3"}, "NaN on 12.x", "upgrade toy", "https://example.org"),
        {"device": RTX, "packages": {"toy": "3.0"}},
        {"device": RTX, "packages": {"toy": "2.0"}},
        "known_issue",
    ),
]


@pytest.mark.parametrize(("requirement", "good", "bad", "code"), CASES, ids=lambda value: type(value).__name__)
def test_a_requirement_accepts_what_it_states_and_rejects_the_rest_with_a_remedy(
    requirement: Any, good: dict[str, Any], bad: dict[str, Any], code: str
) -> None:
    assert check(requirement, **good) == ACCEPTED
    refused = check(requirement, **bad)
    assert isinstance(refused, Rejected)
    assert refused.code == code
    assert refused.reason
    assert refused.remedy
    assert requirement.describe()
    if getattr(requirement, "why", ""):
        assert requirement.why in refused.reason


@pytest.mark.parametrize(
    "requirement", [DtypeIn(frozenset({"bfloat16"})), ActivationIn(frozenset({"silu"})), Aligned("K", 8)]
)
def test_what_was_not_given_makes_it_conditional(requirement: Any) -> None:
    answer = check(requirement, problem=BARE)
    assert isinstance(answer, Conditional)
    assert "not given" in answer.conditions[0]


def test_what_is_needed_only_to_run_is_a_condition_and_not_a_rejection() -> None:
    answer = check(NeedsPackage("torch", ">=2.4", to_run=True, install="pip install 'kernelmux[torch]'"))
    assert isinstance(answer, Conditional)
    assert "pip install 'kernelmux[torch]'" in answer.conditions[0]


def test_a_known_issue_says_nothing_where_the_package_is_not_there() -> None:
    assert check(KnownIssue(ANY, {"toy": "<3"}, "NaN", "upgrade"), packages={}) == ACCEPTED


def test_any_capability_means_any() -> None:
    assert all(check(OnCapability(ANY), device=device) == ACCEPTED for device in catalog().values())


def test_a_capability_is_in_the_set_or_it_is_not() -> None:
    newer = OnCapability(capabilities("10.0"))
    assert [d.name for d in catalog().values() if check(newer, device=d) == ACCEPTED] == ["b200", "gb200"]


def test_all_of_reports_every_reason_and_keeps_the_order() -> None:
    both = AllOf((Aligned("K", 64), VendorIn(frozenset({"amd"})), Aligned("M", 7)))
    refused = check(both)
    assert [reason.code for reason in refused.every()] == ["alignment", "vendor", "alignment"]
    assert " and " in both.describe()


def test_any_of_takes_an_unconditional_answer_before_a_conditional_one() -> None:
    either = AnyOf((Aligned("N", 8), VendorIn(frozenset({"nvidia"}))))
    assert check(either) == ACCEPTED
    assert isinstance(check(AnyOf((Aligned("N", 8), VendorIn(frozenset({"amd"}))))), Conditional)
    refused = check(AnyOf((Aligned("K", 64), VendorIn(frozenset({"amd"})))))
    assert [reason.code for reason in refused.every()] == ["alignment", "vendor"]
    assert " or " in either.describe()


answers = st.lists(
    st.one_of(
        st.just(ACCEPTED),
        st.builds(lambda texts: Conditional(tuple(texts)), st.lists(st.sampled_from("abc"), min_size=1)),
        st.builds(lambda code: Rejected(code, "r", "m"), st.sampled_from("xyz")),
    ),
    max_size=6,
)


@given(answers)
def test_combining_loses_no_reason_and_no_condition(given_answers: list[Any]) -> None:
    whole = combine(given_answers)
    codes = [answer.code for answer in given_answers if isinstance(answer, Rejected)]
    conditions = {text for a in given_answers if isinstance(a, Conditional) for text in a.conditions}
    if codes:
        assert isinstance(whole, Rejected)
        assert [reason.code for reason in whole.every()] == codes
    elif conditions:
        assert isinstance(whole, Conditional)
        assert set(whole.conditions) == conditions
    else:
        assert whole == ACCEPTED


@given(answers, answers)
def test_combining_in_steps_is_combining_at_once(first: list[Any], second: list[Any]) -> None:
    assert combine([combine(first), combine(second)]) == combine(first + second)


# values


def test_requirements_are_values() -> None:
    one, same = Aligned("K", 8, "why"), Aligned(axis="K", multiple=8, why="why")
    assert one == same
    assert hash(one) == hash(same)
    assert one != Aligned("K", 16)
    assert one != SharedMemory(8)
    assert repr(one) == "Aligned(axis='K', multiple=8, why='why')"
    assert pickle.loads(pickle.dumps(one)) == one
    assert {one, same} == {one}
    with pytest.raises(AttributeError, match="immutable"):
        one.axis = "N"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del one.axis


@pytest.mark.parametrize("args", [((), {}), (("K", 8, "w", 1), {}), (("K",), {"axis": "K"}), (("K", 8), {"wy": ""})])
def test_a_value_refuses_wrong_arguments(args: Any) -> None:
    with pytest.raises(TypeError, match="Aligned"):
        Aligned(*args[0], **args[1])


# registration


def make_op(name: str = "mix", **changes: Any) -> Op:
    code = dict.fromkeys(("reference", "meta", "examples", "problem"), "toy:run")
    return Op(
        **{
            **code,
            "name": name,
            "summary": "",
            "schema": "",
            "axes": ("M", "K"),
            "token_axis": "M",
            "schemes": frozenset(SCHEMES),
            "dtypes": ("bfloat16",),
            "tolerance": {"bfloat16": Tolerance(1e-2, 0.0, "8 bits")},
            **changes,
        }
    )


def make_kernel(**changes: Any) -> Kernel:
    facts = {"name": "k", "op": "mix", "backend": "triton", "load": "toy:run", "requirements": (OnCapability(ANY),)}
    return Kernel(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "fastest"}, "backend 'fastest' is not one of torch"),
        ({"load": "toy.run"}, "load must read module:function"),
        ({"prepare": "toy:"}, "prepare must read module:function"),
        ({"requirements": ()}, "exactly one OnCapability"),
        ({"requirements": (OnCapability(ANY), OnCapability(ANY))}, "exactly one OnCapability"),
        ({"op": "mixx"}, "its op 'mixx' is not registered"),
        ({"evidence": {"sm_90": "hearsay"}}, "evidence 'hearsay'"),
    ],
)
def test_a_faulty_declaration_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    registry = Registry([make_op()])
    with pytest.raises(UsageError, match=words) as caught:
        registry.add(make_kernel(**changes))
    assert "kernel k cannot be registered" in str(caught.value)
    assert registry.kernels("mix") == ()


def test_registration_is_all_or_nothing_and_names_are_taken_once() -> None:
    registry = Registry([make_op(), make_kernel()])
    with pytest.raises(UsageError, match="another kernel has this name"):
        registry.add(make_kernel(name="other"), make_kernel())
    assert [kernel.name for kernel in registry.kernels("mix")] == ["k"]
    with pytest.raises(UsageError, match="op mix is registered already"):
        registry.add(make_op())
    with pytest.raises(UsageError, match="only an Op or a Kernel"):
        registry.add("kernel")  # type: ignore[arg-type]


def test_kernels_come_in_the_order_of_their_names() -> None:
    names = ["b", "c", "a"]
    registry = Registry([make_op(), *(make_kernel(name=name) for name in names)])
    assert [kernel.name for kernel in registry.kernels("mix")] == sorted(names)


def test_a_predicate_is_loaded_when_asked() -> None:
    assert check(Predicate(f"{__name__}:refuse", "never")) == Rejected("never", "it never does", "wait")


def refuse(device: Any, packages: Any, problem: Any) -> Rejected:
    return Rejected("never", "it never does", "wait")


@pytest.mark.parametrize("spelling", ["bf16", "bfloat16", "torch.bfloat16"])
def test_a_dtype_has_one_name(spelling: str) -> None:
    assert dtype_name(spelling) == "bfloat16"


def test_there_is_one_list_of_backend_words() -> None:
    assert len(set(BACKENDS)) == len(BACKENDS) == 15
