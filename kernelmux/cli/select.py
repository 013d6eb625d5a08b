"""``kernelmux select``: which kernel would run, with which configuration, and why, for any GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kernelmux.cli.output import emit, note, say
from kernelmux.cli.params import SHAPE


@click.command()
@click.argument("op")
@click.option("--device", help="cuda:0, cpu, a catalog name, the name torch reports, or a capability (sm120).")
@click.option("--quant", help="Quantization scheme of the layer; none if not given.")
@click.option("--dtype", help="Dtype of the activations, as in bfloat16.")
@click.option("--shape", type=SHAPE, help="Axes of the op, as in M=64,E=128,N=384,K=2048,topk=8; M=1..4096 is a range.")
@click.option("--activation", help="Activation, as in silu.")
@click.option("--backend", help="Ask for this backend: it is honoured, or the command says why it cannot be.")
@click.option("--policy", type=click.Path(path_type=Path), help="A policy file laid over the built-in rules.")
@click.option(
    "--assume-packages",
    type=click.Choice(["installed", "all"]),
    default="installed",
    show_default=True,
    help="Decide for what is installed here, or as if every optional package were.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def select(
    op: str,
    device: str | None,
    quant: str | None,
    dtype: str | None,
    shape: dict[str, Any] | None,
    activation: str | None,
    backend: str | None,
    policy: Path | None,
    assume_packages: str,
    as_json: bool,
) -> None:
    """Choose the kernel for an op, and explain the choice.

    For a device that is here, or for any that is described (`kernelmux devices`).
    """
    from kernelmux.policies.select import select_backend
    from kernelmux.registry.packages import Packages

    selection = select_backend(
        op,
        device=device,
        quant=quant,
        dtype=dtype,
        shape=shape,
        activation=activation,
        backend=backend,
        policy=policy,
        packages=Packages.assume_all(Packages.installed()) if assume_packages == "all" else None,
    )
    if device is None and selection.device.name == "cpu":
        note("No --device was given and no GPU answers on this machine: decided for the CPU.")
    emit(selection.to_json(), as_json, lambda: say(selection.explain()))
