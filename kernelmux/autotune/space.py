"""The tiles worth thinking about, as data, and the named constraints that thin them out for free.

Nothing vanishes silently: every discarded tile is counted under the words of the constraint that discarded it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.backends.triton import moe_rules
from kernelmux.measure.bench import Side
from kernelmux.tuning_configs import shared_law
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

Effort = Literal["quick", "full", "exhaustive"]
EFFORTS: tuple[Effort, ...] = ("quick", "full", "exhaustive")

GROUP_FROM_M = 512  # from here several row blocks of one expert share weight tiles through L2
FIRST_GROUPS: tuple[int, ...] = (1, 16)
SWEPT_GROUPS: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
ACCUMULATORS = 224  # fp32 registers a thread can hold for the accumulator; 255 less addresses and operands
ROW_SLACK = 4  # BLOCK_SIZE_M up to four times the expected rows of an expert


@dataclass(frozen=True, slots=True)
class Axes:
    """The values each knob takes. GROUP_SIZE_M is not among them: it is swept for finalists only."""

    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    block_k: tuple[int, ...]
    warps: tuple[int, ...]
    stages: tuple[int, ...]

    def tiles(self) -> Iterator[Tile]:
        """Every combination, smallest slab first."""
        every = (
            Tile(bm, bn, bk, 1, warps, stages)
            for bm, bn, bk, warps, stages in product(self.block_m, self.block_n, self.block_k, self.warps, self.stages)
        )
        return iter(sorted(every, key=size_of))


# vLLM's and SGLang's own grid less GROUP_SIZE_M; 470 public tables lie in it. Every effort starts from all of it and
# differs in how much is compiled and measured.
PUBLIC_GRID = Axes((16, 32, 64, 128, 256), (32, 64, 128, 256), (64, 128, 256), (4, 8), (2, 3, 4, 5))


@dataclass(frozen=True, slots=True)
class Ground:
    """What a constraint judges against."""

    shape: MoeShape
    device: Device
    side: Side
    target: Target = KERNELMUX

    @property
    def columns(self) -> int:
        return self.shape.gemm(self.side)[0]

    @property
    def depth(self) -> int:
        return self.shape.gemm(self.side)[1]

    def refusal(self, tile: Tile) -> str | None:
        """Why the reader's kernel cannot run the tile, or None."""
        return self.target.variant.refusal(self.shape, self.side, tile, self.device.capability)

    @property
    def element_bytes(self) -> tuple[int, int]:
        """Bytes of one element of A and of B."""
        return self.target.element_bytes(self.shape)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A named test; ``broken`` is true for a tile that must go."""

    reason: str
    broken: Callable[[Tile, Ground], bool]


def _over_shared(tile: Tile, ground: Ground) -> bool:
    device, sizes = ground.device, ground.element_bytes
    if device.shared_bytes <= 0:
        return False
    predicted, exact = shared_law.predicted_shared(tile, device.capability, *sizes)
    bound = predicted if exact else shared_law.lower_bound(tile, device.capability, *sizes)
    return bound > device.shared_bytes


def _over_registers(tile: Tile, _: Ground) -> bool:
    return tile.block_m * tile.block_n / (32 * tile.warps) > ACCUMULATORS


def _breaks_triton(tile: Tile, _: Ground) -> bool:
    # TritonGPURemoveLayoutConversions fails: "PassManager::run failed" (3.6, sm_90 and sm_120).
    return tile.block_m == 256 and tile.warps == 4 and tile.block_n == tile.block_k


def _no_tma(tile: Tile, ground: Ground) -> bool:
    if not tile.use_tma:
        return False
    if not ground.target.may_use_tma:
        return True
    return ground.refusal(tile) is not None


def _not_as_written(tile: Tile, ground: Ground) -> bool:
    return ground.target.plain and not tile.use_tma and ground.refusal(tile) is not None


CONSTRAINTS: tuple[Constraint, ...] = (
    Constraint("more shared memory than a block may have", _over_shared),
    Constraint(f"more than {ACCUMULATORS} accumulator registers a thread", _over_registers),
    Constraint("Triton fails on BLOCK_SIZE_M=256 with 4 warps and BLOCK_SIZE_N == BLOCK_SIZE_K", _breaks_triton),
    Constraint("the operands cannot be read by TMA here", _no_tma),
    Constraint("the reader's kernel does not run it as it is written", _not_as_written),
)
DUPLICATE = "the same kernel as another tile once its blocks are clamped to the matrix"


@dataclass(frozen=True, slots=True)
class Space:
    """The tiles of one side that survive the free filter, GROUP_SIZE_M at 1, and why the others went."""

    side: Side
    tiles: tuple[Tile, ...]
    discards: Mapping[str, int]

    def hash_text(self) -> str:
        """What a journal's run key depends on: the tiles by their short names."""
        return ";".join(t.short() for t in self.tiles)


