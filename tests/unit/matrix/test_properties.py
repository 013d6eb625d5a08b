"""What must hold of every selection, whatever is asked, on the ops and kernels kernelmux ships."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelmux.device import capabilities, catalog, resolve_device
from kernelmux.errors import NoKernel
from kernelmux.policies.policy import Policy
from kernelmux.policies.releases import released
from kernelmux.policies.resolve import Explicit, complete, resolve
from kernelmux.policies.selection import Selection
from kernelmux.quant import Scheme
from kernelmux.registry import BACKENDS, Kernel, Op, Packages, Problem, Rejected, discovery

REGISTRY = discovery.registry()
OPS = REGISTRY.ops()
SIZES = st.sampled_from([1, 7, 8, 16, 64, 96, 128, 704, 1859, 4096, 7168])
DEMANDS = sorted({promise for kernel in REGISTRY for promise in kernel.numerics.promises})

# Versions a machine may have: released ones, and for what carries CUDA or cuDNN some of each age.
VERSIONS: dict[str, tuple[str, ...]] = {
    **released(),
    "nvidia-cuda-runtime-cu12": ("12.4.127", "12.8.90", "12.9.79"),
    "nvidia-cudnn-cu13": ("9.5.0", "9.12.0", "9.24.0"),
    "ninja": ("1.13.0",),
    "flashinfer-cubin": ("0.7.2",),
    "deep-gemm": ("2.1.0",),
    "sgl-deep-gemm": ("0.2.3",),
}


@st.composite
def asked(draw: Any, op: Op | None = None) -> Problem:
    """A problem of any op; each axis may be missing, M may be a range."""
    about = op or draw(st.sampled_from(OPS))
    shape: dict[str, Any] = {axis: draw(SIZES) for axis in about.axes if draw(st.integers(0, 3))}
    if about.token_axis in shape and draw(st.booleans()):
        shape[about.token_axis] = tuple(sorted((shape[about.token_axis], draw(SIZES))))
    return Problem(
        about.name,
        Scheme.of(draw(st.sampled_from(sorted(about.schemes)))),
        draw(st.sampled_from([None, *about.dtypes])),
        shape,
        draw(st.sampled_from([None, *about.activations])),
        frozenset(draw(st.lists(st.sampled_from(DEMANDS), max_size=1))),
    )


devices = st.sampled_from(sorted(catalog())).map(resolve_device)
versions = st.dictionaries(st.sampled_from(sorted(VERSIONS)), st.integers(0, 400), max_size=8).map(
    lambda picks: {name: VERSIONS[name][pick % len(VERSIONS[name])] for name, pick in picks.items()}
)
installed = st.one_of(st.just(Packages.assume_all()), versions.map(Packages))
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def select(problem: Problem, device: Any, packages: Packages, **more: Any) -> Selection | NoKernel:
    policy = Policy.builtin(problem.op)
    try:
        return resolve(problem.op, device, packages, problem, policy=policy, registry=REGISTRY, **more)
    except NoKernel as error:
        return error


def judge(kernel: Kernel, problem: Problem, device: Any, packages: Packages) -> Any:
    op = REGISTRY.op(problem.op)
    return kernel.judge(op, device, packages, complete(op, device, problem)[0])


@many
@given(asked(), devices, installed)
def test_no_selection_violates_a_requirement(problem: Problem, device: Any, packages: Packages) -> None:
    chosen = select(problem, device, packages)
    if isinstance(chosen, NoKernel):
        return
    assert not isinstance(judge(chosen.declaration, problem, device, packages), Rejected)
    assert problem.demands <= chosen.declaration.numerics.promises
    assert chosen.why


@many
@given(asked(), devices, installed)
def test_every_candidate_is_chosen_outranked_or_rejected_with_a_reason_and_a_remedy(
    problem: Problem, device: Any, packages: Packages
) -> None:
    found = select(problem, device, packages)
    rejected = {other.kernel: other for other in found.rejected}
    told = set(rejected)
    if isinstance(found, Selection):
        told |= {found.kernel, *(other.kernel for other in found.outranked)}
        assert all(other.by for other in found.outranked)
    else:
        assert all(REGISTRY.kernel(name) for name in rejected)
    assert all(other.reason and other.remedy for other in rejected.values())
    if isinstance(found, Selection) or len(rejected) == len(REGISTRY.kernels(problem.op)):
        assert told == {kernel.name for kernel in REGISTRY.kernels(problem.op)}


@many
@given(asked(), devices, installed, st.sampled_from(BACKENDS))
def test_an_explicit_choice_is_returned_or_raises(
    problem: Problem, device: Any, packages: Packages, backend: str
) -> None:
    found = select(problem, device, packages, override=Explicit(backend))
    if isinstance(found, Selection):
        assert (found.backend, found.source) == (backend, "override")
    else:
        assert "What would work" in str(found)


# A package that is added can only take a candidate away where it is itself what the reason speaks of: its version lies
# in the window of a known issue, or out of the range that a kernel needs of it in order to run (missing, that was a
# condition; there in another version, it is known not to fit).
BY_ITS_VERSION = {"known_issue", "package_version"}


@many
@given(asked(), devices, versions, st.sampled_from(sorted(VERSIONS)), st.integers(0, 400))
def test_adding_a_package_removes_no_candidate_but_by_its_own_version(
    problem: Problem, device: Any, before: dict[str, str], name: str, pick: int
) -> None:
    if name in before:
        return
    version = VERSIONS[name][pick % len(VERSIONS[name])]
    without, along = Packages(before), Packages({**before, name: version})
    for kernel in REGISTRY.kernels(problem.op):
        if isinstance(judge(kernel, problem, device, without), Rejected):
            continue
        after = judge(kernel, problem, device, along)
        if isinstance(after, Rejected):
            assert {reason.code for reason in after.every()} <= BY_ITS_VERSION, (kernel.name, name, version, after)


@many
@given(asked(), devices, versions, st.sampled_from(sorted(VERSIONS)))
def test_a_package_of_a_version_that_is_assumed_to_suit_removes_no_candidate(
    problem: Problem, device: Any, some: dict[str, str], name: str
) -> None:
    for kernel in REGISTRY.kernels(problem.op):
        if not isinstance(judge(kernel, problem, device, Packages({})), Rejected):
            assert not isinstance(judge(kernel, problem, device, Packages.assume_all()), Rejected), kernel.name


@many
@given(asked(), st.sampled_from(["rtx-5090", "rtx-pro-6000-server", "gb10"]).map(resolve_device), installed)
def test_12_x_never_receives_a_kernel_of_10_x(problem: Problem, device: Any, packages: Packages) -> None:
    found = select(problem, device, packages)
    if isinstance(found, NoKernel):
        return
    for name in (found.kernel, *(other.kernel for other in found.outranked)):
        kernel = REGISTRY.kernel(name)
        assert kernel is not None
        assert kernel.capabilities is None or device.capability in kernel.capabilities, name
        assert kernel.capabilities is None or not kernel.capabilities <= capabilities("10.x"), name


@many
@given(asked(), st.sampled_from(["sm_999", "sm77", "10.7", "13.0"]).map(resolve_device), installed)
def test_a_gpu_nobody_listed_is_untrusted_and_gets_portable_kernels_only(
    problem: Problem, device: Any, packages: Packages
) -> None:
    found = select(problem, device, packages)
    assert all(
        REGISTRY.kernel(other.kernel).portable or "untrusted" in {r.code for r in other.decision.every()}  # type: ignore[union-attr]
        for other in found.rejected
    )
    if isinstance(found, NoKernel):
        return
    assert found.declaration.portable
    assert any("untrusted" in condition for condition in found.conditions)
    assert all(REGISTRY.kernel(other.kernel).portable for other in found.outranked)  # type: ignore[union-attr]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_gpu_nobody_listed_gets_something_for_an_unquantized_layer(op: Op) -> None:
    if "none" in op.schemes:
        found = select(Problem(op.name, Scheme.of(None)), resolve_device("sm_999"), Packages.assume_all())
        assert isinstance(found, Selection)
        assert "untrusted" in found.explain()
