"""Kernels that are wrong, each in its own way, and one that is right; each counts how often it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernelmux.contracts import activations_math, norms_math, nvfp4_math, router_math
from kernelmux.contracts.nvfp4_layouts import swizzle
from kernelmux.registry import ANY, Kernel, NeedsPackage, Numerics, OnCapability

HERE = "tests.unit.trust.planted"
runs: dict[str, int] = {}
version = "1"  # of the planted kernels' code
mended = False  # whether they have become right


def source() -> str:
    return version


def _count(name: str) -> None:
    runs[name] = runs.get(name, 0) + 1


def _given(out: Tensor | None, values: Tensor) -> Tensor:
    return values if out is None else out.copy_(values)


def _silu(name: str, spoil: Callable[[Tensor, Tensor], Tensor | None]) -> Callable[..., Tensor]:
    def run(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
        _count(name)
        right = activations_math.reference_of("silu_and_mul")(x).to(x.dtype)
        if mended:
            return _given(out, right)
        wrong = spoil(x, right)
        return _given(out, right if wrong is None else wrong)

    return run


def _nan_at_8(x: Tensor, right: Tensor) -> None:
    if x.shape[0] == 8:
        right[3, 5] = float("nan")


def _zeros_in_a_tile(x: Tensor, right: Tensor) -> None:
    right[-1:, 32:64] = 0


def _right_at_1_alone(x: Tensor, right: Tensor) -> Tensor:
    return right[:1].expand_as(right).clone()


def _twice(x: Tensor, right: Tensor) -> Tensor:
    return 2 * right


def _all_zeros(x: Tensor, right: Tensor) -> Tensor:
    return torch.zeros_like(right)


def _nan_for_rows_of_zeros(x: Tensor, right: Tensor) -> Tensor:
    return torch.where((x == 0).all(dim=1, keepdim=True), float("nan"), right)


def _tiny_rows_lost(x: Tensor, right: Tensor) -> Tensor:
    return torch.where(x.abs().amax(dim=1, keepdim=True) < 0.2, 0.0, right)


def _changes_x(x: Tensor, right: Tensor) -> None:
    x.view(-1)[0] += 1


_turn = [0]


def _another_each_time(x: Tensor, right: Tensor) -> None:
    _turn[0] += 1
    right.view(-1)[0] *= 1 + 2**-7 * (_turn[0] % 2)


def _raises(x: Tensor, right: Tensor) -> None:
    raise RuntimeError("CUDA error: misaligned address")


def _other_shape(x: Tensor, right: Tensor) -> Tensor:
    return right[:, :-1]


right = _silu("right", lambda x, right: None)
nan_at_8 = _silu("nan_at_8", _nan_at_8)
zeros_in_a_tile = _silu("zeros_in_a_tile", _zeros_in_a_tile)
right_at_1_alone = _silu("right_at_1_alone", _right_at_1_alone)
twice = _silu("twice", _twice)
all_zeros = _silu("all_zeros", _all_zeros)
nan_for_rows_of_zeros = _silu("nan_for_rows_of_zeros", _nan_for_rows_of_zeros)
tiny_rows_lost = _silu("tiny_rows_lost", _tiny_rows_lost)
changes_x = _silu("changes_x", _changes_x)
another_each_time = _silu("another_each_time", _another_each_time)
raises = _silu("raises", _raises)


def other_shape(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    return activations_math.reference_of("silu_and_mul")(x).to(x.dtype)[:, :-1]


def unwritten_row(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    """It writes all rows but the last, as a grid that is one block short does."""
    values = activations_math.reference_of("silu_and_mul")(x).to(x.dtype)
    made = torch.empty_like(values) if out is None else out
    made[:-1] = values[:-1]
    if out is None:
        made[-1] = values[-1]  # only memory of others is left as it was
    return made


def refuses(x: Tensor, weights: None = None, *, config: Any = None, out: Tensor | None = None) -> Tensor:
    raise NotImplementedError("not these rows")


WRONG = {
    "nan_at_8": "NaN",
    "zeros_in_a_tile": "zeros in",
    "right_at_1_alone": "of its norm off",
    "twice": "the direction is right and the size is not",
    "all_zeros": "all zeros",
    "nan_for_rows_of_zeros": "NaN",
    "tiny_rows_lost": "zeros in",
    "changes_x": "it changed its arguments",
    "another_each_time": "two equal calls gave two results",
    "raises": "it raised RuntimeError: CUDA error: misaligned address",
    "other_shape": r"result 0 is \[8, 191\]",
    "unwritten_row": "at its second call: NaN",
}
"""Kernels of silu_and_mul, and what the check says of them."""


def kernel(run: str, op: str = "silu_and_mul", **facts: Any) -> Kernel:
    """The planted kernel of that name, on the backend that the fallback takes first."""
    requirements = facts.pop("requirements", ())
    promises = facts.pop("promises", frozenset({"deterministic"}))
    return Kernel(
        name=f"planted.{run}[triton]", op=op, backend="triton", load=f"{HERE}:{run}", source=f"{HERE}:source",
        requirements=(OnCapability(ANY), NeedsPackage("torch"), *requirements), numerics=Numerics(promises=promises),
        **facts,
    )  # fmt: skip


# other ops


def prepare_swizzled(
    device: Any = None, *, w: Tensor, w_scale: Tensor, w_global_scale: Tensor, input_scale: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Scales in blocks of 128 x 4, as tensor cores read them."""
    _count("prepare_swizzled")
    return w, w_scale if mended else swizzle(w_scale).reshape(w_scale.shape), w_global_scale


