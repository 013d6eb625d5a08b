"""``kernelmux compile``: fills the compile caches, so that no first call pays for a compiler."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from kernelmux.cli.output import emit, fancy, note, say, table, wants_json
from kernelmux.cli.params import SHAPE
from kernelmux.errors import BadShape, CompileFailed, DeviceNotFound, NoKernel

if TYPE_CHECKING:
    from kernelmux.backends.compile_job import CompileJob
    from kernelmux.device import Device
    from kernelmux.registry.kernel import Kernel
    from kernelmux.registry.op import Op
    from kernelmux.registry.packages import Packages


@click.command()
@click.argument("op", nargs=-1)
@click.option("--device", help="cuda:0, a catalog name, the name torch reports, or a capability (sm120).")
@click.option("--dtype", multiple=True, help="Dtype of the activations, also several times.  [default: all of an op]")
@click.option("--shape", type=SHAPE, multiple=True, help="Axes of the op, as in H=4096, also several times.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def compile(
    ctx: click.Context,
    op: tuple[str, ...],
    device: str | None,
    dtype: tuple[str, ...],
    shape: tuple[dict[str, Any], ...],
    as_json: bool,
) -> None:
    """Compile the kernels of OP (of every op, if none is named) for a GPU, here or described, and keep them.

    Kernels compiled by NVRTC and small Triton kernels. What is in the cache already is not compiled again. Without
    --shape a kernel compiles what it uses for common sizes.
    """
    from kernelmux.registry.discovery import registry
    from kernelmux.registry.packages import Packages

    target, found = _target(device), registry()
    ops = [found.op(name) for name in op] if op else list(found.ops())
    packages = Packages.installed()
    rows: list[dict[str, Any]] = []
    for one in ops:
        for kernel in found.kernels(one.name):
            if kernel.compile is not None:
                rows += _of_kernel(one, kernel, target, packages, dtype, shape)
    if op and not any(row["jobs"] for row in rows):
        raise NoKernel(_nothing(op, target, rows))
    failed = [failure for row in rows for failure in row["failed"]]
    data = {"device": {"name": target.name, "arch": target.arch}, "kernels": rows, "failed": len(failed)}
    emit(data, as_json, lambda: _render(rows, target))
    if failed:
        note(f"Error: {failed[0]['message']}")
        if len(failed) > 1:
            note(f"{len(failed)} compilations failed; --json lists every one.")
        ctx.exit(1)


def _target(spec: str | None) -> Device:
    from kernelmux.device import live_devices, resolve_device

    if spec is not None:
        return resolve_device(spec)
    live = live_devices()
    if not live:
        raise DeviceNotFound("no GPU answers on this machine. Say which one to compile for, as in --device h100-sxm.")
    return live[0]


def _of_kernel(
    op: Op,
    kernel: Kernel,
    device: Device,
    packages: Packages,
    dtypes: tuple[str, ...],
    shapes: tuple[dict[str, Any], ...],
) -> Iterator[dict[str, Any]]:
    """One row for each dtype and shape: what was compiled, what was there, or why nothing is to be done."""
    from kernelmux.quant import Scheme
    from kernelmux.registry.decision import Rejected
    from kernelmux.registry.problem import Problem, dtype_name

    for shape in shapes or ({},):
        _check(op, shape)
        for name in dict.fromkeys(str(dtype_name(dtype)) for dtype in (dtypes or op.dtypes)):
            problem = Problem(op.name, Scheme.of(None), name, shape)
            answer = kernel.judge(op, device, packages, problem)
            row: dict[str, Any] = {
                "op": op.name, "kernel": kernel.name, "dtype": name, "shape": shape, "jobs": 0,
                "compiled": 0, "cached": 0, "failed": [], "seconds": 0.0, "rejected": None,
            }  # fmt: skip
            if isinstance(answer, Rejected):
                row["rejected"] = {"code": answer.code, "reason": answer.reason, "remedy": answer.remedy}
            else:
                _run(kernel, device, name, shape, row)
            yield row


def _check(op: Op, shape: dict[str, Any]) -> None:
    unknown = sorted(set(shape) - set(op.axes))
    if unknown:
        raise BadShape(f"{op.name} has no axis {', '.join(unknown)}; it has {', '.join(op.axes)}.")
    ranges = sorted(axis for axis, size in shape.items() if not isinstance(size, int) and axis != op.token_axis)
    if ranges:
        raise BadShape(f"{ranges[0]} must be one size, not a range: give --shape several times.")


def _run(kernel: Kernel, device: Device, dtype: str, shape: dict[str, Any], row: dict[str, Any]) -> None:
    from kernelmux.registry.lazy import load

    assert kernel.compile is not None
    jobs: Callable[..., Iterable[CompileJob]] = load(kernel.compile, f"compiling {kernel.name}")
    begun, live = time.perf_counter(), fancy(sys.stderr) and not wants_json()
    for job in jobs(device, dtype, shape):
        row["jobs"] += 1
        if live:
            click.echo(f"\r\x1b[K{kernel.name} {dtype}: {job.what}"[:118], err=True, nl=False)
        try:
            row["compiled" if job.run() else "cached"] += 1
        except CompileFailed as error:
            row["failed"].append({"what": job.what, "message": str(error)})
    if live:
        click.echo("\r\x1b[K", err=True, nl=False)
    row["seconds"] = round(time.perf_counter() - begun, 3)


def _nothing(ops: tuple[str, ...], device: Device, rows: list[dict[str, Any]]) -> str:
    rejected = next((row for row in rows if row["rejected"]), None)
    if rejected is None:
        return f"no kernel of {', '.join(ops)} is compiled ahead of its first call. `kernelmux ops` lists the kernels."
    why = rejected["rejected"]
    said = f"{rejected['kernel']}: {why['reason']}" + (f"; {why['remedy']}" if why["remedy"] else "")
    return f"nothing of {', '.join(ops)} can be compiled for {device.name}. {said}."


def _render(rows: list[dict[str, Any]], device: Device) -> None:
    done = [row for row in rows if row["jobs"]]
    head = ("kernel", "dtype", "shape", "compiled", "in the cache", "failed", "s")
    if done:
        table(head, [_cells(row) for row in done], right=range(3, len(head)), title=f"{device.name} ({device.arch})")
    else:
        say(f"Nothing to compile for {device.name}.")
    left = {row["kernel"]: row["rejected"]["reason"] for row in rows if row["rejected"]}
    for kernel, reason in left.items():
        if not any(row["kernel"] == kernel for row in done):
            say(f"left out: {kernel}: {reason}.")


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    shape = ",".join(f"{axis}={size}" for axis, size in row["shape"].items()) or "common sizes"
    failed = len(row["failed"])
    return (row["kernel"], row["dtype"], shape, row["compiled"], row["cached"], failed, f"{row['seconds']:.1f}")
