"""How csrc/nvfp4_gemv.cu is launched: what it is compiled with, what may be tried, the choice without measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..triton.nvfp4_shape import CHUNK

SOURCE, ENTRY = "nvfp4_gemv", "nvfp4_gemv"
MOST_TOKENS = 32
CLUSTERS = (1, 2, 4, 8)
_ROOM = 220 * 1024
# (row tiles, token tiles) -> threads a multiprocessor holds without one spilling; tests compile every candidate.
_THREADS = {(2, 1): 512, (2, 2): 384, (2, 4): 384, (1, 1): 768, (1, 2): 640, (1, 4): 512}
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True, order=True)
class GemvTile:
    """``warps`` of ``row_tiles`` x 16 rows a block; ``cluster`` blocks share rows and split K (9.0 and later)."""

    warps: int = 4
    row_tiles: int = 2
    cluster: int = 4

    def short(self) -> str:
        return f"{self.warps}x{self.row_tiles} c{self.cluster}"

    @property
    def rows(self) -> int:
        return self.warps * self.row_tiles * 16

    def shared_bytes(self, m: int, k: int) -> int:
        """x of one block's part of K, or the sums that take its place."""
        tokens, chunks = token_tiles(m) * 8, -(-k // CHUNK)
        return max(tokens * -(-chunks // self.cluster) * CHUNK * 2, tokens * (self.rows + 4) * 4)

    def blocks(self, m: int) -> int:
        """How many blocks a multiprocessor should hold by registers, which bounds what a thread may take."""
        return max(1, _THREADS[self.row_tiles, token_tiles(m)] // (32 * self.warps))

    def grid(self, n: int) -> int:
        return -(-n // self.rows) * self.cluster


def token_tiles(m: int) -> int:
    """Groups of 8 tokens a kernel is compiled for."""
    return 1 if m <= 8 else (2 if m <= 16 else 4)


def defines(tile: GemvTile, m: int, dtype: str, out_dtype: str) -> tuple[tuple[str, str | int], ...]:
    return (
        ("BLOCKS", tile.blocks(m)),
        ("CLUSTER", tile.cluster),
        ("DTYPE", _TYPES[dtype]),
        ("OUT", _TYPES[out_dtype]),
        ("ROW_TILES", tile.row_tiles),
        ("TOKEN_TILES", token_tiles(m)),
        ("WARPS", tile.warps),
    )


def fault(tile: GemvTile, m: int, k: int, capability: tuple[int, int]) -> str | None:
    """Why this launch cannot be; None where it can."""
    if m > MOST_TOKENS:
        return f"{m} tokens; it takes {MOST_TOKENS} at most"
    if tile.cluster > 1 and capability < (9, 0):
        return "clusters of blocks, which came with 9.0"
    room = _ROOM if capability in ((9, 0), (10, 0), (10, 3)) else 96 * 1024
    if tile.shared_bytes(m, k) > room:
        return f"{tile.shared_bytes(m, k)} B of shared memory for x of K={k}; {room} are there"
    return None


def fitted(tile: GemvTile, k: int) -> GemvTile:
    """The launch for a weight of this K, where it was chosen for another: no more blocks a cluster than chunks."""
    most = max(size for size in CLUSTERS if size == 1 or size <= -(-k // CHUNK))
    return tile if tile.cluster <= most else replace(tile, cluster=most)


def candidates(m: int, n: int, k: int, capability: tuple[int, int]) -> Iterator[GemvTile]:
    """Launches worth timing at this size: one to six blocks for each multiprocessor of a large GPU."""
    if m > MOST_TOKENS:
        return
    for warps, row_tiles in ((4, 2), (8, 2), (4, 1), (8, 1), (2, 2)):
        for cluster in CLUSTERS:
            tile = GemvTile(warps, row_tiles, cluster)
            threads = tile.grid(n) * warps * 32
            fits = 132 * 128 * 0.9 <= threads <= 132 * 1536 and cluster <= -(-k // CHUNK)
            if fits and fault(tile, m, k, capability) is None:
                yield tile


def heuristic(m: int, n: int, k: int, sms: int, capability: tuple[int, int]) -> GemvTile | None:
    """All warps at work at once: the cluster that gives each multiprocessor some 10. None: not this kernel."""
    best = None
    for cluster in CLUSTERS:
        tile = GemvTile(4, 2, cluster)
        if fault(tile, m, k, capability) is None and cluster <= -(-k // CHUNK):
            best = tile
            if tile.grid(n) * 4 >= 10 * sms:
                break
    return best
