"""The file names of tuned tables: SGLang's and vLLM's grammar, and what kernelmux adds to it.

``E=128,N=384,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128],per_channel_quant=True_down.json``: SGLang
writes a blank after the comma of ``block_shape`` and a second file ``_down`` for the down projection, vLLM neither;
vLLM marks the tables of another kernel with ``,backend=flydsl``.
The grammar lacks K, topk and the activation. Where a table of the same name but another of these is in the folder,
kernelmux adds ``,K=2048,topk=8,activation=silu`` before ``_down``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kernelmux.contracts.moe_shape import MoeShape

if TYPE_CHECKING:
    from kernelmux.contracts.moe_quant import MoeQuant
    from kernelmux.tuning_configs.sidecar import OpenShape

_DTYPE_WORDS = {"bfloat16": None, "float16": None, "float32": "float32"}

# Text until a name is parsed: a look-up only formats names.
_GRAMMAR = (
    r"E=(?P<E>[1-9]\d{0,8}),N=(?P<N>[1-9]\d{0,8}),device_name=(?P<device>[^,\s]*?)"
    r"(?:,dtype=(?P<dtype>\w+?))?"
    r"(?:,block_shape=\[(?P<bn>[1-9]\d{0,5}),(?P<blank> ?)(?P<bk>[1-9]\d{0,5})\])?"
    r"(?P<channel>,per_channel_quant=True)?"
    r"(?:,backend=(?P<backend>flydsl))?"
    r"(?:,K=(?P<K>[1-9]\d{0,8}),topk=(?P<topk>[1-9]\d{0,5}),activation=(?P<activation>\w+?))?"
    r"(?P<down>_down)?\.json"
)
_FORM = "E=<experts>,N=<size>,device_name=<name>[,dtype=<d>][,block_shape=[n, k]][,per_channel_quant=True][_down].json"


@dataclass(frozen=True, slots=True)
class TableName:
    """One table file's name as a value; ``parse(format(name)) == name``.

    ``device_name`` is torch's name with "_" for blanks. ``dtype`` None stands for bf16 and fp16. ``K``, ``topk`` and
    ``activation`` are given all or none. Raises ValueError for parts that no name could carry.
    """

    E: int
    N: int
    device_name: str
    dtype: str | None = None
    block_shape: tuple[int, int] | None = None
    per_channel_quant: bool = False
    down: bool = False
    K: int | None = None
    topk: int | None = None
    activation: str | None = None
    blank: bool = True  # SGLang's spelling of block_shape; vLLM's has no blank
    backend: str | None = None  # "flydsl": keys and values of an AMD kernel that is not Triton's

    def __post_init__(self) -> None:
        if self.block_shape is None and not self.blank:
            object.__setattr__(self, "blank", True)
        if len({self.K is None, self.topk is None, self.activation is None}) != 1:
            raise ValueError("a table name carries K, topk and activation together or not at all")
        if re.search(r"[,\s/\\\0]", self.device_name) or self.device_name.endswith("_down"):
            raise ValueError(f"{self.device_name!r} cannot stand in a file name as device_name")
        if _match(self.format()) != _fields(self):
            raise ValueError(f"{self.format()!r} is not of the form {_FORM}")

    def format(self) -> str:
        """The file name."""
        parts = [f"E={self.E},N={self.N},device_name={self.device_name}"]
        if self.dtype:
            parts.append(f"dtype={self.dtype}")
        if self.block_shape:
            parts.append(f"block_shape=[{self.block_shape[0]},{' ' if self.blank else ''}{self.block_shape[1]}]")
        if self.per_channel_quant:
            parts.append("per_channel_quant=True")
        if self.backend:
            parts.append(f"backend={self.backend}")
        if self.K is not None:
            parts.append(f"K={self.K},topk={self.topk},activation={self.activation}")
        return ",".join(parts) + ("_down.json" if self.down else ".json")

    @classmethod
    def parse(cls, file_name: str) -> TableName:
        """Read a file name (no folder). Raises ValueError saying which part is off."""
        fields = _match(file_name)
        if fields is None:
            raise ValueError(_what_is_off(file_name))
        return cls(*fields)  # type: ignore[arg-type]

    @classmethod
    def of(
        cls, device_name: str, shape: MoeShape | OpenShape, down: bool = False, quant: MoeQuant | None = None
    ) -> TableName:
        """The unqualified name of a shape's table on a device (its ``table_name``); ``quant`` None: unquantized."""
        if quant is None or quant.dtype is None:
            return cls(shape.E, shape.N, device_name, _DTYPE_WORDS[shape.dtype], down=down)
        return cls(shape.E, shape.N, device_name, quant.dtype, quant.block_shape, quant.per_channel, down)

    def qualified(self, shape: MoeShape) -> TableName:
        """The same name with the K, topk and activation of ``shape``."""
        return replace(self, K=shape.K, topk=shape.topk, activation=shape.activation)

    def side(self, down: bool) -> TableName:
        """The name of the same shape's other (or same) projection."""
        return replace(self, down=down)

    @property
    def sidecar(self) -> str:
        """The name of the sidecar that both projections' files share."""
        return self.side(False).format().removesuffix(".json") + ".meta.json"


def _match(file_name: str) -> tuple[object, ...] | None:
    found = re.fullmatch(_GRAMMAR, file_name, re.ASCII)
    if found is None:
        return None
    block = (int(found["bn"]), int(found["bk"])) if found["bn"] else None
    K, topk = (int(found["K"]), int(found["topk"])) if found["K"] else (None, None)
    return (
        int(found["E"]), int(found["N"]), found["device"], found["dtype"], block, bool(found["channel"]),
        bool(found["down"]), K, topk, found["activation"], found["blank"] != "" if block else True,
        found["backend"],
    )  # fmt: skip


def _fields(name: TableName) -> tuple[object, ...]:
    return (
        name.E, name.N, name.device_name, name.dtype, name.block_shape, name.per_channel_quant, name.down, name.K,
        name.topk, name.activation, name.blank, name.backend,
    )  # fmt: skip


def _what_is_off(file_name: str) -> str:
    """The first part that breaks the grammar, named."""
    if not file_name.endswith(".json"):
        return f"{file_name!r} does not end in .json"
    parts = {"E=": r"E=[1-9]\d*,", "N=": r".*?,N=[1-9]\d*(?=[,.])", "device_name=": r".*?,device_name="}
    for part, pattern in parts.items():
        if not re.match(pattern, file_name):
            return f"{part}... is missing or malformed; the form is {_FORM}"
    return f"a part after device_name is out of order or malformed; the form is {_FORM}"
