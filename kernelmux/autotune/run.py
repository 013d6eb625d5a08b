"""Tune one fused MoE shape on one device: plan, compile, race, solve, check, write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.autotune import emit, joint, race, seeds
from kernelmux.autotune.clock import Clock
from kernelmux.autotune.compile import CompilePool
from kernelmux.autotune.ledger import Cubins, Ledger
from kernelmux.autotune.profiles import PROFILES, RaceConfig
from kernelmux.autotune.result import Line, TuneResult
from kernelmux.autotune.space import EFFORTS, Effort, Ground, at_m, build_space, canonical, why_not
from kernelmux.autotune.standing import Standing
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.backends.triton import moe_compile
from kernelmux.backends.triton.moe_rules import DIRECT_BLOCK_M
from kernelmux.contracts.moe_shape import USUAL_M, MoeShape
from kernelmux.errors import StoreError, TuneError, UsageError
from kernelmux.measure.bench import SIDES, Bench, Side
from kernelmux.measure.stats import Interval
from kernelmux.tuning_configs import lookup
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Capability, Device
    from kernelmux.store.journal import Journal
    from kernelmux.tuning_configs.choice import MoeChoice

Progress = Callable[[str], None]
CHECK_ROUNDS = 6  # wrong finalists that may be replaced before an M falls back to the default


def tune_moe(
    shape: MoeShape,
    device: Device,
    *,
    bench: Bench,
    effort: Effort = "full",
    budget_s: float | None = None,
    out: Path,
    journal: Journal | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    ms: Sequence[int] = USUAL_M,
    workers: int | None = None,
    compile_with: str | None = moe_compile.__name__ + ":compile_tile",
    config: RaceConfig | None = None,
    target: Target = KERNELMUX,
) -> TuneResult:
    """Measure, choose and write the tables of ``shape`` for ``device`` below the folder ``out``.

    ``budget_s``: seconds in all; when it runs short the remaining M values get fewer rungs, which ``notes`` say.
    ``resume`` continues the newest run of the same machine, software, shape and space in ``journal``.
    ``compile_with`` names the function that compiles a tile; None compiles nothing ahead (a replay). ``target`` is
    who reads the table; ``bench`` must run that reader's kernels.

    Raises TuneError when no tile works at any M, StoreError when ``out`` or the journal cannot be written,
    DeviceLost when the GPU is gone; what was measured stays in the journal.
    """
    say = progress or (lambda line: None)
    if effort not in EFFORTS:
        raise UsageError(f"unknown effort {effort!r}. Use one of {', '.join(EFFORTS)}.")
    if not ms:
        raise UsageError("no token count to tune at. Give at least one M, as in 1,64,2048.")
    capability = tunable(device)
    emit.probe(out)
    config = config or PROFILES[effort]
    clock = Clock(budget_s if budget_s is not None else config.budget_s)
    fingerprint = bench.fingerprint()
    spaces = {side: build_space(shape, device, side, target=target) for side in SIDES}
    run = ""
    if journal is not None:
        reader = f"{target.format} {target.quant.brief()}"
        space: dict[str, object] = {
            "effort": effort, "ms": sorted(ms), "profile": _digest(repr(config)), "reader": reader
        }  # fmt: skip
        space.update((side, _digest(spaces[side].hash_text())) for side in SIDES)
        run = _start_run(journal, fingerprint, shape, space, resume)
    ledger = Ledger(journal, run)
    pool = (
        CompilePool(shape, capability, workers=workers, target=compile_with, variant=target.variant)
        if compile_with
        else None
    )
    try:
        cubins = Cubins(
            shape, capability, triton=fingerprint.get("triton", ""), source=fingerprint.get("kernel", ""),
            pool=pool, journal=journal, variant=target.variant,
        )  # fmt: skip
        defaults = {m: target.default(shape, m, device) for m in sorted(set(ms))}
        arena = race.Arena(
            shape=shape, device=device, bench=bench, ledger=ledger, cubins=cubins, config=config, clock=clock,
            defaults=defaults, say=say, target=target, triton=fingerprint.get("triton"), seed=_digest(shape.brief()),
        )  # fmt: skip
        for side in SIDES:
            arena.discards[side].update(spaces[side].discards)
        fields = _fields(arena, {side: spaces[side].tiles for side in SIDES})
        if ledger.recalled == 0 and resume and journal is not None:
            say(f"resuming run {run[:8]} with {len(journal.rows(run))} recorded steps")
        conditions = {"before": _conditions(bench)}
        standings = race.first_phase(arena, fields)
        race.second_phase(arena, standings)
        if pool is not None:
            pool.drop_queued()
        with clock.stage("check"):
            lines, failures = _decide(arena, standings)
        conditions["after"] = _conditions(bench)
    finally:
        if pool is not None:
            pool.close()
    result = TuneResult(
        shape=shape, device=device, source="measured", effort=effort,
        table=MoeTable.of({line.m: line.config for line in lines}), lines=tuple(lines), paths=(),
        seconds={**clock.stages, "total": clock.spent_s}, discards=arena.discards,
        failures=tuple(failures), notes=tuple(arena.notes),
        counts={"measured": ledger.measured, "recalled": ledger.recalled, "compiled": cubins.compiled},
        fingerprint=fingerprint, conditions={when: seen for when, seen in conditions.items() if seen}, target=target,
    )  # fmt: skip
    try:
        return emit.write(result, out, versions_of(fingerprint), fingerprint.get("kernel", ""))
    except StoreError as error:
        kept = f" What was measured is in {journal.path}: repeat with --resume." if journal is not None else ""
        raise StoreError(f"{error}{kept}") from error


def tunable(device: Device) -> Capability:
    """The capability tiles are compiled for; raises TuneError for a device Triton tiles are not tuned for."""
    if device.capability is None:
        raise TuneError(
            f"{device.name} cannot be tuned: tiles are compiled for NVIDIA GPUs only. Name one with --device, "
            "such as h100-sxm; other devices run the default heuristic."
        )
    return device.capability


def versions_of(fingerprint: Mapping[str, str]) -> dict[str, str]:
    from kernelmux import __version__

    found = {key: fingerprint[key] for key in ("triton", "torch", "cuda") if fingerprint.get(key)}
    return {**found, "kernelmux": __version__}


def _start_run(
    journal: Journal, fingerprint: Mapping[str, str], shape: MoeShape, space: dict[str, object], resume: bool
) -> str:
    """The key of the run to go on with, or of a new one: what earlier runs measured is kept but not used."""
    same = [
        r for r in journal.runs()
        if dict(r.fingerprint) == dict(fingerprint) and dict(r.shape) == asdict(shape)
        and isinstance(r.space, dict) and {k: v for k, v in r.space.items() if k != "attempt"} == space
    ]  # fmt: skip
    attempt = max((int(r.space.get("attempt", 0)) for r in same), default=-1)
    if not (resume and same):
        attempt += 1
    return journal.start_run(fingerprint, asdict(shape), {**space, "attempt": attempt})


def _conditions(bench: Bench) -> dict[str, str]:
    """Clocks, temperature and throttle reasons, where the bench can tell."""
    ask = getattr(bench, "conditions", None)
    return dict(ask()) if callable(ask) else {}


def _fields(arena: race.Arena, tiles: Mapping[Side, Sequence[Tile]]) -> dict[int, dict[Side, list[Tile]]]:
    """For each M and side the tiles of the first rung, within the effort's number of binaries."""
    fields: dict[int, dict[Side, list[Tile]]] = {m: {} for m in arena.defaults}
    size = arena.config.rungs[0].field
    known = lookup.find(arena.device, arena.triton, arena.shape, quant=arena.target.quant)
    if known.table is not None:
        arena.say(f"starting from {known.path}: {known.source}, {known.grade}")
    orders = {side: _orders(arena, side, tiles[side], known) for side in SIDES}
    if arena.target.one_tile:
        merged = {m: _merged(orders["up"][m], orders["down"][m]) for m in arena.defaults}
        orders = dict.fromkeys(SIDES, merged)
    for side, ordered in orders.items():
        ground = Ground(arena.shape, arena.device, side, arena.target)
        # A default that cannot run here at all must not be the yardstick.
        defaults = {m: arena.defaults[m][side] for m in ordered}
        for m, default in defaults.items():
            broken = why_not(default, ground)
            if broken:
                arena.notes.append(f"M={m} {side}: the default {default.short()} cannot run here ({broken}).")
        longest = max((len(o) for o in ordered.values()), default=0)
        cap = arena.config.cubins if arena.config.cubins is not None else math.inf
        chosen = seeds.spread(ordered, defaults, min(size, longest), int(min(cap, 10**9)))
        for m, field in chosen.items():
            fields[m][side] = [t for t in field if why_not(canonical(t, ground), ground) is None]
            left_out = len(ordered[m]) - len(field)
            if left_out > 0:
                arena.discard(side, f"M={m}: behind the first {size} of the order", left_out)
    return fields


