"""A YAML file and its JSON twin: people edit the one, a first selection reads the other.

Importing PyYAML and parsing the catalog costs 30 ms of the 50 ms a first selection may take; the twin costs 3. It
carries a checksum of the YAML it was made from: where that does not fit, the YAML itself is read, so that a stale twin
costs time and never truth. ``python -m kernelmux.twin`` writes the twins anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32


def read(path: Path, parse: Callable[[Path], Any]) -> Any:
    """The data of a YAML file: from its twin while that fits, else by ``parse(path)``. Raises what ``parse`` raises."""
    try:
        checksum = crc32(path.read_bytes())
        found = json.loads(twin_of(path).read_bytes())
    except (OSError, ValueError):
        return parse(path)
    if isinstance(found, dict) and found.get("of") == checksum:
        return found["data"]
    return parse(path)


def twin_of(path: Path) -> Path:
    return path.with_suffix(".json")


def render(path: Path, parse: Callable[[Path], Any]) -> str:
    """The text of the twin that fits the YAML file as it is now."""
    twin = {"of": crc32(path.read_bytes()), "data": parse(path)}
    text = json.dumps(twin, ensure_ascii=False, separators=(",", ":"))
    if json.loads(text) != twin:
        raise ValueError(f"{path} holds something JSON cannot: quote its numeric keys.")
    return text + "\n"


def shipped() -> list[tuple[Path, Callable[[Path], Any]]]:
    """Every YAML file of the package that has a twin, and how it is parsed."""
    from importlib import import_module

    package = Path(__file__).parent
    strict = import_module("kernelmux.policies.strict_yaml").read_yaml  # the room above: by name, when twins are made
    aliases = import_module("kernelmux.tuning_configs.aliases")
    rules = sorted((package / "policies" / "rules").glob("*.yaml"))
    fast_math = package / "backends" / "jit_cuda" / "fast_math.yaml"
    return [*((path, strict) for path in (package / "devices.yaml", fast_math, *rules)), (aliases.FILE, aliases.parse)]


if __name__ == "__main__":
    for source, parser in shipped():
        twin_of(source).write_text(render(source, parser), encoding="utf-8")
        print(f"wrote {twin_of(source)}")
