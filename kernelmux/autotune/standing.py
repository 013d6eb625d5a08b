"""Who is still in the race at one M, on both sides, and who has to leave after a rung."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kernelmux.autotune.profiles import RaceConfig
from kernelmux.measure.bench import SIDES, Side, Timing
from kernelmux.measure.stats import Interval, interval
from kernelmux.tuning_configs.tile import Tile

RUNG_RESAMPLES = 120  # enough to drop the hopeless; finals draw more


@dataclass(frozen=True)
class Result:
    """One tile after its latest rung."""

    tile: Tile
    samples_us: tuple[float, ...]
    rung: str
    seed: str

    @cached_property
    def us(self) -> Interval:
        return interval(self.samples_us, self.seed, RUNG_RESAMPLES)


@dataclass
class Standing:
    """The race at one M. ``alive`` holds the tiles still in it, fastest first once they have run."""

    m: int
    defaults: Mapping[Side, Tile]
    config: RaceConfig
    seed: str
    one_tile: bool = False  # both sides must run the same tile, so tiles are judged by the sum
    alive: dict[Side, list[Tile]] = field(default_factory=dict)
    results: dict[Side, dict[Tile, Result]] = field(default_factory=lambda: {"up": {}, "down": {}})
    failed: dict[Side, dict[Tile, str]] = field(default_factory=lambda: {"up": {}, "down": {}})
    binaries: dict[Side, dict[str, Tile]] = field(default_factory=lambda: {"up": {}, "down": {}})  # sha256 -> its tile
    align_us: dict[int, float] = field(default_factory=dict)
    rungs_run: list[str] = field(default_factory=list)

    def take(self, side: Side, rung: str, timings: Iterable[Timing]) -> None:
        """Enter the timings of a rung; a tile that failed leaves with its reason."""
        for timing in timings:
            if timing.ok:
                seed = f"{self.seed}/{self.m}/{side}/{rung}/{timing.tile.short()}"
                self.results[side][timing.tile] = Result(timing.tile, timing.samples_us, rung, seed)
            else:
                self.results[side].pop(timing.tile, None)
                self.failed[side][timing.tile] = f"{timing.status}: {timing.reason}"
        gone = self.failed[side]
        ran = self.results[side]
        self.alive[side] = sorted((t for t in self.alive[side] if t not in gone and t in ran), key=self._speed(side))

    def _speed(self, side: Side) -> Callable[[Tile], tuple[float, Tile]]:
        """Sort key: the time of a tile on this side, or of both together where one tile must serve both."""
        sides = SIDES if self.one_tile else (side,)
        ran = [self.results[s] for s in sides]
        return lambda t: (sum(r[t].us.mid if t in r else 0.0 for r in ran), t)

    def best(self, side: Side) -> Result | None:
        tiles = self.alive.get(side) or []
        found = [self.results[side][t] for t in tiles if t in self.results[side]]
        return min(found, key=lambda r: r.us.mid) if found else None

    def leaders(self, side: Side) -> dict[int, Result]:
        """The fastest tile of each BLOCK_SIZE_M."""
        out: dict[int, Result] = {}
        for tile in self.alive[side]:
            result = self.results[side][tile]
            if tile.block_m not in out or self._speed(side)(tile) < self._speed(side)(out[tile.block_m].tile):
                out[tile.block_m] = result
        return out

    def block_ms(self) -> list[int]:
        """BLOCK_SIZE_M values with a tile alive on both sides."""
        return sorted({t.block_m for t in self.alive["up"]} & {t.block_m for t in self.alive["down"]})

    def cut_block_ms(self) -> list[int]:
        """Drop each BLOCK_SIZE_M whose best pair is surely slower than the best of another; returns those dropped.

        Neither side alone can tell: a BLOCK_SIZE_M that loses on one may win on the sum.
        """
        up, down = self.leaders("up"), self.leaders("down")
        both = sorted(up.keys() & down.keys())
        if not both:
            return []
        sort = {bm: self.align_us.get(bm, 0.0) for bm in both}
        bound = min(up[bm].us.high + down[bm].us.high + sort[bm] for bm in both)
        slack = 1 + self.config.block_m_slack
        dropped = [bm for bm in both if up[bm].us.low + down[bm].us.low + sort[bm] > bound * slack]
        dropped += sorted((up.keys() ^ down.keys()) - set(both))
        for side in SIDES:
            self._keep(side, [t for t in self.alive[side] if t.block_m not in dropped])
        return dropped

    def cut_tiles(self, field_size: int) -> None:
        """Keep ``field_size`` tiles a side: the first few of each BLOCK_SIZE_M, then the fastest of all."""
        self.pair_up()
        for side in SIDES:
            leaders = self.leaders(side)
            slack = 1 + self.config.tile_slack
            close = [
                t for t in self.alive[side]
                if self.one_tile or self.results[side][t].us.low <= leaders[t.block_m].us.high * slack
            ]  # fmt: skip
            kept: list[Tile] = []
            for block_m in leaders:
                kept += [t for t in close if t.block_m == block_m][: self.config.per_block_m]
            kept += [t for t in close if t not in kept][: max(0, field_size - len(kept))]
            self._keep(side, kept)

    def cut_to_finalists(self) -> None:
        """Keep the final's field of tiles for each BLOCK_SIZE_M and side."""
        self.pair_up()
        for side in SIDES:
            kept: list[Tile] = []
            for block_m in self.leaders(side):
                kept += [t for t in self.alive[side] if t.block_m == block_m][: self.config.final.field]
            self._keep(side, kept)

    def pair_up(self) -> None:
        """Where one tile must serve both sides, drop those that are not alive on both."""
        if self.one_tile:
            both = set(self.alive["up"]) & set(self.alive["down"])
            for side in SIDES:
                self.alive[side] = [t for t in self.alive[side] if t in both]

    def enter(self, side: Side, tiles: Sequence[Tile]) -> list[Tile]:
        """Let tiles join that have not run at this M; returns those that did join."""
        known = self.results[side].keys() | self.failed[side].keys()
        fresh = [t for t in dict.fromkeys(tiles) if t not in known]
        self.alive[side] = [*self.alive[side], *fresh]
        return fresh

    def _keep(self, side: Side, tiles: list[Tile]) -> None:
        """Set who is alive; the default stays as long as it runs, so that it is in the final."""
        default = self.defaults[side]
        chosen = set(tiles)
        if default in self.results[side]:
            chosen.add(default)
        self.alive[side] = sorted((t for t in chosen if t in self.results[side]), key=self._speed(side))
