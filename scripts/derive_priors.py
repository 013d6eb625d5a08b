"""Derive kernelmux/autotune/priors.json from the tuned MoE tables inside vLLM and SGLang wheels.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23 -d wheels
    python scripts/derive_priors.py wheels/*.whl                # writes priors.json
    python scripts/derive_priors.py wheels/*.whl --validate     # leave one model and GPU out, writes nothing

Only counts leave the wheels: how often a tile won at a point (dtype, capability, tokens per expert, N, E). A file name
holds E and N but not topk: 8 is assumed from 64 experts up, 2 below (as the models of those files have it).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernelmux.autotune import priors
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile

TABLE = re.compile(
    r"configs/(?:triton_[\d_]+/)?E=(\d+),N=(\d+),device_name=NVIDIA_([^,/]+?)"
    r"(?:,dtype=(\w+?))?(?:,block_shape=\[(\d+), ?(\d+)\])?(?:,per_channel_quant=True)?(_down)?\.json$"
)
CAPABILITIES = (
    (re.compile(r"^A(100|800)"), (8, 0)),
    (re.compile(r"^(L40S?|L4|RTX_6000_Ada|GeForce_RTX_40)"), (8, 9)),
    (re.compile(r"^G?H(100|200|20|800)"), (9, 0)),
    (re.compile(r"^G?B200"), (10, 0)),
    (re.compile(r"^G?B300"), (10, 3)),
    (re.compile(r"^(RTX_PRO|GeForce_RTX_50)"), (12, 0)),
)
SMALLEST_OCTAVE = 0.5  # features are rounded to half octaves, so that equal spots share a point


@dataclass(frozen=True)
class Entry:
    """One line of one table."""

    kind: str
    capability: tuple[int, int]
    gpu: str
    side: str
    e: int
    n: int
    m: int
    tile: Tile

    @property
    def topk(self) -> int:
        return 8 if self.e >= 64 else min(2, self.e)


def entries(wheels: Iterable[Path]) -> Iterator[Entry]:
    seen: set[tuple[str, str]] = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                found = TABLE.search(name)
                if not found:
                    continue
                e, n, gpu, down = int(found[1]), int(found[2]), found[3], bool(found[7])
                kind = priors.kind(found[4], found[5] is not None)
                capability = next((cc for pattern, cc in CAPABILITIES if pattern.match(gpu)), None)
                text = archive.read(name).decode()
                same = (found[0].rsplit("/", 1)[-1], text.strip())
                if capability is None or kind not in priors.KINDS or same in seen:
                    continue
                seen.add(same)
                for key, entry in json.loads(text).items():
                    if key.isdigit() and (tile := _tile(entry)):
                        yield Entry(kind, capability, gpu, "down" if down else "both", e, n, int(key), tile)


def _tile(entry: dict[str, int]) -> Tile | None:
    try:
        return Tile(
            entry["BLOCK_SIZE_M"], entry["BLOCK_SIZE_N"], entry["BLOCK_SIZE_K"], entry["GROUP_SIZE_M"],
            entry.get("num_warps", 4), entry.get("num_stages", 3),
        )  # fmt: skip
    except (KeyError, ValueError):
        return None


def points(rows: Iterable[Entry]) -> list[priors.Point]:
    table: defaultdict[tuple[object, ...], Counter[Tile]] = defaultdict(Counter)
    for row in rows:
        spot = (
            row.kind, row.capability, row.side, _round(priors.tokens_octave(row.m, row.topk, row.e)),
            _round(math.log2(row.n)), _round(math.log2(row.e)),
        )  # fmt: skip
        table[spot][row.tile] += 1
    return [priors.Point(*spot, dict(counts)) for spot, counts in sorted(table.items(), key=str)]  # type: ignore[arg-type]


def _round(octaves: float) -> float:
    return round(octaves / SMALLEST_OCTAVE) * SMALLEST_OCTAVE


def write(rows: list[Entry], wheels: list[Path], path: Path) -> None:
    found = points(rows)
    tiles = sorted({tile for point in found for tile in point.counts})
    index = {tile: i for i, tile in enumerate(tiles)}
    body = {
        "schema": 2,
        "what": "how often a tile won in public tables, by spot: dtype, [capability], side, log2 tokens per expert, "
        "log2 N, log2 E, [[tile index, count]]",
        "derived_by": "scripts/derive_priors.py",
        "from": sorted("-".join(w.name.split("-")[:2]) for w in wheels),
        "tables": {kind: len({(r.gpu, r.e, r.n, r.side) for r in rows if r.kind == kind}) for kind in priors.KINDS},
        "entries": len(rows),
        "tiles": [[t.block_m, t.block_n, t.block_k, t.group_m, t.warps, t.stages] for t in tiles],
        "points": [
            [p.kind, list(p.capability), p.side, p.tokens, p.n, p.e, sorted([index[t], c] for t, c in p.counts.items())]
            for p in found
        ],
    }
    heads = [f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in body.items() if k != "points"]
    lines = ",\n  ".join(json.dumps(p, separators=(",", ":")) for p in body["points"])  # type: ignore[attr-defined]
    path.write_text("{\n" + ",\n".join(heads) + ',\n "points": [\n  ' + lines + "\n ]\n}\n", encoding="utf-8")
    print(f"{path}: {len(rows)} entries, {len(found)} points, {len(tiles)} tiles, {path.stat().st_size // 1024} KB")


def validate(rows: list[Entry], kind: str) -> None:
    """Leave one (GPU, E, N) out: how far is the top vote from the shipped winner, and how far the default."""
    groups: defaultdict[tuple[str, int, int], list[Entry]] = defaultdict(list)
    rows = [row for row in rows if row.kind == kind]
    for row in rows:
        groups[row.gpu, row.e, row.n].append(row)
    score: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for key, held_out in groups.items():
        rest = points(row for row in rows if (row.gpu, row.e, row.n) != key)
        for row in held_out:
            if row.side == "down":
                continue
            shape = MoeShape(row.e, row.n, 4096, row.topk)
            raw = priors.votes(shape, Capability(*row.capability), row.m, "up", rest, kind)
            picks = {"default": vllm_default(row.m, row.e)} if kind == "bf16" else {}
            if raw:
                votes = priors.smooth(raw)
                picks["prior"] = max(raw, key=lambda t: (votes.of(t), raw[t], t))
            for name, pick in picks.items():
                tally = score[name]
                tally["points"] += 1
                knobs = priors.knobs_apart(pick, row.tile)
                tally["knobs"] += knobs
                tally["exact"] += knobs == 0
                tally["within one"] += knobs <= 1
                tally["same BLOCK_SIZE_M"] += pick.block_m == row.tile.block_m
                tally["thin"] += name == "prior" and votes.thin
    for name, tally in score.items():
        n = tally["points"]
        shares = ", ".join(f"{k} {tally[k] / n:.1%}" for k in ("exact", "within one", "same BLOCK_SIZE_M", "thin"))
        print(f"{kind} {name:8} {n} points: {tally['knobs'] / n:.2f} knobs from the shipped winner; {shares}")


def vllm_default(m: int, e: int) -> Tile:
    """vLLM 0.33's default for unquantized tables, the yardstick."""
    bm = 16 if m <= 32 else 32 if m <= 96 else 64 if m <= 512 else 128
    return Tile(
        bm, 64 if m <= 64 else 128, 128 if m <= 64 else 64, 16 if m // e > 128 else 1,
        4 if m <= 128 else 8, 4 if m <= 32 else 3,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=priors.PRIORS_FILE)
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args()
    rows = list(entries(options.wheels))
    if options.validate:
        for kind in priors.KINDS:
            validate(rows, kind)
    else:
        write(rows, options.wheels, options.out)


if __name__ == "__main__":
    main()
