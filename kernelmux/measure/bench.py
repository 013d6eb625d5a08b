"""What the tuner asks of whoever measures: a live GPU (`live`) or the replay of a journal (`replay`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device
    from kernelmux.tuning_configs.tile import Tile

Side = Literal["up", "down"]
SIDES: tuple[Side, Side] = ("up", "down")


@dataclass(frozen=True, slots=True)
class Timing:
    """What one tile did in one call of `Bench.time`.

    A sample is the mean time of one kernel call inside one replay of a small CUDA graph, in microseconds. Samples
    are in round order: sample i of every tile of one call was taken in the same round, so they can be paired.
    ``status`` is "ok", or "error" (the launch raised), "hang", "crash"; then ``samples_us`` is empty and ``reason``
    is one line.
    """

    tile: Tile
    samples_us: tuple[float, ...]
    status: str = "ok"
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok" and bool(self.samples_us)


@dataclass(frozen=True, slots=True)
class Check:
    """Whether one pair of tiles computes the right thing.

    ``error`` is the largest relative L2 error over the rows of the output, against the fp32 reference.
    """

    ok: bool
    error: float
    reason: str = ""


@runtime_checkable
class Bench(Protocol):
    """Times and checks tiles of one shape on one device. No method lets a bad tile end the run."""

    shape: MoeShape
    device: Device

    def fingerprint(self) -> dict[str, str]:
        """Everything that makes a measurement stale when it changes: device, driver, CUDA, Triton, kernel source."""
        ...

    def time(self, m: int, side: Side, tiles: Sequence[Tile], samples: int) -> list[Timing]:
        """Time every tile ``samples`` times, interleaved and reshuffled each round; one Timing a tile, in order.

        A tile that raises, hangs or crashes comes back with its status and reason. Raises DeviceLost only when the
        GPU is gone.
        """
        ...

    def align(self, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        """Microseconds of the sort step for each BLOCK_SIZE_M."""
        ...

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]]) -> list[Check]:
        """Run the whole pipeline with each (up, down) pair on poisoned outputs against the fp32 reference."""
        ...

    def close(self) -> None: ...
