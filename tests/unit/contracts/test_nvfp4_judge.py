"""The judge of NVFP4 kernels passes what is right and names what is not."""

import pytest

torch = pytest.importorskip("torch")

from kernelmux.contracts.nvfp4 import OPS  # noqa: E402
from kernelmux.contracts.nvfp4_judge import fault  # noqa: E402
from kernelmux.contracts.nvfp4_layouts import swizzle, unswizzle  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

QUANTIZING = [op for op in OPS if op.decoded]
EXACT, LOOSE = frozenset({"bit_exact"}), frozenset()


def calls(op):
    return list(load(op.examples)("cpu", getattr(torch, op.dtypes[0])))


def right(op, call):
    found = load(op.reference)(**call)
    return tuple(part.clone() for part in found) if isinstance(found, tuple) else found.clone()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_reference_itself_is_right_under_every_promise(op):
    for call in calls(op):
        for promises in (EXACT, LOOSE):
            assert fault(op, call, promises, right(op, call)) is None


@pytest.mark.parametrize("op", QUANTIZING, ids=lambda op: op.name)
def test_one_bit_is_a_fault_only_for_who_promises_the_bytes(op):
    call = calls(op)[0]
    values, scales = right(op, call)
    values[0, -1] ^= 1  # a step of the last code of the smallest kind
    assert "1 of" in fault(op, call, EXACT, (values, scales))
    assert fault(op, call, LOOSE, (values, scales)) is None


@pytest.mark.parametrize("op", QUANTIZING, ids=lambda op: op.name)
def test_zeros_nans_and_scales_of_the_other_layout_are_faults_for_everybody(op):
    call = next(c for c in calls(op) if c["x"].shape[0] == 5)
    values, scales = right(op, call)
    assert fault(op, call, LOOSE, (torch.zeros_like(values), scales))
    broken = scales.clone()
    broken.view(torch.uint8)[0, 0] = 0x7F
    assert "NaN" in fault(op, call, LOOSE, (values, broken))
    assert fault(op, call, LOOSE, (values, swizzle(scales)))
    assert fault(op, call, LOOSE, values)


def test_swizzled_scales_said_to_be_linear_are_found_where_both_have_one_shape():
    op = QUANTIZING[0]
    call = dict(x=torch.randn(128, 256).bfloat16(), global_scale=torch.tensor(1e-3))
    call["x"] *= torch.exp(2 * torch.randn(128, 1)).bfloat16()
    values, scales = right(op, call)
    assert scales.shape == swizzle(scales).shape
    assert "times as far" in fault(op, call, LOOSE, (values, swizzle(scales)))
    assert torch.equal(unswizzle(swizzle(scales), 128, 16).float(), scales.float())
