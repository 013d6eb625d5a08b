"""``kernelmux tune``: measure (or, offline, predict) the tiles of a model's fused MoE and write its tables."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli.output import emit, fancy, note, say, table, wants_json
from kernelmux.cli.params import SHAPE
from kernelmux.errors import BadShape, DeviceNotFound, KernelmuxError, UsageError

if TYPE_CHECKING:
    from kernelmux.autotune.result import TuneResult
    from kernelmux.autotune.target import Target
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device


TUNABLE = ("bfloat16", "float16")


def _ms(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 2**20 for part in parts):
        raise UsageError(f"--m {value!r} is no list of token counts. Write it like 1,64,2048.")
    return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG.json]")
@click.option("--tp", type=click.IntRange(min=1), help="Tensor parallel size: the experts' width is divided by it.")
@click.option("--shape", type=SHAPE, help="Instead of CONFIG.json: E=128,N=384,K=2048,topk=8.")
@click.option("--activation", help="silu, gelu, gelu_tanh or relu2; from CONFIG.json, else silu.")
@click.option("--device", help="cuda:0, a catalog name, the name torch reports, or a capability (sm120).")
@click.option("--quant", help="none; for the engines also fp8_tensor, fp8_channel, fp8_block, int8_w8a8, int8_w8a16.")
@click.option("--dtype", help="bfloat16 or float16; from CONFIG.json, else bfloat16.")
@click.option("--offline", is_flag=True, help="Predict for a GPU that is not here: compile and rank, measure nothing.")
@click.option("--effort", type=click.Choice(["quick", "full", "exhaustive"]), default="full", show_default=True)
@click.option("--budget", type=click.FloatRange(min=1), help="Seconds in all; the last rungs are left out if short.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the tables; the user's own if not given.")
@click.option("--format", "form", type=click.Choice(["kernelmux", "vllm", "sglang"]), default="kernelmux",
              show_default=True, help="Who reads the tables: kernelmux's fused kernels, or an engine.")  # fmt: skip
@click.option("--engine-path", type=click.Path(path_type=Path),
              help="The engine's unpacked package, whose kernel is timed; one installed is found.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on where a killed run of the same shape and machine stopped.")
@click.option("--journal", "journal_file", type=click.Path(path_type=Path), help="File of measurements.")
@click.option("--replay", type=click.Path(path_type=Path), help="Take timings from this journal in place of a GPU.")
@click.option("--m", "ms", callback=_ms, help="Token counts, as in 1,64,2048; the usual eighteen if not given.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compile; the usable cores if not given.")
@click.option("--report", "reports", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Write the tuning report to FILE.md, FILE.html or FILE.json; may be given again.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def tune(
    config: Path | None,
    tp: int | None,
    shape: dict[str, Any] | None,
    activation: str | None,
    device: str | None,
    quant: str | None,
    dtype: str | None,
    offline: bool,
    effort: str,
    budget: float | None,
    out: Path | None,
    form: str,
    engine_path: Path | None,
    resume: bool,
    journal_file: Path | None,
    replay: Path | None,
    ms: tuple[int, ...] | None,
    workers: int | None,
    reports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Tune a fused MoE and write its tables.

    They hold the tiles of both GEMMs at each token count, and select_backend reads them; with --format vllm or sglang
    the engine does, and what is tuned is the engine's kernel or one of its structure. On a GPU every choice is
    measured; with --offline it is predicted for the GPU named by --device.
    """
    from kernelmux.reports.tuning_output import format_of
    from kernelmux.store.journal import Journal
    from kernelmux.store.paths import config_dir, journal_path

    for path in reports:
        format_of(path)
    target = _target(form, quant, engine_path, out)
    wanted = _shape(config, tp, shape, activation, dtype, quant)
    if wanted.dtype not in TUNABLE:
        raise UsageError(f"no Triton kernel multiplies {wanted.dtype} experts. Add --dtype {' or '.join(TUNABLE)}.")
    if replay and offline:
        raise UsageError("--replay and --offline exclude each other: one needs measurements, the other makes none.")
    if replay and out is None:
        raise UsageError("--replay needs --out FOLDER: what is replayed was not measured on this machine.")
    if replay and resume and journal_file is None:
        raise UsageError("--resume with --replay needs --journal FILE, the journal of the run to go on with.")
    keep = journal_file or (None if replay else journal_path())
    folder = out or config_dir()
    with _progress() as progress, Journal(keep) if keep else nullcontext() as journal:
        options: dict[str, Any] = {"effort": effort, "budget_s": budget, "out": folder, "journal": journal}
        options |= {"workers": workers, "target": target}
        if offline:
            result = _predict(wanted, device, ms, dtype is None, progress, options)
        elif replay:
            result = _replay(replay, wanted, device, ms, resume, progress, options)
        else:
            result = _measure(wanted, device, ms, dtype is None, resume, progress, options)
    selection = _for_engine(result, folder) if target.plain else _selection(result, folder, is_default=out is None)
    for path in reports:
        _report(result, path)
    emit({**result.to_json(), **selection}, as_json, lambda: _render(result, selection))