def _orders(arena: race.Arena, side: Side, tiles: Sequence[Tile], known: MoeChoice) -> dict[int, list[Tile]]:
    """M, the largest first, -> the tiles worth measuring on this side, the most promising first.

    Whatever an earlier table says, measured, imported or predicted, stands in front: it must prove itself anew.
    """
    ordered: dict[int, list[Tile]] = {}
    ground = Ground(arena.shape, arena.device, side, arena.target)
    for m in sorted(arena.defaults, reverse=True):
        sensible = at_m(tiles, arena.shape, m, direct=arena.direct(m), target=arena.target)
        ordered[m], cut = seeds.order(sensible, arena.shape, arena.device, side, m, arena.target)
        for reason, count in cut.items():
            arena.discard(side, f"M={m}: {reason}", count)
        if known.table is not None:
            seed = getattr(known.at(m), side)
            fitting = why_not(seed, ground) is None and (not arena.direct(m) or seed.block_m == DIRECT_BLOCK_M)
            if fitting:
                ordered[m] = [seed, *(tile for tile in ordered[m] if tile != seed)]
    return ordered


def _merged(up: Sequence[Tile], down: Sequence[Tile]) -> list[Tile]:
    """The tiles of both orders by the sum of their places: what must serve both sides must be good on both."""
    place = {t: i for i, t in enumerate(down)}
    both = [(i + place[t], t) for i, t in enumerate(up) if t in place]
    return [t for _, t in sorted(both)]


