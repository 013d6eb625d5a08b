"""``kernelmux configs``: look into tuned tables, judge and mend them, move them between folders and formats."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli import _configs_move as move
from kernelmux.cli.output import emit, note, say, table
from kernelmux.cli.params import SHAPE
from kernelmux.errors import ConfigFileError

if TYPE_CHECKING:
    from kernelmux.tuning_configs.check import FileReport
    from kernelmux.tuning_configs.fix import Mended
    from kernelmux.tuning_configs.sidecar import Sidecar
    from kernelmux.tuning_configs.table import MoeTable


@click.group()
def configs() -> None:
    """Look into tuned tables, judge and mend them, move them between folders and formats."""


for command in (move.diff, move.import_, move.export, move.merge):
    configs.add_command(command)


@configs.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--as", "engine", type=click.Choice(["vllm", "sglang", "kernelmux"]), help="Whose tables they are.")
@click.option("--fix", is_flag=True, help="Mend what is certain; the bytes from before stay as <name>.bak.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def check(ctx: click.Context, paths: tuple[Path, ...], engine: str | None, fix: bool, as_json: bool) -> None:
    """Judge table files, or every table below a folder. Exits with 1 when anything is (with --fix: stays) wrong."""
    from kernelmux.tuning_configs.check import check as judge

    mended: list[Mended] = []
    if fix:
        from kernelmux.tuning_configs.fix import mend

        mended = mend(paths, engine)
        now = {each.path: each.now for each in mended}
        paths = tuple(now.get(path, path) for path in paths)
    reports = judge(paths, engine)
    data: dict[str, Any] = {"files": [report.to_json() for report in reports]}
    if fix:
        data["mended"] = [each.to_json() for each in mended]

    def words() -> None:
        for each in mended:
            renamed = f", now {each.now.name}" if each.now != each.path else ""
            say(f"{each.path}: mended {', '.join(each.codes)}{renamed}; before: {each.backup.name}")
        _say_reports(reports)

    emit(data, as_json, words)
    if any(not report.ok for report in reports):
        ctx.exit(1)


def _say_reports(reports: list[FileReport]) -> None:
    for report in reports:
        for fault in report.faults:
            place = f" at {fault.where}" if fault.where else ""
            say(f"{report.path}{place}: {fault.message} {fault.fix} [{fault.code}]")
    faulty = sum(not report.ok for report in reports)
    if not reports:
        say("No table found.")
    else:
        files = f"{len(reports)} file{'s' if len(reports) > 1 else ''}"
        say(f"{files}, {faulty} with faults." if faulty else f"{files}, sound.")


@configs.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--device", "device_name", help="Show the table that a selection for this device would use.")
@click.option("--shape", type=SHAPE, help="E=128,N=384,K=2048,topk=8")
@click.option("--activation", default="silu", show_default=True, help="Activation of the shape.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Dtype of the shape.")
@click.option("--triton-version", "--triton", "triton_version", help="Triton version; the installed one if not given.")
@click.option("--as", "engine", type=click.Choice(["vllm", "sglang"]), help="Answer as this engine's own look-up.")
@click.option("--m", "m", type=click.IntRange(min=1), help="Token count, with --as.")
@click.option("--block-shape", help="Scale block of fp8 weights, with --as: 128,128.")
@click.option("--per-channel", is_flag=True, help="Scales a channel, with --as sglang.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show(
    path: Path | None,
    device_name: str | None,
    shape: dict[str, Any] | None,
    activation: str,
    dtype: str,
    triton_version: str | None,
    engine: str | None,
    m: int | None,
    block_shape: str | None,
    per_channel: bool,
    as_json: bool,
) -> None:
    """Show one table file, with --device and --shape the table that a selection would use, or with --as the entry
    that vLLM or SGLang would run (PATH: the folder of its tables; the installed engine's if not given).
    """
    if engine is not None:
        if device_name is None or shape is None or m is None:
            raise click.UsageError("--as needs --device, --shape E=..,N=.. and --m.")
        from kernelmux.cli._configs_engine import show_as

        show_as(engine, path, device_name, shape, m, dtype, block_shape, per_channel, triton_version, as_json)
        return
    if (path is None) == (device_name is None):
        raise click.UsageError("give a table file, or --device with --shape.")
    if path is not None:
        _show_file(path, as_json)
        return
    if shape is None:
        raise click.UsageError("--device needs --shape, like E=128,N=384,K=2048,topk=8.")
    _show_choice(str(device_name), shape, activation, dtype, triton_version, as_json)


def _show_file(path: Path, as_json: bool) -> None:
    from kernelmux.tuning_configs import check as check_module
    from kernelmux.tuning_configs import sidecar as sidecars
    from kernelmux.tuning_configs.document import read
    from kernelmux.tuning_configs.engines import foreign
    from kernelmux.tuning_configs.names import TableName
    from kernelmux.tuning_configs.reconcile import reconciled

    if not path.is_file():
        raise ConfigFileError(path, "", "this file does not exist.", "Give the path of one table file.")
    try:
        name = TableName.parse(path.name)
    except ValueError as error:
        raise ConfigFileError(path, "file name", f"{error}.", "Give the path of one table file.") from error
    if check_module.format_of(path, name, foreign.read(path)) != "kernelmux":
        _show_foreign(path, as_json)
        return
    up_path, down_path = path.with_name(name.side(False).format()), path.with_name(name.side(True).format())
    up = read(up_path if up_path.exists() else path).checked()
    down = read(down_path).checked() if down_path.exists() else up
    side_path = path.with_name(name.sidecar)
    meta = sidecars.load(side_path) if side_path.exists() else None
    shown, notes = reconciled(up.tiles, down.tiles, path)
    data = {
        "path": str(path),
        "source": meta.source if meta else "imported",
        "table": {str(m): config.to_json() for m, config in shown.configs().items()},
        "sidecar": meta.to_json() if meta else None,
        "notes": list(notes),
    }
    emit(data, as_json, lambda: _say_table(shown, meta, str(path), notes))


def _show_foreign(path: Path, as_json: bool) -> None:
    """An engine's table as it stands in the file, every key of it."""
    from kernelmux.tuning_configs.check import check as judge
    from kernelmux.tuning_configs.engines import foreign

    reading = foreign.read(path)
    (report,) = judge([path])
    if reading.table is None:
        fault = reading.faults[-1]
        raise ConfigFileError(path, fault.where, fault.message, fault.fix)
    entries = reading.table.entries
    notes = [f"{fault.message} {fault.fix} [{fault.code}]" for fault in report.faults]
    data = {
        "path": str(path),
        "source": "imported",
        "format": report.format,
        "triton_version": reading.table.triton_version,
        "table": {str(m): dict(entry) for m, entry in entries.items()},
        "sidecar": None,
        "notes": notes,
    }

    def words() -> None:
        keys = list(dict.fromkeys(key for entry in entries.values() for key in entry))
        rows = [[m, *(entry.get(key) for key in keys)] for m, entry in entries.items()]
        table(["M", *keys], rows, right=range(len(keys) + 1), title=f"{path} ({report.format})")
        for sentence in notes:
            note(sentence)

    emit(data, as_json, words)


def _show_choice(
    device_name: str, axes: dict[str, Any], activation: str, dtype: str, triton_version: str | None, as_json: bool
) -> None:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import resolve_device
    from kernelmux.registry.packages import Packages
    from kernelmux.registry.problem import dtype_name
    from kernelmux.tuning_configs import sidecar as sidecars
    from kernelmux.tuning_configs.lookup import find

    device = resolve_device(device_name)
    whole = MoeShape.from_axes(axes, activation, dtype_name(dtype) or "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the choice's notes say the same
        choice = find(device, triton_version or Packages.installed().get("triton"), whole)
    data = {
        "device": device.name,
        "shape": whole.brief(),
        "config_source": choice.source,
        "grade": choice.grade,
        "why": choice.why,
        "path": str(choice.path) if choice.path else None,
        "table": choice.to_json(None),
        "notes": list(choice.notes),
    }

    def words() -> None:
        from kernelmux.contracts.moe_shape import USUAL_M
        from kernelmux.tuning_configs.names import TableName
        from kernelmux.tuning_configs.table import MoeTable

        meta = None
        if choice.path is not None:
            side_path = choice.path.with_name(TableName.parse(choice.path.name).sidecar)
            meta = sidecars.load(side_path) if side_path.exists() else None
        shown = choice.table or MoeTable.of({m: choice.at(m) for m in USUAL_M})
        _say_table(shown, meta, f"{choice.source} ({choice.grade}): {choice.why}", choice.notes)
        if choice.path:
            say(str(choice.path))

    emit(data, as_json, words)


def _say_table(shown: MoeTable, meta: Sidecar | None, title: str, notes: tuple[str, ...]) -> None:
    points = meta.points if meta else {}
    head = ["M", "up", "down"] + (["up us", "down us", "default us"] if points else [])
    rows: list[list[object]] = []
    for m, config in shown.configs().items():
        row: list[object] = [m, config.up.short(), config.down.short()]
        if points:
            point = points.get(m)
            row += [_us(point.up_us), _us(point.down_us), _us(point.default_us)] if point else [None, None, None]
        rows.append(row)
    table(head, rows, right=[0, *range(3, len(head))], title=title)
    if meta is not None:
        say(
            f"{meta.source} on {meta.device.get('torch_name', '?')} with {meta.kernel.get('name', '?')}, {meta.created}"
        )
    for sentence in notes:
        note(sentence)


def _us(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
