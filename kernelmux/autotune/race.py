"""Successive halving: every M is raced on both sides at once, the largest M first.

A BLOCK_SIZE_M stays in as long as the sum of both sides might still win with it. What one M learns (its leaders'
neighbours, its winners) the M values beside it try too. The default is always in the final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from kernelmux.autotune.clock import Clock
from kernelmux.autotune.compile import Facts, Task
from kernelmux.autotune.ledger import Cubins, Ledger
from kernelmux.autotune.profiles import RaceConfig, Rung
from kernelmux.autotune.space import Ground, block_m_cap, neighbours, why_not
from kernelmux.autotune.standing import Standing
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.measure.bench import SIDES, Bench, Side
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

SPILLS = 256  # stack bytes a thread from which a tile is out while any other is left
SAME_BINARY = "the same machine code as another tile at this M"
FIRST_PHASE, SECOND_PHASE = 0.58, 1.0  # of what is left of the budget when each begins


@dataclass
class Arena:
    """Everything a race needs. ``say`` takes one line of progress; ``notes`` collects what the report must tell."""

    shape: MoeShape
    device: Device
    bench: Bench
    ledger: Ledger
    cubins: Cubins
    config: RaceConfig
    clock: Clock
    defaults: Mapping[int, Mapping[Side, Tile]]
    say: Callable[[str], None]
    target: Target = KERNELMUX
    triton: str | None = None  # its version, by which earlier tables are looked up
    seed: str = ""
    notes: list[str] = field(default_factory=list)
    discards: dict[str, dict[str, int]] = field(default_factory=lambda: {"up": {}, "down": {}})

    def direct(self, m: int) -> bool:
        """Whether a call of ``m`` tokens skips the sort."""
        return self.target.direct(self.shape, m)

    def tasks(self, m: int, side: Side, tiles: Sequence[Tile]) -> list[Task]:
        return [Task(side, t, self.direct(m)) for t in tiles]

    def discard(self, side: Side, reason: str, count: int = 1) -> None:
        table = self.discards[side]
        table[reason] = table.get(reason, 0) + count


def first_phase(arena: Arena, fields: Mapping[int, Mapping[Side, Sequence[Tile]]]) -> dict[int, Standing]:
    """The rungs of every M, largest first. ``fields``: M -> side -> tiles, the most promising first."""
    ms = sorted(fields, reverse=True)
    for place, m in enumerate(ms):
        for side in SIDES:
            arena.cubins.want(arena.tasks(m, side, fields[m][side]), priority=place)
    shares = arena.clock.shares(FIRST_PHASE, {m: _weight(m) for m in ms})
    standings: dict[int, Standing] = {}
    for m in ms:
        standing = Standing(m, arena.defaults[m], arena.config, arena.seed, arena.target.one_tile)
        standings[m] = standing
        _enter_field(arena, standing, fields[m], rich=not shares.exhausted)
        shares.begin(m)  # after the wait for binaries: that is not the M's own time
        for number, rung in enumerate(arena.config.rungs):
            if number and shares.over and not _recorded(arena, standing, rung):
                arena.notes.append(f"M={m}: the budget allowed {number} of {len(arena.config.rungs)} rungs.")
                break
            _run_rung(arena, standing, rung)
            following = arena.config.rungs[number + 1 : number + 2]
            standing.cut_block_ms()
            standing.cut_tiles(following[0].field if following else arena.config.rungs[-1].field)
        if not shares.over:
            for side in SIDES:
                arena.cubins.want(arena.tasks(m, side, _neighbourhood(arena, standing, side)), priority=len(ms))
    return standings


def second_phase(arena: Arena, standings: Mapping[int, Standing]) -> None:
    """Neighbours of the leaders and the winners of the M values beside, then the final."""
    ms = sorted(standings, reverse=True)
    shares = arena.clock.shares(SECOND_PHASE, {m: _weight(m) for m in ms})
    for place, m in enumerate(ms):
        standing = standings[m]
        shares.begin(m)
        beside = [standings[n] for n in ms[max(0, place - 1) : place] + ms[place + 1 : place + 2]]
        for number in range(arena.config.refine_rounds):
            if arena.clock.left_s <= 0 or shares.over or not _refine(arena, standing, beside, number):
                break
        standing.cut_to_finalists()
        if shares.over and not _recorded(arena, standing, arena.config.final):
            arena.notes.append(f"M={m}: the budget ended before the final; decided by rung {_last(standing)}.")
        else:
            _run_rung(arena, standing, arena.config.final)
        best = {side: standing.best(side) for side in SIDES}
        words = ", ".join(f"{s} {r.tile.short()} {r.us.mid:.1f} us ±{r.us.half:.1f}" for s, r in best.items() if r)
        arena.say(f"M={m} final: {words or 'no tile left'}")


def _enter_field(arena: Arena, standing: Standing, field_of: Mapping[Side, Sequence[Tile]], *, rich: bool) -> None:
    """Wait for the binaries of the field and let in what compiled, each distinct binary once."""
    m = standing.m
    until = arena.clock.until(FIRST_PHASE)
    for side in SIDES:
        # With no budget left an M still runs its default and the first few of its list.
        tiles = list(field_of[side]) if rich else list(field_of[side])[:6]
        with arena.clock.stage("compile"):
            facts = arena.cubins.wait(arena.tasks(m, side, tiles), until)
        standing.alive[side] = _distinct(arena, standing, side, tiles, facts)
    standing.pair_up()
    block_ms = sorted({t.block_m for side in SIDES for t in standing.alive[side]})
    if not arena.direct(m):
        standing.align_us = arena.ledger.align(arena.bench, m, block_ms)


def _distinct(
    arena: Arena, standing: Standing, side: Side, tiles: Sequence[Tile], facts: Mapping[Task, Facts]
) -> list[Tile]:
    """The tiles that compiled, without heavy spills if any is without, one a binary. The default is never dropped."""
    m, default = standing.m, standing.defaults[side]
    found = {t: facts[k] for t, k in zip(tiles, arena.tasks(m, side, tiles), strict=True) if k in facts}
    for tile, fact in found.items():
        if fact.status != "ok":
            standing.failed[side][tile] = f"{fact.status} while compiling: {fact.reason}"
    usable = {t: f for t, f in found.items() if f.status == "ok"}
    # The binary is made at the launch, too: a default that is late in the queue is not lost.
    if default not in found:
        usable[default] = Facts("ok")
    limit = arena.device.shared_bytes
    fits = {t: f for t, f in usable.items() if not limit or f.shared_bytes <= limit}
    lean = {t: f for t, f in fits.items() if f.stack_bytes < SPILLS or t == default}
    ran = standing.binaries[side]
    for tile, fact in sorted((lean if len(lean) > 1 else fits).items(), key=lambda tf: tf[0] != default):
        # Where one tile must serve both sides, its twin on this side may be another tile on the other.
        binary = "" if arena.target.one_tile else fact.sha256
        if ran.setdefault(binary or tile.short(), tile) != tile:
            arena.discard(side, SAME_BINARY)
    chosen = set(ran.values())
    return [t for t in tiles if t in chosen]


def _run_rung(arena: Arena, standing: Standing, rung: Rung) -> None:
    m = standing.m
    for side in SIDES:
        tiles = standing.alive[side]
        if not tiles:
            continue
        best = standing.best(side)
        samples = rung.samples_for(len(tiles), best.us.mid if best else 0.0)
        with arena.clock.stage("final" if rung is arena.config.final else "race"):
            timings = arena.ledger.time(arena.bench, m, side, rung.name, tiles, samples)
        standing.take(side, rung.name, timings)
        leader = standing.best(side)
        if leader:
            arena.say(
                f"M={m} {side}: {len(standing.alive[side])} left, best {leader.us.mid:.1f} us ±{leader.us.half:.1f}"
            )
    standing.rungs_run.append(rung.name)


def _refine(arena: Arena, standing: Standing, beside: Sequence[Standing], number: int) -> bool:
    """One rung of unseen neighbours beside the leaders they must beat; False when there was none to try."""
    m, config = standing.m, arena.config
    allowed = set(standing.block_ms())
    cap = 16 if arena.direct(m) else block_m_cap(arena.shape, m)
    rung = replace(config.refine, name=f"{config.refine.name}-{number}")
    joined = False
    every: dict[Side, list[Tile]] = {}
    for side in SIDES:
        winners = [r.tile for other in beside for r in other.leaders(side).values()]
        known = standing.results[side].keys() | standing.failed[side].keys()
        every[side] = [
            t
            for t in dict.fromkeys([*winners, *_neighbourhood(arena, standing, side)])
            if t.block_m in allowed
            and t.block_m <= cap
            and t not in known
            and (m >= arena.target.tma_from_m or not t.use_tma)
        ]
    if arena.target.one_tile:
        both = _usable_on_both(arena, dict.fromkeys(t for pair in zip_longest(*every.values()) for t in pair if t))
        every = dict.fromkeys(SIDES, both)
    for side in SIDES:
        wanted = every[side][: rung.field]
        with arena.clock.stage("compile"):
            facts = arena.cubins.wait(arena.tasks(m, side, wanted), arena.clock.until(0.9))
        fresh = [t for t in _distinct(arena, standing, side, wanted, facts) if t in wanted]
        anchors = standing.alive[side][: max(4, config.final.field)]
        fresh = standing.enter(side, fresh)
        if not fresh:
            continue
        joined = True
        best = standing.best(side)
        tiles = [*fresh, *anchors]
        samples = rung.samples_for(len(tiles), best.us.mid if best else 0.0)
        with arena.clock.stage("race"):
            standing.take(side, rung.name, arena.ledger.time(arena.bench, m, side, rung.name, tiles, samples))
    if joined:
        standing.rungs_run.append(rung.name)
        standing.cut_block_ms()
        standing.cut_tiles(config.rungs[-1].field)
    return joined


def _usable_on_both(arena: Arena, tiles: Iterable[Tile]) -> list[Tile]:
    """The tiles that no constraint breaks on either side, as they are."""
    grounds = [Ground(arena.shape, arena.device, side, arena.target) for side in SIDES]
    return [t for t in tiles if all(why_not(t, g) is None for g in grounds)]


def _neighbourhood(arena: Arena, standing: Standing, side: Side) -> list[Tile]:
    """The unseen tiles one knob from the leaders: the fastest overall and the first of each BLOCK_SIZE_M."""
    ground = Ground(arena.shape, arena.device, side, arena.target)
    fastest = standing.alive[side][: arena.config.leaders]
    firsts = [r.tile for r in standing.leaders(side).values()]
    out: dict[Tile, None] = {}
    for tile in dict.fromkeys([*fastest, *firsts]):
        out.update(dict.fromkeys(neighbours(tile, standing.m, ground)))
    known = standing.results[side].keys() | standing.failed[side].keys()
    return [t for t in out if t not in known]


def _recorded(arena: Arena, standing: Standing, rung: Rung) -> bool:
    """Whether the journal has this rung already: then it is free, whatever the budget."""
    return all(arena.ledger.knows(standing.m, side, rung.name, standing.alive[side]) for side in SIDES)


def _last(standing: Standing) -> str:
    return standing.rungs_run[-1] if standing.rungs_run else "none"


def _weight(m: int) -> float:
    """How much of a phase an M needs: a fixed part for capturing graphs, the rest grows with its kernels."""
    return 1.0 + m / 800
