"""The answer to "which tiles": a table or the heuristic, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.tuning_configs.heuristic import default_config
from kernelmux.tuning_configs.table import MoeConfig, MoeTable

if TYPE_CHECKING:
    from kernelmux.device import Device


@dataclass(frozen=True, slots=True)
class MoeChoice:
    """A `registry.config.ConfigChoice` of the Triton MoE kernel.

    ``grade`` is "exact", "family", "triton-version", "family, triton-version" or "heuristic". ``notes`` say what was
    repaired or passed over on the way; ``conditions`` what was not given; ``tuned_on`` is the source hash of the kernel
    the table was tuned (or predicted) on, "" where nothing says so.
    """

    source: str  # "measured", "imported", "predicted" or "heuristic"
    grade: str
    why: str
    path: Path | None = None
    table: MoeTable | None = None
    shape: MoeShape | None = None
    device: Device | None = None
    notes: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    tuned_on: str = ""

    def at(self, m: int) -> MoeConfig:
        """The pair of tiles for ``m`` tokens."""
        return self.table.at(m) if self.table is not None else default_config(self.shape, m, self.device)

    def to_json(self, m: int | None = None) -> dict[str, Any] | None:
        """``{"up": {...}, "down": {...}}`` at ``m`` tokens; by M, at every tuned (or usual) M, when None."""
        if m is not None:
            return dict(self.at(m).to_json())
        keys = self.table.keys if self.table is not None else USUAL_M
        return {str(key): self.at(key).to_json() for key in keys}
