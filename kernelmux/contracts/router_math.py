"""router_gemm and topk in torch: references, meta functions, checks, example inputs.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import BadShape
from .router import SCORINGS
from .tensor_checks import FLOATS, require_contiguous_last, require_dtype, require_rows, require_same_device, words

_LEAST = 1e-20  # keeps the division of weights that have all underflowed to zero finite, as in DeepSeek-V3's code


def router_gemm_reference(x: Tensor, w: Tensor) -> Tensor:
    """Return x @ w.T, [M, N] fp32."""
    return x.float() @ w.float().T


def router_gemm_meta(x: Tensor, w: Tensor) -> Tensor:
    """[M, N] fp32 on x's device, unwritten. Checks the arguments as a call does."""
    check_router_gemm(x, w)
    return x.new_empty((x.shape[0], w.shape[0]), dtype=torch.float32)


def check_router_gemm(x: Tensor, w: Tensor) -> None:
    """Raise BadShape unless x is [M, K] and w [N, K], of one dtype, on one device."""
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1] or x.shape[1] < 1 or w.shape[0] < 1:
        raise BadShape(f"router_gemm takes x [M, K] and w [N, K]; got {list(x.shape)} and {list(w.shape)}.")
    require_dtype("router_gemm", "x", x, FLOATS)
    if w.dtype != x.dtype:
        raise BadShape(f"router_gemm: w must have x's dtype, {words((x.dtype,))}, not {words((w.dtype,))}.")
    require_contiguous_last("router_gemm", "x", x)
    require_contiguous_last("router_gemm", "w", w)
    require_same_device("router_gemm", "w", w, x)


def router_gemm_examples(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: one token, no token, sizes that divide by nothing."""
    for seed, (m, n, k) in enumerate(((5, 8, 64), (1, 128, 256), (33, 7, 90), (0, 8, 64))):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        x, w = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator) * k**-0.5
        yield dict(x=x.to(dtype).to(device), w=w.to(dtype).to(device))


def topk_reference(
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    topk: int,
    scoring: str = "softmax",
    renormalize: bool = True,
    n_group: int = 1,
    topk_group: int = 1,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return (weights fp32 [M, topk], ids int32 [M, topk]), the best first; of equal ones the lower id.

    Scores are softmax over all experts, or sigmoid, in fp32. ``bias`` is added for the choice alone. With groups, only
    the experts of the topk_group best groups can be chosen; a group is as good as its best expert, with a bias as the
    sum of its two best (DeepSeek-V2 and V3). Weights are the chosen scores without the bias, divided by their sum
    where ``renormalize``, then times ``routed_scaling_factor``: pass it here or to fused_moe, not to both.
    """
    scores = logits.float().softmax(dim=-1) if scoring == "softmax" else logits.float().sigmoid()
    choice = scores if bias is None else scores + bias.float()
    if n_group > 1:
        choice = _within_best_groups(choice, n_group, topk_group, best=1 if bias is None else 2)
    ids = _first_largest(choice, topk)
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + _LEAST)
    return weights * routed_scaling_factor, ids.to(torch.int32)


def _first_largest(values: Tensor, count: int) -> Tensor:
    """int64 [M, count]: where the largest values are, in falling order, equal ones by rising index."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _within_best_groups(choice: Tensor, n_group: int, topk_group: int, *, best: int) -> Tensor:
    """``choice`` with -inf outside the topk_group groups whose ``best`` largest sum highest."""
    size = choice.shape[-1] // n_group
    groups = choice.unflatten(-1, (n_group, size))
    merit = groups.sort(dim=-1, descending=True).values[..., : min(best, size)].sum(dim=-1)
    kept = torch.zeros_like(merit, dtype=torch.bool).scatter(-1, _first_largest(merit, topk_group), True)
    return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)


def topk_meta(
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    topk: int,
    scoring: str = "softmax",
    renormalize: bool = True,
    n_group: int = 1,
    topk_group: int = 1,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(fp32, int32), both [M, topk], unwritten. Checks the arguments as a call does."""
    check_topk(logits, bias, topk=topk, scoring=scoring, n_group=n_group, topk_group=topk_group)
    shape = (logits.shape[0], topk)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def check_topk(
    logits: Tensor, bias: Tensor | None = None, *, topk: int, scoring: str = "softmax", n_group: int = 1,
    topk_group: int = 1, **_: object,
) -> None:  # fmt: skip
    """Raise BadShape naming the first argument that does not fit: logits [M, E], bias [E] or None, the options."""
    if logits.dim() != 2:
        raise BadShape(f"topk takes logits [M, E]; got {list(logits.shape)}.")
    require_rows("topk", "logits", logits, "E")
    require_dtype("topk", "logits", logits, FLOATS)
    experts = logits.shape[1]
    if scoring not in SCORINGS:
        raise BadShape(f"topk: unknown scoring {scoring!r}; use one of {', '.join(SCORINGS)}.")
    if bias is not None:
        if bias.dim() != 1 or bias.shape[0] != experts:
            raise BadShape(f"topk: bias must be [{experts}], one number an expert; got {list(bias.shape)}.")
        require_dtype("topk", "bias", bias, FLOATS)
        require_same_device("topk", "bias", bias, logits)
    if n_group < 1 or experts % n_group:
        raise BadShape(f"topk: n_group={n_group} must divide E={experts}.")
    if not 1 <= topk_group <= n_group:
        raise BadShape(f"topk: topk_group={topk_group} must be at least 1 and at most n_group={n_group}.")
    open_to_choice = experts // n_group * topk_group
    if not 1 <= topk <= open_to_choice:
        groups = f", the experts of {topk_group} of {n_group} groups" if n_group > 1 else ""
        raise BadShape(f"topk={topk} must be at least 1 and at most {open_to_choice}{groups}.")


def topk_examples(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[dict[str, object]]:
    """Small calls that cover the contract: both scorings, a bias, groups, one token, no token."""
    calls: tuple[tuple[int, int, bool, dict[str, object]], ...] = (
        (5, 8, False, dict(topk=2)),
        (33, 128, False, dict(topk=8, renormalize=False)),
        (7, 32, True, dict(topk=4, scoring="sigmoid", n_group=4, topk_group=2, routed_scaling_factor=2.5)),
        (3, 16, True, dict(topk=6, scoring="sigmoid")),
        (9, 24, False, dict(topk=3, n_group=6, topk_group=3, renormalize=False, routed_scaling_factor=16.0)),
        (1, 4, False, dict(topk=4)),
        (0, 8, False, dict(topk=2)),
    )
    for seed, (tokens, experts, biased, options) in enumerate(calls):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        logits = (2 * torch.randn(tokens, experts, generator=generator)).to(dtype).to(device)
        bias = (0.3 * torch.randn(experts, generator=generator)).to(device) if biased else None
        yield dict(logits=logits, bias=bias, **options)
