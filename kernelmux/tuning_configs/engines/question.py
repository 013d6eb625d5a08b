"""What an engine asks of its tables, and what it gets: the values that `vllm.lookup` and `sglang.lookup` speak in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelmux.tuning_configs.engines.entry import Entry


@dataclass(frozen=True, slots=True)
class Question:
    """One MoE layer on one GPU, in the engines' words.

    ``N`` is the intermediate size of this rank, unpacked. ``device`` is the name torch reports. ``dtype`` is an
    engine's word (None: bf16, fp16). ``shared_bytes`` (per block, opt-in) is read by one of SGLang's defaults only.
    """

    E: int
    N: int
    device: str
    dtype: str | None = None
    block_shape: tuple[int, int] | None = None
    per_channel: bool = False
    topk: int = 8
    vendor: str = "nvidia"
    shared_bytes: int | None = None

    @property
    def block_text(self) -> str:
        """``[128, 128]`` as Python prints it, or ""; both engines drop a shape that has a zero."""
        if self.block_shape is None or not all(self.block_shape):
            return ""
        return str(list(self.block_shape))


@dataclass(frozen=True, slots=True)
class Answer:
    """What one engine launches for ``m`` tokens: the tile of a file, a default, or the error it fails with.

    ``down`` is SGLang's second answer (its entry already carries up's BLOCK_SIZE_M); vLLM runs one tile for both.
    """

    engine: str
    m: int
    source: str  # "file", "default" or "error"
    why: str
    name: str  # the file name asked for
    path: Path | None = None
    key: int | None = None
    entry: Entry = field(default_factory=dict)
    down: Answer | None = None

    @property
    def distance(self) -> int | None:
        """Tokens between ``m`` and the tuned key that stands for it."""
        return None if self.key is None else abs(self.m - self.key)

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "m": self.m,
            "source": self.source,
            "why": self.why,
            "name": self.name,
            "path": str(self.path) if self.path else None,
            "key": self.key,
            "distance": self.distance,
            "entry": dict(self.entry) or None,
            "down": self.down.to_json() if self.down else None,
        }


def nearest(keys: Iterable[int], m: int) -> int:
    """The key at the least linear distance; of two as near, the one that stands first in the file. Both engines."""
    return min(keys, key=lambda key: abs(key - m))


def table_name(torch_name: str) -> str:
    """A device's name as vLLM spells it in file names: runs of white space and "/" become "_"."""
    return re.sub(r"[\s/]+", "_", torch_name)


def entry_of(entries: Mapping[int, Entry], m: int) -> tuple[int, Entry]:
    key = nearest(entries, m)
    return key, entries[key]
