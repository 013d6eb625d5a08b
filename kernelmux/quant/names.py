"""Names of modules: fused ones and their parts, and the matching rules that quantization formats apply to them.

Every format has a rule of its own for one and the same key. The rules are those of the engines that serve the
checkpoints; each function names its source.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from kernelmux.errors import UsageError

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
}
"""Modules that engines fuse and checkpoints hold in parts (sglang ``quantization/utils.py``, vLLM
``packed_modules_mapping``)."""

EXPERTS = "experts"
PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What one expert's parts are called: most models, and Mixtral and MiniMax."""

_EMBEDDINGS = {"embed_tokens", "embeddings", "word_embeddings", "wte", "wpe"}
# `.*` four times over a path of 76 letters takes 5 ms, six times 800 ms (measured), ten times hours.
_LONGEST_PATTERN, _LONG_REPEAT, _MOST_REPEATS, _MOST_OPTIONS = 1000, 16, 4, 8


def tail_of(name: str) -> str:
    """The last part of a module path."""
    return name.rpartition(".")[2]


def is_linear(name: str) -> bool:
    """Whether a module holds a weight that a GEMM multiplies: no embedding, norm or convolution."""
    tail = tail_of(name)
    return not (tail in _EMBEDDINGS or "norm" in tail or "conv1d" in tail or tail == "rotary_emb")


def is_head(name: str) -> bool:
    return tail_of(name) == "lm_head"


def shards(name: str) -> tuple[str, ...]:
    """Paths of a fused module's parts, as the checkpoint names them; none for a module that is not fused."""
    head, dot, tail = name.rpartition(".")
    return tuple(f"{head}{dot}{part}" for part in FUSED.get(tail, ()))


def spellings(name: str) -> tuple[str, ...]:
    """The name as the language model alone has it, and as it reads inside a multimodal model, in the two ways in use.

    ``model.layers.0``, ``language_model.model.layers.0`` (Kimi-K2.5) and ``model.language_model.layers.0`` (Qwen3.5)
    are one layer; a config may be written in another way than its reader's names (sglang ``modelopt_quant.py:379-425``
    and vLLM's weight mappers translate too).
    """
    bare = name.replace("model.language_model.", "model.", 1).replace("language_model.", "", 1)
    inner = f"model.language_model.{bare.removeprefix('model.')}"
    return tuple(dict.fromkeys((name, bare, f"language_model.{bare}", inner)))


class Paths:
    """Entries matched at the dots of a path: ``mlp.gate`` is in ``layers.3.mlp.gate``, not in ``mlp.gate_up_proj``.

    The rule of fp8 and mxfp4 (sglang ``quantization/utils.py:48-125``, after sglang PR 23467: as substrings the same
    entries left dense MLPs unquantized). An entry may be any run of whole parts.
    """

    def __init__(self, entries: Iterable[str]):
        self.entries = frozenset(entry.strip(".") for entry in entries)

    def __contains__(self, name: str) -> bool:
        if not self.entries:
            return False
        for spelled in spellings(name):
            parts = spelled.split(".")
            for first in range(len(parts)):
                for last in range(first + 1, len(parts) + 1):
                    if ".".join(parts[first:last]) in self.entries:
                        return True
        return False


def glob(pattern: str, text: str) -> bool:
    """Whether ``*`` (any run of letters, dots too) makes the pattern the text. Linear: no pattern is slow.

    ModelOpt's lists know no other wildcard (sglang ``modelopt_quant.py:379-425``: ``.`` escaped, ``*`` to ``.*``).
    """
    first, *middle = pattern.split("*")
    if not middle:
        return pattern == text
    last = middle.pop()
    end = len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last) or end < len(first):
        return False
    at = len(first)
    for part in middle:  # the earliest place leaves most room for the rest
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@lru_cache(maxsize=4096)
def regex(pattern: str, where: str) -> re.Pattern[str]:
    """A regular expression of a config, compiled; raises UsageError where it is malformed or may take for ever."""
    if len(pattern) > _LONGEST_PATTERN:
        raise UsageError(f"{where}: a pattern of {len(pattern)} letters is too long; {_LONGEST_PATTERN} are allowed.")
    try:
        compiled = re.compile(pattern)
        tree = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse").parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{where}: {pattern!r} is no regular expression ({error}). Correct the config.") from None
    repeats, options, nested = _repeats(tree)
    if nested or repeats > _MOST_REPEATS or options > _MOST_OPTIONS:
        what = (
            "a repeat or a choice inside a repeat" if nested else f"{repeats} unbounded repeats and {options} options"
        )
        raise UsageError(f"{where}: {pattern!r} has {what} and could run for hours. Write it with fewer `*` and `+`.")
    return compiled


def _repeats(tree: Any) -> tuple[int, int, bool]:
    """(unbounded repeats, other repeats of no fixed count, whether something ambiguous lies inside a repeat).

    A match of a path of n letters takes about n to the power of the first, times 2 to the power of the second; with
    something ambiguous inside a repeat it is exponential in n. Of alternatives the worst one counts.
    """
    repeats, options, nested = 0, 0, False
    for code, argument in tree:
        word, most = str(code), 0
        if word.endswith("REPEAT"):  # its argument: lowest, highest, pattern
            most = int(argument[1])
            repeats += most > _LONG_REPEAT
            options += argument[0] != argument[1] and most <= _LONG_REPEAT
        parts = [one for part in (argument if isinstance(argument, tuple) else (argument,))
                 for one in (part if isinstance(part, list) else (part,)) if hasattr(one, "data")]  # fmt: skip
        below = [_repeats(part) for part in parts]
        choice = any(str(inner) == "BRANCH" for part in parts for inner, _ in _flat(part))
        nested |= any(bad for _, _, bad in below)
        nested |= most > 1 and (choice or any(more or less for more, less, _ in below))
        repeats += max((more for more, _, _ in below), default=0)
        options += max((less for _, less, _ in below), default=0)
    return repeats, options, nested


def _flat(tree: Any) -> list[tuple[Any, Any]]:
    """The steps of a pattern and of the groups in it."""
    found = []
    for code, argument in tree:
        found.append((code, argument))
        for part in argument if isinstance(argument, tuple) else (argument,):
            found += _flat(part) if hasattr(part, "data") else []
    return found


def strings(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    """The names under the first of these keys that hold any, all keys together; raises UsageError for another form."""
    found: list[str] = []
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise UsageError(f"{key} must be a list of module names, not {_brief(value)}.")
        for entry in value:
            if not isinstance(entry, str):
                raise UsageError(f"{key} must hold names of modules, not {_brief(entry)}.")
            if entry.strip("."):  # an empty name would match everything
                found.append(entry)
    return tuple(found)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
