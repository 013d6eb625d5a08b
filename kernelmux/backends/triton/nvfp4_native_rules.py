"""How the native W4A4 GEMM is launched: tiles per architecture, and the choice where nothing was measured. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

SCALE_ROWS = 128  # rows of a swizzled block of scales: no tile is finer
SCALE_K = 64  # values along K of such a block


@dataclass(frozen=True, slots=True, order=True)
class NativeTile:
    """One launch. ``split`` parts of K are summed by a second kernel; ``use_tma``: through tensor descriptors."""

    block_m: int = 128
    block_n: int = 128
    block_k: int = 256
    group_m: int = 8
    split: int = 1
    warps: int = 4
    stages: int = 3
    use_tma: bool = True

    def short(self) -> str:
        sizes = f"{self.block_m}x{self.block_n}x{self.block_k}"
        said = f"{sizes} g{self.group_m} k{self.split} w{self.warps} s{self.stages}"
        return said + (" tma" if self.use_tma else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def shared_bytes(self, kind: str) -> int:
        """Of the values and scales in flight; what waits for them takes some bytes more."""
        a_step = (self.block_m + self.block_n) * (self.block_k // 2 + self.block_k // 16)
        return a_step * (self.stages if kind == "tcgen05" and self.use_tma else self.stages - 1)


# block_m, block_n, block_k, warps, stages. 10.x: tcgen05, its accumulator lies in tensor memory (512 columns, half for
# the accumulator, the scales beside it); 12.x: mma.sync, everything in registers.
SPACE: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "tcgen05": (
        (128, 128, 256, 4, 3), (128, 128, 256, 4, 4), (128, 256, 256, 4, 3), (128, 256, 256, 8, 3),
        (128, 256, 256, 8, 4), (128, 128, 512, 4, 2), (256, 128, 256, 8, 3),
    ),
    "mma": (
        (128, 128, 128, 8, 2), (128, 128, 128, 8, 3), (128, 128, 128, 8, 4), (128, 128, 256, 8, 2),
        (128, 128, 256, 8, 3),
    ),
}  # fmt: skip
ROOM = {"tcgen05": 227 * 1024, "mma": 99 * 1024}


def family(capability: tuple[int, int]) -> str:
    return "mma" if capability[0] == 12 else "tcgen05"


def most_split(k: int, block_k: int) -> int:
    return -(-k // block_k)


def fitted(tile: NativeTile, k: int) -> NativeTile:
    """The launch for operands of this K, where it was chosen for another: no more parts than K has."""
    most = most_split(k, tile.block_k)
    return tile if tile.split <= most else replace(tile, split=1 << (most.bit_length() - 1))


def candidates(m: int, n: int, k: int, capability: tuple[int, int], sms: int) -> Iterator[NativeTile]:
    """Launches worth timing at this size."""
    kind = family(capability)
    for block_m, block_n, block_k, warps, stages in SPACE[kind]:
        tile = NativeTile(block_m, block_n, block_k, 8, 1, warps, stages)
        if tile.shared_bytes(kind) + 1024 > ROOM[kind] or (block_m > SCALE_ROWS and m <= SCALE_ROWS):
            continue
        tiles = -(-m // block_m) * -(-n // block_n)
        for split in (1, 2, 4, 8):
            if split == 1 or (tiles * split <= 2 * sms and split <= most_split(k, block_k)):
                yield replace(tile, split=split)
                yield replace(tile, split=split, use_tma=False)


def heuristic(m: int, n: int, k: int, capability: tuple[int, int], sms: int) -> NativeTile:
    """A large tile where there are enough of them, else parts of K."""
    if family(capability) == "mma":
        tile = NativeTile(128, 128, 128, 8, 1, 8, 2)
    else:
        wide = -(-m // 128) * -(-n // 256) >= sms
        tile = NativeTile(128, 256 if wide else 128, 256, 8, 1, 8 if wide else 4, 3)
    tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    split = max(1, min(8, sms // tiles, most_split(k, tile.block_k) // 2))
    return replace(tile, split=1 << (split.bit_length() - 1))
