"""How a weight-only NVFP4 GEMM is launched: the tile, what may be tried, and the choice where nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .nvfp4_shape import CHUNK, WORDS


@dataclass(frozen=True, slots=True, order=True)
class Nvfp4Tile:
    """One launch of ``nvfp4_weight_only_gemm``, or (``kind`` decode) a decoded weight and torch's matmul.

    ``split`` parts of K are summed by a second kernel; ``pdl``: which is launched before the first has ended (9.0 on).
    ``pieces``: a weight is decoded and multiplied in so many groups of rows, so that what is decoded stays in L2.
    """

    block_n: int = 64
    block_m: int = 16
    block_j: int = 64
    group_m: int = 0
    split: int = 1
    warps: int = 4
    stages: int = 4
    pdl: bool = False
    kind: str = "tile"
    pieces: int = 1

    def short(self) -> str:
        if self.kind == "decode":
            return f"decode/{self.pieces}"
        said = (
            f"{self.block_n}x{self.block_m}x{self.block_j} g{self.group_m} k{self.split} w{self.warps} s{self.stages}"
        )
        return said + (" pdl" if self.pdl else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def shared_bytes(self, capability: tuple[int, int]) -> int:
        """What a launch takes on 8.x, 9.0 and 12.x; 10.x takes 2 KB more. wgmma holds x of every stage."""
        words = self.block_n * (2 * self.block_j + self.block_j // 4)
        tokens = 4 * self.block_j * self.block_m * 2
        before = max(1, self.stages - 1)
        return before * words + tokens * (max(2, self.stages) if capability == (9, 0) else before)


DECODE = Nvfp4Tile(kind="decode")


def most_split(k: int) -> int:
    """The most parts K may be cut into: one chunk each."""
    return -(-k // CHUNK)


def fault(tile: Nvfp4Tile, n: int, k: int, capability: tuple[int, int]) -> str | None:
    """Why this launch cannot be for a weight [n, k]; None where it can."""
    if tile.kind == "decode":
        return None if 1 <= tile.pieces <= max(1, n) else f"a weight of {n} rows in {tile.pieces} pieces"
    if not 1 <= tile.split <= most_split(k):
        return f"{tile.short()} cuts K={k} into {tile.split} parts of {CHUNK}: there are fewer."
    if tile.pdl and (tile.split == 1 or capability < (9, 0)):
        return f"{tile.short()}: a second kernel launched early, where there is none or before 9.0"
    room = _room(capability)
    if tile.shared_bytes(capability) > room:
        return f"{tile.short()} takes {tile.shared_bytes(capability)} B of shared memory; {room} are there"
    return None


def fitted(tile: Nvfp4Tile, k: int) -> Nvfp4Tile:
    """The launch for a weight of this K, where it was chosen for another: no more parts than K has."""
    split = max(1, min(tile.split, most_split(k)))
    return tile if split == tile.split else replace(tile, split=split, pdl=tile.pdl and split > 1)


def _room(capability: tuple[int, int]) -> int:
    """Shared memory that a block of a launch may take."""
    return {(8, 0): 163, (9, 0): 227, (10, 0): 225, (10, 3): 225}.get(capability, 99) * 1024


def candidates(m: int, n: int, k: int, capability: tuple[int, int]) -> Iterator[Nvfp4Tile]:
    """Launches worth timing at this size; the first is not special."""
    hopper = capability == (9, 0)
    room = _room(capability)
    pdls = (False, True) if hopper else (False,)
    splits = [s for s in (1, 2, 3, 4, 8) if s <= most_split(k)]
    found: set[Nvfp4Tile] = set()
    if m <= 64:
        block_m = 16 if m <= 16 else (32 if m <= 32 else 64)
        for block_n, warps in ((64, 4), (128, 4), (128, 8)):
            for stages in (3, 4, 5):
                for split in splits:
                    ctas = -(-n // block_n) * split
                    if not 100 <= ctas <= 1200:
                        continue
                    for pdl in pdls if split == 2 else (hopper and split > 1,):
                        found.add(Nvfp4Tile(block_n, block_m, 64, 0, split, warps, stages, pdl))
    else:
        for block_n, block_m, block_j, warps, stages, group in (
            (128, 64, 64, 4, 3, 0), (64, 128, 64, 4, 3, 0), (128, 128, 32, 8, 3, 0), (128, 128, 64, 8, 2, 0),
            (128, 128, 64, 8, 3, 8), (128, 128, 32, 8, 3, 8), (128, 128, 32, 8, 4, 8), (128, 128, 32, 4, 3, 8),
            (128, 256, 32, 8, 2, 4), (128, 256, 32, 8, 3, 4), (128, 256, 16, 8, 4, 4), (256, 128, 32, 8, 3, 8),
            (64, 256, 32, 4, 3, 4), (64, 256, 32, 4, 2, 4),
        ):  # fmt: skip
            tiles = -(-n // block_n) * -(-m // block_m)
            for split in splits:
                if block_m <= max(64, 2 * m) and (split == 1 or tiles * split <= 400):
                    found.add(Nvfp4Tile(block_n, block_m, block_j, group, split, warps, stages))
        found |= {replace(DECODE, pieces=p) for p in (1, 2, 4, 8) if n >= 1024 * p}
    yield from sorted(tile for tile in found if tile.kind == "decode" or tile.shared_bytes(capability) <= room)


def heuristic(m: int, n: int, k: int, sms: int, capability: tuple[int, int]) -> Nvfp4Tile:
    """The launch where nothing was measured: a full GPU of small tiles, then large tiles, then decode and multiply."""
    if m > 1024:
        return DECODE
    if m <= 64:
        block_m = 16 if m <= 16 else (32 if m <= 32 else 64)
        tile = Nvfp4Tile(64, block_m, WORDS, 0, 1, 4, 4 if block_m == 16 else 3)
    elif m <= 128 or capability != (9, 0):
        tile = Nvfp4Tile(128 if capability == (9, 0) else 64, 64, 32, 8, 1, 4, 3)
    else:
        tile = Nvfp4Tile(128, 128, 32, 8, 1, 8, 3)
    tiles = -(-n // tile.block_n) * -(-m // tile.block_m)
    split = max(1, min(most_split(k) // 2, (2 if m <= 64 else 1) * sms // tiles))
    return replace(tile, split=split, pdl=capability == (9, 0) and split > 1)
