"""Which choice makes silu_and_mul fast where there is much to do: a factorial race of variants of its CUDA kernel.

    python benchmarks/explore_silu.py --out explore-silu.json        on a GPU of 9.0, about a minute
    python benchmarks/explore_silu.py --compile                      only compiles; needs no GPU

Factors: the kind of loads and of stores, where the next kernel is let in, how accesses are dealt to threads (all
combinations), and around two of these the threads of a block, the unrolling, the arithmetic, how many blocks share a
multiprocessor. Each variant is a CUDA graph of calls on tensors of their own. A turn replays it twice: "after another"
follows whoever's turn was before, "after itself" is what a call costs in the long run: what the one before left in the
L2 is its own. Printed: the best, for each factor its levels in the geometric mean over the other factors, and what
leaving one of the two starting points gives. Then the fp8 epilogues with the same loads and launches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FP8_POINTS = ((16384, 2048), (16384, 8192), (4096, 4096))
POINTS = ((16384, 2048), (16384, 8192), (4096, 2048), (4096, 8192), (256, 2048))
L2_TURNS, REPLAY_US = 3, 400.0

SOURCE = r"""
#include "common.cuh"
#include "formulas.cuh"
#include "together.cuh"

// LOAD 0 L1::no_allocate  1 plain  2 .nc  3 .cs  4 L2 evict_first by a policy
// STORE 0 plain  1 .cs  2 L2 evict_first by a policy  3 L1::no_allocate
// MAP 0 flat, going round  1 flat, once  2 a block a row (grid-stride over its columns)  3 flat, once, H known
// LAUNCH 0 never  1 before the wait  2 behind the loads  3 at the end        WAIT 0, 1
// MATH 0 ours  1 two approximations and nothing else  2 only the product     MIX 1: loads wait for one another
constexpr int N = 8;
typedef Vec<bf16, N> Part;

DEVICE u64 first_out() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
DEVICE Part get(const bf16* from, u64 policy) {
  Part to;
  u32* w = reinterpret_cast<u32*>(&to);
#define GET(KIND) asm volatile("ld.global" KIND ".v4.b32 {%0,%1,%2,%3}, [%4];" \
    : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(from))
  if constexpr (LOAD == 0) GET(".L1::no_allocate");
  else if constexpr (LOAD == 1) GET("");
  else if constexpr (LOAD == 2) GET(".nc");
  else if constexpr (LOAD == 3) GET(".cs");
  else asm volatile("ld.global.L2::cache_hint.v4.b32 {%0,%1,%2,%3}, [%4], %5;"
    : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "l"(from), "l"(policy));
  return to;
}
DEVICE void put(bf16* to, const Part& from, u64 policy) {
  const u32* w = reinterpret_cast<const u32*>(&from);
#define PUT(KIND) asm volatile("st.global" KIND ".v4.b32 [%0], {%1,%2,%3,%4};" \
    ::"l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory")
  if constexpr (STORE == 0) PUT("");
  else if constexpr (STORE == 1) PUT(".cs");
  else if constexpr (STORE == 3) PUT(".L1::no_allocate");
  else asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1,%2,%3,%4}, %5;"
    ::"l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(policy) : "memory");
}
DEVICE float act(float x) {
  if constexpr (MATH == 0) return silu_of<bf16>(x);
  else if constexpr (MATH == 1) return x * reciprocal_near(1.0f + exp2_near(-1.4426950408889634f * x));
  else return x;
}

struct Place {
  const bf16* from;
  bf16* to;
};

