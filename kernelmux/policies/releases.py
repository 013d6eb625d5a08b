"""Released versions of the packages that rules and kernels speak of, so that a window nothing falls into is found.

``python -m kernelmux.policies.releases`` asks the package index through pip and writes ``releases.json`` anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from kernelmux.registry.packages import normalize, satisfies

FILE = Path(__file__).with_name("releases.json")


@cache
def released() -> dict[str, tuple[str, ...]]:
    """Package -> its released versions, newest first, as of the date in the file."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    return {normalize(name): tuple(versions) for name, versions in data["packages"].items()}


def none_released(package: str, spec: str) -> bool:
    """Whether the package is in the list and no version of it is in the range."""
    versions = released().get(normalize(package))
    return bool(spec) and versions is not None and not any(satisfies(version, spec) for version in versions)


def _refresh() -> None:
    """Ask pip for the versions of every package of the file; one that cannot be asked keeps its list."""
    import datetime
    import re
    import subprocess
    import sys

    data = json.loads(FILE.read_text(encoding="utf-8"))
    for name in data["packages"]:
        command = [sys.executable, "-m", "pip", "index", "versions", "--pre", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
        if found:
            data["packages"][name] = found[1].split(", ")
        print(f"{name}: {len(data['packages'][name])} versions" + ("" if found else ", kept: pip gave none"))
    data["of"] = datetime.date.today().isoformat()
    lines = [f"    {json.dumps(name)}: {json.dumps(versions)}" for name, versions in data["packages"].items()]
    of = json.dumps(data["of"])
    FILE.write_text(f'{{\n  "of": {of},\n  "packages": {{\n' + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _refresh()
