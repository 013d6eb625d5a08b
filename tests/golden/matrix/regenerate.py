"""Write the golden matrix anew: ``python tests/golden/matrix/regenerate.py``. Read the diff before committing it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from kernelmux.registry import discovery  # noqa: E402
from tests.unit.matrix.cells import render  # noqa: E402


def main() -> None:
    ops = discovery.registry().ops()
    for stale in {path.stem for path in HERE.glob("*.txt")} - {op.name for op in ops}:
        (HERE / f"{stale}.txt").unlink()
    for op in ops:
        (HERE / f"{op.name}.txt").write_text(render(op), encoding="utf-8")
        print(f"wrote {op.name}.txt")


if __name__ == "__main__":
    main()