def reads_swizzled_as_linear(
    x: Tensor, weights: tuple[Tensor, ...], *, config: Any = None, out_dtype: Any = None
) -> Tensor:
    w, w_scale, factor = weights
    return nvfp4_math.gemm_reference(x, w, w_scale, factor).to(out_dtype or x.dtype)


def norm_without_weight(
    x: Tensor, weights: Tensor, *, config: Any = None, eps: float = 1e-6, weight_bias: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    weight = weights if mended else torch.ones_like(weights)
    return _given(out, norms_math.rms_norm_reference(x, weight, eps, weight_bias).to(x.dtype))


def half_of_k(x: Tensor, weights: Tensor, *, config: Any = None) -> Tensor:
    size = x.shape[1] if mended else x.shape[1] // 2
    return router_math.router_gemm_reference(x[:, :size], weights[:, :size])


def ids_off_by_one(x: Tensor, weights: None = None, *, config: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    weight, ids = router_math.topk_reference(x, **options)
    return weight, ids if mended else (ids + 1) % x.shape[1]


def packed_high_first(
    x: Tensor, weights: None = None, *, config: Any = None, global_scale: Tensor, layout: str = "linear",
    out: Tensor | None = None, scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    packed, scale = nvfp4_math.quantize_reference(x, global_scale, layout)
    swapped = packed if mended else ((packed & 15) << 4) | (packed >> 4)
    return swapped if out is None else out.copy_(swapped), scale if scale_out is None else scale_out.copy_(scale)


def gate_and_up_swapped(x: Tensor, weights: Any, *, config: Any = None, **options: Any) -> Tensor:
    from kernelmux.contracts.fused_moe_math import reference

    w1, w2 = (weights[name] for name in ("w1", "w2"))
    gate, up = w1.chunk(2, dim=1)
    return reference(x, w1 if mended else torch.cat((up, gate), dim=1), w2, **options).to(x.dtype)


def scale_of_the_first_channel(
    x: Tensor, weights: Any, *, config: Any = None, x_scale: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    from kernelmux.contracts.gemm_fp8_math import reference

    scale = weights["w_scale"]
    read = scale if mended else scale[:1].expand_as(scale)
    return reference(x, weights["w"], read, x_scale).to(out_dtype or x.dtype)
