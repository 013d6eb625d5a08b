"""Whether a kernel of an NVFP4 op did what it promises: the reference's bytes, or what they mean within the tolerance.

Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ..registry import Op
from ..registry.lazy import load
from .nvfp4 import BIT_EXACT

W4A16, W4A4 = "w4a16", "w4a4"


def as_judged(promises: Collection[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """The call of which a kernel with these promises owes the reference's result.

    One that promises w4a16 leaves x as it is, also where the weights come with an input scale: it is held to what the
    op gives without that scale. Everybody who compares an NVFP4 product with the reference asks here.
    """
    made = dict(call)
    if made.get("input_scale") is not None and W4A16 in promises and W4A4 not in promises:
        made["input_scale"] = None
    return made


def fault(op: Op, call: Mapping[str, Any], promises: Collection[str], results: Any) -> str | None:
    """What is wrong with the results of ``call`` (the arguments of the schema by name); None where nothing is.

    With ``bit_exact`` among the promises bytes are compared, else every row of what the results mean.
    """
    call = as_judged(promises, call)
    wanted = load(op.reference)(**call)
    got, want = _several(results), _several(wanted)
    if len(got) != len(want):
        return f"{len(got)} results where the op has {len(want)}"
    for mine, ideal in zip(got, want, strict=True):
        if mine.shape != ideal.shape:
            return f"a result is {list(mine.shape)}, not {list(ideal.shape)}"
        if (not ideal.is_floating_point() or ideal.element_size() == 1) and mine.dtype != ideal.dtype:
            return f"a result is {mine.dtype}, not {ideal.dtype}"
    if BIT_EXACT in promises:
        return _bytes(got, want)
    if op.decoded is not None:
        decode = load(op.decoded)
        got, want = decode(results, **call), decode(wanted, **call)
    tolerance = op.tolerance[_dtype(call)]
    for mine, ideal in zip(got, want, strict=True):
        said = _rows(mine.float(), ideal.float(), tolerance.rtol, tolerance.atol)
        if said:
            return said
    return None


def _several(results: Any) -> tuple[Tensor, ...]:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _dtype(call: Mapping[str, Any]) -> str:
    first = next(iter(call.values()))
    return str(first.dtype).removeprefix("torch.")


def _bytes(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> str | None:
    for mine, ideal in zip(got, want, strict=True):
        held, right = mine.contiguous(), ideal.to(mine.dtype).contiguous()
        wrong = (_bits(held) != _bits(right)).sum().item()
        if wrong:
            return f"{wrong} of {_bits(held).numel()} bytes are not the reference's"
    return None


def _bits(tensor: Tensor) -> Tensor:
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _rows(mine: Tensor, ideal: Tensor, rtol: float, atol: float) -> str | None:
    if not ideal.numel():
        return None
    size = ideal.shape[-1] if ideal.dim() else 1
    mine, ideal = mine.reshape(-1, size), ideal.reshape(-1, size)
    if bool((mine.isfinite() != ideal.isfinite()).any()):
        return "NaN or infinity where the reference has a number, or a number where it has none"
    mine, ideal = mine.nan_to_num(0.0, 0.0, 0.0), ideal.nan_to_num(0.0, 0.0, 0.0)
    limit = rtol * ideal.norm(dim=1) + atol * size**0.5 + 1e-30
    worst = ((mine - ideal).norm(dim=1) / limit).max().item()
    return None if worst <= 1 else f"a row is {worst:.3g} times as far from the reference as the tolerance allows"
