"""Choose tiles for a GPU that is not here: public winners, an estimate, and what the compiler says.

The votes of public tables decide; the estimate and the compiled facts only push down what is clearly bad (padding,
waves, spills). Where hardly anybody tuned nearby, the default heuristic has the strongest vote. An analytic order
alone would be worse than the default: its first pick reached 0.68-0.85 of the best on an H100.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.autotune import emit, joint, priors, race
from kernelmux.autotune.clock import Clock
from kernelmux.autotune.compile import CompilePool, Facts, Task
from kernelmux.autotune.ledger import Cubins
from kernelmux.autotune.rank import estimate
from kernelmux.autotune.result import Line, TuneResult
from kernelmux.autotune.space import EFFORTS, Effort, Ground, at_m, build_space, canonical, why_not
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.backends.triton import moe_compile, moe_rules
from kernelmux.contracts.moe_shape import USUAL_M
from kernelmux.errors import MissingPackage, TuneError, UsageError
from kernelmux.measure.bench import SIDES, Side
from kernelmux.tuning_configs.table import MoeConfig, MoeTable
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device
    from kernelmux.store.journal import Journal

BUDGET_S = 240.0
# Tiles a side that are compiled: the further ones have votes under 1% of the first.
CUBINS: Mapping[str, int] = {"quick": 24, "full": 100, "exhaustive": 300}
PROOF_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How votes and estimate blend into one figure, in log time.

    Fitted with ``scripts/score_prediction.py --fit`` on dense H200 measurements of three shapes at five M each:
    geometric mean of best/pick 0.977 (worst 0.925). The default heuristic has 0.92 and the estimate alone 0.82 over
    those M whose BLOCK_SIZE_M of theirs was measured. The optimum is flat: the first guess (0.15 and 0.3) had 0.973.
    """

    vote: float = 0.03  # for each e-fold a tile's vote lies below the strongest
    block_m: float = 0.03  # the same for all votes of its BLOCK_SIZE_M together
    estimate: float = 0.05  # share of the estimate's log ratio that is believed
    default_votes: float = 1.0  # what the default heuristic counts for, in shipped winners at the very spot
    tma: float = 0.02  # public tables hardly use TMA: chosen only when all else speaks for it
    tma_90: float = -0.06  # but on 9.0 it is 1-15% faster from M=64 on (H200, all three benchmark shapes)


WEIGHTS = Weights()


