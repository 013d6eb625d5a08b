"""vLLM 0.33's tables: their names, which file and entry a launch takes, and the default without one.

Followed from ``fused_moe.py`` (get_config_file_name, get_moe_configs, get_default_config) and tested against these
functions themselves. One tile serves both GEMMs. K, topk, activation and Triton's version are not asked about.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from kernelmux.tuning_configs.engines.entry import Entry
from kernelmux.tuning_configs.engines.foreign import read
from kernelmux.tuning_configs.engines.question import Answer, Question, entry_of, table_name
from kernelmux.tuning_configs.names import TableName

# `_get_config_dtype_str` answers with one of these or none; a name with another is never asked for.
DTYPES = ("fp8_w8a8", "fp8_w8a16", "int8_w8a16", "int4_w4a16", "float32")
ENV = "VLLM_TUNED_CONFIG_FOLDER"
FOLDER = Path("vllm/model_executor/layers/fused_moe/configs")
_H200 = "NVIDIA_H200"


class Found(NamedTuple):
    """A file that vLLM reads; ``entries`` is None where reading it fails."""

    path: Path
    entries: dict[int, Entry] | None
    why: str


def device_name(torch_name: str) -> str:
    """The device part of a file name: any name with the word H200 in it becomes NVIDIA_H200."""
    name = table_name(torch_name)
    return _H200 if "H200" in name.split("_") else name


def folder_of(path: Path) -> Path:
    """The folder of tables meant by a path: itself, or the one inside an unpacked or installed vLLM."""
    for inner in (FOLDER, Path(*FOLDER.parts[1:])):
        if (path / inner).is_dir():
            return path / inner
    return path


def file_name(question: Question) -> str:
    """The one name vLLM looks for."""
    dtype = f",dtype={question.dtype}" if question.dtype else ""
    block = f",block_shape={question.block_text}".replace(" ", "") if question.block_text else ""
    return f"E={question.E},N={question.N},device_name={device_name(question.device)}{dtype}{block}.json"


def unreachable(name: TableName) -> tuple[str, str, str] | None:
    """(code, why, mend) of a well-formed name that no look-up of vLLM can ask for, or None."""
    if name.backend:
        return None  # asked for by the FlyDSL path, by exactly this name
    if name.down:
        return "unreachable", "vLLM runs one tile for both GEMMs and looks for no _down table.", "Remove it."
    if name.K is not None:
        return "unreachable", "K, topk and activation in the name are kernelmux's own.", "Export it: `configs export`."
    if name.per_channel_quant:
        return "unreachable", "vLLM's names carry no per_channel_quant.", "Rename it without that part."
    if name.block_shape and name.blank:
        return "unreachable", "vLLM writes block_shape without a blank.", "Rename it: block_shape=[n,k]."
    if name.block_shape and name.dtype is None:
        why = "a layer without a quantized dtype has no block_shape, so vLLM never asks for this name."
        return "unreachable", why, "Add its dtype to the name (fp8_w8a8?), if that name is free."
    if name.dtype is not None and name.dtype not in DTYPES:
        known = ", ".join(DTYPES)
        return "dead_dtype", f"vLLM never asks for dtype={name.dtype}; it knows {known} and none.", "Remove it."
    if name.device_name != device_name(name.device_name):
        why = f"vLLM asks for {_H200} on every GPU of the H200 family."
        return "unreachable", why, f"Rename it to {_H200}, if that name is free."
    return None


def lookup(question: Question, m: int, bundled: Path, env_folder: Path | None = None) -> Answer:
    """What vLLM launches at ``m`` tokens: the folder of VLLM_TUNED_CONFIG_FOLDER, the bundled one, the default."""
    return answer(question, find(question, bundled, env_folder), m)


def find(question: Question, bundled: Path, env_folder: Path | None = None) -> Found | None:
    """The file vLLM reads for a layer, None where there is none: once for all token counts."""
    name = file_name(question)
    for folder, said in ((env_folder, f"in the folder of {ENV}"), (bundled, "bundled")):
        path = folder / name if folder is not None else None
        if path is None or not path.exists():
            continue
        return Found(path, _entries(path, _stamp(path)), said)
    return None


def answer(question: Question, found: Found | None, m: int) -> Answer:
    """The answer of a file that was found, or of the default, at ``m`` tokens."""
    name = found.path.name if found else file_name(question)
    if found is not None and found.entries is None:
        return Answer("vllm", m, "error", "vLLM fails while it reads this file: check it.", name, found.path)
    if found is None or not found.entries:  # an empty table counts as none
        return Answer("vllm", m, "default", "no file of this name", name, entry=default(question, m))
    key, entry = entry_of(found.entries, m)
    return Answer("vllm", m, "file", found.why, name, found.path, key, entry)


@lru_cache(maxsize=1024)
def _entries(path: Path, stamp: tuple[int, int]) -> dict[int, Entry] | None:
    reading = read(path)
    if reading.table is None or not reading.launchable:
        return None
    return dict(reading.table.entries)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def default(question: Question, m: int) -> dict[str, Any]:
    """vLLM's ``get_default_config``; for weights in groups (int4, int8) the launch adds BLOCK_SIZE_N and _K."""
    amd = question.vendor == "amd"
    if question.dtype == "fp8_w8a8" and question.block_shape is not None:
        block_n, block_k = question.block_shape
        small = not amd and m <= 8 and block_n % 64 == 0
        return {
            "BLOCK_SIZE_M": 16 if m <= 64 else 64,
            "BLOCK_SIZE_N": 64 if small else block_n,
            "BLOCK_SIZE_K": block_k,
            "GROUP_SIZE_M": 1 if m <= 16 else 32,
            "SPLIT_K": 1,
            "num_warps": 4,
            "num_stages": 2 if amd else 4 if small and m <= 4 else 3,
        }
    if question.dtype in ("int4_w4a16", "int8_w8a16") and question.block_shape is not None:
        return {"BLOCK_SIZE_M": _wna16_block_m(question, m), "GROUP_SIZE_M": 1, "SPLIT_K": 1}
    return {
        "BLOCK_SIZE_M": 16 if m <= 32 else 32 if m <= 96 else 64 if m <= 512 else 128,
        "BLOCK_SIZE_N": 64 if m <= 64 else 128,
        "BLOCK_SIZE_K": 128 if question.dtype == "fp8_w8a8" or m <= 64 else 64,
        "GROUP_SIZE_M": 16 if m // question.E > 128 else 1,
        "SPLIT_K": 1,
        "num_warps": 4 if m <= 128 else 8,
        "num_stages": 2 if amd else 4 if m <= 32 else 3,
    }


def _wna16_block_m(question: Question, m: int) -> int:
    assert question.block_shape is not None
    own_kernel = (
        question.vendor == "nvidia"
        and question.dtype == "int4_w4a16"
        and question.block_shape[1] in (32, 64, 128)
        and m * question.topk / question.E <= 6
    )
    if own_kernel:
        return min(16, 1 << (m - 1).bit_length())
    return 16 if m <= 20 else 32 if m <= 40 else 64


def changes(question: Question, m: int, bundled: Path, env_folder: Path | None) -> list[tuple[str, Answer]]:
    """(what if, the answer then) for each thing around vLLM that could change the answer."""
    out = [("another Triton version", lookup(question, m, bundled, env_folder))]
    if env_folder is not None:
        out.insert(0, (f"{ENV} not set", lookup(question, m, bundled)))
    whole = "NVIDIA_" + question.device.split(" MIG ")[0].removeprefix("NVIDIA ")
    if " MIG " in question.device:
        asked = replace(question, device=whole.replace("_", " "))
        out.append(("NVML naming the whole GPU, as it does for a MIG slice", lookup(asked, m, bundled, env_folder)))
    return out
