"""The portable kernel of quantized experts, through a Selection, against the fp32 reference on dequantized weights."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import kernelmux as km  # noqa: E402
from kernelmux.contracts.fused_moe_math import reference  # noqa: E402
from kernelmux.contracts.moe_quant import MoeQuant  # noqa: E402
from kernelmux.contracts.moe_quant_math import dequantize_expert, quantize_weight  # noqa: E402
from kernelmux.contracts.nvfp4_math import dequantize, quantize_reference  # noqa: E402
from kernelmux.errors import BadShape  # noqa: E402

E, N, K, M, TOPK = 6, 96, 160, 17, 3


def stored(weight: Any, scheme: str) -> tuple[dict[str, Any], Any]:
    """(tensors as a checkpoint holds them, the fp32 weight they stand for)."""
    if scheme.startswith("nvfp4"):
        largest = weight.abs().amax() / (448 * 6)
        parts = [quantize_reference(one, largest.reshape(())) for one in weight]
        packed, scale = torch.stack([p for p, _ in parts]), torch.stack([s for _, s in parts])
        factor = largest.float().expand(E).clone()
        ones = torch.stack([dequantize(p, s, largest.float().reshape(())) for p, s in zip(packed, scale, strict=True)])
        return {"": packed, "_scale": scale, "_global_scale": factor}, ones
    quant = MoeQuant.of(scheme)
    values, scale = quantize_weight(weight, quant)
    meant = torch.stack([dequantize_expert(v, s, quant) for v, s in zip(values, scale, strict=True)])
    return {"": values, "_scale": scale}, meant


SCHEMES = ("fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8", "int8_w8a16", "nvfp4", "nvfp4_w4a16")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_quantized_experts_run_on_any_device(scheme: str, activation: str) -> None:
    torch.manual_seed(3)
    rows = N if activation == "relu2" else 2 * N
    up, up_meant = stored(torch.randn(E, rows, K) / K**0.5, scheme)
    down, down_meant = stored(torch.randn(E, K, N) / N**0.5, scheme)
    x = torch.randn(M, K, dtype=torch.bfloat16)
    routing = {
        "topk_weights": torch.rand(M, TOPK),
        "topk_ids": torch.stack([torch.randperm(E)[:TOPK] for _ in range(M)]),
    }
    chosen = km.select_backend(
        "fused_moe",
        device="cpu",
        quant=scheme,
        activation=activation,
        shape={"M": M, "E": E, "N": N, "K": K, "topk": TOPK},
    )
    assert chosen.kernel == "kernelmux.fused_moe_weight_only[torch]"
    tensors = {f"{name}{key}": value for name, parts in (("w1", up), ("w2", down)) for key, value in parts.items()}
    out = chosen(x, chosen.prepare(**tensors), routed_scaling_factor=2.0, **routing).float()
    want = 2.0 * reference(x, up_meant, down_meant, routing["topk_weights"], routing["topk_ids"], activation)
    assert ((out - want).norm(dim=1) / want.norm(dim=1)).max() < 1e-2


def test_a_scale_that_fits_no_expert_is_refused() -> None:
    chosen = km.select_backend("fused_moe", device="cpu", quant="fp8_block", activation="silu")
    weight = torch.zeros(E, 2 * N, K).to(torch.float8_e4m3fn)
    inner = torch.zeros(E, K, N).to(torch.float8_e4m3fn)
    with pytest.raises(BadShape, match="w1_scale is for"):
        chosen.prepare(w1=weight, w2=inner, w1_scale=torch.ones(2), w2_scale=torch.ones(E))
    weights = chosen.prepare(w1=weight, w2=inner, w1_scale=torch.ones(E, 5, 7), w2_scale=torch.ones(E))
    routing = {"topk_weights": torch.ones(1, 1), "topk_ids": torch.zeros(1, 1, dtype=torch.int32)}
    with pytest.raises(BadShape, match="fits no expert"):
        chosen(torch.zeros(1, K, dtype=torch.bfloat16), weights, **routing)
