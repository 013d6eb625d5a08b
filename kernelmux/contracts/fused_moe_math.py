"""fused_moe in torch: the reference, the meta function, the argument checks, example inputs.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BadShape
from .moe_shape import ACTIVATIONS, GATED


def activate(hidden: Tensor, activation: str) -> Tensor:
    """[..., 2N] (gate, up halves) -> [..., N] when gated, else [..., N] -> [..., N]; in the dtype of ``hidden``."""
    if activation == "relu2":
        return F.relu(hidden).square()
    gate, up = hidden.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def local_experts(topk_ids: Tensor, experts: int, expert_map: Tensor | None) -> Tensor:
    """[M, topk] int64: each pair's expert on this rank, -1 where it is elsewhere or its id is out of range."""
    ids = topk_ids.long()
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.numel())
        ids = torch.where(known, expert_map.long()[ids.clamp(0, expert_map.numel() - 1)], -1)
    return torch.where((ids >= 0) & (ids < experts), ids, -1)


def reference(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """Return [M, K] fp32, computed in fp32 from the given operands, expert by expert.

    The router weight multiplies each expert's output, or with ``apply_router_weight_on_input`` its input;
    ``routed_scaling_factor`` multiplies the sum, once. A pair whose expert is not here adds nothing.
    """
    ids = local_experts(topk_ids, w1.shape[0], expert_map)
    weights = topk_weights.float()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        if expert < 0:
            continue
        token, slot = torch.where(ids == expert)
        weight = weights[token, slot].unsqueeze(1)
        rows = x[token].float()
        if apply_router_weight_on_input:
            rows = rows * weight
        rows = activate(rows @ w1[expert].float().T, activation) @ w2[expert].float().T
        if not apply_router_weight_on_input:
            rows = rows * weight
        out.index_add_(0, token, rows)
    return out * routed_scaling_factor


def meta(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    routed_scaling_factor: float = 1.0,
    apply_router_weight_on_input: bool = False,
    expert_map: Tensor | None = None,
) -> Tensor:
    """[M, K] of x's dtype and device, unwritten: what every kernel returns. Checks the arguments as a call does."""
    check_arguments(x, w1, w2, topk_weights, topk_ids, activation, expert_map)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def check_arguments(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    activation: str = "silu",
    expert_map: Tensor | None = None,
    **_: object,
) -> None:
    """Raise BadShape naming the first argument whose shape or dtype does not fit; looks at no value."""
    if activation not in ACTIVATIONS:
        raise BadShape(f"fused_moe: unknown activation {activation!r}; use one of {', '.join(ACTIVATIONS)}.")
    if x.dim() != 2 or w1.dim() != 3 or w2.dim() != 3 or topk_ids.dim() != 2:
        raise BadShape(
            "fused_moe takes x [M, K], w1 [E, 2N or N, K], w2 [E, K, N], topk_ids [M, topk]; got "
            f"{list(x.shape)}, {list(w1.shape)}, {list(w2.shape)}, {list(topk_ids.shape)}."
        )
    experts, hidden, inner = w2.shape
    up = 2 * inner if activation in GATED else inner
    if tuple(w1.shape) != (experts, up, hidden) or x.shape[1] != hidden:
        raise BadShape(
            f"fused_moe with {activation}: w2 {list(w2.shape)} = [E, K, N] asks for w1 [{experts}, {up}, {hidden}] and "
            f"x [M, {hidden}]; got w1 {list(w1.shape)} and x {list(x.shape)}."
        )
    if topk_weights.shape != topk_ids.shape or topk_ids.shape[0] != x.shape[0]:
        raise BadShape(
            f"fused_moe: topk_weights {list(topk_weights.shape)} and topk_ids {list(topk_ids.shape)} must both be "
            f"[M, topk] with M = {x.shape[0]}, the rows of x."
        )
    if not (x.dtype == w1.dtype == w2.dtype):
        raise BadShape(f"fused_moe: x, w1 and w2 must share one dtype; got {x.dtype}, {w1.dtype}, {w2.dtype}.")
    if topk_ids.dtype not in (torch.int32, torch.int64):
        raise BadShape(f"fused_moe: topk_ids must be int32 or int64, not {topk_ids.dtype}.")
    if expert_map is not None and (expert_map.dim() != 1 or expert_map.dtype not in (torch.int32, torch.int64)):
        raise BadShape("fused_moe: expert_map must be a vector of int32 or int64: local expert, or -1 for elsewhere.")


def check_values(
    x: Tensor, weights: tuple[Tensor, Tensor], *, topk_weights: Tensor, topk_ids: Tensor, activation: str = "silu",
    expert_map: Tensor | None = None, **_: object,
) -> None:  # fmt: skip
    """Check the arguments and raise BadShape if an expert id is out of range, naming it. Waits for the device."""
    check_arguments(x, weights[0], weights[1], topk_weights, topk_ids, activation, expert_map)
    known = weights[0].shape[0] if expert_map is None else expert_map.numel()
    bad = (topk_ids < 0) | (topk_ids >= known)
    if bool(bad.any()):
        token, slot = (int(v) for v in bad.nonzero()[0])
        raise BadShape(
            f"fused_moe: topk_ids[{token}, {slot}] = {int(topk_ids[token, slot])} is outside 0..{known - 1}. "
            "Mark experts of other ranks in expert_map, not by ids out of range."
        )


def routing(
    tokens: int, experts: int, topk: int, *, seed: int, device: str, skew: float = 0.0, idle: bool = False
) -> tuple[Tensor, Tensor]:
    """(topk_weights fp32, topk_ids int32), both [tokens, topk]: softmax of random logits, renormalised.

    ``skew`` adds that many standard deviations of per-expert preference, so that some experts are crowded.
    ``idle`` leaves the last expert without a token, where topk allows.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    if skew:
        logits += skew * torch.randn(1, experts, generator=generator)
    if idle and topk < experts:
        logits[:, -1] = -torch.inf
    weights, ids = torch.softmax(logits, dim=-1).topk(topk, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(device), ids.to(torch.int32).to(device)


def examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: gated and not, one token, no token, uneven routing, an idle expert."""
    for activation, tokens, experts, inner, hidden, topk in (
        ("silu", 37, 8, 48, 64, 2),
        ("gelu", 5, 4, 32, 96, 1),
        ("gelu_tanh", 64, 16, 32, 64, 4),
        ("relu2", 33, 8, 56, 72, 3),
        ("silu", 1, 32, 32, 64, 8),
        ("silu", 0, 8, 32, 64, 2),
    ):
        generator = torch.Generator(device="cpu").manual_seed(tokens)
        up = inner * (2 if activation in GATED else 1)
        weights, ids = routing(tokens, experts, topk, seed=tokens, device=device, skew=1.0, idle=True)

        def draw(*size: int, scale: float = 1.0, source: torch.Generator = generator) -> Tensor:
            return (torch.randn(*size, generator=source) * scale).to(dtype).to(device)

        yield dict(
            x=draw(tokens, hidden), w1=draw(experts, up, hidden, scale=hidden**-0.5),
            w2=draw(experts, hidden, inner, scale=inner**-0.5),
            topk_weights=weights, topk_ids=ids, activation=activation,
        )  # fmt: skip