def _decide(arena: race.Arena, standings: Mapping[int, Standing]) -> tuple[list[Line], list[str]]:
    """Solve jointly, check every chosen pair, replace the wrong ones and solve again; then fill what is missing."""
    failures: list[str] = []
    finals = {m: _finalists(s) for m, s in standings.items()}
    chosen: dict[int, joint.Choice] = {}
    for _ in range(CHECK_ROUNDS):
        chosen = joint.solve(finals, arena.seed)
        wrong = {m: said for m, choice in chosen.items() if (said := _check(arena, m, choice.config))}
        if not wrong:
            break
        for m, said in wrong.items():
            config = chosen.pop(m).config
            bad = _culprits(arena, m, config, finals[m])
            for side, tile in bad:
                failures.append(f"M={m} {side} {tile.short()}: wrong: {said}")
                finals[m] = _without(finals[m], side, tile)
    failures = [*_failures(standings), *dict.fromkeys(failures)]
    lines = [_line(standings[m], choice) for m, choice in chosen.items()]
    if not lines:
        first = f" The first: {failures[0]}." if failures else ""
        raise TuneError(f"no tile ran correctly at any M, so there is no table to write.{first}")
    return _filled(arena, lines, standings), failures


def _finalists(standing: Standing) -> joint.Finalists:
    sides = {side: {t: standing.results[side][t].samples_us for t in standing.alive[side]} for side in SIDES}
    up, down = standing.defaults["up"], standing.defaults["down"]
    default = MoeConfig(up, down) if up in sides["up"] and down in sides["down"] else None
    return joint.Finalists(sides["up"], sides["down"], standing.align_us, default, standing.one_tile)


