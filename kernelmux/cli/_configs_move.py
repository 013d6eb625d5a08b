"""``kernelmux configs diff|import|export|merge``: tables between folders and formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli.output import emit, note, say
from kernelmux.cli.params import SHAPE
from kernelmux.errors import UsageError

if TYPE_CHECKING:
    from kernelmux.tuning_configs.diff import Diff
    from kernelmux.tuning_configs.exports import Exported
    from kernelmux.tuning_configs.imports import Imported
    from kernelmux.tuning_configs.merge import Merged

_PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_ENGINE = click.Choice(["vllm", "sglang"])


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--exit-code", is_flag=True, help="Exit with 1 when anything differs.")
@_JSON
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, exit_code: bool, as_json: bool) -> None:
    """Compare two table files, or the tables of two folders."""
    from kernelmux.tuning_configs.diff import diff as compare

    _present((a, b))
    found = compare(a, b)
    emit(found.to_json(), as_json, lambda: _say_diff(found))
    if exit_code and not found.equal:
        ctx.exit(1)


def _say_diff(found: Diff) -> None:
    for path in found.only_a:
        say(f"only in the first: {path}")
    for path in found.only_b:
        say(f"only in the second: {path}")
    for each in found.differing:
        say(f"{each.a} against {each.b}" + (": other text, the same entries" if each.text_only else ""))
        for change in each.changes:
            say(f"  M={change.m}: {change.words}")
    say(f"{len(found.differing)} differ, {found.same} are the same.")


@click.command(name="import")
@_PATHS
@click.option("--from", "engine", required=True, type=_ENGINE, help="Whose tables they are.")
@click.option("--shape", type=SHAPE, help="What names lack: K=2048,topk=8. E and N choose among the files.")
@click.option("--activation", help="Activation of the model's experts, like silu; any if not given.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Dtype of the activations.")
@click.option("--device", "device_name", help="Device to import for, where it is not the one in the name.")
@click.option("--triton-version", help="Triton version it was tuned under, where neither file nor folder says.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of tables; the user's own if not given.")
@_JSON
@click.pass_context
def import_(
    ctx: click.Context,
    paths: tuple[Path, ...],
    engine: str,
    shape: dict[str, Any] | None,
    activation: str | None,
    dtype: str,
    device_name: str | None,
    triton_version: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make vLLM's or SGLang's tables candidates of kernelmux's selections (config_source: imported)."""
    from kernelmux.device import resolve_device
    from kernelmux.registry.problem import dtype_name
    from kernelmux.store.paths import config_dir
    from kernelmux.tuning_configs.imports import Wanted, import_tables

    _present(paths)
    wanted = Wanted(
        axes=_numbers(shape),
        activation=activation,
        dtype=dtype_name(dtype) or "bfloat16",
        device_name=resolve_device(device_name).table_name if device_name else None,
        triton=_version(triton_version),
    )
    done = import_tables(paths, engine, out or config_dir(), wanted)
    emit({"tables": [each.to_json() for each in done]}, as_json, lambda: _say_moved(done, "imported"))
    if not done or any(each.refused for each in done):
        ctx.exit(1)


@click.command()
@_PATHS
@click.option("--to", "engine", required=True, type=_ENGINE, help="Who shall read them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to point the engine at.")
@click.option("--triton-version", help="Triton version to write them for; the one tuned under if not given.")
@_JSON
@click.pass_context
def export(
    ctx: click.Context, paths: tuple[Path, ...], engine: str, out: Path, triton_version: str | None, as_json: bool
) -> None:
    """Write kernelmux's tables in vLLM's or SGLang's format, where that engine finds them."""
    from kernelmux.tuning_configs.engines import sglang, vllm
    from kernelmux.tuning_configs.exports import export_tables

    _present(paths)
    done = export_tables(paths, engine, out, _version(triton_version))
    variable = (vllm if engine == "vllm" else sglang).ENV
    data = {"tables": [each.to_json() for each in done], "environment": {variable: str(out)}}

    def words() -> None:
        _say_moved(done, "exported")
        if any(each.written for each in done):
            say(f"Use them with {variable}={out}")

    emit(data, as_json, words)
    if not done or any(each.refused for each in done):
        ctx.exit(1)


def _say_moved(done: list[Imported] | list[Exported], verb: str) -> None:
    for each in done:
        if each.refused:
            note(f"not {verb}: {each.refused}")
            continue
        written = [path for path in each.written or () if path is not None]
        say(f"{each.path} -> {written[0] if written else '-'}")
        for sentence in each.notes:
            note(f"  {sentence}")
    refused = sum(bool(each.refused) for each in done)
    say(f"{len(done) - refused} {verb}, {refused} refused." if done else "No table found.")


@click.command()
@_PATHS
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to merge into.")
@_JSON
@click.pass_context
def merge(ctx: click.Context, paths: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Put the tables of several folders into one; of two for one place the better measured, then the newer, wins."""
    from kernelmux.tuning_configs.merge import merge as merged

    _present(paths)
    found = merged(paths, out)
    emit(found.to_json(), as_json, lambda: _say_merged(found))
    if found.faulty:
        ctx.exit(1)


def _say_merged(found: Merged) -> None:
    for path, why in found.faulty:
        note(f"passed over: {path}: {why}")
    for conflict in found.conflicts:
        dropped = ", ".join(map(str, conflict.dropped))
        say(f"{conflict.place}: kept {conflict.kept}, not {dropped} ({conflict.why})")
    say(f"{len(found.written)} files written, {len(found.conflicts)} conflicts, {len(found.faulty)} passed over.")


def _present(paths: tuple[Path, ...]) -> None:
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise UsageError(f"{absent[0]} does not exist, or may not be looked at. Name a table file or a folder.")


def _numbers(shape: dict[str, Any] | None) -> dict[str, int]:
    odd = [
        axis for axis, value in (shape or {}).items() if axis not in ("E", "N", "K", "topk") or isinstance(value, tuple)
    ]
    if odd:
        raise UsageError(f"--shape: {odd[0]} has no place here. Give K and topk, like K=2048,topk=8.")
    return dict(shape or {})


def _version(text: str | None) -> str | None:
    from kernelmux.tuning_configs.folders import spelled, version_of

    if text is None:
        return None
    version = version_of(text)
    if version is None:
        raise UsageError(f"--triton-version {text!r} is no version. Write it like 3.6.0.")
    return spelled(version)
