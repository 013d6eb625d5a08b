"""A bench that answers from a journal: searches and reconciliation run with no GPU, on what a GPU once measured.

Two variables serve tests of killing and resuming: ``KERNELMUX_REPLAY_SLEEP`` (seconds each call of ``time`` takes)
and ``KERNELMUX_REPLAY_LOG`` (a file that gets one JSON line for each tile timed).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import by_torch_name
from kernelmux.errors import StoreError, UnknownDevice
from kernelmux.measure.bench import Check, Side, Timing
from kernelmux.store.journal import Journal
from kernelmux.store.records import CompileFact, Row, Run, canonical
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.device import Device

SLEEP_VARIABLE = "KERNELMUX_REPLAY_SLEEP"
LOG_VARIABLE = "KERNELMUX_REPLAY_LOG"


class ReplayBench:
    """`Bench` over the rows of one run of a journal file.

    All samples of a (M, side, tile) are pooled over its rungs; ``time`` draws from them, the same ones for the same
    question, with replacement where fewer were recorded than are asked. A tile the journal lacks comes back as an
    error. A pair never checked counts as right.
    """

    def __init__(
        self, path: Path | str, shape: MoeShape | None = None, device: Device | None = None, run: str | None = None
    ) -> None:
        """``shape`` and ``run`` pick the run (the newest that fits). Raises StoreError when none does."""
        self.path = Path(path)
        with Journal(self.path, read_only=True) as journal:
            self.run = _pick(journal.runs(), shape, run, self.path)
            rows = journal.rows(self.run.key)
            self._journal_facts = {
                key: journal.compiled(**key_of(self.run, key)) for key in {str(self.run.fingerprint.get("capability"))}
            }
        self.shape = shape or _shape(self.run)
        self.device = device or _device(self.run, self.path)
        self._samples: defaultdict[tuple[int, str, str], list[float]] = defaultdict(list)
        self._status: dict[tuple[int, str, str], Row] = {}
        for row in rows:
            where = (row.m, row.side, row.tile)
            if row.side == "pair" or row.status != "ok":
                self._status[where] = row
            else:
                self._samples[where].extend(row.samples_us)
        self._sleep_s = float(os.environ.get(SLEEP_VARIABLE, "0"))
        self._log = os.environ.get(LOG_VARIABLE)

    @property
    def ms(self) -> list[int]:
        """Every M the run has timings of."""
        return sorted({m for m, side, _ in self._samples if side in ("up", "down")})

    @property
    def compiled(self) -> list[CompileFact]:
        """The compile facts kept beside the run."""
        return [fact for facts in self._journal_facts.values() for fact in facts]

    def fingerprint(self) -> dict[str, str]:
        """The recorded one, marked, so that a replay never passes for a measurement of this machine."""
        return {**{k: str(v) for k, v in self.run.fingerprint.items()}, "replayed": self.run.key}

    def time(self, m: int, side: Side, tiles: Sequence[Tile], samples: int) -> list[Timing]:
        if self._sleep_s:
            time.sleep(self._sleep_s)
        self._note(m, side, tiles, samples)
        return [self._one(m, side, tile, samples) for tile in tiles]

    def _one(self, m: int, side: Side, tile: Tile, samples: int) -> Timing:
        where = (m, side, canonical(tile.to_json()))
        failed = self._status.get(where)
        if failed is not None:
            return Timing(tile, (), failed.status, failed.reason)
        pool = self._samples.get(where)
        if not pool:
            return Timing(tile, (), "error", "the replayed journal has no sample of it")
        draw = random.Random(canonical([*where, samples]))
        taken = draw.sample(pool, samples) if len(pool) >= samples else draw.choices(pool, k=samples)
        return Timing(tile, tuple(taken))

    def align(self, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        out = {}
        for block_m in block_ms:
            pool = self._samples.get((m, "align", canonical({"BLOCK_SIZE_M": block_m})))
            out[block_m] = pool[0] if pool else 0.0
        return out

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]]) -> list[Check]:
        checks = []
        for up, down in pairs:
            row = self._status.get((m, "pair", canonical({"up": up.to_json(), "down": down.to_json()})))
            error = float((row.extra.get("error") if row else 0.0) or 0.0)
            checks.append(Check(row is None or row.status == "ok", error, row.reason if row else ""))
        return checks

    def close(self) -> None:
        """Nothing is held open."""

    def _note(self, m: int, side: Side, tiles: Sequence[Tile], samples: int) -> None:
        if not self._log:
            return
        lines = (json.dumps({"m": m, "side": side, "tile": t.to_json(), "samples": samples}) + "\n" for t in tiles)
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, "".join(lines).encode())
        finally:
            os.close(fd)


def key_of(run: Run, capability: str) -> dict[str, str]:
    """What the journal's compile facts of this run are kept under."""
    fingerprint = run.fingerprint
    return {
        "triton": str(fingerprint.get("triton", "")),
        "arch": "sm_" + capability.replace(".", ""),
        "source": str(fingerprint.get("kernel", "")),
    }


def _pick(runs: Sequence[Run], shape: MoeShape | None, key: str | None, path: Path) -> Run:
    wanted = [r for r in runs if (key is None or r.key == key) and (shape is None or dict(r.shape) == asdict(shape))]
    if not wanted:
        there = "; ".join(dict.fromkeys(_shape(r).brief() for r in runs)) or "nothing"
        what = f"run {key}" if key else shape.brief() if shape else "a run"
        raise StoreError(f"{path} has no measurements of {what}; it holds {there}. Name another journal or shape.")
    return wanted[-1]


def _shape(run: Run) -> MoeShape:
    return MoeShape(**dict(run.shape))


def _device(run: Run, path: Path) -> Device:
    name = str(run.fingerprint.get("device", ""))
    found = by_torch_name(name)
    if found is None:
        raise UnknownDevice(name or f"(none named in {path})", [])
    return found