def _check(arena: race.Arena, m: int, config: MoeConfig) -> str:
    """Empty when the pair computes the right thing, else what is wrong."""
    check = arena.ledger.check(arena.bench, m, [(config.up, config.down)])[0]
    return "" if check.ok else check.reason or f"relative error {check.error:.3g}"


def _culprits(arena: race.Arena, m: int, config: MoeConfig, finals: joint.Finalists) -> list[tuple[Side, Tile]]:
    """Which tile of a wrong pair is to blame: each is tried beside other partners. Both, when nothing tells."""
    bad: list[tuple[Side, Tile]] = []
    for side, tile in (("up", config.up), ("down", config.down)):
        others = [t for t in (finals.down if side == "up" else finals.up) if t.block_m == tile.block_m]
        partners = [t for t in others if t != (config.down if side == "up" else config.up)][:2]
        pairs = [(tile, p) if side == "up" else (p, tile) for p in partners]
        checks = arena.ledger.check(arena.bench, m, pairs) if pairs else []
        if checks and not any(c.ok for c in checks):
            bad.append((side, tile))  # type: ignore[arg-type]
    return bad or [("up", config.up), ("down", config.down)]


def _without(finals: joint.Finalists, side: Side, tile: Tile) -> joint.Finalists:
    left = {t: s for t, s in getattr(finals, side).items() if t != tile}
    default = finals.default
    if default is not None and getattr(default, side) == tile:
        default = None
    return replace(
        finals, up=left if side == "up" else finals.up, down=left if side == "down" else finals.down, default=default
    )


def _line(standing: Standing, choice: joint.Choice) -> Line:
    default = None
    default_us = None
    up, down = standing.defaults["up"], standing.defaults["down"]
    if up in standing.results["up"] and down in standing.results["down"]:
        default = MoeConfig(up, down)
        default_us = standing.results["up"][up].us.mid + standing.results["down"][down].us.mid
    half = math.hypot(choice.up.half, choice.down.half)
    mid = choice.up.mid + choice.down.mid
    return Line(
        m=standing.m, config=choice.config, up_us=choice.up.mid, down_us=choice.down.mid, align_us=choice.align_us,
        interval=Interval(mid, mid - half, mid + half), default=default, default_us=default_us, ties=choice.ties,
    )  # fmt: skip


def _filled(arena: race.Arena, lines: list[Line], standings: Mapping[int, Standing]) -> list[Line]:
    """A line for every M: one that could not be decided takes the tiles of the nearest M that could."""
    by_m = {line.m: line for line in lines}
    for m in standings:
        if m in by_m:
            continue
        near = min((line for line in lines), key=lambda line: abs(math.log(line.m / m)))
        arena.notes.append(f"M={m}: no pair of tiles was measured and right; the tiles of M={near.m} stand in.")
        by_m[m] = Line(m=m, config=near.config, from_m=near.m)
    return [by_m[m] for m in sorted(by_m)]


def _failures(standings: Mapping[int, Standing]) -> list[str]:
    """Each failed tile once, with the first M it failed at."""
    seen: dict[tuple[Side, Tile, str], int] = {}
    for m, standing in standings.items():
        for side in SIDES:
            for tile, reason in standing.failed[side].items():
                seen.setdefault((side, tile, reason), m)
    return [f"{side} {tile.short()}: {reason} (first at M={m})" for (side, tile, reason), m in seen.items()]


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
