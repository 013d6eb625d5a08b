"""``kernelmux ops``: every op, what it means, and the kernels there are for it."""

from __future__ import annotations

from typing import Any

import click

from kernelmux.cli.output import emit, note, say, table
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.op import Op


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def ops(name: str | None, as_json: bool) -> None:
    """List the ops and their kernels, or only those of NAME.

    Schema, axes, schemes, dtypes, activations, and each kernel's requirements.
    """
    from kernelmux.registry.discovery import registry

    found = registry()
    listed = [found.op(name)] if name else list(found.ops())
    data = {"ops": [facts(op, found.kernels(op.name)) for op in listed]}
    emit(data, as_json, lambda: _render(data["ops"]))
    for fault in found.faults:
        note(f"left out: {fault}. Mend or uninstall that package.")


def facts(op: Op, kernels: tuple[Kernel, ...]) -> dict[str, Any]:
    """Everything declared of an op, as plain data."""
    return {
        "name": op.name,
        "summary": op.summary,
        "schema": op.schema,
        "axes": list(op.axes),
        "token_axis": op.token_axis,
        "schemes": sorted(op.schemes),
        "dtypes": list(op.dtypes),
        "activations": list(op.activations),
        "tolerance": {dtype: {"rtol": t.rtol, "atol": t.atol, "why": t.why} for dtype, t in op.tolerance.items()},
        "kernels": [_kernel(kernel) for kernel in kernels],
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    numerics = kernel.numerics
    return {
        "name": kernel.name,
        "backend": kernel.backend,
        "portable": kernel.portable,
        "requirements": [requirement.describe() for requirement in kernel.requirements],
        "layout": kernel.layout,
        "capturable": kernel.capturable,
        "tunable": kernel.configs is not None,
        "numerics": {
            "accumulate": numerics.accumulate,
            "rounding": list(numerics.rounding),
            "fast_math": numerics.fast_math,
            "promises": sorted(numerics.promises),
        },
    }


def _render(listed: list[dict[str, Any]]) -> None:
    for number, op in enumerate(listed):
        if number:
            say()
        say(f"{op['name']}: {op['summary']}")
        say(f"  {op['schema']}")
        for word in ("axes", "schemes", "dtypes", "activations"):
            say(f"  {word}: {', '.join(op[word]) or 'none'}")
        rows = [(kernel["backend"], kernel["name"], "; ".join(kernel["requirements"])) for kernel in op["kernels"]]
        table(("backend", "kernel", "requires"), rows)
