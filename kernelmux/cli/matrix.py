"""``kernelmux matrix``: what runs where, proven or declared; how kernels do here; what changed since a baseline."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli._matrix_output import deliver, judged, loaded
from kernelmux.cli.output import emit, note, say, table
from kernelmux.errors import UsageError

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.packages import Packages
    from kernelmux.reports.matrix import Matrix, PackageFacts

FORMATS = ("md", "html", "json", "junit")


class ShardParam(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``--shard 2/4``."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", str(value).strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is no shard. Write it like 2/4: the second of four.", param, ctx)
        return int(found[1]), int(found[2])


class TokensParam(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``--m 1,64,4096``."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch(r"\d{1,7}", part) and int(part) for part in parts):
            self.fail(f"{value!r} is not a list of token counts such as 1,64,4096", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that gives a matrix takes."""
    for option in reversed(
        (
            click.option("--format", "form", type=click.Choice(FORMATS), help="[default: md; json with --json]"),
            click.option("--out", type=click.Path(path_type=Path), help="Write to this file, whole or not at all."),
            click.option("--packed", is_flag=True, help="JSON with each text once: a fortieth of the size."),
            click.option("--baseline", type=click.Path(path_type=Path), help="Say what changed since this matrix."),
            click.option("--fail-on-change", is_flag=True, help="Exit with 1 for a change that is not allowed."),
            click.option("--fail-on-red", is_flag=True, help="Exit with 1 when a kernel failed."),
            click.option("--allow", type=click.Path(path_type=Path), help="YAML of allowed changes, with reasons."),
            click.option("--changes", type=click.Path(path_type=Path), help="Write the text of the changes here too."),
            click.option("--record/--no-record", default=False, help="Keep the matrix for `matrix history`."),
            click.option("--summary/--no-summary", default=True, help="Append to $GITHUB_STEP_SUMMARY, if it is set."),
        )
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True, subcommand_metavar="[merge|history] ...")
@click.option("--live", is_flag=True, help="Run every accepted kernel on this machine.")
@click.option("--compile-only", is_flag=True, help="Cross-compile every kernel that can be, for every capability.")
@click.option("--from", "sources", type=click.Path(path_type=Path), multiple=True, help="Make nothing: read this JSON.")
@click.option("--device", "devices", multiple=True, help="Only these; else the whole catalog (live: cuda:0).")
@click.option("--m", "tokens", type=TokensParam(), help="Token counts.  [default: 1,64,4096]")
@click.option("--packages", type=click.Path(path_type=Path), help="Judge the environment of this `pip freeze`.")
@click.option(
    "--assume-packages", type=click.Choice(["installed", "all"]), default="all", show_default=True,
    help="Judge what is installed here, or as if every optional package were. Live: always what is installed.",
)  # fmt: skip
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=GLOB", help="op=rms_norm, scheme=fp8_*, device!=t4 ..."
)
@click.option("--shard", type=ShardParam(), help="Only part I of N; join them with `matrix merge`.")
@click.option("--resume", is_flag=True, help="Live, compile-only: go on where a run of the same plan was stopped.")
@click.option("--time-limit", default=60.0, show_default=True, type=click.FloatRange(0.1), help="Seconds of one step.")
@click.option("--budget", type=click.FloatRange(0.1), help="Seconds for all: what is left then is not run.")
@click.option("--jobs", type=click.IntRange(1), help="Processes at a time.  [default: 4 live, one a core compiling]")
@_output_options
@click.option("--json", "as_json", is_flag=True, help="As --format json.")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
@click.pass_context
def matrix(
    ctx: click.Context,
    /,
    live: bool,
    compile_only: bool,
    sources: tuple[Path, ...],
    devices: tuple[str, ...],
    tokens: tuple[int, ...] | None,
    packages: Path | None,
    assume_packages: str,
    filters: tuple[str, ...],
    shard: tuple[int, int] | None,
    resume: bool,
    time_limit: float,
    budget: float | None,
    jobs: int | None,
    debug: bool,
    **output: Any,
) -> None:
    """What runs where: ops x schemes x GPUs x token counts, with the kernel chosen, the runner-up, every rejection.

    Without --live and --compile-only nothing runs, and no GPU is needed.
    """
    if ctx.invoked_subcommand is not None:
        return
    if live and compile_only:
        raise UsageError("--live runs kernels here and --compile-only compiles them for elsewhere: take one.")
    if live and packages is not None:
        raise UsageError("--packages describes another environment, and --live runs what is installed here.")
    if sources and (live or compile_only or packages or devices or tokens or shard or resume):
        raise UsageError("--from reads a matrix that was made; only --filter and how to show it go with it.")
    if budget is not None and not (live or compile_only):
        raise UsageError("--budget is for --live and --compile-only: the static matrix takes seconds.")
    if resume and not (live or compile_only):
        raise UsageError("--resume is for --live and --compile-only: the static matrix takes seconds.")
    baseline = judged(output, sources)  # read and checked before anything is made
    from kernelmux.reports.matrix_cases import TOKENS, Filter

    parsed = [Filter.parse(text) for text in filters]
    if sources:
        found = _filtered(loaded(sources), parsed)
    else:
        scope = [*parsed, *_scope(devices, tokens, live)]
        options: Any = dict(tokens=tokens or TOKENS, filters=scope, shard=shard, say=note)
        if live:
            from kernelmux.reports.matrix_live import live as run_live

            found = run_live(
                devices[0] if devices else "cuda:0",
                resume=resume,
                limit_s=time_limit,
                budget_s=budget,
                jobs=jobs or 4,
                **options,
            )
        elif compile_only:
            from kernelmux.reports.matrix_compile import compiled

            found = compiled(
                _devices(devices), resume=resume, limit_s=time_limit, budget_s=budget, jobs=jobs, **options
            )
        else:
            from kernelmux.reports.matrix_static import static

            judged_packages, facts = _packages(packages, assume_packages)
            found = static(_devices(devices), judged_packages, facts, **options)
    if not deliver(found, baseline, **output):
        ctx.exit(1)


