"""Every FlashInfer adapter, called once on small CPU tensors with a fake library; the calls it made."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernelmux.backends.flashinfer import (
    activations,
    autotuner,
    fp8_gemm,
    moe_cutedsl,
    moe_cutlass,
    moe_trtllm,
    norms,
    nvfp4_gemm,
    quantize,
    router,
)
from tests.unit.backends.fake_library import FLASHINFER_FACTS, Call, install

M, N, K, E, TOPK = 4, 128, 256, 2, 2
FP8 = torch.float8_e4m3fn


def _packed(rows: int, columns: int) -> torch.Tensor:
    return torch.zeros(rows, columns // 2, dtype=torch.uint8)


def _fp4_quantized(bound: dict[str, Any]) -> Any:
    rows, columns = bound["input"].shape
    if bound.get("is_sf_swizzled_layout", True):
        rows_up, columns_up = -(-rows // 128) * 128, -(-(columns // 16) // 4) * 4
        return _packed(rows, columns), torch.zeros(rows_up, columns_up, dtype=torch.uint8)
    return _packed(rows, columns), torch.zeros(rows, columns // 16, dtype=torch.uint8)


def _identity_rows(bound: dict[str, Any]) -> torch.Tensor:
    return torch.arange(next(value for value in bound.values() if isinstance(value, torch.Tensor)).shape[0])


def _moe_out(hidden: str, out: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda bound: out(torch.zeros(bound[hidden].shape[0], K, dtype=torch.bfloat16))


RESULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "flashinfer.autotuner:autotune": lambda b: contextlib.nullcontext(),
    "flashinfer.autotuner:AutoTuner.load_configs": lambda b: True,
    "flashinfer:fp4_quantize": _fp4_quantized,
    "flashinfer:mm_fp4": lambda b: torch.zeros(b["a"].shape[0], b["b"].shape[1], dtype=b["out_dtype"]),
    "flashinfer:bmm_fp8": lambda b: torch.zeros(1, b["A"].shape[1], b["B"].shape[2], dtype=b["dtype"]),
    "flashinfer:shuffle_matrix_a": lambda b: b["input_tensor"],
    "flashinfer:shuffle_matrix_sf_a": lambda b: b["input_tensor"].reshape(-1),
    "flashinfer:block_scale_interleave": lambda b: b["unswizzled_sf"].reshape(-1),
    "flashinfer:silu_and_mul": lambda b: b["input"][..., : b["input"].shape[-1] // 2],
    "flashinfer:gelu_and_mul": lambda b: b["input"][..., : b["input"].shape[-1] // 2],
    "flashinfer:gelu_tanh_and_mul": lambda b: b["input"][..., : b["input"].shape[-1] // 2],
    "flashinfer.cute_dsl.utils:convert_sf_to_mma_layout": lambda b: b[next(iter(b))],
    "flashinfer.fused_moe:cute_dsl_fused_moe": _moe_out("x", lambda out: out),
    "flashinfer.fused_moe:cutlass_fused_moe": _moe_out("input", lambda out: [out]),
    "flashinfer.fused_moe:trtllm_bf16_routed_moe": _moe_out("hidden_states", lambda out: out),
    "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe": _moe_out("hidden_states", lambda out: [out]),
    "flashinfer.fused_moe:trtllm_fp8_block_scale_routed_moe": _moe_out("hidden_states", lambda out: out),
    "flashinfer.fused_moe.core:_maybe_get_cached_w3_w1_permute_indices": _identity_rows,
    "flashinfer.fused_moe.core:get_w2_permute_indices_with_cache": _identity_rows,
    "flashinfer.fused_moe.prepare:prepare_trtllm_bf16_weights": lambda b: {
        "gemm1_weights": b["w1_bf16"],
        "gemm2_weights": b["w2_bf16"],
    },
    "flashinfer.gemm:gemm_fp8_nt_groupwise": lambda b: torch.zeros(
        b["a"].shape[0], b["b"].shape[0], dtype=b["out_dtype"]
    ),
    "flashinfer.gemm:mm_bf16": lambda b: torch.zeros(b["a"].shape[0], b["b"].shape[1], dtype=b["out_dtype"]),
    "flashinfer.gemm:mm_bf16_fp4": lambda b: torch.zeros(b["a"].shape[0], b["b"].shape[0], dtype=b["out_dtype"]),
    "flashinfer.gemm:prepare_bf16_fp4_weights": lambda b: (b["b"], b["b_descale"], b["alpha"]),
    "flashinfer.norm:rmsnorm": lambda b: b["input"],
}


def _linear() -> dict[str, torch.Tensor]:
    return {
        "w": _packed(N, K),
        "w_scale": torch.zeros(N, K // 16, dtype=FP8),
        "w_global_scale": torch.tensor(0.5),
    }


def _experts(dtype: torch.dtype, gated: bool) -> dict[str, torch.Tensor]:
    rows = 2 * N if gated else N
    return {"w1": torch.zeros(E, rows, K, dtype=dtype), "w2": torch.zeros(E, K, N, dtype=dtype)}


def _fp4_experts(gated: bool, static: bool = True) -> dict[str, torch.Tensor]:
    rows = 2 * N if gated else N
    found = {
        "w1": torch.zeros(E, rows, K // 2, dtype=torch.uint8),
        "w2": torch.zeros(E, K, N // 2, dtype=torch.uint8),
        "w1_scale": torch.zeros(E, rows, K // 16, dtype=FP8),
        "w2_scale": torch.zeros(E, K, N // 16, dtype=FP8),
        "w1_global_scale": torch.full((E,), 0.5),
        "w2_global_scale": torch.full((E,), 0.25),
    }
    return found | ({"a1_scale": torch.tensor(0.125), "a2_scale": torch.tensor(2.0)} if static else {})


def _routing() -> dict[str, torch.Tensor]:
    ids = torch.zeros(M, TOPK, dtype=torch.int64)
    return {"topk_weights": torch.full((M, TOPK), 0.5), "topk_ids": ids}


def _race_and_load() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tactics.json"
        with autotuner.racing(file):
            file.write_text("{}")
        autotuner.forget()
        assert autotuner.load_tactics(file)
        autotuner.throw_away(file)


def every_adapter(calls: list[Call], use_cuda_norm: list[bool]) -> dict[str, Any]:
    """Run all of them; adapter name -> what it returned."""
    x = torch.zeros(M, K, dtype=torch.bfloat16)
    out: dict[str, Any] = {}
    swizzled = nvfp4_gemm.prepare_swizzled(None, **_linear(), input_scale=torch.tensor(0.25))
    shuffled = nvfp4_gemm.prepare_shuffled(None, **_linear(), input_scale=torch.tensor(0.25))
    for word in ("cutlass", "cudnn", "cutedsl", "cutedsl_low_latency", "b12x"):
        out[f"mm_fp4[{word}]"] = getattr(nvfp4_gemm, f"run_{word}")(x, swizzled)
    out["mm_fp4[trtllm]"] = nvfp4_gemm.run_trtllm(x, shuffled)
    for word in ("cutlass", "cudnn", "cutedsl", "b12x"):
        packed = {"a_sf": torch.zeros(M, K // 16, dtype=FP8), "b": _packed(N, K)}
        out[f"mm_fp4 of packed [{word}]"] = getattr(nvfp4_gemm, f"mm_{word}")(
            _packed(M, K),
            **packed,
            b_sf=torch.zeros(N, K // 16, dtype=FP8),
            alpha=torch.tensor(0.5),
            layout="linear",
        )
    for word in ("cutedsl", "cudnn"):
        ready = getattr(nvfp4_gemm, f"prepare_w4a16_{word}")(None, **_linear())
        out[f"mm_bf16_fp4[{word}]"] = getattr(nvfp4_gemm, f"run_w4a16_{word}")(x, ready)
    fp8 = fp8_gemm.prepare_tensor(None, w=torch.zeros(N, K, dtype=FP8), w_scale=torch.tensor(0.5))
    block = fp8_gemm.prepare_block(None, w=torch.zeros(N, K, dtype=FP8), w_scale=torch.ones(N // 128, K // 128))
    for word in ("cublas", "cudnn", "cutlass"):
        out[f"bmm_fp8[{word}]"] = getattr(fp8_gemm, f"run_bmm_fp8_{word}")(x, fp8)
    for word in ("cutlass", "trtllm"):
        out[f"gemm_fp8_nt_groupwise[{word}]"] = getattr(fp8_gemm, f"run_gemm_fp8_nt_groupwise_{word}")(x, block)
    for word in ("jit_cuda", "cutedsl"):
        out[f"fp4_quantize[{word}]"] = getattr(quantize, f"run_{word}")(x, global_scale=torch.tensor(0.5))
    _race_and_load()
    out["mm_bf16[cublas]"] = router.run_cublas(x, torch.zeros(N, K, dtype=torch.bfloat16))
    for hidden, experts in ((7168, 256), (7168, 384), (7168, 896), (6144, 256)):
        few, gate = torch.zeros(2, hidden, dtype=torch.bfloat16), torch.zeros(experts, hidden, dtype=torch.bfloat16)
        out[f"mm_M1_16[{hidden}x{experts}]"] = router.run_few_tokens(few, gate)
    out["topk"] = router.topk_deepseek(
        torch.zeros(M, 8), bias=torch.zeros(8), topk=2, scoring="sigmoid", n_group=2, topk_group=1
    )
    for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        out[name] = getattr(activations, name)(x)
    for want_cuda, word in ((True, "jit_cuda"), (False, "cutedsl")):
        use_cuda_norm[0] = want_cuda
        weight = torch.ones(K, dtype=torch.bfloat16)
        out[f"rmsnorm[{word}]"] = getattr(norms, f"rmsnorm_{word}")(x, weight)
        out[f"gemma_rmsnorm[{word}]"] = getattr(norms, f"rmsnorm_{word}")(x, weight, weight_bias=1.0)
        fused_add = getattr(norms, f"fused_add_rmsnorm_{word}")
        out[f"fused_add_rmsnorm[{word}]"] = fused_add(x, weight, residual=x)
        out[f"gemma_fused_add_rmsnorm[{word}]"] = fused_add(x, weight, residual=x, weight_bias=1.0)
        out[f"rmsnorm_quant[{word}]"] = getattr(norms, f"rmsnorm_quant_{word}")(x, weight, scale=torch.tensor(0.5))
    for activation in ("silu", "relu2"):
        gated, given = activation == "silu", {**_routing(), "activation": activation}
        bf16 = _experts(torch.bfloat16, gated)
        e4m3, scales = _experts(FP8, gated), {"w1_scale": torch.ones(E), "w2_scale": torch.ones(E)}
        static = {"a1_scale": torch.tensor(0.5), "a2_scale": torch.tensor(0.25)}
        out[f"cutlass bf16 {activation}"] = moe_cutlass.run(x, moe_cutlass.prepare_bf16(None, **bf16), **given)
        ready = moe_cutlass.prepare_fp8_tensor(None, **e4m3, **scales, **static)
        out[f"cutlass fp8 {activation}"] = moe_cutlass.run(x, ready, **given)
        out[f"cutlass nvfp4 {activation}"] = moe_cutlass.run(
            x, moe_cutlass.prepare_nvfp4(None, **_fp4_experts(gated)), **given
        )
        out[f"trtllm bf16 {activation}"] = moe_trtllm.run_bf16(x, moe_trtllm.prepare_bf16(None, **bf16), **given)
        out[f"trtllm nvfp4 {activation}"] = moe_trtllm.run_nvfp4(
            x, moe_trtllm.prepare_nvfp4(None, **_fp4_experts(gated)), **given
        )
        out[f"cutedsl w4a4 {activation}"] = moe_cutedsl.run_w4a4(
            x, moe_cutedsl.prepare_w4a4(None, **_fp4_experts(gated)), **given
        )
        out[f"cutedsl w4a16 {activation}"] = moe_cutedsl.run_w4a16(
            x, moe_cutedsl.prepare_w4a16(None, **_fp4_experts(gated, static=False)), **given
        )
    blocks = {"w1_scale": torch.ones(E, 2 * N // 128, K // 128), "w2_scale": torch.ones(E, K // 128, N // 128)}
    e4m3 = _experts(FP8, True)
    out["cutlass fp8 block"] = moe_cutlass.run(x, moe_cutlass.prepare_fp8_block(None, **e4m3, **blocks), **_routing())
    out["trtllm fp8 block"] = moe_trtllm.run_fp8_block(
        x, moe_trtllm.prepare_fp8_block(None, **e4m3, **blocks), **_routing()
    )
    return out


def record(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Call], dict[str, Any]]:
    """(the calls made, what the adapters returned)."""
    use_cuda_norm = [True]
    results = RESULTS | {"flashinfer.norm:_use_cuda_norm": lambda bound: use_cuda_norm[0]}
    calls = install(monkeypatch, "flashinfer-python", results, FLASHINFER_FACTS)
    return calls, every_adapter(calls, use_cuda_norm)
