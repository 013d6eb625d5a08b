"""What a probe does with one kernel and the compilers: compile what its calls would need, for each GPU in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kernelmux.registry.lazy import load
from kernelmux.reports.matrix_probe import Pipe

if TYPE_CHECKING:
    from kernelmux.backends.compile_job import CompileFacts, CompileJob
    from kernelmux.device import Device


def probe(job: Mapping[str, Any], pipe: Pipe) -> None:
    """Answer for every cell of the job, in order."""
    from kernelmux.device import resolve_device
    from kernelmux.registry.discovery import registry

    kernel = next(one for one in registry().kernels(job["op"]) if one.name == job["kernel"])
    jobs: Callable[..., Iterable[CompileJob]] = load(str(kernel.compile), f"compiling {kernel.name}")
    for cell in job["cells"]:
        device = resolve_device(job["devices"][cell - job["first"]])
        begun = time.perf_counter()
        result = _cell(jobs, device, job["dtypes"][cell - job["first"]], job["shape"], pipe)
        pipe.result(cell, {**result, "seconds": round(time.perf_counter() - begun, 3)})


def _cell(
    jobs: Callable[..., Iterable[CompileJob]], device: Device, dtype: str, shape: Mapping[str, Any], pipe: Pipe
) -> dict[str, Any]:
    from kernelmux.errors import CompileFailed

    given = {axis: tuple(size) if isinstance(size, list) else size for axis, size in shape.items()}
    count, failures, facts = 0, [], []
    try:
        for one in jobs(device, dtype, given):
            count += 1
            pipe.at(f"compiling {one.what} for {device.arch}")
            try:
                one.run()
                found = one.facts() if one.facts is not None else None
                facts += [] if found is None else [found]
            except CompileFailed as error:
                failures.append(" ".join(str(error).split())[:300])
    except Exception as error:  # whatever a compiler raises is a fact about this kernel and GPU
        failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    result: dict[str, Any] = {"arch": device.arch, "jobs": count, "failed": len(failures), **_most(facts)}
    if failures:
        return {"status": "error", "explanation": failures[0], **result}
    if not count:
        return {"status": "skipped", "explanation": "its hook names nothing to compile for these sizes", **result}
    return {"status": "ok", **result}


def _most(facts: list[CompileFacts]) -> dict[str, int]:
    """The largest of each over all compilations."""
    names = ("registers", "spills", "shared_bytes")
    return {name: max(getattr(one, name) for one in facts) for name in names} if facts else {}