def _scope(devices: tuple[str, ...], tokens: tuple[int, ...] | None, live: bool) -> list[Any]:
    """What was asked for as filters, so that a comparison knows what it may miss."""
    from kernelmux.reports.matrix_cases import Filter

    found = []
    names = [device.name for device in _devices(devices)] if devices and not live else []
    if names:
        found.append(Filter("device", tuple(names), text=f"device={','.join(names)}"))
    if tokens:
        told = (*map(str, tokens), "0")  # compiled cells are for all sizes
        found.append(Filter("m", told, text=f"m={','.join(told)}"))
    return found


def _devices(names: tuple[str, ...]) -> list[Device]:
    from kernelmux.device import catalog, resolve_device

    if not names:
        return list(catalog().values())
    found = {device.name: device for device in map(resolve_device, names)}
    return list(found.values())


def _packages(path: Path | None, assume: str) -> tuple[Packages, PackageFacts]:
    from kernelmux.registry.packages import Packages
    from kernelmux.reports.matrix_packages import facts_of, read_freeze

    if path is not None:
        frozen = read_freeze(path)
        return frozen, facts_of(frozen, f"the freeze {path.name}")
    here = Packages.installed()
    if assume == "installed":
        return here, facts_of(here, "what is installed here")
    everything = Packages.assume_all(here)
    return everything, facts_of(everything, "every optional package, those installed here as they are")


def _filtered(found: Matrix, filters: list[Any]) -> Matrix:
    if not filters:
        return found
    import msgspec

    from kernelmux.reports.matrix_cases import takes_cell
    from kernelmux.reports.matrix_static import nothing_left

    cells = tuple(cell for cell in found.cells if takes_cell(filters, cell))
    if not cells:
        raise nothing_left(filters)
    told = (*found.header.filters, *(one.text for one in filters))
    return msgspec.structs.replace(found, cells=cells, header=msgspec.structs.replace(found.header, filters=told))


@matrix.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_output_options
@click.option("--json", "as_json", is_flag=True, help="As --format json.")
@click.pass_context
def merge(ctx: click.Context, /, files: tuple[Path, ...], **output: Any) -> None:
    """Join the shards of a run, or matrices of different kinds (static, live, compiled), into one."""
    baseline = judged(output, files)
    if not deliver(loaded(files), baseline, **output):
        ctx.exit(1)


@matrix.command()
@click.argument("op")
@click.option("--cell", help="Only cells whose key fits this glob, as in '*/h200/64*'.")
@click.option("--all", "every", is_flag=True, help="Also cells that never changed and have no time.")
@click.option("--add", "files", type=click.Path(path_type=Path), multiple=True, help="Keep this matrix first.")
@click.option("--note", "remark", default="", help="A word on what is added: a commit, a driver.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw times into this file (.png, .svg, .pdf).")
@click.option("--history", "where", type=click.Path(path_type=Path), help="Another file than the default one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def history(
    op: str,
    cell: str | None,
    every: bool,
    files: tuple[Path, ...],
    remark: str,
    plot: Path | None,
    where: Path | None,
    as_json: bool,
) -> None:
    """How the cells of OP were in the matrices that were kept: kernel, standing and time, oldest first."""
    from kernelmux.reports import matrix_history as told
    from kernelmux.reports.matrix_files import read
    from kernelmux.store.matrices import History, history_path

    if plot is not None:
        told.require_plots()
    path = where or history_path()
    given = [(file, read(file)) for file in files]
    if given:
        with History(path) as kept:
            for file, one in given:
                note(f"{file}: {'kept' if told.keep(kept, one, remark) else 'was kept before'}")
    with History(path, read_only=True) as kept:
        matrices, lines = told.lines(kept, op, cell)
    if plot is not None:
        told.draw(op, matrices, lines, plot, note)
        note(f"wrote {plot}")
    shown = [line for line in lines if every or line.changed or line.timed] or lines
    data = told.to_json(op, matrices, shown)
    emit(data, as_json, lambda: _render(op, matrices, shown, len(lines)))


def _render(op: str, kept: Any, lines: Any, count: int) -> None:
    first, last = kept[0], kept[-1]
    say(f"{op}: {len(kept)} matrices, {first.created} (kernelmux {first.version}) to {last.created} ({last.version})")
    rows = []
    for line in lines:
        points = [point for point in line.points if point is not None]
        newest = points[-1]
        us = None if newest.us is None else f"{newest.us:.2f}"
        changed = "changed" if line.changed else ""
        rows.append((line.key, line.spark(), newest.kernel or "no kernel", newest.status, us, changed))
    table(("cell", "over time", "kernel now", "now", "us", ""), rows, right=(4,))
    if len(lines) < count:
        say(f"{count - len(lines)} cells never changed: --all shows them.")
    say(
        "Bars are times, the longest the highest; letters: m(easured), c(ompiled), d(eclared), n(o kernel), w(rong) ..."
    )
