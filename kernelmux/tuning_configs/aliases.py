"""Device names of tuned tables that mean, or may stand in for, another's: `aliases.yaml`, each with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kernelmux import twin
from kernelmux.errors import ConfigFileError

FILE = Path(__file__).with_name("aliases.yaml")
GRADES = ("same", "stand-in")


@dataclass(frozen=True, slots=True)
class Alias:
    """One name that may be read for another. ``agree``: (compared, same BLOCK_SIZE_M, same tile) entries."""

    name: str
    grade: str  # "same" or "stand-in"
    evidence: str
    source: str
    agree: tuple[int, int, int] | None = None
    never: str = ""  # why no board reports `name`

    @property
    def why(self) -> str:
        """The evidence in one sentence, numbers included."""
        if self.agree is None:
            return self.evidence
        compared, block_m, tile = self.agree[0], self.agree[1], self.agree[2]
        return (
            f"{self.evidence}; {block_m} of {compared} public entries have the same BLOCK_SIZE_M, {tile} the same tile"
        )


@dataclass(frozen=True, slots=True)
class Aliases:
    """All of the file: what stands for a name, and which names nobody reports."""

    of: Mapping[str, tuple[Alias, ...]]
    never: Mapping[str, Alias]
    vllm_families: Mapping[str, str]


def for_device(table_name: str) -> tuple[Alias, ...]:
    """Names whose tables may be read on the device of ``table_name`` (underscores), the surest first.

    A MIG slice has none: it is another device than the whole GPU.
    """
    if is_slice(table_name):
        return ()
    return load().of.get(table_name, ())


def never_reported(table_name: str) -> Alias | None:
    """The alias that says why no board reports this name (its ``name`` is what the table may be read for), or None."""
    return load().never.get(table_name)


def is_slice(table_name: str) -> bool:
    """Whether this names a MIG slice: ``NVIDIA_H100_80GB_HBM3_MIG_1g.10gb``."""
    return "MIG" in table_name.replace(" ", "_").split("_")


@lru_cache(maxsize=1)
def load(path: Path = FILE) -> Aliases:
    """Read the file. Raises ConfigFileError naming the pair that is off."""
    raw = twin.read(path, parse)
    of: dict[str, list[Alias]] = {}
    never: dict[str, Alias] = {}
    for number, pair in enumerate(raw["pairs"]):
        first, second = _checked(path, f"pairs.{number}", pair)
        facts = {
            "grade": pair["grade"],
            "evidence": pair["evidence"],
            "source": pair["source"],
            "agree": tuple(pair["agree"]) if pair.get("agree") else None,
        }
        of.setdefault(second, []).append(Alias(first, **facts, never=pair.get("never", "")))
        if "never" in pair:
            never[first] = Alias(second, **facts, never=pair["never"])
        elif "one_way" not in pair:
            of.setdefault(first, []).append(Alias(second, **facts))
    ranked = {name: tuple(sorted(found, key=_rank)) for name, found in of.items()}
    families = {word: entry["name"] for word, entry in raw["vllm_families"].items()}
    return Aliases(ranked, never, families)


def parse(path: Path) -> Any:
    """The file as it stands; the JSON twin beside it is made from this."""
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigFileError(path, "", f"cannot be read ({error}).", "Reinstall kernelmux.") from error


def _rank(alias: Alias) -> tuple[int, bool, float]:
    """Same before stand-in; names that boards report first; then by how often BLOCK_SIZE_M agrees."""
    share = alias.agree[1] / alias.agree[0] if alias.agree else 0.0
    return GRADES.index(alias.grade), bool(alias.never), -share


def _checked(path: Path, where: str, pair: Mapping[str, Any]) -> tuple[str, str]:
    names = list(pair.get("names") or [])
    if len(names) != 2 or any(is_slice(str(name)) for name in names):
        raise ConfigFileError(path, where, "names must be two names of whole devices.", "Correct the entry.")
    if pair.get("grade") not in GRADES:
        raise ConfigFileError(path, where, f"grade {pair.get('grade')!r} is none of {GRADES}.", "Correct the entry.")
    for key in ("evidence", "source"):
        if not pair.get(key):
            raise ConfigFileError(path, where, f"{key} is compulsory.", "Say why one may stand for the other.")
    return str(names[0]), str(names[1])
