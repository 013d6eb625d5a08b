"""Stand-ins for compile_tile, loaded by name in the pool's children."""

import hashlib
import os
import signal
import time
from types import SimpleNamespace


def compile_tile(shape, side, tile, capability, direct=False):
    """64x256 s3 hangs, BN=256 and 128x128 crash, BN=32 raises; 3 and 4 stages give one binary; BM=16 w8 spills."""
    if (tile.block_n, tile.block_k, tile.stages) == (64, 256, 3):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # deaf, as the real one was
        time.sleep(600)
    if tile.block_n == 256 or tile.block_n == tile.block_k == 128:
        os.kill(os.getpid(), signal.SIGSEGV)
    if tile.block_n == 32:
        raise RuntimeError("PassManager::run failed")
    print("noise on stdout")
    stages = 3 if tile.stages == 4 else tile.stages
    code = f"{side} {tile.block_m} {tile.block_n} {tile.block_k} {tile.warps} {stages} {tile.use_tma} {direct}"
    return SimpleNamespace(
        shared_bytes=1024, registers=128, stack_bytes=512 if (tile.block_m, tile.warps) == (16, 8) else 0,
        sha256=hashlib.sha256(code.encode()).hexdigest(), seconds=0.01,
    )  # fmt: skip


def refuses_128(shape, side, tile, capability, direct=False):
    """BN=128 raises; all else compiles at once."""
    if tile.block_n == 128:
        raise RuntimeError("no 128 here")
    return SimpleNamespace(shared_bytes=1024, registers=64, stack_bytes=0, sha256=tile.short(), seconds=0.001)
