"""``kernelmux devices``: the catalog, or the GPUs of this machine, with the source of every fact."""

from __future__ import annotations

from typing import Any

import click

from kernelmux.cli.output import emit, say, table
from kernelmux.device import Device, aliases, catalog, family_reason, live_devices, resolve_device, sources


@click.command()
@click.argument("name", required=False)
@click.option("--live", is_flag=True, help="Only the GPUs of this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def devices(name: str | None, live: bool, as_json: bool) -> None:
    """List the GPUs kernelmux knows, or show one.

    NAME is what --device takes elsewhere.
    """
    if name:
        device = resolve_device(name)
        emit(facts(device), as_json, lambda: _one(device))
        return
    listed = live_devices() if live else list(catalog().values())
    data = {"live": live, "devices": [facts(d) for d in listed]}
    emit(data, as_json, lambda: _many(listed, live))


def facts(device: Device) -> dict[str, Any]:
    """Everything known of a device, and where it is from."""
    said = sources(device.name)
    if device.live:
        seen = ("torch_name", "capability", "sm_count", "shared_bytes", "l2_bytes", "memory_gb", "driver")
        said = {**said, **dict.fromkeys(seen, "this machine")}
    return {
        **device.to_json(),
        "aliases": list(aliases(device.name)),
        "family_reason": family_reason(device.family),
        "sources": said,
    }


def _many(listed: list[Device], live: bool) -> None:
    if not listed:
        say("No GPU answers on this machine. `kernelmux devices` lists the ones it can decide and tune for.")
        return
    head = ("name", "torch name", "cc", "SMs", "smem KiB", "L2 MiB", "GB", "GB/s", "bf16 TF", "fp8 TF", "fp4 TF")
    table(head, [_row(d) for d in listed], right=range(3, len(head)))
    for device in listed if live else ():
        if device.note:
            say(f"{device.name}: {device.note}.")


def _row(d: Device) -> tuple[object, ...]:
    rates = (d.peak_tflops.get(rate) for rate in ("bf16", "fp8", "fp4"))
    smem, l2 = d.shared_bytes // 1024, d.l2_bytes // 2**20
    return (d.name, d.torch_name, d.capability or d.arch, d.sm_count, smem, l2, d.memory_gb, d.bandwidth_gbs, *rates)


def _one(device: Device) -> None:
    shown = facts(device)
    said = shown.pop("sources")
    table(("fact", "value", "source"), [(key, _words(value), said.get(key, "")) for key, value in shown.items()])


def _words(value: object) -> object:
    if isinstance(value, dict):
        return " ".join(f"{k}={v:g}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else value
