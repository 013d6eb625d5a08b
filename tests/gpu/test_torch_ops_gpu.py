"""The torch kernels of the plain ops on a live GPU: every example, fp8 tensor cores, fp32 logits, CUDA graphs."""

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.backends.torch import fp8_gemm, router  # noqa: E402
from kernelmux.contracts import gemm_fp8_math, router_math  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

pytestmark = pytest.mark.gpu

KERNELS = [k for k in registry() if k.backend == "torch" and k.op != "fused_moe"]


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def split(op, call):
    call = dict(call)
    x = call.pop(next(iter(call)))
    return x, {name: call.pop(name) for name in (*op.weights, *op.optional_weights) if name in call}, call


def selected(kernel, dtype, call):
    """(a function of no arguments that runs the kernel, the reference's answer)."""
    op = registry().op(kernel.op)
    x, tensors, options = split(op, call)
    scheme = load(op.scheme_of)(**call) if op.scheme_of else None
    chosen = km.select_backend(op.name, device="cuda", quant=scheme, dtype=dtype, backend=kernel.name)
    weights = chosen.prepare(**tensors) if tensors else None
    return lambda: chosen(x, weights, **options), load(op.reference)(**call)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_example_stays_inside_the_tolerance(kernel):
    op = registry().op(kernel.op)
    for dtype in op.dtypes:
        tolerance = op.tolerance[dtype]
        for call in load(op.examples)("cuda", getattr(torch, dtype)):
            run, want = selected(kernel, dtype, call)
            for mine, ideal in zip(outputs(run()), outputs(want), strict=True):
                assert mine.shape == ideal.shape and mine.is_cuda
                if ideal.dtype != torch.float32:
                    assert torch.equal(mine.view(torch.int8), ideal.view(torch.int8))
                elif ideal.numel():
                    size = ideal.shape[-1] if ideal.dim() else 1
                    error = (mine.float() - ideal).view(-1, size).norm(dim=1)
                    limit = tolerance.rtol * ideal.view(-1, size).norm(dim=1) + tolerance.atol * size**0.5
                    assert (error <= limit).all(), (dtype, float((error / limit).max()))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.capturable], ids=lambda kernel: kernel.name)
def test_a_captured_call_replays(kernel):
    op = registry().op(kernel.op)
    dtype = op.dtypes[0]
    run, _ = selected(kernel, dtype, next(iter(load(op.examples)("cuda", getattr(torch, dtype)))))
    want = outputs(run())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = outputs(run())
    for result in got:
        result.view(torch.uint8).fill_(0xAA)
    graph.replay()
    for mine, eager in zip(got, want, strict=True):
        assert torch.equal(mine.view(torch.uint8), eager.view(torch.uint8))


@pytest.mark.parametrize("scheme", ["fp8_tensor", "fp8_channel"])
def test_fp8_tensor_cores_agree_with_dequantized_operands(scheme, monkeypatch):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 units")
    x = torch.randn(96, 1024, device="cuda").bfloat16()
    w, w_scale = gemm_fp8_math.quantize_weight(torch.randn(512, 1024, device="cuda"), scheme)
    weights = fp8_gemm.prepare(w=w, w_scale=w_scale)
    used = []
    monkeypatch.setattr(fp8_gemm, "_scaled", lambda *a, real=fp8_gemm._scaled: used.append(1) or real(*a))
    got = fp8_gemm.run(x, weights, out_dtype=torch.float32)
    assert used
    want = gemm_fp8_math.reference(x, w, w_scale)
    assert ((got - want).norm() / want.norm()) < 1e-3
    monkeypatch.setattr(fp8_gemm, "_multiplies_fp8", lambda *a: False)
    assert ((fp8_gemm.run(x, weights).float() - want).norm() / want.norm()) < 4e-3


def test_router_logits_are_not_rounded_to_16_bits():
    x, w = (torch.randn(size, 2048, device="cuda").bfloat16() for size in (64, 128))
    got = router.router_gemm(x, w)
    assert got.dtype == torch.float32 and (got != got.bfloat16().float()).float().mean() > 0.9
    want = x.double() @ w.double().T
    assert ((got.double() - want).norm() / want.norm()) < 1e-5
    torch.testing.assert_close(router_math.router_gemm_reference(x, w), got, rtol=1e-3, atol=1e-2)
