"""``kernelmux plan``: every op of a model, with the kernel a GPU would run it on, and why."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli.output import emit, say, table
from kernelmux.errors import UsageError

if TYPE_CHECKING:
    from kernelmux.plan import Line, Plan


WIDTH = 118


def _range(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", value.strip())
    if found is None:
        raise UsageError(f"--tokens {value!r} is no count of tokens. Write it like 64 or 1..4096.")
    return (int(found[1]), int(found[2] or found[1]))


@click.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.json")
@click.option("--device", required=True, help="cuda:0, cpu, a catalog name, the name torch reports, or a capability.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks a layer is divided over.")
@click.option("--tokens", callback=_range, default="1..4096", show_default=True, help="Tokens in a step.")
@click.option("--policy", type=click.Path(path_type=Path), help="A policy file laid over the built-in rules.")
@click.option(
    "--assume-packages",
    type=click.Choice(["installed", "all"]),
    default="installed",
    show_default=True,
    help="Decide for what is installed here, or as if every optional package were.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def plan(
    config: Path,
    device: str,
    tp: int,
    tokens: tuple[int, int],
    policy: Path | None,
    assume_packages: str,
    as_json: bool,
) -> None:
    """Plan a model: each op of CONFIG.json with its shape on one rank, its scheme, its kernel, and the reason."""
    from kernelmux.plan import plan as make_plan
    from kernelmux.registry.packages import Packages

    packages = Packages.assume_all() if assume_packages == "all" else None
    made = make_plan(config, device, tp=tp, tokens=tokens, packages=packages, policy=policy)
    emit(made.to_json(), as_json, lambda: _render(made))


def _render(made: Plan) -> None:
    from kernelmux.plan import tune_command

    model = made.model
    low, high = made.tokens
    title = (
        f"{model.family}: {model.layers} layers, {model.dtype}, quantization {model.method}; one of {model.tp} "
        f"rank{'' if model.tp == 1 else 's'} on {made.device.torch_name}, M={low}{'' if low == high else f'..{high}'}"
    )
    reasons: dict[str, int] = {}
    rows: list[list[Any]] = []
    for line in made.lines:
        number = reasons.setdefault(_reason(line), len(reasons) + 1)
        site, chosen = line.site, line.selection
        rows.append(
            [line.placed.where, site.module, site.op, line.shape(), line.scheme, line.kernel,
             None if chosen is None else chosen.source, None if chosen is None else chosen.config_source, f"[{number}]"]
        )  # fmt: skip
    table(["layers", "module", "op", "shape", "scheme", "kernel", "source", "config", "why"], rows, title=title)
    say()
    for reason, number in reasons.items():
        say(fill(f"[{number}] {reason}", WIDTH, subsequent_indent="    ", break_long_words=False))
    open_shapes = made.to_tune()
    if open_shapes:
        say()
        say("Not measured on this GPU yet:")
        for line in open_shapes:
            found = line.selection.config_source if line.selection else None
            say(f"  {tune_command(line, made)}    (now {found})")
    say()
    for note in made.notes:
        say(f"Note: {note}")


def _reason(line: Line) -> str:
    """Why, what was preferred to it, what the call is given beside its shape, and what the choice leaves out."""
    site = line.site
    passed_over: dict[str, list[str]] = {}
    for name, reason in line.passed_over():
        passed_over.setdefault(reason.rstrip("."), []).append(name)
    options = ", ".join(f"{name}={value}" for name, value in site.options)
    words = [
        line.why.rstrip("."),
        *(f"Not {' and '.join(names)}: {reason}" for reason, names in passed_over.items()),
        f"Called with {options}" if options else "",
        f"{site.note[0].upper()}{site.note[1:]}" if site.note else "",
    ]
    return " ".join(f"{word}." for word in words if word)
