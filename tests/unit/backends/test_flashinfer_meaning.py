"""Layouts and scales handed to FlashInfer mean what its documentation says they do.

The fakes compute in fp32 from exactly what they are given: swizzled scales are read back by the documented formula, MoE
rows are taken as [up; gate], scales are multiplied in the documented order. The contracts' references are the judge.
What a GPU does with the same arguments is not shown here.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kernelmux.backends.deepgemm import fp8_gemm as deepgemm_fp8  # noqa: E402
from kernelmux.backends.flashinfer import (  # noqa: E402
    fp8_gemm,
    layouts,
    moe_cutedsl,
    moe_cutlass,
    moe_trtllm,
    nvfp4_gemm,
    quantize,
)
from kernelmux.contracts import gemm_fp8_math, nvfp4_math  # noqa: E402
from kernelmux.device import resolve_device  # noqa: E402
from tests.unit.backends.fake_library import FLASHINFER_FACTS, ActivationType, install  # noqa: E402

M, N, K, E, TOPK = 5, 128, 256, 3, 2
FP8 = torch.float8_e4m3fn


def _linear_scales(swizzled, rows, columns):
    """Scales [rows, columns] out of a flat swizzled buffer."""
    flat, tiles = swizzled.reshape(-1).view(torch.uint8), -(-columns // 4)
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return flat[(r // 128 * tiles + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4].view(FP8)


def _fp4_quantize(bound):
    """Documented: the global scale multiplies; block scales swizzled or linear, as bytes."""
    x = bound["input"]
    values, scales = nvfp4_math.quantize_reference(x, 1.0 / bound["global_scale"].reshape(()))
    scales = scales.view(torch.uint8)
    return values, layouts.swizzle_128x4(scales) if bound.get("is_sf_swizzled_layout", True) else scales


ONE = torch.tensor(1.0)


def _mm_fp4(bound):
    """Documented: a [M, K/2], b and b_descale are transposed views, out = alpha * deq(a) @ deq(b)."""
    a, b = bound["a"], bound["b"].T
    k = 2 * a.shape[1]
    left = nvfp4_math.dequantize(a, _linear_scales(bound["a_descale"], a.shape[0], k // 16), ONE)
    right = nvfp4_math.dequantize(b, _linear_scales(bound["b_descale"].T.contiguous(), b.shape[0], k // 16), ONE)
    return (bound["alpha"] * (left @ right.T)).to(bound["out_dtype"])


def _fp4(rows, columns, factor):
    return nvfp4_math.quantize_reference(torch.randn(rows, columns), torch.tensor(factor))


def _close(out, exact, bound=0.02):
    assert out.shape == exact.shape
    assert ((out.float() - exact.float()).norm() / exact.float().norm()).item() < bound


def test_mm_fp4_gets_scales_that_give_the_contracts_product(monkeypatch):
    install(monkeypatch, "flashinfer-python", {"flashinfer:fp4_quantize": _fp4_quantize, "flashinfer:mm_fp4": _mm_fp4})
    torch.manual_seed(0)
    x, (w, w_scale) = torch.randn(2, M, K).bfloat16(), _fp4(N, K, 1e-3)
    weights = {"w": w, "w_scale": w_scale, "w_global_scale": torch.tensor(1e-3)}
    ready = nvfp4_gemm.prepare_swizzled(None, **weights, input_scale=torch.tensor(2e-3))
    exact = nvfp4_math.gemm_reference(x, **weights, input_scale=torch.tensor(2e-3))
    _close(nvfp4_gemm.run_cutlass(x, ready), exact)


def test_fp4_quantize_gives_the_contracts_bytes(monkeypatch):
    install(monkeypatch, "flashinfer-python", {"flashinfer:fp4_quantize": _fp4_quantize})
    torch.manual_seed(0)
    x, factor = torch.randn(2, 3, 64).bfloat16(), torch.tensor(0.25)
    values, scales = quantize.run_jit_cuda(x, global_scale=factor)
    exact_values, exact_scales = nvfp4_math.quantize_reference(x, factor)
    assert torch.equal(values, exact_values)
    assert torch.equal(scales.view(torch.uint8), exact_scales.view(torch.uint8))


def test_fp4_quantize_swizzles_and_writes_where_it_is_told(monkeypatch):
    install(monkeypatch, "flashinfer-python", {"flashinfer:fp4_quantize": _fp4_quantize})
    x, factor = torch.randn(2, 65, 80).bfloat16(), torch.tensor(0.25)
    want = nvfp4_math.quantize_reference(x, factor, "swizzled_128x4")
    out, scale_out = torch.zeros_like(want[0]), torch.zeros_like(want[1])
    got = quantize.run_jit_cuda(x, global_scale=factor, layout="swizzled_128x4", out=out, scale_out=scale_out)
    assert got[0] is out and got[1] is scale_out and torch.equal(out, want[0])
    assert torch.equal(scale_out.view(torch.uint8), want[1].view(torch.uint8))
    none = quantize.run_cutedsl(x[:0], global_scale=factor, layout="swizzled_128x4")
    assert none[0].shape == (0, 65, 40) and none[1].shape == (0, 8)


@pytest.mark.parametrize("layout", ["linear", "swizzled_128x4"])
@pytest.mark.parametrize("word", ["cutlass", "cudnn", "cutedsl", "b12x"])
def test_nvfp4_mm_gets_both_operands_as_the_contract_has_them(monkeypatch, word, layout):
    calls = install(monkeypatch, "flashinfer-python", {"flashinfer:mm_fp4": _mm_fp4})
    a, a_sf = nvfp4_math.quantize_reference(torch.randn(5, K), ONE, layout)
    b, b_sf = nvfp4_math.quantize_reference(torch.randn(N, K), ONE, layout)
    given = dict(a_sf=a_sf, b=b, b_sf=b_sf, alpha=torch.tensor(0.25), layout=layout)
    out = getattr(nvfp4_gemm, f"mm_{word}")(a, None, **given)
    assert out.dtype == torch.bfloat16
    _close(out, nvfp4_math.mm_reference(a, **given), 0.005)
    assert calls[0].bound["backend"] == {"cutedsl": "cute-dsl"}.get(word, word)
    assert getattr(nvfp4_gemm, f"mm_{word}")(a[:0], None, **{**given, "a_sf": a_sf[:0]}).shape == (0, N)


def _blocks(scales, rows, columns):
    return scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]


@pytest.mark.parametrize("backend", ["cutlass", "trtllm"])
def test_groupwise_gemm_gets_the_major_order_its_backend_wants(monkeypatch, backend):
    def gemm(bound):
        a_scale = bound["a_scale"] if bound["scale_major_mode"] == "K" else bound["a_scale"].T
        assert (bound["scale_major_mode"] is None) is (backend == "trtllm")
        assert tuple(a_scale.shape) == (M, K // 128)
        left = bound["a"].float() * a_scale.repeat_interleave(128, 1)
        right = bound["b"].float() * _blocks(bound["b_scale"], *bound["b"].shape)
        return (left @ right.T).to(bound["out_dtype"])

    install(monkeypatch, "flashinfer-python", {"flashinfer.gemm:gemm_fp8_nt_groupwise": gemm})
    torch.manual_seed(0)
    x, w, w_scale = torch.randn(M, K).bfloat16(), torch.randn(N, K).to(FP8), torch.rand(1, 2) + 0.5
    ready = fp8_gemm.prepare_block(None, w=w, w_scale=w_scale)
    out = getattr(fp8_gemm, f"run_gemm_fp8_nt_groupwise_{backend}")(x, ready)
    _close(out, gemm_fp8_math.reference(x, w, w_scale))


@pytest.mark.parametrize(
    ("device", "powers_of_two", "bound"), [("h100-sxm", False, 0.02), ("b200", True, 0.05), ("b200", False, 0.06)]
)
def test_deepgemm_gets_scales_that_give_the_contracts_product(monkeypatch, device, powers_of_two, bound):
    """From 10.0 on x is rounded under another scale than the reference's, and weights too unless theirs fit."""

    def gemm(bound):
        (a, a_scale), (b, b_scale) = bound["a"], bound["b"]
        if not bound["disable_ue8m0_cast"]:
            assert torch.equal(a_scale.log2(), a_scale.log2().round())
            assert torch.equal(b_scale.log2(), b_scale.log2().round())
        left = a.float() * a_scale.repeat_interleave(128, 1)
        bound["d"].copy_(left @ (b.float() * _blocks(b_scale, *b.shape)).T)

    monkeypatch.setattr(deepgemm_fp8, "find_spec", lambda top: object() if top == "deep_gemm" else None)
    install(monkeypatch, "sgl-deep-gemm", {"deep_gemm:fp8_gemm_nt": gemm})
    torch.manual_seed(0)
    x, w, w_scale = torch.randn(M, K).bfloat16(), torch.randn(N, K).mul(50).to(FP8), torch.rand(1, 2) + 0.5
    if powers_of_two:
        w_scale = deepgemm_fp8.power_of_two(w_scale)
    ready = deepgemm_fp8.prepare(resolve_device(device), w=w, w_scale=w_scale)
    _close(deepgemm_fp8.run(x, ready), gemm_fp8_math.reference(x, w, w_scale), bound)