def predict_moe(
    shape: MoeShape,
    device: Device,
    *,
    effort: Effort = "full",
    budget_s: float | None = None,
    out: Path,
    journal: Journal | None = None,
    progress: Callable[[str], None] | None = None,
    ms: Sequence[int] = USUAL_M,
    workers: int | None = None,
    compile_with: str | None = moe_compile.__name__ + ":compile_tile",
    target: Target = KERNELMUX,
) -> TuneResult:
    """Write the predicted tables of ``shape`` for ``device`` below ``out``; needs neither a GPU nor torch.

    Compiles the most promising tiles for at most ``budget_s`` seconds (240) and judges the rest by formula.
    Raises TuneError, StoreError, MissingPackage (Triton).
    """
    say = progress or (lambda line: None)
    if effort not in EFFORTS:
        raise UsageError(f"unknown effort {effort!r}. Use one of {', '.join(EFFORTS)}.")
    if not ms:
        raise UsageError("no token count to tune at. Give at least one M, as in 1,64,2048.")
    if device.capability is None:
        raise TuneError(f"{device.name} has no tables to predict: tiles are compiled for NVIDIA GPUs only.")
    versions = installed_versions()
    emit.probe(out)
    clock = Clock(BUDGET_S if budget_s is None else budget_s)
    source = target.variant.source_hash()
    spaces = {side: build_space(shape, device, side, target=target) for side in SIDES}
    wanted = _wanted(shape, device, {s: spaces[s].tiles for s in SIDES}, ms, CUBINS[effort], target)
    notes: list[str] = []
    pool = (
        CompilePool(shape, device.capability, workers=workers, target=compile_with, variant=target.variant)
        if compile_with
        else None
    )
    tiles = {s: spaces[s].tiles for s in SIDES}
    try:
        cubins = Cubins(
            shape, device.capability, triton=versions["triton"], source=source, pool=pool, journal=journal,
            variant=target.variant,
        )  # fmt: skip
        with clock.stage("compile"):
            facts = _compile(cubins, wanted, clock, say)
        if len(facts) < len(wanted):
            notes.append(
                f"the budget allowed {len(facts)} of {len(wanted)} compilations; the rest is judged by formula."
            )
        with clock.stage("solve"):
            choices = choose(shape, device, tiles, ms, facts, target=target)
        for _ in range(PROOF_ROUNDS):
            # What is written has been compiled, as far as the budget goes; a pick that fails makes way for the next.
            unseen = [t for t in _tasks(shape, choices, target) if t not in facts]
            if not unseen or pool is None or clock.spent_s >= clock.limit_s:
                break
            with clock.stage("compile"):
                facts |= _compile(cubins, unseen, clock, say)
            with clock.stage("solve"):
                choices = choose(shape, device, tiles, ms, facts, target=target)
    finally:
        if pool is not None:
            pool.close()
    missing = sorted(set(ms) - choices.keys())
    if missing:
        raise TuneError(f"no tile compiles for {device.name} at M={missing[0]}; nothing can be predicted.")
    failures = sorted(
        f"{t.side} {t.tile.short()}: {f.status} while compiling: {f.reason}"
        for t, f in facts.items()
        if f.status != "ok"
    )
    result = TuneResult(
        shape=shape, device=device, source="predicted", effort=effort, table=MoeTable.of(choices),
        lines=tuple(Line(m=m, config=choices[m], default=_default(shape, m, device, target)) for m in sorted(choices)),
        paths=(), seconds={**clock.stages, "total": clock.spent_s},
        discards={s: spaces[s].discards for s in SIDES}, failures=tuple(failures), notes=tuple(notes),
        counts={"compiled": cubins.compiled, "recalled": len(facts) - cubins.compiled}, target=target,
    )  # fmt: skip
    return emit.write(result, out, versions, source)


def choose(
    shape: MoeShape,
    device: Device,
    tiles: Mapping[Side, Sequence[Tile]],
    ms: Iterable[int],
    facts: Mapping[Task, Facts],
    weights: Weights = WEIGHTS,
    target: Target = KERNELMUX,
) -> dict[int, MoeConfig]:
    """M -> the predicted pair. ``tiles`` have GROUP_SIZE_M at 1; ``facts`` may lack any of them."""
    finals = {}
    for m in sorted(set(ms)):
        sides = {side: scores(shape, device, tiles[side], m, side, facts, weights, target) for side in SIDES}
        # As if known to 1%, so that the joint solve may prefer a smoother file among near-equals.
        samples = {s: {t: (0.995 * us, us, 1.005 * us) for t, us in sides[s].items()} for s in SIDES}
        finals[m] = joint.Finalists(samples["up"], samples["down"], {}, None, target.one_tile)
    return {m: choice.config for m, choice in joint.solve(finals, shape.brief()).items()}


