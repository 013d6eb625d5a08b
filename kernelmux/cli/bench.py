"""``kernelmux bench``: every backend of a small op side by side on this machine's GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli.output import emit, note, say, table

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.measure.small_bench import Stand


class Sizes(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``--m 1,16,256``."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(dict.fromkeys(int(part) for part in str(value).split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,16,256", param, ctx)
        if min(found) < 1:
            self.fail("sizes must be at least 1", param, ctx)
        return found


@click.command()
@click.argument("op", nargs=-1, required=True)
@click.option("--device", default="cuda:0", show_default=True, help="The GPU of this machine to time on.")
@click.option("--m", "ms", type=Sizes(), help="Token counts, as in 1,16,256.  [default: 1,16,256,4096]")
@click.option("--h", "hs", type=Sizes(), help="Hidden sizes, as in 4096,5120.  [default: 2048,4096,8192]")
@click.option("--dtype", default="bfloat16", show_default=True, help="Dtype of the activations.")
@click.option("--backends", help="Only these, separated by commas: backends or names of kernels.")
@click.option(
    "--peers/--no-peers", default=True, show_default=True, help="FlashInfer and torch.compile, called directly."
)
@click.option("--rounds", default=25, show_default=True, type=click.IntRange(2), help="Samples of each contestant.")
@click.option(
    "--record/--no-record", default=True, show_default=True, help="Keep the times, so that select goes by them."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write a plot (.png, .svg, .pdf); needs matplotlib.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def bench(
    op: tuple[str, ...],
    device: str,
    ms: tuple[int, ...] | None,
    hs: tuple[int, ...] | None,
    dtype: str,
    backends: str | None,
    peers: bool,
    rounds: int,
    record: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time every backend of an op, and keep the times for `kernelmux select` and `select_backend`.

    OP is one or more ops of M rows of H: rms_norm, silu_and_mul, ... All contestants of a problem run in turn, on
    tensors that are not in the L2 cache, after their results were found right. Speeds are beside that of a plain copy
    of as many bytes, measured in the same run.
    """
    from kernelmux.measure import small_bench, small_record
    from kernelmux.registry.discovery import registry
    from kernelmux.registry.problem import dtype_name
    from kernelmux.reports import small_plot

    if plot is not None:
        small_plot.require()
    for name in op:
        registry().op(name)  # a name that is wrong is wrong on any machine
    here = live(device)
    found = []
    try:
        for race in small_bench.races(
            stand(here), here, op, ms or small_bench.USUAL_M, hs or small_bench.USUAL_H, str(dtype_name(dtype)),
            backends=[word.strip() for word in backends.split(",")] if backends else (), peers=peers, rounds=rounds,
            say=note,
        ):  # fmt: skip
            found.append(race)
            if not as_json:
                _render(race.to_json(samples=False))
    finally:  # a GPU that is lost, or Ctrl-C, does not cost what was measured
        kept = small_record.measurements(found, here, small_bench.named_kernels(op)) if record else []
        journal = small_record.record(kept) if kept else None
        if journal is not None:
            note(f"kept {len(kept)} measurements in {journal}: select_backend goes by them.")
    if plot is not None:
        small_plot.draw([race.to_json(samples=False) for race in found], plot, f"{', '.join(op)} on {here.torch_name}")
        note(f"wrote {plot}")
    data: dict[str, Any] = {
        "device": {"name": here.name, "torch_name": here.torch_name, "driver": here.driver},
        "races": [{**race.to_json(), "selected": small_bench.selected(race.point, here)} for race in found],
        "recorded": len(kept),
        "journal": None if journal is None else str(journal),
    }
    emit(data, as_json, lambda: _chosen(data["races"]))


def live(spec: str) -> Device:
    """The GPU of this machine that ``spec`` means. Raises DeviceNotFound where there is none."""
    from kernelmux.device import resolve_device
    from kernelmux.errors import DeviceNotFound, MissingPackage

    here = (
        "Run it where there is one; for a GPU that is elsewhere `kernelmux select --device NAME` says what would run."
    )
    try:
        found = resolve_device(spec)
    except DeviceNotFound as error:
        raise DeviceNotFound(
            f"bench times kernels on a GPU of this machine, and {spec} does not answer. {here}"
        ) from error
    if not found.live:
        raise DeviceNotFound(f"bench times kernels on a GPU of this machine, and {found.name} is not one. {here}")
    try:
        import torch
    except ImportError as error:
        raise MissingPackage("torch", "timing kernels", "pip install 'kernelmux[torch]'") from error
    if not torch.cuda.is_available():
        raise DeviceNotFound(
            f"the torch of this environment ({torch.__version__}) cannot use {found.torch_name}. Install a torch that "
            "is built for it."
        )
    return found


def stand(device: Device) -> Stand:
    """Who times on this GPU."""
    from kernelmux.measure.small import SmallStand

    return SmallStand(device)


def _render(race: dict[str, Any]) -> None:
    ranked = sorted(race["contestants"], key=lambda one: (one["kind"] == "copy", one.get("us") or float("inf")))
    title = f"{race['op']} M={race['m']} H={race['h']} {race['dtype']}"
    table(("contestant", "us", "95%", "GB/s", "of a copy"), map(_cells, ranked), right=(1, 2, 3, 4), title=title)
    for name, reason in race["refused"].items():
        say(f"{name}: not run, {reason}")
    for one in ranked:
        if "us" not in one:
            say(f"{one['name']}: {one['status']}, {one['reason']}")
    say()


def _cells(one: dict[str, Any]) -> tuple[str | None, ...]:
    if "us" not in one:
        return one["name"], one["status"], None, None, None
    share = one["percent_of_copy"]
    interval = f"{one['low']:.2f}..{one['high']:.2f}"
    return one["name"], f"{one['us']:.2f}", interval, f"{one['gbs']:,.0f}", None if share is None else f"{share:.1f}%"


def _chosen(races: list[dict[str, Any]]) -> None:
    rows = [
        (race["op"], race["m"], race["h"], race["selected"]["kernel"], race["selected"]["source"]) for race in races
    ]
    table(("op", "M", "H", "select_backend takes", "decided by"), rows, right=(1, 2))