def _report(result: TuneResult, path: Path) -> None:
    import shlex

    from kernelmux.reports import tuning, tuning_output

    called = Path(sys.argv[0]).stem == "kernelmux"
    command = shlex.join(["kernelmux", *sys.argv[1:]]) if called else ""
    for file in tuning_output.write(tuning.of_result(result, command=command), path):
        note(f"wrote {file}")


def _target(form: str, quant: str | None, engine_path: Path | None, out: Path | None) -> Target:
    """Who reads the tables. Raises UsageError for what that reader has no use for."""
    from kernelmux.autotune.target import Target
    from kernelmux.backends.triton import engine_kernels
    from kernelmux.contracts.moe_quant import MoeQuant
    from kernelmux.quant import Scheme

    scheme = Scheme.of(quant)
    if form == "kernelmux":
        if engine_path is not None:
            raise UsageError("--engine-path goes with --format vllm or sglang: kernelmux's tables are for its kernels.")
        if scheme.name != "none":
            raise UsageError(
                f"--quant {quant}: kernelmux has no fused kernel for quantized experts yet. Leave it out, or tune for "
                "an engine with --format vllm or sglang."
            )
        return Target()
    if out is None:
        raise UsageError(f"--format {form} needs --out FOLDER, the one you will name to {form} with {_VARIABLE[form]}.")
    found = engine_path or engine_kernels.installed(form)
    return Target(form, MoeQuant.of(scheme), str(found) if found else None)  # type: ignore[arg-type]


_VARIABLE = {"vllm": "VLLM_TUNED_CONFIG_FOLDER", "sglang": "SGLANG_MOE_CONFIG_DIR"}


def _for_engine(result: TuneResult, folder: Path) -> dict[str, Any]:
    """How the engine is told of its tables."""
    form = result.target.format
    if result.source == "predicted":
        return {"selection": None, "selection_note": f"a prediction: move it to where {form} looks once you trust it"}
    return {"selection": None, "selection_note": f"start {form} with {_VARIABLE[form]}={folder.resolve()}"}


def _shape(
    config: Path | None,
    tp: int | None,
    axes: dict[str, Any] | None,
    activation: str | None,
    dtype: str | None,
    quant: str | None,
) -> MoeShape:
    from kernelmux.autotune.model_config import dtype_word, moe_shape_of
    from kernelmux.contracts.moe_shape import MoeShape

    word = dtype_word(dtype) if dtype else None
    if (config is None) == (axes is None):
        raise UsageError("give either a model's CONFIG.json or --shape E=..,N=..,K=..,topk=.. (not both).")
    if config is not None:
        return moe_shape_of(config, tp=tp or 1, activation=activation, dtype=word, quant=quant)
    assert axes is not None
    if tp is not None:
        raise UsageError("--tp goes with CONFIG.json; with --shape write N already divided.")
    if "M" in axes:
        raise UsageError("--shape of tune has no M: every usual token count is tuned. Use --m to choose some.")
    unknown = sorted(axes.keys() - {"E", "N", "K", "topk"})
    if unknown or any(isinstance(v, tuple) for v in axes.values()):
        raise BadShape("--shape of tune takes E, N, K and topk, a number each, as in E=128,N=384,K=2048,topk=8.")
    return MoeShape.from_axes(axes, activation or "silu", word or "bfloat16")