def _experts(w1, w2, x, ids, weights, gated, up_first, inner=lambda rows: rows):
    """sum of weight * w2 @ act(w1 @ x), fp32; rows of w1 in the order the library reads."""
    out = torch.zeros(x.shape[0], w2.shape[1])
    for token in range(x.shape[0]):
        for choice in range(ids.shape[1]):
            rows = w1[ids[token, choice]] @ x[token]
            if gated:
                one, two = rows.chunk(2)
                up, gate = (one, two) if up_first else (two, one)
                hidden = torch.nn.functional.silu(gate) * up
            else:
                hidden = rows.relu() ** 2
            out[token] += weights[token, choice] * (w2[ids[token, choice]] @ inner(hidden))
    return out


def _through_fp4(rows, factor):
    values, scales = nvfp4_math.quantize_reference(rows[None], factor)
    return nvfp4_math.dequantize(values, scales, factor)[0]


def _nvfp4_layer(gated):
    torch.manual_seed(1)
    rows = 2 * N if gated else N
    w1_global, w2_global = torch.tensor([1e-3, 2e-3, 3e-3]), torch.tensor([2e-3, 1e-3, 1e-3])
    one = [nvfp4_math.quantize_reference(torch.randn(rows, K), factor) for factor in w1_global]
    two = [nvfp4_math.quantize_reference(torch.randn(K, N), factor) for factor in w2_global]
    a1, a2 = torch.tensor(2e-3), torch.tensor(5e-2)
    layer = {
        "w1": torch.stack([values for values, _ in one]),
        "w1_scale": torch.stack([scales for _, scales in one]),
        "w1_global_scale": w1_global,
        "w2": torch.stack([values for values, _ in two]),
        "w2_scale": torch.stack([scales for _, scales in two]),
        "w2_global_scale": w2_global,
        "a1_scale": a1,
        "a2_scale": a2,
    }
    x = torch.randn(M, K).bfloat16()
    ids = torch.stack([torch.randperm(E)[:TOPK] for _ in range(M)])
    given = {"topk_weights": torch.rand(M, TOPK), "topk_ids": ids, "activation": "silu" if gated else "relu2"}
    exact = _experts(
        torch.stack([nvfp4_math.dequantize(v, s, g) for (v, s), g in zip(one, w1_global, strict=True)]),
        torch.stack([nvfp4_math.dequantize(v, s, g) for (v, s), g in zip(two, w2_global, strict=True)]),
        torch.stack([_through_fp4(row.float(), a1) for row in x]),
        ids,
        given["topk_weights"] * 2.5,
        gated,
        up_first=False,
        inner=lambda hidden: _through_fp4(hidden, a2),
    )
    return layer, x, {**given, "routed_scaling_factor": 2.5}, exact


