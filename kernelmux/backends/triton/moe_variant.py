"""Which fused MoE kernels are meant: our fused ones, plain ones of an engine's structure, or the engine's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...contracts.moe_quant import UNQUANTIZED, MoeQuant
from ...contracts.moe_shape import MoeShape
from ...device import Capability
from ...errors import UsageError
from ...tuning_configs.tile import Tile
from . import moe_rules, moe_source, plain_rules

Structure = Literal["fused", "vllm", "sglang"]

_PLAIN_FILES = (*moe_source.FILES, "moe_plain_kernels.py", "plain_launch.py", "plain_rules.py")


@dataclass(frozen=True, slots=True)
class MoeVariant:
    """A family of MoE GEMMs: what a table is tuned on, and what a bench times.

    ``structure`` "fused" is kernelmux's own (activation in the first GEMM); "vllm" and "sglang" are plain GEMMs with
    that engine's arguments and launch rules. ``engine_path`` names the engine's unpacked package (the folder that
    holds ``__init__.py``): then its own kernel is loaded and run in place of ours.
    """

    structure: Structure = "fused"
    quant: MoeQuant = UNQUANTIZED
    engine_path: str | None = None

    def __post_init__(self) -> None:
        if self.structure not in ("fused", *plain_rules.STRUCTURES):
            raise UsageError(f"unknown kernel structure {self.structure!r}: use fused, vllm or sglang.")
        if self.structure == "fused" and (self.quant != UNQUANTIZED or self.engine_path is not None):
            raise UsageError("the fused kernels are unquantized and nobody else's: name the vllm or sglang structure.")

    @property
    def word(self) -> Literal["fused", "plain"]:
        return "fused" if self.structure == "fused" else "plain"

    @property
    def kernel_name(self) -> str:
        """Whose GEMM runs, as sidecars and reports name it."""
        if self.structure == "fused":
            return "kernelmux.fused_moe[triton]"
        if self.engine_path is not None:
            return f"{self.structure}.fused_moe_kernel"
        return f"kernelmux.plain_moe[triton,{self.structure}]"

    def brief(self) -> str:
        return self.kernel_name if self.structure == "fused" else f"{self.kernel_name} {self.quant.brief()}"

    def direct(self, shape: MoeShape, m: int) -> bool:
        """Whether a call with ``m`` tokens skips the sort."""
        if self.structure == "fused":
            return moe_rules.direct(shape, m)
        return plain_rules.direct(self.structure, shape, m)

    def refusal(self, shape: MoeShape, side: str, tile: Tile, capability: Capability | None) -> str | None:
        """Why this tile cannot run, or would compute something else, or None."""
        if self.structure == "fused":
            return moe_rules.tma_refusal(shape, tile, side, capability) if tile.use_tma else None
        return plain_rules.refusal(self.structure, shape, self.quant, side, tile, capability)

    def source_hash(self) -> str:
        """Identity of what is timed: kernel source, launch rules, quantization. A table of another hash is stale."""
        if self.structure == "fused":
            return moe_source.source_hash()
        here, names = Path(__file__).parent, list(_PLAIN_FILES)
        text = self.brief().encode()
        if self.engine_path is not None:
            from .engine_kernels import source

            names.append("engine_kernels.py")
            text += source(self.structure, self.engine_path).encode()
        text += b"".join((here / name).read_bytes() for name in names)
        return hashlib.sha256(text).hexdigest()[:16]

    def identity(self) -> dict[str, str]:
        """Whose kernel runs, as a fingerprint and a sidecar say it."""
        words = {"variant": self.word, "kernel_name": self.kernel_name, "quant": self.quant.brief()}
        if self.engine_path is not None:
            from .engine_kernels import release

            words["engine"] = f"{self.structure} {release(self.structure, self.engine_path)}"
        return words

    def to_json(self) -> dict[str, Any]:
        """For a compile worker or a sidecar."""
        block = self.quant.block_shape
        return {
            "structure": self.structure, "dtype": self.quant.dtype, "per_channel": self.quant.per_channel,
            "block_shape": None if block is None else list(block), "engine_path": self.engine_path,
        }  # fmt: skip

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> MoeVariant:
        block = entry.get("block_shape")
        quant = MoeQuant(entry.get("dtype"), None if block is None else tuple(block), bool(entry.get("per_channel")))
        return cls(entry.get("structure", "fused"), quant, entry.get("engine_path"))


FUSED = MoeVariant()
