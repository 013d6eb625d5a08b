"""The check itself: right kernels of every op pass, sizes are of the problem's kind, and numbers are told apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.policies.select import select_backend
from kernelmux.registry import Rejected
from kernelmux.registry.discovery import BUILTIN, registry
from kernelmux.trust.check import check
from kernelmux.trust.judge import TILE, Limits, judge
from kernelmux.trust.subject import scaled
from kernelmux.trust.subjects import subjects

SIZES = {"M": 33, "H": 640, "N": 768, "K": 512, "E": 64, "topk": 6}


def asked(op: Any) -> dict[str, int]:
    small = {"N": 128, "K": 128, "E": 8, "topk": 2} if op.name == "fused_moe" else {}
    return {axis: {**SIZES, **small}[axis] for axis in op.axes}


@pytest.mark.parametrize("name", BUILTIN)
def test_every_torch_kernel_passes_in_every_scheme(name: str) -> None:
    op = registry().op(name)
    for kernel in registry().kernels(name):
        if kernel.backend != "torch":
            continue
        for scheme in sorted(op.schemes):
            activation = op.activations[0] if op.activations else None
            question: dict[str, Any] = dict(device="cpu", quant=scheme, dtype=op.dtypes[0], activation=activation)
            try:
                selection = select_backend(name, shape=asked(op), backend=kernel.name, **question)
            except Exception as error:
                assert "cannot run" in str(error)
                continue
            report = check(selection)
            assert report.ok, f"{kernel.name} {scheme}: {report.reason}"
            assert len(report.cases) >= 4
            assert max(case.finding.share for case in report.cases) < 0.75, "room for kernels of another order"


@pytest.mark.parametrize("name", BUILTIN)
def test_there_is_a_check_for_every_op(name: str) -> None:
    op = registry().op(name)
    kernel = next(kernel for kernel in registry().kernels(name) if kernel.backend == "torch")
    activation = op.activations[0] if op.activations else None
    selection = select_backend(
        name, device="cpu", dtype=op.dtypes[0], backend=kernel.name, shape=asked(op), activation=activation,
        quant=next(s for s in ("none", "fp8_block", "nvfp4") if s in op.schemes),
    )  # fmt: skip
    subject = next(subjects(selection))
    call = subject.call(subject.own_m or 8, False, 0)
    want = subject.want(call)
    assert all(torch.isfinite(result.float()).all() for result in want)
    assert any(result.any() for result in want)


def test_a_check_is_made_of_several_m_and_a_mixed_batch() -> None:
    selection = select_backend(
        "rms_norm", device="cpu", backend="torch", dtype="bfloat16", shape={"M": (5, 100), "H": 64}
    )
    cases = check(selection).cases
    assert {5, 100, 8, 1, 33, 65, 129, 257} <= {case.m for case in cases}
    assert [case.brief for case in cases if case.mixed] == ["M=33, mixed batch", "M=129, mixed batch"]


def test_a_mixed_batch_has_rows_of_zeros_large_and_tiny_ones() -> None:
    selection = select_backend("rms_norm", device="cpu", backend="torch", dtype="bfloat16", shape={"M": 5, "H": 64})
    x = next(subjects(selection)).call(33, True, 0)["x"].float()
    norms = x.norm(dim=1)
    assert (norms[0::4] == 0).all()
    assert norms[1::4].min() > 8 * norms[3::4].max() / 16
    assert norms[2::4].max() < norms[3::4].min()


def test_sizes_that_the_kernel_demands_are_kept() -> None:
    class Whole:
        def check(self, device: Any, packages: Any, problem: Any) -> Any:
            from kernelmux.registry import ACCEPTED

            fits = problem.shape.get("N") == 4096
            return ACCEPTED if fits else Rejected("size", "N must be 4096", "none")

        def describe(self) -> str:
            return "N of 4096"

    from tests.unit.trust import planted
    from tests.unit.trust.world import choose

    kernel = planted.kernel("half_of_k", "router_gemm", requirements=(Whole(),))
    planted.mended = True
    report = check(choose(kernel, "router_gemm", shape={"M": 4, "N": 4096, "K": 1024}))
    assert report.ok
    assert report.sizes["N"] == 4096


@given(st.integers(1, 200_000), st.integers(16, 4096))
def test_a_scaled_size_divides_as_the_whole_one_does(size: int, cap: int) -> None:
    small = scaled(size, cap)
    assert 1 <= small <= max(size, 1)
    assert small == size if size <= cap else small <= max(cap, math.gcd(size, 256))
    for power in (2, 4, 8, 16, 32, 64, 128):
        assert small == size or (small % power == 0) >= (size % power == 0)
    if size > cap and math.gcd(size, 256) < 256 and small > 1:
        assert math.gcd(small, 256) == math.gcd(size, 256), "no vector width fits that does not fit the whole size"


# the judge


def rows(m: int = 6, n: int = 128) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(1))


def test_right_results_are_right_and_their_numbers_told() -> None:
    want = rows()
    found = judge([want * (1 + 1e-3)], [want], Limits(1e-2))
    assert found.fault == ""
    assert found.error == pytest.approx(1e-3, rel=1e-2)
    assert found.share == pytest.approx(0.05, rel=1e-2)
    assert found.cosine == pytest.approx(1.0)


def test_zeros_in_as_many_columns_as_a_store_writes_are_seen_however_wide_the_row_is() -> None:
    want = rows(4, 16384)
    got = want.clone()
    got[2, 4096 : 4096 + TILE] = 0
    assert float((got - want).norm(dim=1).max() / want.norm(dim=1).max()) < 0.04
    assert judge([got], [want], Limits(0.1)).fault == "zeros in 1 runs of 16 columns, first in row 2 at column 4096"


def test_zeros_where_the_reference_has_zeros_are_right() -> None:
    want = rows()
    want[:, 32:64] = 0
    want[3] = 0
    assert judge([want.clone()], [want], Limits(1e-3)).fault == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_element_that_is_no_number_is_enough(value: float) -> None:
    want = rows()
    got = want.clone()
    got[5, 127] = value
    assert "first in row 5" in judge([got], [want], Limits(1.0)).fault
    assert judge([got], [got], Limits(1.0)).fault == "", "where the reference has none either it is right"


def test_the_size_and_the_direction_of_an_error_are_told_apart() -> None:
    want = rows()
    assert "the direction is right and the size is not" in judge([want * 1.5], [want], Limits(1e-2)).fault
    assert "the values are others" in judge([want.roll(1, dims=1)], [want], Limits(1e-2)).fault


def test_one_wrong_row_among_many_is_seen() -> None:
    want = rows(1000)
    got = want.clone()
    got[777] = want[778]
    assert judge([got], [want], Limits(1e-2)).fault.startswith("row 777 is")


def test_a_small_row_counts_as_a_share_of_the_largest_where_values_share_a_scale() -> None:
    want = rows()
    want[2] *= 1e-4
    got = want.clone()
    got[2] += 1e-4
    assert judge([got], [want], Limits(1e-2)).fault
    assert judge([got], [want], Limits(1e-2, floor=0.05)).fault == ""
