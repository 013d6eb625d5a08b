from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernelmux.autotune.compile import CompilePool, Deadline, Task
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.errors import TuneError
from kernelmux.tuning_configs.tile import Tile

SHAPE = MoeShape(8, 512, 512, 2)
FAKE = "tests.unit.autotune.fake_compilers:compile_tile"
FAST = Deadline(first_s=1.0, cap_s=1.0)
GOOD = [Task("up", Tile(16, 64, 64, 1, 4, s)) for s in (2, 3, 4)]
HANGS = Task("up", Tile(16, 64, 256))
CRASHES = Task("down", Tile(16, 256, 64))
RAISES = Task("down", Tile(16, 32, 64))


def pool(**options):
    return CompilePool(SHAPE, Capability(9, 0), **{"workers": 2, "target": FAKE, "deadline": FAST, **options})


def test_a_hang_a_crash_and_an_exception_cost_one_tile_each():
    with pool() as compiling:
        compiling.submit([HANGS, CRASHES, RAISES, *GOOD])
        facts = compiling.wait([HANGS, CRASHES, RAISES, *GOOD])
    assert facts[HANGS].status == "hang"
    assert "killed after" in facts[HANGS].reason
    assert facts[CRASHES].status == "crash"
    assert "SIGSEGV" in facts[CRASHES].reason
    assert facts[RAISES].status == "error"
    assert facts[RAISES].reason == "RuntimeError: PassManager::run failed"
    assert all(facts[t].status == "ok" for t in GOOD)
    assert facts[GOOD[1]].sha256 == facts[GOOD[2]].sha256 != facts[GOOD[0]].sha256


def test_every_tile_after_a_crash_is_still_compiled():
    crashes = [Task("down", Tile(16, 256, 64, g)) for g in (1, 2, 4)]
    with pool(workers=1) as compiling:
        compiling.submit([*crashes, *GOOD])
        facts = compiling.wait([*crashes, *GOOD])
    assert [facts[t].status for t in crashes] == ["crash"] * 3
    assert [facts[t].status for t in GOOD] == ["ok"] * 3


def test_the_smallest_tile_of_the_lowest_priority_number_comes_first():
    big, small, urgent = (Task("up", t) for t in (Tile(64, 128, 64), Tile(16, 64, 64), Tile(128, 128, 64)))
    order: list[Task] = []
    with pool(workers=1) as compiling:
        compiling.submit([urgent], priority=0)
        compiling.submit([big, small], priority=1)
        compiling.wait([big, small, urgent], heard=order.extend)
    assert order == [urgent, small, big]


def test_waiting_ends_at_its_time_with_what_is_there():
    with pool(workers=1, deadline=Deadline(first_s=30)) as compiling:
        compiling.submit(GOOD[:1])
        compiling.wait(GOOD[:1])
        compiling.submit([HANGS])
        assert compiling.wait([HANGS, GOOD[0]], until=time.monotonic() + 0.3).keys() == {GOOD[0]}


def test_a_missing_compiler_is_one_sentence():
    with pool(target="kernelmux.no_such_module:compile_tile") as compiling:
        compiling.submit(GOOD)
        with pytest.raises(TuneError, match="no kernel can be compiled here"):
            compiling.wait(GOOD)


def test_children_die_with_a_killed_parent():
    script = f"""
import os, sys, time
from kernelmux.autotune.compile import CompilePool, Deadline, Task
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile
pool = CompilePool(MoeShape(8, 512, 512, 2), Capability(9, 0), workers=1, target={FAKE!r})
pool.submit([Task("up", Tile(16, 64, 64))]); pool.wait([Task("up", Tile(16, 64, 64))])
pool.submit([Task("up", Tile(16, 64, 256))]); time.sleep(0.3)
print(*[c.process.pid for c in pool._running.values()], flush=True)
time.sleep(60)
"""
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    gone = time.monotonic() + 5
    while _runs(child) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