def scores(
    shape: MoeShape,
    device: Device,
    tiles: Sequence[Tile],
    m: int,
    side: Side,
    facts: Mapping[Task, Facts],
    weights: Weights = WEIGHTS,
    target: Target = KERNELMUX,
) -> dict[Tile, float]:
    """A figure in microseconds for every tile that may run at ``m``; only its order and ratios mean anything."""
    direct = target.direct(shape, m)
    ground = Ground(shape, device, side, target)
    default = canonical(target.default(shape, m, device)[side], ground)
    usable: dict[Tile, Facts | None] = {}
    for tile in dict.fromkeys([*at_m(tiles, shape, m, direct=direct), default]):
        known = facts.get(Task(side, tile, direct))
        if direct and tile.block_m != moe_rules.DIRECT_BLOCK_M:
            continue
        if why_not(tile, ground) is None and (known is None or known.status == "ok"):
            usable[tile] = known
    lean = {t: f for t, f in usable.items() if f is None or f.stack_bytes < race.SPILLS}
    usable = lean or usable
    if not usable:
        return {}
    raw = dict(priors.votes(shape, device.capability, m, side, kind=target.kind))
    total = sum(raw.values())
    # A thin vote leaves the default in charge.
    raw[default] = raw.get(default, 0.0) + max(weights.default_votes, 2 * (priors.THIN - total))
    votes = priors.smooth(raw)
    per_block_m: dict[int, float] = {}
    for tile, weight in raw.items():
        per_block_m[tile.block_m] = per_block_m.get(tile.block_m, 0.0) + weight
    strongest = max(votes.of(t) for t in usable) or 1.0
    most = max(per_block_m.values())
    times = {t: estimate(t, shape, device, side, m, f, target).us for t, f in usable.items()}
    best = min(times.values())

    tma = weights.tma_90 if device.capability == (9, 0) else weights.tma

    def figure(tile: Tile) -> float:
        loss = weights.vote * -math.log(max(votes.of(tile), 1e-6) / strongest)
        loss += weights.block_m * -math.log(max(per_block_m.get(tile.block_m, 0.0), 1e-3) / most)
        loss += weights.estimate * math.log(times[tile] / best)
        return best * math.exp(loss + (tma if tile.use_tma else 0.0))

    return {tile: figure(tile) for tile in usable}


def _tasks(shape: MoeShape, choices: Mapping[int, MoeConfig], target: Target) -> list[Task]:
    """The binaries that a table needs."""
    found = {Task(side, getattr(c, side), target.direct(shape, m)): None for m, c in choices.items() for side in SIDES}
    return list(found)


def _default(shape: MoeShape, m: int, device: Device, target: Target) -> MoeConfig:
    found = target.default(shape, m, device)
    return MoeConfig(found["up"], found["down"])


def installed_versions() -> dict[str, str]:
    """Versions of Triton (needed) and kernelmux. Raises MissingPackage."""
    from kernelmux import __version__
    from kernelmux.registry.packages import Packages

    triton = Packages.installed().get("triton")
    if triton is None:
        raise MissingPackage("triton", "Compiling tiles", "pip install triton")
    return {"triton": triton, "kernelmux": __version__}


def _wanted(
    shape: MoeShape, device: Device, tiles: Mapping[Side, Sequence[Tile]], ms: Sequence[int], cap: int, target: Target
) -> list[Task]:
    """What to compile, the most promising first: every M and side in turn deals its next tile."""
    figures: list[tuple[int, int, Task]] = []
    for side in SIDES:
        for m in ms:
            scored = scores(shape, device, tiles[side], m, side, {}, target=target)
            for place, tile in enumerate(sorted(scored, key=lambda t: (scored[t], t))[:cap]):
                figures.append((place, m, Task(side, tile, target.direct(shape, m))))
    out: dict[Side, dict[Task, None]] = {"up": {}, "down": {}}
    for _, _, task in sorted(figures, key=lambda f: (f[0], -f[1])):
        if len(out[task.side]) < cap:
            out[task.side][task] = None
    up, down = list(out["up"]), list(out["down"])
    return [t for i in range(max(len(up), len(down))) for t in (*up[i : i + 1], *down[i : i + 1])]


def _compile(cubins: Cubins, wanted: Sequence[Task], clock: Clock, say: Callable[[str], None]) -> dict[Task, Facts]:
    """Facts of as many tasks as the budget allows, in their order; says how far it is every few seconds."""
    for place, task in enumerate(wanted):
        cubins.want([task], priority=place // 8)  # within a handful, the smallest tile first
    until = clock.until(1.0)
    facts: dict[Task, Facts] = {}
    while len(facts) < len(wanted):
        step = time.monotonic() + 5.0
        facts = cubins.wait(wanted, step if until is None else min(step, until))
        good = sum(f.status == "ok" for f in facts.values())
        say(f"compiled {len(facts)} of {len(wanted)}, {good} usable")
        if until is not None and time.monotonic() >= until:
            break
    return facts
