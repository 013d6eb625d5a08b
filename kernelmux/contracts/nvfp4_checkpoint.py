"""NVFP4 linear layers as checkpoints store them, turned into what every kernel's ``prepare`` takes.

======================  ==============================  =====================================
of this contract        ModelOpt                        compressed-tensors
======================  ==============================  =====================================
``w``                   ``weight`` uint8 [N, K/2]       ``weight_packed`` uint8 [N, K/2]
``w_scale``             ``weight_scale`` e4m3           ``weight_scale`` e4m3
``w_global_scale``      ``weight_scale_2``              1 / ``weight_global_scale``
``input_scale``         ``input_scale``                 1 / ``input_global_scale``
======================  ==============================  =====================================

A checkpoint without an input scale is W4A16. Imported only where torch is about to be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from ..errors import UsageError
from .nvfp4_checks import check_weights, require_usable_factor


class Weights(TypedDict):
    """Keyword arguments of ``Selection.prepare`` for nvfp4_gemm; the global scales dequantize."""

    w: Tensor
    w_scale: Tensor
    w_global_scale: Tensor
    input_scale: Tensor | None


FORMATS = ("modelopt", "compressed-tensors")
_NAMES = {  # format -> (w, w_scale, w_global_scale, input_scale, whether the last two are inverses)
    "modelopt": ("weight", "weight_scale", "weight_scale_2", "input_scale", False),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale", True),
}


def from_checkpoint(tensors: Mapping[str, Tensor], prefix: str = "", *, packing: str | None = None) -> Weights:
    """The layer ``prefix`` (a module path, as ``model.layers.0.mlp.up_proj``) of a checkpoint, checked.

    ``packing`` is one of FORMATS, as ``Scheme.packing`` has it; None reads it off the tensors' names. Raises
    UsageError where a tensor is missing or the names fit neither format, BadShape for shapes, dtypes and scales that
    do not fit.
    """
    start = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    if packing is None:
        found = [name for name in FORMATS if {start + _NAMES[name][0], start + _NAMES[name][2]} <= tensors.keys()]
        if len(found) != 1:
            near = sorted(key for key in tensors if key.startswith(start))[:8]
            wanted = " or ".join(f"{_NAMES[name][0]} and {_NAMES[name][2]} ({name})" for name in FORMATS)
            raise UsageError(f"{prefix or 'the checkpoint'} has no NVFP4 weight, {wanted}; it has {near}.")
        packing = found[0]
    if packing not in _NAMES:
        raise UsageError(f"unknown packing {packing!r} of an NVFP4 checkpoint. Known: {', '.join(FORMATS)}.")
    w, w_scale, w_global, inputs, inverse = _NAMES[packing]
    missing = [name for name in (w, w_scale, w_global) if start + name not in tensors]
    if missing:
        raise UsageError(f"{prefix or 'the checkpoint'} lacks {', '.join(missing)}, which {packing} stores.")
    given = tensors.get(start + inputs)
    made = Weights(
        w=tensors[start + w],
        w_scale=tensors[start + w_scale],
        w_global_scale=_factor(start + w_global, tensors[start + w_global], inverse),
        input_scale=None if given is None else _factor(start + inputs, given, inverse),
    )
    check_weights(**made)
    return made


def _factor(name: str, stored: Tensor, inverse: bool) -> Tensor:
    """What dequantizes, fp32 []; ``stored`` or its inverse."""
    if stored.numel() != 1:
        raise UsageError(f"{name} must be one number; it has {stored.numel()}. Experts are read one by one.")
    value = stored.to(torch.float32).reshape(())
    found = 1.0 / value if inverse else value
    require_usable_factor("nvfp4_gemm", f"the inverse of {name}" if inverse else name, found)
    return found


def fused(parts: Sequence[Weights]) -> Weights:
    """One layer of several whose rows are stacked (q, k and v; gate and up).

    Their inputs are the same, so the largest input scale serves all. Raises UsageError where their global scales
    differ: block scales are e4m3 and cannot take up the quotient without being rounded again.
    """
    if not parts:
        raise UsageError("there is no part to fuse.")
    factors = [float(part["w_global_scale"]) for part in parts]
    if len(set(factors)) > 1:
        raise UsageError(
            f"the parts were quantized under different global scales ({', '.join(f'{f:g}' for f in factors)}): keep "
            "them apart, or quantize them anew under one, as ModelOpt and llm-compressor do for fused layers."
        )
    inputs = [part["input_scale"] for part in parts]
    known = [scale for scale in inputs if scale is not None]
    if known and len(known) < len(inputs):
        raise UsageError("some parts have an input scale and others none: they are not one layer.")
    return Weights(
        w=torch.cat([part["w"] for part in parts]),
        w_scale=torch.cat([part["w_scale"].view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn),
        w_global_scale=parts[0]["w_global_scale"],
        input_scale=torch.stack(known).max() if known else None,
    )
