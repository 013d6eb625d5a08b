#!/usr/bin/env python3
"""Write the table of docs/small-ops.md that says what each backend's kernels declare: it is read off the declarations.

python scripts/render_declared.py            # write
python scripts/render_declared.py --check    # exit 1 when the page says something else
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernelmux.contracts import activations, norms
from kernelmux.registry import Kernel
from kernelmux.registry.discovery import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "small-ops.md"
BEGIN, END = "<!-- declared: python scripts/render_declared.py -->\n", "<!-- /declared -->"
COLUMNS = ("torch", "torch_compile", "triton", "jit_cuda", "flashinfer CUDA", "flashinfer CuTe DSL")
GENERAL = ("deterministic", "batch_invariant", "no_fast_math")
OPS = tuple(op.name for op in (*norms.OPS, *activations.OPS))


def column(kernel: Kernel) -> str:
    """The column of a kernel: its backend, apart from FlashInfer's two."""
    if not kernel.name.startswith("flashinfer."):
        return kernel.backend
    return f"flashinfer {'CuTe DSL' if kernel.backend == 'cutedsl' else 'CUDA'}"


def cell(kernels: list[Kernel]) -> str:
    """The orders of these kernels, of the product and of the residual; where one kernel promises both they coincide."""
    groups = []
    for orders in (norms.ROUNDINGS, norms.RESIDUAL_ROUNDINGS):
        if any(kernel.numerics.promises.issuperset(orders) for kernel in kernels):
            return "both: they coincide"
        promised = [f"`{order}`" for order in orders if any(order in kernel.numerics.promises for kernel in kernels)]
        groups += [" or ".join(promised)] if promised else []
    return ", ".join(groups) or ("one rounding" if kernels else "")


def general(kernels: list[Kernel]) -> str:
    """What every one of these promises besides its orders."""
    kept = [word for word in GENERAL if kernels and all(word in kernel.numerics.promises for kernel in kernels)]
    return ", ".join(f"`{word}`" for word in kept) or "nothing"


def table() -> str:
    """Both tables: orders of each op, and what all kernels of a column promise."""
    kernels = {name: list(registry().kernels(name)) for name in OPS}
    shown = [name for name in COLUMNS if any(column(kernel) == name for each in kernels.values() for kernel in each)]
    lines = [f"| op | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]
    for op, each in kernels.items():
        cells = [cell([kernel for kernel in each if column(kernel) == name]) for name in shown]
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    lines += ["", "`or`: a kernel each, in every combination. An empty cell: no kernel.", ""]
    lines += ["| all kernels of | promise besides | fast math |", "|---|---|---|"]
    for name in shown:
        of = [kernel for each in kernels.values() for kernel in each if column(kernel) == name]
        fast = "yes" if all(kernel.numerics.fast_math for kernel in of) else "no"
        lines.append(f"| {name} | {general(of)} | {fast} |")
    return "\n".join(lines) + "\n"


def rendered() -> str:
    """The page with its tables as the declarations are now."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    return head + BEGIN + table() + END + tail


def main() -> int:
    text = rendered()
    if "--check" in sys.argv[1:]:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