def _for_units(shape: MoeShape, device: Device, progress: Any) -> MoeShape:
    """The shape in float16 where bfloat16 was not asked for and the GPU has no units for it, as select_backend does."""
    if shape.dtype != "bfloat16" or device.peak("bf16") or not device.peak("fp16"):
        return shape
    progress(f"{device.name} has no bfloat16 units and no --dtype was given: float16 is taken")
    return shape.with_dtype("float16")


def _predict(
    shape: MoeShape, spec: str | None, ms: Any, free: bool, progress: Any, options: dict[str, Any]
) -> TuneResult:
    from kernelmux.autotune.predict import predict_moe
    from kernelmux.device import detect, resolve_device

    if spec is None:
        try:
            device = detect()
        except DeviceNotFound:
            raise UsageError(
                "--offline needs --device NAME, such as h100-sxm, as no GPU is here (`kernelmux devices` lists names)."
            ) from None
    else:
        device = resolve_device(spec)
    shape = _for_units(shape, device, progress) if free else shape
    progress(f"predicting {shape.brief()} for {device.torch_name}")
    return predict_moe(shape, device, progress=progress, **options, **({"ms": ms} if ms else {}))


def _replay(
    path: Path, shape: MoeShape, spec: str | None, ms: Any, resume: bool, progress: Any, options: dict[str, Any]
) -> TuneResult:
    from kernelmux.autotune.run import tune_moe
    from kernelmux.device import resolve_device
    from kernelmux.measure.replay import ReplayBench

    bench = ReplayBench(path, shape, resolve_device(spec) if spec else None)
    progress(f"replaying {path} for {bench.device.torch_name}")
    return tune_moe(
        shape, bench.device, bench=bench, resume=resume, progress=progress, ms=ms or bench.ms,
        compile_with=None, **options,
    )  # fmt: skip


def _measure(
    shape: MoeShape, spec: str | None, ms: Any, free: bool, resume: bool, progress: Any, options: dict[str, Any]
) -> TuneResult:
    from kernelmux.autotune.run import tune_moe
    from kernelmux.measure.live import LiveBench

    device = _live(spec)
    shape = _for_units(shape, device, progress) if free else shape
    target: Target = options["target"]
    bench = LiveBench(shape, device, variant=target.variant)
    progress(f"tuning {shape.brief()} on {device.torch_name}: {target.variant.brief()}")
    try:
        return tune_moe(
            shape, device, bench=bench, resume=resume, progress=progress, **options, **({"ms": ms} if ms else {})
        )
    finally:
        bench.close()


def _live(spec: str | None) -> Device:
    """The GPU of this machine that is meant; a name counts when such a GPU is here."""
    from kernelmux.device import detect, live_devices, resolve_device

    if spec is None:
        return detect()
    device = resolve_device(spec)
    if device.live:
        return device
    found = next((d for d in live_devices() if d.torch_name == device.torch_name), None)
    if found is None:
        raise DeviceNotFound(
            f"this machine has no {device.torch_name} to measure on. Run there, or add --offline to predict its tables."
        )
    return found


