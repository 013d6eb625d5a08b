"""Every measurement goes through here: asked of the journal first, of the bench second, recorded at once.

The race is deterministic given its samples, so a resumed run asks for the same steps in the same order and measures
only those the journal lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kernelmux.backends.triton.moe_variant import FUSED, MoeVariant
from kernelmux.measure.bench import Bench, Check, Side, Timing
from kernelmux.store.records import CompileFact, Row, canonical
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.autotune.compile import CompilePool, Facts, Task
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Capability
    from kernelmux.store.journal import Journal

CHECK_RUNG = "check"
ALIGN_RUNG = "align"


def tile_text(tile: Tile) -> str:
    """The tile as the journal keys it."""
    return canonical(tile.to_json())


def pair_text(up: Tile, down: Tile) -> str:
    return canonical({"up": up.to_json(), "down": down.to_json()})


class Ledger:
    """The steps of one run. Without a journal it only remembers while it lives."""

    def __init__(self, journal: Journal | None, run: str) -> None:
        self._journal = journal
        self._run = run
        self._rows: dict[tuple[int, str, str, str], Row] = {}
        if journal is not None:
            self._rows = {(r.m, r.side, r.tile, r.rung): r for r in journal.rows(run)}
        self.recalled = 0
        self.measured = 0

    def time(
        self, bench: Bench, m: int, side: Side, rung: str, tiles: Sequence[Tile], samples: int,
        cubins: Mapping[Tile, str] | None = None,
    ) -> list[Timing]:  # fmt: skip
        """One Timing a tile, in order; what is not in the journal is measured in one interleaved call."""
        missing = [t for t in tiles if (m, side, tile_text(t), rung) not in self._rows]
        self.recalled += len(tiles) - len(missing)
        if missing:
            got = bench.time(m, side, missing, samples)
            self._keep(
                Row(
                    self._run, m, side, tile_text(t.tile), rung, t.status, t.reason, t.samples_us,
                    (cubins or {}).get(t.tile) or None, {"asked": samples},
                )
                for t in got
            )  # fmt: skip
            self.measured += len(got)
        rows = (self._rows[m, side, tile_text(t), rung] for t in tiles)
        return [Timing(t, row.samples_us, row.status, row.reason) for t, row in zip(tiles, rows, strict=True)]

    def knows(self, m: int, side: Side, rung: str, tiles: Iterable[Tile]) -> bool:
        """Whether the journal has this step for every tile: then it costs no time."""
        return all((m, side, tile_text(t), rung) in self._rows for t in tiles)

    def align(self, bench: Bench, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        """Microseconds of the sort for each BLOCK_SIZE_M."""
        keys = {bm: (m, "align", canonical({"BLOCK_SIZE_M": bm}), ALIGN_RUNG) for bm in block_ms}
        missing = [bm for bm, key in keys.items() if key not in self._rows]
        if missing:
            got = bench.align(m, missing)
            self._keep(Row(self._run, m, "align", keys[bm][2], ALIGN_RUNG, samples_us=(us,)) for bm, us in got.items())
        return {bm: self._rows[key].samples_us[0] for bm, key in keys.items() if key in self._rows}

    def check(self, bench: Bench, m: int, pairs: Sequence[tuple[Tile, Tile]]) -> list[Check]:
        """One Check a pair, in order."""
        keys = [(m, "pair", pair_text(up, down), CHECK_RUNG) for up, down in pairs]
        missing = [pair for pair, key in zip(pairs, keys, strict=True) if key not in self._rows]
        if missing:
            got = bench.check(m, missing)
            self._keep(
                Row(
                    self._run, m, "pair", pair_text(*pair), CHECK_RUNG, "ok" if c.ok else "wrong", c.reason,
                    extra={"error": c.error if c.error == c.error and abs(c.error) != float("inf") else None},
                )
                for pair, c in zip(missing, got, strict=True)
            )  # fmt: skip
        rows = [self._rows[key] for key in keys]
        return [Check(r.status == "ok", _error(r.extra.get("error")), r.reason) for r in rows]

    def _keep(self, rows: Iterable[Row]) -> None:
        kept = list(rows)
        if self._journal is not None:
            self._journal.record(*kept)
        self._rows.update({(r.m, r.side, r.tile, r.rung): r for r in kept})


def _error(kept: object) -> float:
    return float(kept) if isinstance(kept, (int, float)) else float("nan")


class Cubins:
    """Compile facts of one shape: from the journal, else from the pool, and then into the journal.

    Without a pool (a replay) what no journal knows counts as compiled.
    """

    def __init__(
        self, shape: MoeShape, capability: Capability, *, triton: str, source: str,
        pool: CompilePool | None, journal: Journal | None, variant: MoeVariant = FUSED,
    ) -> None:  # fmt: skip
        from kernelmux.autotune.compile import Facts

        self._facts_type = Facts
        self._key = (triton, capability.arch, source)
        self._variant = shape.brief() if variant == FUSED else f"{shape.brief()} {variant.brief()}"
        self._pool, self._journal = pool, journal
        self._facts: dict[tuple[str, str, str], Facts] = {}
        if journal is not None:
            for f in journal.compiled(triton=triton, arch=capability.arch, source=source):
                self._facts[f.side, f.tile, f.variant] = Facts(
                    f.status, f.reason, f.shared_bytes, f.registers, f.stack_bytes, f.sha256, f.seconds
                )
        self.compiled = 0
        self.failures: dict[Task, Facts] = {}

    def want(self, tasks: Iterable[Task], priority: int = 0) -> None:
        """Start compiling what is not known; returns at once."""
        if self._pool is not None:
            self._pool.submit([t for t in tasks if self._id(t) not in self._facts], priority)

    def wait(self, tasks: Iterable[Task], until: float | None = None) -> dict[Task, Facts]:
        """Facts of the tasks, in their order; those not there by ``until`` are left out."""
        wanted = list(dict.fromkeys(tasks))
        unknown = [t for t in wanted if self._id(t) not in self._facts]
        if self._pool is not None and unknown:
            self._pool.submit(unknown)
            self._pool.wait(unknown, until=until, heard=self._hear)
        out: dict[Task, Facts] = {}
        for task in wanted:
            facts = self._facts.get(self._id(task))
            if facts is None and self._pool is None:
                facts = self._facts_type("ok")
            if facts is not None:
                out[task] = facts
                if facts.status != "ok":
                    self.failures[task] = facts
        return out

    def _hear(self, fresh: dict[Task, Facts]) -> None:
        for task, facts in fresh.items():
            self._facts[self._id(task)] = facts
        self.compiled += len(fresh)
        if self._journal is not None:
            self._journal.record_compiled(
                *(
                    CompileFact(
                        *self._key, *self._id(t), f.status, f.reason, f.shared_bytes, f.registers, f.stack_bytes,
                        f.sha256, f.seconds,
                    )
                    for t, f in fresh.items()
                )
            )  # fmt: skip

    def _id(self, task: Task) -> tuple[str, str, str]:
        return task.side, tile_text(task.tile), self._variant + (" direct" if task.direct else "")
