"""Order tiles by an estimate of their time on one GEMM.

The estimate orders work and cuts what is hopeless; it never picks a winner. On an H100 its first pick reached only
0.68-0.85 of the best tile, and the best of its first forty 0.94-0.96.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kernelmux.autotune.space import tokens_per_expert
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.contracts.fused_moe import experts_hit
from kernelmux.measure.bench import Side
from kernelmux.tuning_configs import shared_law
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.autotune.compile import Facts
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

REGISTERS_PER_SM = 65536
THREADS_PER_SM = 2048
STREAM_SHARE = 0.90  # of the bandwidth on paper: what the best streaming kernels reach (3.0 of 3.35 TB/s, H100)
MATMUL_SHARE = 0.80  # of the dense peak on paper: what 8192^3 bf16 reaches (795 of 989 TFLOP/s, H100)
L2_OVER_DRAM = 2.5  # L2 read bandwidth against DRAM, A100 and H100
DRAM_LATENCY_US = 0.8
LAUNCH_US = 2.0  # smallest kernel inside a graph, H100
SPILL_SLOWDOWN = 1.0 / 256  # stack bytes that double the time
HOPELESS = 5.0  # estimates beyond this multiple of the best are not measured


@dataclass(frozen=True, slots=True)
class Estimate:
    """Microseconds one GEMM should take, and what bounds it."""

    tile: Tile
    us: float
    bound: str  # "memory", "compute" or "latency"
    waves: float


def rank(
    tiles: Iterable[Tile],
    shape: MoeShape,
    device: Device,
    side: Side,
    m: int,
    facts: Mapping[Tile, Facts] | None = None,
    target: Target = KERNELMUX,
) -> list[Estimate]:
    """Order tiles by estimated time, fastest first. ``facts`` of compiled tiles replace the formulas."""
    known = facts or {}
    return sorted(
        (estimate(tile, shape, device, side, m, known.get(tile), target) for tile in tiles),
        key=lambda e: (e.us, e.tile),
    )


def estimate(
    tile: Tile,
    shape: MoeShape,
    device: Device,
    side: Side,
    m: int,
    facts: Facts | None = None,
    target: Target = KERNELMUX,
) -> Estimate:
    """Roofline of DRAM, L2 and tensor cores, with whole waves of blocks and the bytes a block keeps in flight."""
    columns, depth = shape.gemm(side)
    (a_bytes, b_bytes), pairs = target.element_bytes(shape), m * shape.topk
    row_blocks = shape.E * expected_blocks(tokens_per_expert(shape, m), tile.block_m)
    column_blocks = -(-columns // tile.block_n)
    blocks = row_blocks * column_blocks
    trips = -(-depth // tile.block_k)
    occupancy = blocks_per_sm(tile, shape, device, facts, target)
    slots = max(1, device.sm_count) * occupancy
    waves = blocks / slots
    # Below one wave every block runs at once; above it the last wave is as long as a full one.
    stretch = max(1.0, math.ceil(waves) / waves) if waves > 1 else 1.0

    hit = experts_hit(shape.E, pairs)
    out_columns = columns if target.plain else shape.N if side == "up" else shape.K
    dram = hit * columns * depth * b_bytes + pairs * (depth * a_bytes + out_columns * shape.element_bytes)
    slab = (tile.block_m * a_bytes + tile.block_n * b_bytes) * tile.block_k
    flight = occupancy * max(1, tile.stages - 1) * slab
    busy_sms = min(device.sm_count, max(1.0, blocks / occupancy))
    needed = device.bandwidth_gbs * 1e3 * DRAM_LATENCY_US / max(1, device.sm_count)  # bytes an SM must have in flight
    streaming = min(1.0, flight / needed) * min(1.0, busy_sms / device.sm_count * 1.5)
    memory_us = dram / (device.bandwidth_gbs * 1e3 * STREAM_SHARE * max(streaming, 0.02))
    l2 = blocks * trips * slab
    l2_us = l2 / (device.bandwidth_gbs * 1e3 * L2_OVER_DRAM)

    peak = max(target.peak_tflops(shape, device), 1e-3) * 1e6 * MATMUL_SHARE * _tensor_share(tile, device)
    work = 2.0 * blocks * tile.block_m * tile.block_n * trips * tile.block_k
    compute_us = work / (peak * min(1.0, busy_sms / device.sm_count)) * stretch
    # A block alone: fill the pipeline, then one trip of the K loop after another.
    per_trip = DRAM_LATENCY_US / max(1, tile.stages - 1)
    latency_us = math.ceil(waves) * (DRAM_LATENCY_US + trips * min(per_trip, 0.12))

    by = {"memory": max(memory_us, l2_us), "compute": compute_us, "latency": latency_us}
    bound = max(by, key=lambda k: by[k])
    rest = sum(by.values()) - by[bound]
    us = LAUNCH_US + by[bound] + 0.2 * rest  # the three overlap, but never wholly
    if facts is not None and facts.stack_bytes:
        us *= 1 + facts.stack_bytes * SPILL_SLOWDOWN
    return Estimate(tile, us, bound, waves)


def blocks_per_sm(
    tile: Tile, shape: MoeShape, device: Device, facts: Facts | None = None, target: Target = KERNELMUX
) -> int:
    """How many blocks of this tile one SM holds: by shared memory, registers and threads; at least 1."""
    threads = 32 * tile.warps
    if facts is not None and facts.status == "ok":
        shared, registers = facts.shared_bytes, facts.registers
    else:
        shared = shared_law.predicted_shared(tile, device.capability, *target.element_bytes(shape))[0]
        registers = min(255, 48 + tile.block_m * tile.block_n // threads)
    by_shared = device.shared_bytes // max(1, shared + 1024) if device.shared_bytes else 8
    by_registers = REGISTERS_PER_SM // max(1, registers * threads)
    return max(1, min(by_shared, by_registers, THREADS_PER_SM // threads, 16))


@lru_cache(maxsize=4096)
def expected_blocks(mean: float, block_m: int) -> float:
    """Row blocks an expert needs on average, ``E[ceil(X / block_m)]``, X Poisson with this mean."""
    spread = 8 * math.sqrt(mean) + 12
    low, high = max(0, int(mean - spread)), int(mean + spread)
    total = float(-(-low // block_m))  # blocks certainly there: P(X > j*b) is 1 below `low`
    above, term = 1.0, math.exp(low * math.log(mean) - mean - math.lgamma(low + 1)) if mean > 0 else 1.0
    # E[ceil(X/b)] = sum over j >= 0 of P(X > j*b)
    for count in range(low, high + 1):
        if count % block_m == 0:
            total += max(0.0, above - term)
        above -= term
        term *= mean / (count + 1)
    return max(total, 1e-9)


def _tensor_share(tile: Tile, device: Device) -> float:
    """Share of the attainable matmul rate that the instruction of this tile reaches."""
    capability = device.capability
    major = capability.major if capability else 8
    share = 1.0
    if major in (9, 10):
        # wgmma and tcgen05 need 64 rows; mma.sync reaches about half of their rate on 9.0.
        share = 1.0 if tile.block_m >= 64 and tile.warps >= 4 else 0.5
        if tile.block_m >= 64 and tile.block_n < 128:
            share *= 0.6 if tile.block_n <= 32 else 0.8  # operands from shared memory bound narrow tiles
        if tile.block_m >= 128 and tile.block_n >= 128 and tile.warps < 8:
            share *= 0.8
    elif tile.block_m * tile.block_n < 64 * 64:
        share = 0.6
    return share
