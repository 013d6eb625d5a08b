"""The calls that the GPU tests of small ops make, on the CPU with torch's kernels: each op can be called with them."""

import pytest

torch = pytest.importorskip("torch")

from kernelmux.errors import BadShape  # noqa: E402
from tests.gpu import small_calls  # noqa: E402

TORCH = [kernel for kernel in small_calls.KERNELS if kernel.backend == "torch"]


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setattr(small_calls, "DEVICE", "cpu")


@pytest.mark.parametrize("lies", ["packed", "strided", "odd", "misaligned", "odd misaligned"])
@pytest.mark.parametrize("kernel", TORCH, ids=lambda kernel: kernel.name)
def test_every_small_op_can_be_called(kernel, lies):
    op = small_calls.KNOWN.op(kernel.op)
    for m, h in ((5, 128), (3, 7), (0, 256)):
        try:
            call, around = small_calls.inputs(op, m, h, "bfloat16", lies, "strided")
        except BadShape:
            assert h == 7, "only a size that is no whole number of blocks may be refused"
            continue
        call.poison()
        results = small_calls.run(kernel, call)
        assert small_calls.wrong(kernel, "bfloat16", call) is None
        assert small_calls.untouched(around)
        assert all(result.shape == out.shape for result, out in zip(results, call.outs, strict=True))
        bare = small_calls.run(kernel, call, with_outs=False)
        assert small_calls.wrong(kernel, "bfloat16", call, bare) is None


def test_every_small_op_has_a_kernel_of_torch_here():
    assert {kernel.op for kernel in TORCH} == {op.name for op in small_calls.OPS}
