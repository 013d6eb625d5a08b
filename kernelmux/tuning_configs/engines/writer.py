"""Write a table where an engine finds it: vLLM's flat folder with one tile for both GEMMs, SGLang's pair by version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kernelmux.errors import StoreError
from kernelmux.store.files import locked, sweep, write_whole
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.entry import ENGINE_TITLES
from kernelmux.tuning_configs.engines.foreign import ForeignTable
from kernelmux.tuning_configs.folders import folder_name
from kernelmux.tuning_configs.names import TableName
from kernelmux.tuning_configs.sidecar import Sidecar
from kernelmux.tuning_configs.table import MoeTable
from kernelmux.tuning_configs.write import digest, same_problem


class EngineFiles(NamedTuple):
    """The files of one table; ``down`` is None for vLLM, ``sidecar`` None where none was given."""

    up: Path
    down: Path | None
    sidecar: Path | None


def engine_name(engine: str, name: TableName) -> TableName:
    """The name under which the engine asks for the table. Raises StoreError when it can ask for none such."""
    plain = replace(name.side(False), K=None, topk=None, activation=None, blank=engine != "vllm")
    if engine == "vllm":
        plain = replace(plain, device_name=vllm.device_name(plain.device_name), per_channel_quant=False)
    dead = (vllm if engine == "vllm" else sglang).unreachable(plain)
    if dead is not None:
        raise StoreError(f"{ENGINE_TITLES[engine]} cannot find {plain.format()}: {dead[1]}")
    return plain


def write_for(
    engine: str, folder: Path | str, name: TableName, table: MoeTable, triton: str, sidecar: Sidecar | None = None
) -> EngineFiles:
    """Write ``table`` for ``engine`` ("vllm" or "sglang") below ``folder``, which is then VLLM_TUNED_CONFIG_FOLDER, or
    SGLANG_MOE_CONFIG_DIR.

    vLLM reads up's tiles for both GEMMs. ``triton`` is the version tuned under, like "3.6.0". ``sidecar`` gets the
    hashes and the reader; it goes last. Raises StoreError: also when the engine's name is another K's or topk's there.
    """
    asked = engine_name(engine, name)
    base = Path(folder)
    if engine == "vllm":
        target, tables = base, {asked: ForeignTable.of(_entries(table, "up", tma=False), triton)}
    else:
        target = base / "configs" / folder_name(triton)
        tables = {
            asked: ForeignTable.of(_entries(table, "up", tma=True)),
            asked.side(True): ForeignTable.of(_entries(table, "down", tma=True)),
        }
    texts = {side: made.render() for side, made in tables.items()}
    with locked(target / ".kernelmux"):
        sweep(target)
        meta = target / asked.sidecar
        if sidecar is not None and meta.exists() and not same_problem(meta, sidecar.shape):
            title = ENGINE_TITLES[engine]
            raise StoreError(
                f"{target / asked.format()} is of another K, topk or activation, which {title}'s names do not tell "
                "apart. Choose another folder."
            )
        for side, text in texts.items():
            write_whole(target / side.format(), text)
        if sidecar is not None:
            hashes = {"down" if side.down else "up": digest(text) for side, text in texts.items()}
            write_whole(meta, replace(sidecar, reader=engine, sha256=hashes).text())
    down = target / asked.side(True).format() if engine == "sglang" else None
    return EngineFiles(target / asked.format(), down, meta if sidecar is not None else None)


def _entries(table: MoeTable, side: str, tma: bool) -> dict[int, dict[str, int | bool]]:
    tiles = table.up if side == "up" else table.down
    return {m: tile.to_json() if tma else replace(tile, use_tma=False).to_json() for m, tile in tiles.items()}
