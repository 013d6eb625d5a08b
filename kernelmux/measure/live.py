"""Time and check tiles on a real GPU, from a process that never touches CUDA.

The GPU belongs to a child. A tile that hangs or kills it costs that tile and a restart, never the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from ..backends.triton.moe_variant import FUSED, MoeVariant
from ..contracts import fused_moe as contract
from ..contracts.moe_shape import MoeShape
from ..device import Device
from ..errors import DeviceLost, MissingPackage
from ..registry import Packages
from ..tuning_configs.tile import Tile
from .bench import Check, Side, Timing
from .child import main

START_S = 120.0  # importing torch and allocating weights on a slow host
STEP_S = 60.0  # building one tile (its compilation included, when it was not compiled ahead) or one batch of replays


class _Died(Exception):
    """The child is gone: at which tile (-1: while replaying, None: elsewhere), how, and why."""

    def __init__(self, at: int | None, status: str, reason: str):
        self.at, self.status, self.reason = at, status, reason
        super().__init__(reason)


class LiveBench:
    """`Bench` on the GPU ``device`` (a live one, with its index), of the kernels that ``variant`` names."""

    def __init__(
        self,
        shape: MoeShape,
        device: Device,
        step_s: float = STEP_S,
        serve: Callable[[Connection, MoeShape, Device, MoeVariant], None] = main,
        variant: MoeVariant = FUSED,
    ):
        if not Packages.installed().has("torch"):
            raise MissingPackage("torch", "Measuring on a GPU", "pip install 'kernelmux[torch]'")
        self.shape, self.device, self.variant = shape, device, variant
        self._step_s, self._serve = step_s, serve
        self._process: Any = None
        self._pipe: Any = None
        self.restarts = 0

    def fingerprint(self) -> dict[str, str]:
        packages = Packages.installed()
        facts = {
            "device": self.device.torch_name,
            "capability": str(self.device.capability),
            "sm_count": str(self.device.sm_count),
            "driver": self.device.driver or "unknown",
            "triton": packages.get("triton") or "none",
            "torch": packages.get("torch") or "none",
            "kernel": self.variant.source_hash(),
        }
        return facts if self.variant == FUSED else facts | self.variant.identity()

    def conditions(self) -> dict[str, str]:
        """Clocks, temperature, power and throttle reasons now, where NVML answers."""
        return dict(self._ask("facts", ()))

    def time(self, m: int, side: Side, tiles: Sequence[Tile], samples: int) -> list[Timing]:
        found: dict[Tile, Timing] = {}
        one_by_one = False
        while left := [tile for tile in tiles if tile not in found]:
            batch = left[:1] if one_by_one else left
            try:
                answers = self._ask("time", (m, side, batch, samples))
            except _Died as death:
                if death.at is None or (death.at == -1 and not one_by_one):
                    one_by_one = True  # nobody knows whose fault it is: alone, a tile has no one to blame
                    self._revive(death)
                    continue
                culprit = batch[max(death.at, 0)]
                found[culprit] = Timing(culprit, (), death.status, death.reason)
                self._revive(death)
                continue
            for tile, answer in zip(batch, answers, strict=True):
                found[tile] = (
                    Timing(tile, (), "error", answer[1])
                    if isinstance(answer, tuple)
                    else Timing(tile, tuple(answer or ()))
                )
        return [found[tile] for tile in tiles]

    def align(self, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        try:
            return dict(self._ask("align", (m, list(block_ms))))
        except _Died as death:
            self._revive(death)
            return dict(self._ask("align", (m, list(block_ms))))

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]]) -> list[Check]:
        fused = self.variant.structure == "fused"
        tolerance = contract.OP.tolerance[self.shape.dtype] if fused else self.variant.quant.tolerance(self.shape.dtype)
        limit = tolerance.rtol
        checks: list[Check] = []
        while len(checks) < len(pairs):
            rest = list(pairs[len(checks) :])
            try:
                answers = self._ask("check", (m, rest))
            except _Died as death:
                self._revive(death)
                alone = rest[:1]
                try:
                    answers = self._ask("check", (m, alone))
                except _Died as again:
                    self._revive(again)
                    answers = [("raised", f"{again.status}: {again.reason}")]
            for answer in answers:
                if isinstance(answer, tuple):
                    checks.append(Check(False, float("inf"), answer[1]))
                elif answer <= limit:
                    checks.append(Check(True, answer))
                else:
                    reason = f"worst row is {answer:.3g} from the fp32 reference (relative L2); {limit:g} is allowed"
                    checks.append(Check(False, answer, reason))
        return checks

    def close(self) -> None:
        """End the child. Safe to call twice."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.join(2.0)
        self._kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=self._serve, args=(theirs, self.shape, self.device, self.variant), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self._wait(START_S)
        except _Died as death:
            self._kill()
            raise DeviceLost(
                f"{self.device.torch_name} (cuda:{self.device.index or 0}) cannot be used: {death.reason}. Look at "
                "nvidia-smi; when the GPU answers again, go on with --resume."
            ) from death

    def _ask(self, verb: str, args: tuple[Any, ...]) -> Any:
        if self._process is None:
            self._start()
        try:
            self._pipe.send((verb, args))
        except OSError as error:
            raise _Died(None, "crash", self._exit_words()) from error
        return self._wait(self._step_s)

    def _wait(self, seconds: float) -> Any:
        """The next answer; every word of the child starts the clock anew."""
        at: int | None = None
        while True:
            if not self._pipe.poll(seconds):
                raise _Died(at, "hang", f"no answer within {seconds:g} s")
            try:
                kind, value = self._pipe.recv()
            except (EOFError, OSError) as error:
                raise _Died(at, "crash", self._exit_words()) from error
            if kind == "done":
                return value
            if kind == "lost":
                raise _Died(at, "crash", value)
            at = value

    def _exit_words(self) -> str:
        self._process.join(5.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"the measuring process was killed by {signal.Signals(-code).name}"
        return f"the measuring process ended with exit code {code}"

    def _revive(self, death: _Died) -> None:
        """Put a new child in place of a dead or stuck one; DeviceLost when the GPU takes no new process."""
        self._kill()
        self.restarts += 1
        self._start()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None or process.pid is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)
        process.join(10.0)
