#!/usr/bin/env python3
"""Write the table of docs/nvfp4.md that says which kernel runs where and how that is known, read off the declarations.

python scripts/render_nvfp4.py            # write
python scripts/render_nvfp4.py --check    # exit 1 when the page says something else
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernelmux.contracts.nvfp4 import OPS
from kernelmux.registry import EVIDENCE, Kernel
from kernelmux.registry.discovery import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "nvfp4.md"
BEGIN, END = "<!-- kernels: python scripts/render_nvfp4.py -->\n", "<!-- /kernels -->"


def where(kernel: Kernel, word: str) -> str:
    """The capabilities for which this is known of the kernel, in order."""
    listed = kernel.capabilities
    if listed is None:
        return ", ".join(sorted(str(key) for key, said in kernel.evidence.items() if said == word)) or (
            "any other" if word == "declared" else ""
        )
    found = [c for c in sorted(listed) if kernel.evidence.get(c, "declared") == word]
    return ", ".join(str(capability) for capability in found)


def table() -> str:
    lines = [f"| op | kernel | {' | '.join(EVIDENCE)} |", f"|---|---|{'---|' * len(EVIDENCE)}"]
    for op in OPS:
        for kernel in sorted(registry().kernels(op.name), key=lambda kernel: kernel.name):
            cells = " | ".join(where(kernel, word) for word in EVIDENCE)
            lines.append(f"| `{op.name}` | `{kernel.name}` | {cells} |")
    return "\n".join(lines) + "\n"


def rendered() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> int:
    text = rendered()
    if "--check" in sys.argv[1:]:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
