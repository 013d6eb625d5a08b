"""km.ops: which ops it has, how arguments reach a kernel, overrides, and what happens after freeze()."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch registers the ops")

import kernelmux as km  # noqa: E402
from kernelmux.errors import NoKernel  # noqa: E402
from kernelmux.registry import frozen  # noqa: E402

X, WEIGHT = torch.randn(16, 512).bfloat16(), (1 + torch.rand(512)).bfloat16()


def test_every_declared_op_is_listed():
    assert {"fused_moe", "rms_norm", "topk", "nvfp4_gemm", "relu2"} <= set(dir(km.ops))


def test_an_unknown_op_is_an_attribute_error_with_near_names():
    with pytest.raises(AttributeError, match="Did you mean rms_norm"):
        _ = km.ops.rms_nrm
    assert not hasattr(km.ops, "rms_nrm")


def test_positions_and_keywords_mean_the_same():
    call = dict(x=X, residual=-X.flip(0).contiguous(), weight=WEIGHT, eps=1e-5)
    by_name, by_place = km.ops.fused_add_rms_norm(**call), km.ops.fused_add_rms_norm(*call.values())
    assert all(torch.equal(a, b) for a, b in zip(by_name, by_place, strict=True))


def test_an_override_by_backend_or_kernel_reaches_the_op():
    default = km.ops.rms_norm(X, WEIGHT)
    with km.override("rms_norm", backend="torch"):
        assert torch.equal(km.ops.rms_norm(X, WEIGHT), default)
    with km.override("rms_norm", backend="kernelmux.rms_norm[torch]"):
        once = km.ops.rms_norm(X, WEIGHT)
    assert not torch.equal(once, default), "rounding once and twice differ"
    assert torch.equal(km.ops.rms_norm(X, WEIGHT), default)


def test_the_environment_is_honoured_or_raises(monkeypatch):
    monkeypatch.setenv("KERNELMUX_RMS_NORM_BACKEND", "jit_cuda")
    with pytest.raises(NoKernel, match="KERNELMUX_RMS_NORM_BACKEND=jit_cuda"):
        km.ops.rms_norm(X, WEIGHT)


def test_after_warmup_and_freeze_an_op_still_runs_for_other_token_counts():
    for op, width in (("silu_and_mul", 256), ("rms_norm", 512)):
        km.warmup(op, device="cpu", dtype="bfloat16", shape={"M": (1, 64), "H": width})
    want = km.ops.silu_and_mul(X), km.ops.rms_norm(X, WEIGHT)
    km.freeze()
    try:
        assert torch.equal(km.ops.silu_and_mul(X[:5]), want[0][:5])
        torch.testing.assert_close(km.ops.rms_norm(X[:5], WEIGHT), want[1][:5])
    finally:
        frozen.set_frozen(False)


def test_reading_the_list_of_ops_imports_no_torch():
    code = "import sys, kernelmux as km; dir(km.ops); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
