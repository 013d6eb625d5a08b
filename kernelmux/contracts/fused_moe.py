"""fused_moe: the routed experts of one MoE layer, from hidden states and a routing to their weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Op, Tolerance, Work
from .moe_shape import ACTIVATIONS, ELEMENT_BYTES, GATED

if TYPE_CHECKING:
    from ..registry import Problem

_ROUNDING = (
    "one row of the output against fp32, relative L2: the activated inner row, the expert's output and the sum are "
    "each rounded once to the dtype"
)

OP = Op(
    name="fused_moe",
    summary="sum over topk experts of weight * w2 @ act(w1 @ x), times routed_scaling_factor",
    schema=(
        "fused_moe(Tensor x, Tensor w1, Tensor w2, Tensor topk_weights, Tensor topk_ids, str activation='silu', "
        "float routed_scaling_factor=1.0, bool apply_router_weight_on_input=False, Tensor? expert_map=None) -> Tensor"
    ),
    reference="kernelmux.contracts.fused_moe_math:reference",
    meta="kernelmux.contracts.fused_moe_math:meta",
    examples="kernelmux.contracts.fused_moe_math:examples",
    problem="kernelmux.contracts.fused_moe:problem_of_call",
    axes=("M", "E", "N", "K", "topk"),
    token_axis="M",
    schemes=frozenset(
        (
            *("none", "fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8", "int8_w8a16"),
            *("int4_w4a16", "nvfp4", "nvfp4_w4a16", "mxfp4"),
        )
    ),
    dtypes=("bfloat16", "float16", "float32"),
    activations=ACTIVATIONS,
    tolerance={
        "bfloat16": Tolerance(rtol=1e-2, atol=0.0, why=f"{_ROUNDING}: 8 significant bits, 2**-9 a rounding"),
        "float16": Tolerance(rtol=1.5e-3, atol=0.0, why=f"{_ROUNDING}: 11 significant bits, 2**-12 a rounding"),
        "float32": Tolerance(rtol=1e-5, atol=0.0, why="fp32 throughout; only the order of summation differs"),
    },
    work="kernelmux.contracts.fused_moe:work",
    weights=("w1", "w2"),
    # Named as in moe_quant_math.reference_quantized; a1 and a2 are the inputs of the up and the down projection. A
    # global scale (nvfp4) and an input scale are the factors that dequantize; zeros are the zero points of int4.
    optional_weights=(
        "w1_scale",
        "w2_scale",
        "w1_global_scale",
        "w2_global_scale",
        "w1_zeros",
        "w2_zeros",
        "a1_scale",
        "a2_scale",
    ),
    check="kernelmux.contracts.fused_moe_math:check_arguments",
    check_values="kernelmux.contracts.fused_moe_math:check_values",
)


def problem_of_call(x: Any, weights: Any, *, topk_ids: Any, **_: Any) -> dict[str, int]:
    """The shape of one call: x [M, K], weights (w1, w2 [E, K, N]), topk_ids [M, topk]."""
    w2 = weights[1]
    return {"M": x.shape[0], "E": w2.shape[0], "N": w2.shape[2], "K": x.shape[1], "topk": topk_ids.shape[1]}


def experts_hit(experts: int, pairs: int) -> float:
    """Expected number of experts that ``pairs`` uniformly routed pairs visit."""
    return experts * (1.0 - (1.0 - 1.0 / experts) ** pairs)


def work(problem: Problem) -> Work:
    """The least one call must do: both GEMMs; each visited expert's weights read once, x read, the output written.

    Needs M, E, N, K, topk as numbers (the upper end of a range is taken). Scales of quantized weights are left out.
    """
    size = {axis: value if isinstance(value, int) else value[1] for axis, value in problem.shape.items()}
    m, inner, hidden, pairs = size["M"], size["N"], size["K"], size["M"] * size["topk"]
    up = 2 * inner if (problem.activation or "silu") in GATED else inner
    element = ELEMENT_BYTES.get(problem.dtype or "bfloat16", 2)
    stored = element if problem.scheme.weight == "native" else problem.scheme.weight_bits / 8
    weights = experts_hit(size["E"], pairs) * (up + inner) * hidden
    return Work(flops=2.0 * pairs * (up + inner) * hidden, bytes=stored * weights + element * 2.0 * m * hidden)