extern "C" __global__ void __launch_bounds__(AT_ONCE)
explore(const bf16* x, bf16* out, u32 accesses, u32 per_row, u32 magic, u32 shift, u32 nothing, i64 x_stride,
        i64 out_stride) {
  const u64 policy = LOAD == 4 || STORE == 2 ? first_out() : 0;
  const i64 to_up = MAP == 3 ? HIDDEN : static_cast<i64>(per_row) * N;
  auto place = [&](u32 n) {
    if constexpr (MAP == 3) {
      const u32 row = n / (HIDDEN / N), column = n % (HIDDEN / N);
      return Place{x + (row * (2u * HIDDEN) + column * N), out + n * N};
    } else {
      const u32 row = static_cast<u32>((static_cast<u64>(n) * magic) >> shift);
      const u32 column = (n - row * per_row) * N;
      return Place{x + (row * x_stride + column), out + (row * out_stride + column)};
    }
  };
  auto finish = [&](auto& gate, auto& up, const auto& at, auto count) {
    constexpr int COUNT = decltype(count)::value;
    if constexpr (LAUNCH == 2) pdl_launch();
    if constexpr (MIX) together<COUNT>(gate, up, nothing);
#pragma unroll
    for (int u = 0; u < COUNT; ++u) {
      float value[N], factor[N];
      widen(gate[u], value);
      widen(up[u], factor);
#pragma unroll
      for (int i = 0; i < N; ++i) value[i] = act(value[i]) * factor[i];
      put(at[u].to, from_floats<bf16, N>(value), STORE == 2 ? policy : 0);
    }
  };
  auto start = [&](Part& gate, Part& up, const Place& at) {
    gate = get(at.from, policy);
    up = get(at.from + to_up, policy);
  };
  if constexpr (LAUNCH == 1) pdl_launch();
  if constexpr (WAIT) pdl_wait();
  constexpr u32 turn = AT_ONCE * UNROLL;
  if constexpr (MAP == 2) {
    const bf16* row = x + blockIdx.x * x_stride;
    bf16* to = out + blockIdx.x * out_stride;
#pragma unroll 1
    for (u32 c = threadIdx.x; c < per_row; c += AT_ONCE) {
      Part gate[1], up[1];
      const Place at[1] = {{row + c * N, to + c * N}};
      start(gate[0], up[0], at[0]);
      finish(gate, up, at, Count<1>());
    }
  } else {
    const u32 step = MAP == 0 ? gridDim.x * turn : 0x80000000u;
    for (u32 first = blockIdx.x * turn; first < accesses; first += step) {
      const u32 mine = first + threadIdx.x;
      if (UNROLL > 1 && first + turn <= accesses) {
        Part gate[UNROLL], up[UNROLL];
        Place at[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) start(gate[u], up[u], at[u] = place(mine + u * AT_ONCE));
        finish(gate, up, at, Count<UNROLL>());
      } else {
#pragma unroll 1
        for (int u = 0; u < UNROLL; ++u) {
          const u32 n = mine + u * AT_ONCE;
          if (n >= accesses) break;
          Part gate[1], up[1];
          Place at[1] = {place(n)};
          start(gate[0], up[0], at[0]);
          finish(gate, up, at, Count<1>());
        }
      }
      if constexpr (MAP != 0) break;
    }
  }
  if constexpr (LAUNCH == 3) pdl_launch();
}
"""

LOADS = {"na": 0, "plain": 1, "nc": 2, "cs": 3, "l2first": 4}
STORES = {"keep": 0, "cs": 1, "l2first": 2, "na": 3}
MAPS = {"flat": 0, "once": 1, "row": 2, "known": 3}
# the attribute of the launch, LAUNCH, WAIT
ENTRIES = {
    "early": (True, 1, 1), "loaded": (True, 2, 1), "late": (True, 3, 1), "ended": (True, 0, 1), "off": (False, 0, 0),
}  # fmt: skip
MATHS = {"ours": 0, "light": 1, "none": 2}


@dataclass(frozen=True)
class Variant:
    """One kernel and launch. ``blocks``: at most so many on a multiprocessor, by shared memory; 0: as many as fit."""

    load: str = "na"
    store: str = "keep"
    entry: str = "early"
    map: str = "flat"
    threads: int = 256
    unroll: int = 1
    mix: bool = True
    math: str = "ours"
    blocks: int = 0

    @property
    def name(self) -> str:
        words = [self.load, self.store, self.entry, self.map, f"{self.threads}x{self.unroll}"]
        words += ["" if self.mix else "nomix", "" if self.math == "ours" else self.math]
        words += [f"b{self.blocks}"] if self.blocks else []
        return " ".join(word for word in words if word)

    def defines(self, hidden: int) -> dict[str, str | int]:
        _, launch, wait = ENTRIES[self.entry]
        return {
            "LOAD": LOADS[self.load], "STORE": STORES[self.store], "MAP": MAPS[self.map], "LAUNCH": launch,
            "WAIT": wait, "MATH": MATHS[self.math], "MIX": int(self.mix), "AT_ONCE": self.threads,
            "UNROLL": self.unroll, "HIDDEN": hidden if self.map == "known" else 8,
        }  # fmt: skip


NOW = Variant()
PLAIN = Variant(load="plain", entry="late")
FACTORS: dict[str, tuple[str, ...]] = {
    "load": ("na", "plain", "nc", "cs", "l2first"),
    "store": ("keep", "cs", "l2first"),
    "entry": ("early", "late", "off"),
    "map": ("flat", "row"),
}
LEAVES: tuple[Mapping[str, Any], ...] = (
    {"threads": 128}, {"threads": 512}, {"threads": 1024}, {"unroll": 2}, {"unroll": 2, "mix": False}, {"unroll": 4},
    {"threads": 128, "unroll": 2}, {"mix": False}, {"math": "light"}, {"math": "none"}, {"blocks": 6}, {"blocks": 4},
    {"blocks": 3}, {"map": "once"}, {"map": "known"}, {"map": "known", "threads": 128}, {"entry": "ended"},
    {"entry": "loaded"}, {"store": "na"}, {"map": "known", "entry": "off"},
)  # fmt: skip


def factorial() -> list[Variant]:
    return [Variant(**dict(zip(FACTORS, levels, strict=True))) for levels in product(*FACTORS.values())]


def variants() -> list[Variant]:
    left = [replace(start, **leave) for start in (NOW, PLAIN) for leave in LEAVES]
    return list(dict.fromkeys([*factorial(), NOW, PLAIN, *left]))


def compiled(arch: str, defines: Mapping[str, str | int]) -> bytes:
    from kernelmux.backends.jit_cuda.compiler import SOURCES, Source, compile_read

    texts = {
        name: (SOURCES / name).read_text(encoding="utf-8") for name in ("common.cuh", "formulas.cuh", "together.cuh")
    }
    made = compile_read(Source("explore.cu", (("explore.cu", SOURCE), *texts.items())), "explore", defines, arch)
    if made.spills:
        raise RuntimeError(f"{dict(defines)} spills")
    return bytes(made.code)


def compile_all(arch: str, hiddens: Sequence[int], workers: int) -> dict[tuple[tuple[str, Any], ...], bytes]:
    jobs = {tuple(each.defines(h).items()): None for each in variants() for h in hiddens}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(partial(compiled, arch), [dict(job) for job in jobs], chunksize=4))
        real = dict.fromkeys(fp8_job(each, h) for _, h in FP8_POINTS for each in fp8_variants(h))
        list(pool.map(partial(fetched, arch), real, chunksize=2))
    return dict(zip(jobs, made, strict=True))


# racing

Call = Callable[[int], Any]


class Track:
    """Graphs replayed in turns, twice a turn."""

    def __init__(self, calls: int):
        self.calls = calls
        self.graphs: dict[str, Any] = {}
        self.kept: list[Any] = []
        self.failed: dict[str, str] = {}

    def enter(self, name: str, call: Call, judge: Callable[[], bool] | None = None) -> None:
        import torch

        try:
            for r in range(self.calls):
                call(r)
            torch.cuda.synchronize()
            if judge and not judge():
                self.failed[name] = "wrong"
                return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.kept.append([call(r) for r in range(self.calls)])
            self.kept.append(call)
            self.graphs[name] = graph
        except Exception as error:  # said, and the others go on
            self.failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
            torch.cuda.synchronize()

    def race(self, rounds: int) -> dict[str, dict[str, Any]]:
        """{name: {"after another": [us of a call, ...], "after itself": [...]}}"""
        import torch

        for graph in self.graphs.values():
            graph.replay()
        torch.cuda.synchronize()
        rng, order, marks = random.Random(0), list(self.graphs), []
        for _ in range(rounds):
            rng.shuffle(order)
            for name in order:
                a, b, c = (torch.cuda.Event(enable_timing=True) for _ in range(3))
                a.record()
                self.graphs[name].replay()
                b.record()
                self.graphs[name].replay()
                c.record()
                marks.append((name, a, b, c))
            torch.cuda.synchronize()
        times: dict[str, dict[str, Any]] = {
            name: {"after another": [], "after itself": [], "follows": []} for name in self.graphs
        }
        before = ""
        for name, a, b, c in marks:
            times[name]["after another"].append(a.elapsed_time(b) * 1e3 / self.calls)
            times[name]["after itself"].append(b.elapsed_time(c) * 1e3 / self.calls)
            times[name]["follows"].append(before)
            before = name
        return times


def race_point(m: int, h: int, code: Mapping[Any, bytes], options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kernelmux.backends.jit_cuda import driver
    from kernelmux.backends.jit_cuda.activation_geometry import division
    from kernelmux.backends.jit_cuda.launch import Launcher, stream_getter
    from kernelmux.backends.jit_cuda.rows_of_tensors import signed

    moved = 6 * m * h
    facts = torch.cuda.get_device_properties(0)
    calls = max(3, min(96, int(REPLAY_US / max(2.0, moved / 4.3e6))), -(-L2_TURNS * facts.L2_cache_size // moved))
    xs = [torch.randn(m, 2 * h, device="cuda", dtype=torch.bfloat16) for _ in range(calls)]
    outs = [torch.empty(m, h, device="cuda", dtype=torch.bfloat16) for _ in range(calls)]
    gate, up = xs[0][:64].float().chunk(2, dim=-1)
    want = torch.nn.functional.silu(gate) * up
    stream, track = stream_getter(), Track(calls)
    per_row = h // 8
    magic, shift = division(per_row)
    numbers = (m * per_row, per_row, signed(magic), shift, 0, 2 * h, h)
    pointers = [(x.data_ptr(), out.data_ptr()) for x, out in zip(xs, outs, strict=True)]

    def right() -> bool:
        return bool(torch.isfinite(outs[0]).all()) and torch.allclose(outs[0][:64].float(), want, rtol=2e-2, atol=1e-2)

    for each in variants():
        function = driver.load(code[tuple(each.defines(h).items())], "explore", 0)
        shared = (facts.shared_memory_per_multiprocessor // each.blocks - 1024) // 128 * 128 if each.blocks else 0
        try:
            launcher = Launcher(function, "PPiiiiiqq", block=each.threads, shared=shared, pdl=ENTRIES[each.entry][0])
        except Exception as error:
            track.failed[each.name] = str(error)[:160]
            continue
        grid = m if each.map == "row" else -(-m * per_row // (each.threads * each.unroll))
        bound = launcher.bind(grid, ..., ..., *numbers)
        outs[0].fill_(float("nan"))
        judge = None if each.math == "none" else right
        track.enter(each.name, lambda r, bound=bound: bound(stream(0), *pointers[r]), judge)
    peers(track, m, h, xs, outs, right)
    return {"m": m, "h": h, "bytes": moved, "calls": calls, "times": track.race(options.rounds), "failed": track.failed}


def peers(track: Track, m: int, h: int, xs: Sequence[Any], outs: Sequence[Any], right: Callable[[], bool]) -> None:
    import torch

    words = 6 * m * h // 4
    spare = [torch.empty(words, device="cuda", dtype=torch.int16).random_(1, 30000) for _ in xs]
    into = [torch.empty_like(each) for each in spare]
    track.enter("= torch copy", lambda r: into[r].copy_(spare[r]))
    try:
        from kernelmux.measure.small_copy_kernels import stream_kernel

        count = m * h // 2
        for block, warps in ((1024, 4), (2048, 8)):
            track.enter(
                f"= triton stream {block}x{warps}",
                lambda r, block=block, warps=warps: stream_kernel[(-(-count // block),)](
                    xs[r].view(torch.int32), outs[r].view(torch.int32), count, READS=2, BLOCK=block, num_warps=warps
                ),
            )
        kernel = inductor_kernel()
        for block, warps in ((512, 4), (1024, 4), (1024, 8)):
            track.enter(
                f"= triton silu {block}x{warps}",
                lambda r, block=block, warps=warps: kernel[(-(-m * h // block),)](
                    xs[r], outs[r], m * h, H=h, BLOCK=block, num_warps=warps
                ),
                right,
            )
    except ImportError as error:
        track.failed["= triton"] = str(error)
    try:
        from flashinfer.activation import silu_and_mul

        for pdl in (True, False):
            track.enter(
                f"= flashinfer{'' if pdl else ', no pdl'}",
                lambda r, pdl=pdl: silu_and_mul(xs[r], out=outs[r], enable_pdl=pdl), right,
            )  # fmt: skip
    except Exception as error:  # it loads libraries at import
        track.failed["= flashinfer"] = str(error)[:160]


def inductor_kernel() -> Any:
    from _explore_silu_triton import silu_flat

    return silu_flat


# the fp8 epilogues, their real kernels

FP8_GEOMETRIES = {
    "silu_and_mul_fp8": ("256x2", "128x4", "256x4", "128x2"),
    "rms_norm_fp8": ("64x1", "128x1", "256x1"),
}


def fp8_variants(h: int) -> list[tuple[str, str, str, str, int]]:
    """(op, geometry, loads, entry, quick)"""
    return [
        (op, name, loads, entry, quick)
        for op, names in FP8_GEOMETRIES.items()
        for name, loads, entry, quick in product(names, ("STREAM", "KEEP", "FIRST"), ("EARLY", "LATE", "off"), (0, 1))
        if op == "silu_and_mul_fp8" or h <= 32 * int(name.partition("x")[0])
    ]


@contextmanager
def memory(loads: str, entry: str, quick: int) -> Iterator[None]:
    from kernelmux.backends.jit_cuda import activation_geometry, fp8_epilogues

    kept = dict(activation_geometry.MEMORY), activation_geometry.OVERLAP, dict(fp8_epilogues.QUICK)
    fp8_epilogues.QUICK.update(dict.fromkeys(kept[2], quick))
    activation_geometry.MEMORY.update(LOADS=loads, LAUNCH="ENDED" if entry == "off" else entry)
    activation_geometry.OVERLAP = entry != "off"
    try:
        yield
    finally:
        activation_geometry.MEMORY.update(kept[0])
        activation_geometry.OVERLAP = kept[1]
        fp8_epilogues.QUICK.update(kept[2])


def fp8_job(variant: tuple[str, str, str, str, int], h: int) -> tuple[str, str, Any]:
    from kernelmux.backends.jit_cuda import activation_geometry, fp8_epilogues

    op, name, loads, entry, quick = variant
    with memory(loads, entry, quick):
        if op == "silu_and_mul_fp8":
            geometry = activation_geometry.Geometry.parse(name)
            given = fp8_epilogues.block_defines("bfloat16", geometry, 8, 32, 32)
            return fp8_epilogues.SOURCE, fp8_epilogues.BLOCKS, given
        rows = fp8_epilogues.RowGeometry.parse(name)
        given = fp8_epilogues.row_defines(h, "bfloat16", rows, 8, 32, 32, False, 0.0)
        return fp8_epilogues.SOURCE, fp8_epilogues.ROWS, given


def fetched(arch: str, job: tuple[str, str, Any]) -> None:
    from kernelmux.backends.jit_cuda import cache

    cache.fetch(job[0], job[1], dict(job[2]), arch)


def race_fp8(m: int, h: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from kernelmux.backends.jit_cuda import activation_geometry, fp8_epilogues

    found = []
    for op in FP8_GEOMETRIES:
        gated = op == "silu_and_mul_fp8"
        moved = m * h * (5 if gated else 3)
        calls = max(3, min(96, int(REPLAY_US / max(2.0, moved / 4.0e6))))
        xs = [torch.randn(m, h * (2 if gated else 1), device="cuda", dtype=torch.bfloat16) for _ in range(calls)]
        outs = [torch.empty(m, h, device="cuda", dtype=torch.float8_e4m3fn) for _ in range(calls)]
        scales = [torch.empty(m, h // 128 if gated else 1, device="cuda") for _ in range(calls)]
        weight = torch.randn(h, device="cuda", dtype=torch.bfloat16)
        gated_sets = list(zip(xs, outs, scales, strict=True))
        norm_sets = [(x, weight, None, out, scale) for x, out, scale in gated_sets]
        sets: list[tuple[Any, ...]] = list(gated_sets) if gated else list(norm_sets)
        track = Track(calls)
        for _, name, loads, entry, quick in (each for each in fp8_variants(h) if each[0] == op):
            with memory(loads, entry, quick):
                if gated:
                    geometry = activation_geometry.Geometry.parse(name)
                    bound = fp8_epilogues.bound_blocks(*sets[0], geometry, fast=False)
                else:
                    rows = fp8_epilogues.RowGeometry.parse(name)
                    bound = fp8_epilogues.bound_rows(*sets[0], 1e-6, 0.0, rows, fast=False)
                track.enter(
                    f"{loads.lower()} {entry.lower()} {'quick ' * quick}{name}",
                    lambda r, bound=bound, sets=sets: bound(*sets[r]),
                )
        words = moved // 4
        spare = [torch.empty(words, device="cuda", dtype=torch.int16).random_(1, 30000) for _ in xs]
        into = [torch.empty_like(each) for each in spare]
        track.enter("= torch copy", lambda r, into=into, spare=spare: into[r].copy_(spare[r]))
        times = track.race(options.rounds)
        found.append({"op": op, "m": m, "h": h, "bytes": moved, "calls": calls, "times": times, "failed": track.failed})
    return found


# what is printed


def middle(point: Mapping[str, Any], name: str, which: str = "after itself") -> float:
    return statistics.median(point["times"][name][which])


def told(point: Mapping[str, Any], most: int = 8) -> None:
    times = point["times"]
    op = point.get("op", "silu_and_mul")
    print(f"\n== {op} M={point['m']} H={point['h']}: {point['bytes'] / 1e6:.0f} MB, {point['calls']} calls a replay")
    for name, why in list(point["failed"].items())[:4]:
        print(f"   FAILED {name}: {why}")
    ranked = sorted((name for name in times if not name.startswith("=")), key=partial(middle, point))
    shown = [*ranked[:most], *(name for name in (NOW.name, PLAIN.name) if name in times and name not in ranked[:most])]
    shown += sorted((name for name in times if name.startswith("=")), key=partial(middle, point))
    print(f"   {'':40} {'after itself':>12} {'least':>8} {'GB/s':>6} {'after another':>14} {'spread':>7}")
    for name in shown:
        own, other = times[name]["after itself"], times[name]["after another"]
        us = statistics.median(own)
        print(
            f"   {name:40} {us:12.2f} {min(own):8.2f} {point['bytes'] / us / 1e3:6.0f} "
            f"{statistics.median(other):14.2f} {100 * (max(other) / min(other) - 1):6.1f}%"
        )


def mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def effects(points: Sequence[Mapping[str, Any]]) -> None:
    """For each factor: what a level costs against the best level, the others as they come; and each one-step leave."""
    large = [point for point in points if point["m"] >= 4096]
    for which in ("after itself", "after another"):
        print(f"\n== main effects, {which}: % above the level that is best (every combination of the other factors)")
        for factor, levels in FACTORS.items():
            for point in (*points, None):
                chosen = [point] if point else large
                cost = {
                    level: mean([
                        middle(at, each.name, which) for at in chosen for each in factorial()
                        if getattr(each, factor) == level and each.name in at["times"]
                    ])
                    for level in levels
                }  # fmt: skip
                best = min(cost.values())
                where = f"M={point['m']} H={point['h']}" if point else "ALL M >= 4096"
                print(
                    f"   {factor:6} {where:16} "
                    + "  ".join(f"{k} {100 * (v / best - 1):+.1f}" for k, v in cost.items())
                )
    for label, start in (("today's", NOW), ("plain loads, late", PLAIN)):
        print(f"\n== one step away from {label} ({start.name}), after itself: %, negative is faster")
        head = " ".join(f"{point['m']}x{point['h']:<5}".rjust(11) for point in points)
        print(f"   {'':34} {head}")
        for leave in LEAVES:
            name = replace(start, **leave).name
            cells = [
                f"{100 * (middle(at, name) / middle(at, start.name) - 1):+11.1f}"
                if name in at["times"] and start.name in at["times"] else f"{'-':>11}"
                for at in points
            ]  # fmt: skip
            print(f"   {', '.join(f'{k}={v}' for k, v in leave.items()):34} {' '.join(cells)}")
    print("\n== both together: the ten with the least geometric mean over M >= 4096 (after itself; after another)")
    names = [each.name for each in variants() if each.math == "ours" and all(each.name in at["times"] for at in large)]
    ranked = sorted(names, key=lambda name: mean([middle(at, name) for at in large]))
    for name in ranked[:10]:
        cells = " ".join(f"{middle(at, name):8.2f}/{middle(at, name, 'after another'):<8.2f}" for at in points)
        print(f"   {name:40} {cells}")


def fp8_effects(points: Sequence[Mapping[str, Any]]) -> None:
    print("\n== fp8 epilogues, after itself: % above the level that is best, the other factors as they come")
    for point in points:
        names = [name for name in point["times"] if not name.startswith("=")]
        levels = {
            name: [*words[:2], "quick" if "quick" in words else "exact", words[-1]]
            for name, words in ((name, name.split()) for name in names)
        }
        for nth, factor in enumerate(("loads", "entry", "division", "geometry")):
            cost = {
                level: mean([middle(point, name) for name in names if levels[name][nth] == level])
                for level in dict.fromkeys(words[nth] for words in levels.values())
            }
            best = min(cost.values())
            said = "  ".join(f"{k} {100 * (v / best - 1):+.1f}" for k, v in cost.items())
            print(f"   {point['op']:16} M={point['m']} H={point['h']} {factor:8} {said}")


def lasting(points: Sequence[Mapping[str, Any]]) -> None:
    """Whether what a replay costs depends on the stores of the graph that ran before it."""
    print("\n== after another, by the stores of the graph before: median of us over the graph's own 'after itself'")
    stores = {each.name: each.store for each in variants()}
    for point in points:
        found: dict[tuple[str, str], list[float]] = {}
        for name, times in point["times"].items():
            own = statistics.median(times["after itself"])
            for us, before in zip(times["after another"], times["follows"], strict=True):
                if name in stores and before in stores:
                    found.setdefault((stores[before], stores[name]), []).append(us / own)
        cells = [f"{a}>{b} {statistics.median(each):.3f}" for (a, b), each in sorted(found.items()) if len(each) > 9]
        print(f"   M={point['m']} H={point['h']}: " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=100.0, help="start no point after that time")
    parser.add_argument("--compile", action="store_true", help="compile everything for sm_90 and stop")
    parser.add_argument("--no-fp8", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("explore-silu.json"))
    options = parser.parse_args()
    begun = time.perf_counter()
    hiddens = sorted({h for _, h in POINTS})
    arch = "sm_90"
    if not options.compile:
        from kernelmux.backends.jit_cuda import driver

        arch = driver.capability(0).arch
    code = compile_all(arch, hiddens, options.workers)
    print(
        f"{len(code)} kernels, {len(variants())} variants compiled in {time.perf_counter() - begun:.1f} s", flush=True
    )
    if options.compile:
        return
    import torch

    points: list[dict[str, Any]] = []
    fp8: list[dict[str, Any]] = []
    for m, h in POINTS:
        if time.perf_counter() - begun < options.seconds:
            points.append(race_point(m, h, code, options))
            told(points[-1])
            torch.cuda.empty_cache()
            print(f"   {time.perf_counter() - begun:.0f} s", flush=True)
    effects(points)
    lasting(points)
    for m, h in () if options.no_fp8 else FP8_POINTS:
        if time.perf_counter() - begun < options.seconds:
            fp8 += race_fp8(m, h, options)
            for point in fp8[-2:]:
                told(point, 6)
            print(f"   {time.perf_counter() - begun:.0f} s", flush=True)
    fp8_effects(fp8)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    said = {"points": points, "fp8": fp8, "variants": {each.name: asdict(each) for each in variants()}}
    options.out.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
