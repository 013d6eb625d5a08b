"""The shape of one fused MoE layer, as the tuner, the tables and the kernels all name it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import BadShape

USUAL_M = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The token counts that vLLM's and SGLang's tables are tuned at."""

GATED = ("silu", "gelu", "gelu_tanh")
"""Activations of the form ``act(gate) * up``: w1 holds 2N rows, gate first."""

ACTIVATIONS = (*GATED, "relu2")

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

_FORM = "E=<experts>,N=<intermediate size>,K=<hidden size>,topk=<experts a token>, as in E=128,N=384,K=2048,topk=8"


@dataclass(frozen=True, slots=True, order=True)
class MoeShape:
    """Experts E (on this rank), intermediate size N after the activation, hidden size K, topk.

    w1 is [E, 2N, K] for a gated activation, rows [gate; up] as in Hugging Face, else [E, N, K]; w2 is [E, K, N].
    """

    E: int
    N: int
    K: int
    topk: int
    activation: str = "silu"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for axis in ("E", "N", "K", "topk"):
            value = getattr(self, axis)
            if not isinstance(value, int) or value < 1:
                raise BadShape(f"{axis}={value!r} in a fused MoE shape: give a whole number of at least 1 ({_FORM}).")
        if self.topk > self.E:
            raise BadShape(f"topk={self.topk} exceeds E={self.E}: a token cannot visit more experts than there are.")
        if self.activation not in ACTIVATIONS:
            raise BadShape(f"unknown activation {self.activation!r}: use one of {', '.join(ACTIVATIONS)}.")
        if self.dtype not in ELEMENT_BYTES:
            raise BadShape(f"unknown dtype {self.dtype!r} for fused MoE: use one of {', '.join(ELEMENT_BYTES)}.")

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def up_n(self) -> int:
        """Rows of one expert's w1: 2N when gated, else N."""
        return 2 * self.N if self.gated else self.N

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    def gemm(self, side: str) -> tuple[int, int]:
        """(columns, depth) of one expert's GEMM: up [*, K] x [up_n, K]^T, down [*, N] x [K, N]^T."""
        return (self.up_n, self.K) if side == "up" else (self.K, self.N)

    def axes(self) -> dict[str, int]:
        return {"E": self.E, "N": self.N, "K": self.K, "topk": self.topk}

    def brief(self) -> str:
        return f"E={self.E},N={self.N},K={self.K},topk={self.topk},{self.activation},{self.dtype}"

    @classmethod
    def from_axes(cls, axes: Mapping[str, int], activation: str = "silu", dtype: str = "bfloat16") -> MoeShape:
        """From a mapping with E, N, K, topk (M is ignored); raises BadShape naming what is missing."""
        missing = [axis for axis in ("E", "N", "K", "topk") if axis not in axes]
        if missing:
            raise BadShape(f"the fused MoE shape lacks {', '.join(missing)}: write {_FORM}.")
        return cls(axes["E"], axes["N"], axes["K"], axes["topk"], activation, dtype)

    @classmethod
    def parse(cls, text: str, activation: str = "silu", dtype: str = "bfloat16") -> MoeShape:
        """Read ``E=128,N=384,K=2048,topk=8``; raises BadShape saying which part is off and the form."""
        axes: dict[str, int] = {}
        for part in text.split(","):
            found = re.fullmatch(r"\s*(E|N|K|topk)\s*=\s*(\d+)\s*", part)
            if not found:
                raise BadShape(f"cannot read {part!r} in shape {text!r}: write {_FORM}.")
            if found[1] in axes:
                raise BadShape(f"{found[1]} is given twice in shape {text!r}.")
            axes[found[1]] = int(found[2])
        return cls.from_axes(axes, activation, dtype)

    def with_dtype(self, dtype: str) -> MoeShape:
        return replace(self, dtype=dtype)
