"""Whose kernels a stand times: what it asks of them, and the memory they work in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..backends.triton.moe_variant import MoeVariant
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..tuning_configs.tile import Tile

WIDEST_M = 256
"""The largest BLOCK_SIZE_M of any search: buffers in sorted order are sized by it."""

Routing = tuple[Tensor, Tensor]  # pair weights [M, topk] fp32, expert ids [M, topk] int32


class Subject(Protocol):
    """Kernels of one layer with its weights, on the current GPU. One M is set up at a time."""

    shape: MoeShape
    variant: MoeVariant
    weights: tuple[list[Tensor], list[Tensor]]
    """Copies of w1 and of w2: a stand adds clones until a replay passes the L2; launch r takes copy r % len."""

    def begin(self, m: int, routes: Sequence[Routing]) -> None:
        """Inputs for ``m`` tokens, one set a routing. What an earlier M had is dropped."""
        ...

    def runner(self, side: str, tile: Tile) -> Callable[[int], None]:
        """``call(r)`` launches one GEMM with routing r and nothing else. Raises what building it raises."""
        ...

    def sorter(self, block_m: int) -> Callable[[int], None] | None:
        """``call(r)`` sorts routing r; None where a call of this M does not sort."""
        ...

    def error(self, m: int, route: Routing, up: Tile, down: Tile) -> float:
        """The whole pipeline on poisoned buffers: relative L2 error of the worst row against the fp32 reference."""
        ...

    def peak_tflops(self, device: Device) -> float:
        """What the GEMMs' MMA reaches at best."""
        ...


class Workspace:
    """Random operands and growing buffers on one GPU."""

    def __init__(self, place: torch.device, dtype: torch.dtype, seed: int = 1):
        self.place, self.dtype = place, dtype
        self._generator = torch.Generator(device=place).manual_seed(seed)
        self._buffers: dict[str, Tensor] = {}

    def draw(self, *size: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal values of standard deviation ``scale``."""
        values = torch.empty(size, dtype=dtype or self.dtype, device=self.place)
        return values.normal_(0.0, scale, generator=self._generator)

    def between(self, *size: int, low: float, high: float) -> Tensor:
        """Uniform fp32 values."""
        values = torch.empty(size, dtype=torch.float32, device=self.place)
        return values.uniform_(low, high, generator=self._generator)

    def eight_bits(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Values as weights of 8 bits hold them: e4m3 with a standard deviation of 64, int8 of 32; slice by slice."""
        stored = torch.empty(size, dtype=dtype, device=self.place)
        for part in stored.view(size[0], -1) if len(size) > 2 else stored.view(1, -1):
            if dtype == torch.int8:
                part.copy_(self.draw(part.numel(), scale=32.0, dtype=torch.float32).round_().clamp_(-127, 127))
            else:
                part.copy_(self.draw(part.numel(), scale=64.0, dtype=torch.float32).clamp_(-448, 448))
        return stored

    def buffer(
        self, name: str, rows: int, columns: int, dtype: torch.dtype | None = None,
        fill: Callable[[int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """A view [rows, columns] of a buffer that grows as needed and is shared by all tiles of all M.

        ``fill(count)`` makes its values when it grows; else they are whatever was there. Ask for the largest size
        first: growing moves a buffer that a graph may have captured.
        """
        have = self._buffers.get(name)
        if have is None or have.numel() < rows * columns:
            count = rows * columns
            made = torch.empty(count, dtype=dtype or self.dtype, device=self.place) if fill is None else fill(count)
            have = self._buffers[name] = made
        return have[: rows * columns].view(rows, columns)


def worst_row(got: Tensor, truth: Tensor) -> float:
    """The largest relative L2 error of a row; infinite where a value is no number."""
    error = (got.float() - truth).norm(dim=1) / truth.norm(dim=1).clamp_min(1e-30)
    return float("inf") if bool(error.isnan().any()) else float(error.max())


def build(shape: MoeShape, variant: MoeVariant, device: Device) -> Subject:
    """The subject of ``variant`` on ``device``, its weights allocated. Raises UsageError for a shape it cannot take."""
    place = torch.device("cuda", device.index or 0)
    if variant.structure == "fused":
        from .fused_subject import FusedSubject

        return FusedSubject(shape, place)
    from .plain_subject import PlainSubject

    return PlainSubject(shape, variant, device, place)
