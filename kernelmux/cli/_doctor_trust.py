"""What ``kernelmux doctor`` says and does about kernels that were checked: list them, try one again."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from kernelmux.cli.output import say, table
from kernelmux.device import Device, live_devices, resolve_device
from kernelmux.errors import KernelmuxError, UsageError
from kernelmux.policies import standing
from kernelmux.registry.discovery import registry
from kernelmux.store import quarantine
from kernelmux.store.quarantine import QUARANTINED, STATUSES, Verdict


def listing() -> dict[str, Any]:
    """The verdicts by status. ``current``: whether a verdict is about the GPU, driver, versions and code of now."""
    book = quarantine.book()
    devices = _devices()
    found: dict[str, Any] = {"mode": standing.mode(), "path": str(book.path)}
    order = sorted(book, key=lambda verdict: (verdict.kernel, verdict.dtype, verdict.when))
    for status in STATUSES:
        found[status] = [
            {**verdict.to_json(), "current": is_current(verdict, devices)}
            for verdict in order
            if verdict.status == status
        ]
    return found


def _devices() -> list[Device]:
    """Where kernels are checked here: GPUs, in strict mode the CPU too."""
    return [*live_devices(), *([resolve_device("cpu")] if standing.mode() == standing.STRICT else [])]


def is_current(verdict: Verdict, devices: Iterable[Device]) -> bool:
    """Whether a kernel here and now has this verdict's fingerprint."""
    kernel = _kernel(verdict)
    here = [device for device in devices if device.torch_name == verdict.fingerprint.get("device")]
    try:
        return kernel is not None and any(
            standing.fingerprint(kernel, device) == verdict.fingerprint for device in here
        )
    except KernelmuxError:  # what tells its code needs a package that is not there
        return False


def _kernel(verdict: Verdict) -> Any:
    known = registry()
    if verdict.op not in known.names():
        return None
    return next((kernel for kernel in known.kernels(verdict.op) if kernel.name == verdict.kernel), None)


def say_verdicts(data: dict[str, Any]) -> None:
    """The listing in words; nothing where no kernel was ever checked."""
    rows = [
        (
            one["kernel"], _form(one), one["fingerprint"].get("device", ""), status, one["when"][:10],
            one["reason"] + ("" if one["current"] else " (of another GPU, driver, version or code)"),
        )
        for status in (QUARANTINED, *(word for word in STATUSES if word != QUARANTINED))
        for one in data[status]
    ]  # fmt: skip
    if rows:
        say(f"Kernels checked on a GPU ({data['path']}):")
        table(("kernel", "for", "GPU", "verdict", "date", "why"), rows)
    else:
        say("No kernel has been checked on a GPU yet: that happens before its first use.")
    if data[QUARANTINED]:
        say("Try one again with `kernelmux doctor --retry KERNEL`.")


def _form(one: dict[str, Any]) -> str:
    return " ".join(filter(None, (one["scheme"] if one["scheme"] != "none" else "", one["dtype"], one["activation"])))


def retry(name: str) -> list[dict[str, Any]]:
    """Drop what stands against the kernel, and check it again where its GPU is here; what came of each form.

    Raises UsageError for a kernel that nothing stands against, StoreError where the file cannot be written.
    """
    dropped = quarantine.book().forget(name)
    if not dropped:
        _refuse(name)
    devices = _devices()
    return [_again(verdict, devices) for verdict in _newest_of_each_form(dropped)]


def _refuse(name: str) -> None:
    known = sorted({verdict.kernel for verdict in quarantine.book() if verdict.status == QUARANTINED})
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Quarantined: {', '.join(known) or 'no kernel at all'}."
    raise UsageError(f"no kernel {name!r} is quarantined. {hint}")


def _newest_of_each_form(verdicts: Iterable[Verdict]) -> list[Verdict]:
    newest: dict[tuple[str | None, ...], Verdict] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.when):
        newest[verdict.scheme, verdict.dtype, verdict.activation, verdict.fingerprint.get("device")] = verdict
    return list(newest.values())


def _again(verdict: Verdict, devices: Iterable[Device]) -> dict[str, Any]:
    """The outcome: a verdict's status, or ``dropped`` where nothing could be checked here and now."""
    told = {
        "kernel": verdict.kernel,
        "scheme": verdict.scheme,
        "dtype": verdict.dtype,
        "activation": verdict.activation,
    }
    here = next((device for device in devices if device.torch_name == verdict.fingerprint.get("device")), None)
    if here is None:
        return {**told, "status": "dropped", "reason": "its GPU is not here; it is checked again before its next use"}
    try:
        from kernelmux.policies.select import select_backend
        from kernelmux.trust.gate import examine

        selection = select_backend(
            verdict.op, device=here, quant=verdict.scheme, dtype=verdict.dtype, backend=verdict.kernel,
            shape=dict(verdict.evidence.get("asked", {})), activation=verdict.activation,
        )  # fmt: skip
        found = examine(selection)
    except KernelmuxError as error:
        return {**told, "status": "dropped", "reason": f"it cannot be checked now: {error}"}
    return {**told, "status": found.status, "reason": found.reason}


def say_outcomes(outcomes: Iterable[dict[str, Any]]) -> None:
    for one in outcomes:
        why = f": {one['reason']}" if one["reason"] else ""
        say(f"{one['kernel']} ({_form(one)}): {one['status']}{why}")
