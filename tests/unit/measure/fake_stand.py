"""Children for LiveBench that own no GPU: tiles hang, crash or poison the context on demand."""

import os
import signal
import time
from pathlib import Path

from kernelmux.measure import child

HANGS, CRASHES, RAISES, POISONS = 2, 3, 4, 5  # values of `stages` that misbehave


class FakeStand:
    def __init__(self, shape, device):
        pass

    def _build(self, tile):
        if tile.stages == HANGS:
            time.sleep(60)
        if tile.stages == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        if tile.stages == RAISES:
            raise ValueError("out of\n resource")
        if tile.stages == POISONS:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def time(self, m, side, tiles, samples, at):
        answers = []
        for i, tile in enumerate(tiles):
            at(i)
            try:
                self._build(tile)
                answers.append([float(tile.block_n)] * samples)
            except ValueError as error:
                answers.append(error)
        at(-1)
        if any(tile.group_m == 7 for tile in tiles):  # dies while replaying, nobody knows why
            os._exit(3)
        return answers

    def check(self, m, pairs, at):
        answers = []
        for i, (up, _) in enumerate(pairs):
            at(i)
            try:
                self._build(up)
                answers.append({16: 0.003, 32: 0.5, 64: float("inf")}[up.block_m])
            except ValueError as error:
                answers.append(error)
        return answers

    def align(self, m, block_ms):
        return dict.fromkeys(block_ms, 2.0)

    def conditions(self):
        return {"sm_clock_mhz": "1980"}


def serve(pipe, shape, device, variant):
    child.die_with_parent()
    os.setpgid(0, 0)
    pipe.send(("done", None))
    child.serve(pipe, FakeStand(shape, device))


def serve_once(pipe, shape, device, variant):
    """Comes up the first time only, as a GPU that falls off the bus."""
    mark = Path(os.environ["KERNELMUX_CACHE_DIR"]) / "came-up"
    if mark.exists():
        pipe.send(("lost", "RuntimeError: No CUDA GPUs are available"))
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    serve(pipe, shape, device, variant)