def _selection(result: TuneResult, folder: Path, *, is_default: bool) -> dict[str, Any]:
    """What select_backend picks for this shape now, or why that cannot be told here."""
    from kernelmux.policies.select import select_backend
    from kernelmux.registry.packages import Packages
    from kernelmux.store.paths import CONFIG_VARIABLE

    before = os.environ.get(CONFIG_VARIABLE)
    ms = [line.m for line in result.lines]
    shape: dict[str, Any] = {**result.shape.axes(), "M": (ms[0], ms[-1]) if len(ms) > 1 else ms[0]}
    try:
        if not is_default:
            os.environ[CONFIG_VARIABLE] = str(folder)
        for packages in (None, Packages.assume_all(Packages.installed())):
            try:
                chosen = select_backend(
                    "fused_moe", device=result.device, dtype=result.shape.dtype, shape=shape,
                    activation=result.shape.activation, packages=packages,
                )  # fmt: skip
            except KernelmuxError as error:
                said = str(error).splitlines()[0]
                continue
            if chosen.config_source or packages is not None:
                break
        else:
            return {"selection": None, "selection_note": said}
    finally:
        if before is None:
            os.environ.pop(CONFIG_VARIABLE, None)
        else:
            os.environ[CONFIG_VARIABLE] = before
    return {
        "selection": {
            "backend": chosen.backend, "kernel": chosen.kernel, "source": chosen.source,
            "config_source": chosen.config_source, "why": chosen.why,
            "config_path": str(chosen.config_path) if chosen.config_path else None,
        },
        "selection_note": None if is_default else f"with {CONFIG_VARIABLE}={folder}",
    }  # fmt: skip


def _render(result: TuneResult, selection: dict[str, Any]) -> None:
    measured = result.source == "measured"
    title = f"{result.shape.brief()} on {result.device.torch_name}: {result.source} tiles"
    rows = []
    for line in result.lines:
        row: list[object] = [line.m, line.config.up.short(), line.config.down.short()]
        if measured:
            interval = f"±{line.interval.half:.1f}" if line.interval else "-"
            gain = "-" if line.gain is None else f"{line.gain:+.1%}"
            row += [f"{line.us:.1f}" if line.us is not None else f"as M={line.from_m}", interval, gain]
        rows.append(row)
    head = ["M", "up", "down"] + (["us", "95%", "gain over default"] if measured else [])
    table(head, rows, right=[0, 3, 4, 5], title=title)
    say()
    dropped = sum(sum(reasons.values()) for reasons in result.discards.values())
    counts = ", ".join(f"{v} {k}" for k, v in result.counts.items())
    say(f"{result.seconds.get('total', 0.0):.0f} s; {counts}; {dropped} discarded and {len(result.failures)} failed.")
    for line_ in result.notes:
        say(f"Note: {line_}")
    for path in result.paths:
        say(f"wrote {path}")
    chosen = selection["selection"]
    where = f" ({selection['selection_note']})" if selection["selection_note"] else ""
    if chosen:
        say(f"select_backend now picks {chosen['kernel']} with {chosen['config_source']} tiles{where}: {chosen['why']}")
        if chosen["config_path"] not in map(str, result.paths):
            say(f"They are those of {chosen['config_path']}, not the ones just {_made(result)}.")
    elif result.target.plain:
        how = "tuned" if measured else "compiled"
        say(f"{result.target.variant.kernel_name} was {how}; {selection['selection_note']}.")
    else:
        say(f"select_backend cannot use it here: {selection['selection_note']}")


def _made(result: TuneResult) -> str:
    if result.source == "measured":
        return "measured"
    return "predicted: a measured table, of this GPU or one of its family, outranks every prediction"


@contextmanager
def _progress() -> Iterator[Any]:
    """A callable that shows one line of progress: a live line on a terminal, plain lines elsewhere, on stderr."""
    start = time.monotonic()
    if wants_json() or not fancy(sys.stderr):
        yield lambda line: note(f"[{time.monotonic() - start:6.1f} s] {line}")
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status("starting") as status:

        def show(line: str) -> None:
            status.update(f"{time.monotonic() - start:.0f} s  {escape(line)}")
            if " final: " in line:
                console.print(escape(line), style="dim", highlight=False)

        yield show
