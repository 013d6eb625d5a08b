"""A made-up GPU: a smooth cost per tile with bumps, noise and drift, and tiles that fail on demand."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

from kernelmux.autotune.rank import estimate
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import resolve_device
from kernelmux.measure.bench import Check, Side, Timing
from kernelmux.tuning_configs.tile import Tile

H100 = resolve_device("h100-sxm")
QWEN = MoeShape(128, 384, 2048, 8)
SMALL = MoeShape(8, 1024, 1024, 2)


class Landscape:
    """`Bench` over ``true_us``. ``fails(m, side, tile)`` -> (status, reason) or None; ``wrong(m, up, down)``."""

    def __init__(self, shape=QWEN, device=H100, *, seed=0, noise=0.01, fails=None, wrong=None, sleep=None):
        self.shape, self.device, self.seed, self.noise = shape, device, seed, noise
        self.fails: Callable[..., tuple[str, str] | None] = fails or (lambda m, side, tile: None)
        self.wrong: Callable[..., bool] = wrong or (lambda m, up, down: False)
        self.timed: Counter[tuple[int, Side, Tile, int]] = Counter()
        self.calls = 0
        self.on_time: Callable[[], None] = sleep or (lambda: None)

    def fingerprint(self) -> dict[str, str]:
        return {"device": self.device.torch_name, "capability": "9.0", "triton": "3.6.0", "kernel": f"fake{self.seed}"}

    def true_us(self, m: int, side: Side, tile: Tile) -> float:
        """An estimate bent by bumps that the tuner's own order does not know of: up to 30% either way."""
        base = estimate(tile, self.shape, self.device, side, m).us
        knobs = ("block_m", "block_n", "block_k", "warps", "stages", "group_m", "use_tma")
        bend = sum(self._bump(side, k, getattr(tile, k), round(math.log2(m) / 3)) for k in knobs)
        return base * math.exp(0.06 * bend + 0.03 * self._bump(side, tile.short()))

    def _bump(self, *what: object) -> float:
        digest = hashlib.sha256(repr((self.seed, *what)).encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**31 - 1

    def align_us(self, m: int, block_m: int) -> float:
        return 3.0 + 8.0 * m / 4096 + block_m / 256

    def time(self, m: int, side: Side, tiles: Sequence[Tile], samples: int) -> list[Timing]:
        self.on_time()
        self.calls += 1
        draw = random.Random(repr((self.seed, m, side, samples, len(tiles))))
        drift = [1 + 0.01 * draw.random() for _ in range(samples)]  # the same for every tile of a round
        out = []
        for tile in tiles:
            self.timed[m, side, tile, samples] += 1
            failed = self.fails(m, side, tile)
            if failed:
                out.append(Timing(tile, (), *failed))
                continue
            us = self.true_us(m, side, tile)
            out.append(Timing(tile, tuple(us * d * (1 + self.noise * abs(draw.gauss(0, 1))) for d in drift)))
        return out

    def align(self, m: int, block_ms: Sequence[int]) -> dict[int, float]:
        return {bm: self.align_us(m, bm) for bm in block_ms}

    def check(self, m: int, pairs: Sequence[tuple[Tile, Tile]]) -> list[Check]:
        return [
            Check(False, 0.5, "worst row is 0.5 off") if self.wrong(m, up, down) else Check(True, 1e-3)
            for up, down in pairs
        ]

    def close(self) -> None:
        pass