@pytest.mark.parametrize("gated", [True, False])
def test_cutlass_moe_gets_rows_and_scales_that_give_the_contracts_output(monkeypatch, gated):
    def moe(bound):
        x_inverse, one_scales, one_factor, inner_inverse, two_scales, two_factor = bound["quant_scales"]
        w1, w2 = bound["fc1_expert_weights"].view(torch.uint8), bound["fc2_expert_weights"].view(torch.uint8)

        def whole(packed, scales, factor, inverse):
            """Weights alone: the factor holds the input's scale as well."""
            return torch.stack([
                nvfp4_math.dequantize(p, _linear_scales(s, p.shape[0], p.shape[1] // 8), ONE) * f * inverse
                for p, s, f in zip(packed, scales, factor, strict=True)
            ])  # fmt: skip

        assert bound["activation_type"] == (ActivationType.Swiglu if gated else ActivationType.Relu2)
        return _experts(
            whole(w1, one_scales, one_factor, x_inverse),
            whole(w2, two_scales, two_factor, inner_inverse),
            torch.stack([_through_fp4(row.float(), 1.0 / x_inverse) for row in bound["input"]]),
            bound["token_selected_experts"],
            bound["token_final_scales"],
            gated,
            up_first=True,
            inner=lambda hidden: _through_fp4(hidden, 1.0 / inner_inverse),
        ).to(bound["output_dtype"])

    install(monkeypatch, "flashinfer-python", {"flashinfer.fused_moe:cutlass_fused_moe": moe}, FLASHINFER_FACTS)
    layer, x, given, exact = _nvfp4_layer(gated)
    _close(moe_cutlass.run(x, moe_cutlass.prepare_nvfp4(None, **layer), **given), exact)


@pytest.mark.parametrize("gated", [True, False])
def test_trtllm_moe_gets_rows_and_scales_that_give_the_contracts_output(monkeypatch, gated):
    """Shuffles are the identity here, the scales' interleave is the documented one."""

    def moe(bound):
        def whole(packed, scales):
            return torch.stack([
                nvfp4_math.dequantize(p, _linear_scales(s, p.shape[0], p.shape[1] // 8), ONE)
                for p, s in zip(packed, scales, strict=True)
            ])  # fmt: skip

        ids, weights = bound["topk_ids"]
        w1 = whole(bound["gemm1_weights"], bound["gemm1_weights_scale"])
        w2 = whole(bound["gemm2_weights"], bound["gemm2_weights_scale"])
        x = nvfp4_math.dequantize(bound["hidden_states"], bound["hidden_states_scale"], ONE)
        inner, gate, last = (bound[f"output{n}_scalar"] for n in ("1_scale", "1_scale_gate", "2_scale"))
        out = torch.zeros(M, K)
        for token in range(M):
            for choice in range(TOPK):
                expert = ids[token, choice]
                rows = w1[expert] @ x[token]
                if gated:  # the gate is scaled before the activation, the product after it
                    up, gated_rows = rows.chunk(2)
                    hidden = torch.nn.functional.silu(gated_rows * gate[expert]) * up * inner[expert]
                else:
                    hidden = (rows * gate[expert]).relu() ** 2 * inner[expert]
                hidden = _through_fp4(hidden, ONE)
                out[token] += weights[token, choice] * (w2[expert] @ hidden) * last[expert]
        return [out.bfloat16()]

    def in_order(bound):
        return torch.arange(bound[next(name for name in bound if isinstance(bound[name], torch.Tensor))].shape[0])

    core = "flashinfer.fused_moe.core"
    results = {
        "flashinfer:fp4_quantize": _fp4_quantize,
        "flashinfer:block_scale_interleave": lambda b: layouts.swizzle_128x4(b["unswizzled_sf"]).reshape(-1),
        f"{core}:_maybe_get_cached_w3_w1_permute_indices": in_order,
        f"{core}:get_w2_permute_indices_with_cache": in_order,
        "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe": moe,
    }
    install(monkeypatch, "flashinfer-python", results, FLASHINFER_FACTS)
    layer, x, given, exact = _nvfp4_layer(gated)
    _close(moe_trtllm.run_nvfp4(x, moe_trtllm.prepare_nvfp4(None, **layer), **given), exact)


@pytest.mark.parametrize("gated", [True, False])
def test_cutedsl_moe_gets_rows_and_scales_that_give_the_contracts_output(monkeypatch, gated):
    def moe(bound):
        def whole(packed, scales, alpha):
            return torch.stack([
                nvfp4_math.dequantize(p, _linear_scales(s, p.shape[0], p.shape[1] // 8), ONE) * a
                for p, s, a in zip(packed, scales, alpha, strict=True)
            ])  # fmt: skip

        w1 = whole(bound["w1_weight"], bound["w1_weight_sf"].reshape(E, -1), bound["w1_alpha"])
        if gated:  # 64 rows of up, 64 of gate, and so on
            w1 = w1.reshape(E, -1, 2, 64, K).transpose(1, 2).reshape(E, 2 * N, K)
        w2 = whole(bound["w2_weight"], bound["w2_weight_sf"].reshape(E, -1), bound["w2_alpha"])
        x = nvfp4_math.dequantize(bound["x"], bound["x_sf"].squeeze(-1), ONE)
        inner = bound["fc2_input_scale"]
        return _experts(
            w1, w2, x, bound["token_selected_experts"], bound["token_final_scales"], gated, up_first=True,
            inner=lambda hidden: _through_fp4(hidden * inner, ONE),
        ).bfloat16()  # fmt: skip

    results = {
        "flashinfer:fp4_quantize": _fp4_quantize,
        "flashinfer.cute_dsl.utils:convert_sf_to_mma_layout": lambda b: b[next(iter(b))],
        "flashinfer.fused_moe:cute_dsl_fused_moe": moe,
    }
    install(monkeypatch, "flashinfer-python", results, FLASHINFER_FACTS)
    layer, x, given, exact = _nvfp4_layer(gated)
    _close(moe_cutedsl.run_w4a4(x, moe_cutedsl.prepare_w4a4(None, **layer), **given), exact)
