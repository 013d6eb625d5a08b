"""``kernelmux doctor``: what this installation has, what it lacks, and what that costs."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kernelmux import __version__
from kernelmux.cli.output import emit, say, table
from kernelmux.device import live_devices

if TYPE_CHECKING:
    from kernelmux.policies.lint import Fault

# Package, and what is not possible without it.
_PACKAGES = {
    "triton": "compiling and tuning Triton kernels",
    "torch": "running kernels and tuning on a GPU: pip install 'kernelmux[torch]'",
    "flashinfer-python": "FlashInfer's kernels: pip install 'kernelmux[flashinfer]'",
    "nvidia-ml-py": "reading clocks while measuring: pip install nvidia-ml-py",
    "matplotlib": "plots in reports: pip install 'kernelmux[plots]'",
}


@click.command()
@click.option("--policies", is_flag=True, help="Judge the rules that choose kernels instead; exits with 1 on a fault.")
@click.option("--retry", metavar="KERNEL", help="Check a quarantined kernel again; exits with 1 if it fails again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def doctor(ctx: click.Context, policies: bool, retry: str | None, as_json: bool) -> None:
    """Say what this installation has and lacks.

    Packages, GPUs, folders, kernels of other packages that could not be taken, and kernels that were checked on a GPU.
    """
    if retry is not None:
        _retry(ctx, retry, as_json)
        return
    if policies:
        _judge_policies(ctx, as_json)
        return
    from kernelmux.cli import _doctor_trust
    from kernelmux.registry.discovery import registry

    data = {
        "kernelmux": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [device.to_json() for device in live_devices()],
        "folders": [_folder(word, function) for word, function in (("cache", "cache_dir"), ("config", "config_dir"))],
        "left_out": list(registry().faults),
        "trust": _doctor_trust.listing(),
    }
    emit(data, as_json, lambda: _render(data))


def _retry(ctx: click.Context, kernel: str, as_json: bool) -> None:
    from kernelmux.cli import _doctor_trust

    outcomes = _doctor_trust.retry(kernel)
    emit({"retried": outcomes}, as_json, lambda: _doctor_trust.say_outcomes(outcomes))
    if any(one["status"] == "quarantined" for one in outcomes):
        ctx.exit(1)


def _judge_policies(ctx: click.Context, as_json: bool) -> None:
    """Lint the rules kernelmux ships against every op and kernel of this installation."""
    from kernelmux.policies.lint import lint
    from kernelmux.policies.policy import Policy
    from kernelmux.registry.discovery import registry

    policy = Policy.builtin_all()
    faults = lint(policy, registry())
    data = {"ok": not faults, "rules": [rule.id for rule in policy.rules], "faults": [f.to_json() for f in faults]}
    emit(data, as_json, lambda: _say_faults(len(policy.rules), faults))
    if faults:
        ctx.exit(1)


def _say_faults(rules: int, faults: list[Fault]) -> None:
    for fault in faults:
        say(f"{fault} [{fault.code}]")
    say(f"{rules} rules, {len(faults)} faults." if faults else f"{rules} rules, all sound.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _folder(word: str, function: str) -> dict[str, Any]:
    """Where a folder is and whether it can be written, without creating it."""
    try:
        path = Path(getattr(importlib.import_module("kernelmux.store.paths"), function)())
    except (ImportError, AttributeError) as error:
        return {"folder": word, "path": None, "writable": False, "why": str(error)}
    nearest = next(p for p in (path, *path.parents) if p.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    why = "" if writable else f"{nearest} cannot be written; set KERNELMUX_{word.upper()}_DIR to a folder that can"
    return {"folder": word, "path": str(path), "writable": writable, "why": why}


def _render(data: dict[str, Any]) -> None:
    from kernelmux.cli import _doctor_trust

    say(f"kernelmux {data['kernelmux']}, Python {data['python']}")
    rows = [
        (name, found or "missing", "" if found else f"needed for {_PACKAGES[name]}")
        for name, found in data["packages"].items()
    ]
    table(("package", "version", "what is missing without it"), rows)
    if not data["devices"]:
        say("GPU: none answers. Deciding and `tune --offline` work for every GPU of `kernelmux devices`.")
    for d in data["devices"]:
        trust = "" if d["trusted"] else "; not in the catalog, portable kernels only"
        say(
            f"GPU {d['index']}: {d['torch_name']} ({d['capability'] or d['arch']}), "
            f"driver {d['driver'] or 'unknown'}{trust}"
        )
    for folder in data["folders"]:
        say(
            f"{folder['folder']} folder: {folder['path'] or 'unknown'}"
            + (f": {folder['why']}" if folder["why"] else "")
        )
    for fault in data["left_out"]:
        say(f"left out: {fault}. Mend or uninstall that package.")
    _doctor_trust.say_verdicts(data["trust"])
