"""Site: one op at one place of a model, with the sizes one rank sees; Model: all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelmux.quant import Scheme

_MOST_RUNS = 4

UNQUANTIZED = Scheme.of(None)

GEMM_OPS: Mapping[str, str] = {
    "fp8_tensor": "fp8_gemm",
    "fp8_channel": "fp8_gemm",
    "fp8_block": "fp8_gemm",
    "nvfp4": "nvfp4_gemm",
    "nvfp4_w4a16": "nvfp4_gemm",
}
"""Scheme of a dense layer -> the op that multiplies it."""


@dataclass(frozen=True, slots=True)
class Site:
    """``module`` is the path below its layer (``self_attn.qkv_proj``), ``shape`` the axes without the token axis.

    ``op`` is None for work that is no op of kernelmux, ``what`` then names it. ``rows`` are the op's rows a token (a
    norm over each head has as many as heads). ``trouble`` says why the scheme could not be read, ``note`` what the op
    leaves out of this model.
    """

    module: str
    op: str | None
    shape: tuple[tuple[str, int], ...]
    scheme: Scheme = UNQUANTIZED
    activation: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    rows: int = 1
    what: str = ""
    trouble: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """A Site and the layers that have it, in order; none for what lies outside the layers."""

    site: Site
    layers: tuple[int, ...]

    @property
    def where(self) -> str:
        """``3-60``, ``0-2,5``, or empty; of many runs the first, the last and how many layers: ``0,2,..,86 (40)``."""
        runs: list[list[int]] = []
        for layer in self.layers:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
        if len(words) > _MOST_RUNS:
            words = [*words[:2], "..", f"{words[-1]} ({len(self.layers)})"]
        return ",".join(words)


@dataclass(frozen=True, slots=True)
class Model:
    """Every op of a model on one rank, in the order they run. ``unread`` holds a sentence for what is not in it."""

    family: str
    dtype: str
    layers: int
    tp: int
    method: str
    placed: tuple[Placed, ...]
    unread: tuple[str, ...] = field(default=())