def build_space(
    shape: MoeShape, device: Device, side: Side, axes: Axes = PUBLIC_GRID, target: Target = KERNELMUX
) -> Space:
    """Every tile of the axes that no constraint breaks, canonical, each once."""
    ground = Ground(shape, device, side, target)
    discards: Counter[str] = Counter()
    kept: dict[Tile, None] = {}
    variants = (False, True) if device.capability in moe_rules.TMA and target.may_use_tma else (False,)
    for base in axes.tiles():
        for use_tma in variants:
            tile = canonical(replace(base, use_tma=use_tma), ground)
            if tile in kept:
                discards[DUPLICATE] += 1
            elif (reason := why_not(tile, ground)) is not None:
                discards[reason] += 1
            else:
                kept[tile] = None
    return Space(side, tuple(kept), dict(discards))


def canonical(tile: Tile, ground: Ground) -> Tile:
    """The tile with blocks clamped to the matrix and stages to the trips of the K loop: beyond it nothing differs.

    A tile that must serve both sides is clamped by its quantization only: the two matrices differ.
    """
    if ground.target.one_tile:
        return replace(tile, block_k=ground.target.quant.clamped_k(tile.block_k))
    block_n = min(tile.block_n, max(16, next_pow2(ground.columns)))
    block_k = min(ground.target.quant.clamped_k(tile.block_k), max(16, next_pow2(ground.depth)))
    trips = -(-ground.depth // block_k)
    return replace(tile, block_n=block_n, block_k=block_k, stages=min(tile.stages, max(2, trips)))


def why_not(tile: Tile, ground: Ground) -> str | None:
    """The reason of the first constraint the tile breaks, or None."""
    return next((c.reason for c in CONSTRAINTS if c.broken(tile, ground)), None)


def tokens_per_expert(shape: MoeShape, m: int) -> float:
    return m * shape.topk / shape.E


def block_m_cap(shape: MoeShape, m: int) -> int:
    """The largest BLOCK_SIZE_M worth trying at ``m`` tokens; never under 16."""
    return max(16, ROW_SLACK * next_pow2(max(1, -(-m * shape.topk // shape.E))))


def at_m(tiles: Iterable[Tile], shape: MoeShape, m: int, *, direct: bool, target: Target = KERNELMUX) -> list[Tile]:
    """The tiles that make sense at ``m`` tokens, with the first rung's GROUP_SIZE_M values.

    ``direct``: the kernel runs one pair a block without sorting, so BLOCK_SIZE_M is 16.
    """
    cap = 16 if direct else block_m_cap(shape, m)
    groups = first_groups(m)
    return [
        replace(tile, group_m=group)
        for tile in tiles
        if tile.block_m <= cap and (m >= target.tma_from_m or not tile.use_tma)
        for group in groups
    ]


def first_groups(m: int) -> tuple[int, ...]:
    return FIRST_GROUPS if m >= GROUP_FROM_M else (1,)


def neighbours(tile: Tile, m: int, ground: Ground, axes: Axes = PUBLIC_GRID) -> list[Tile]:
    """The tiles one knob away on the grid that no constraint breaks, and every GROUP_SIZE_M of ``tile``."""
    found: dict[Tile, None] = {}
    for group in SWEPT_GROUPS:
        found[replace(tile, group_m=group)] = None
    steps: list[tuple[str, Sequence[int]]] = [
        ("block_n", axes.block_n), ("block_k", axes.block_k), ("warps", axes.warps), ("stages", axes.stages),
    ]  # fmt: skip
    for knob, values in steps:
        for value in _beside(getattr(tile, knob), values):
            found[replace(tile, **{knob: value})] = None  # type: ignore[arg-type]
    if m >= ground.target.tma_from_m:
        found[replace(tile, use_tma=not tile.use_tma)] = None
    out = {canonical(t, ground): None for t in found}
    out.pop(tile, None)
    return [t for t in out if why_not(t, ground) is None]


def _beside(value: int, values: Sequence[int]) -> list[int]:
    lower = [v for v in values if v < value]
    upper = [v for v in values if v > value]
    return lower[-1:] + upper[:1]


def size_of(tile: Tile) -> tuple[int, int, Tile]:
    """A key that sorts small tiles first: they compile fastest."""
    return (tile.block_m * tile.block_n * tile.block_k, tile.stages, tile)


def next_pow2(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()
