"""The compile-only matrix: every Triton and CUDA kernel of ours, for every capability that the compilers here know."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kernelmux import __version__
from kernelmux.registry.decision import Rejected
from kernelmux.registry.packages import Packages
from kernelmux.reports.matrix import RED, Case, Cell, Matrix, Outcome, Result
from kernelmux.reports.matrix_cases import (
    Filter,
    Progress,
    cases,
    dtype_of,
    in_order,
    plan_id,
    problem_of,
    shard_of,
    takes,
    takes_cell,
)
from kernelmux.reports.matrix_journal import Journal
from kernelmux.reports.matrix_packages import facts_of
from kernelmux.reports.matrix_pool import Job, run
from kernelmux.reports.matrix_static import header, nothing_left

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.kernel import Kernel
    from kernelmux.registry.registry import Registry

OURS = ("triton", "jit_cuda")
_ACTIVATION = "silu"  # what the hooks of experts compile
_NOT_FOR_IT = ("capability", "vendor", "dtype", "scheme", "activation", "untrusted")  # the static matrix says so


def compiled(
    devices: Sequence[Device],
    *,
    tokens: Sequence[int],
    filters: Sequence[Filter] = (),
    shard: tuple[int, int] | None = None,
    resume: bool = False,
    limit_s: float = 60.0,
    budget_s: float | None = None,
    jobs: int | None = None,
    say: Progress = lambda text: None,
) -> Matrix:
    """Compile for one device of each arch among these. Raises UsageError where nothing is left."""
    from kernelmux.registry.discovery import registry

    begun = time.perf_counter()
    known, packages = registry(), Packages.installed()
    targets = _one_an_arch(devices)
    groups = shard_of(asked := _questions(known, packages, targets, filters), shard)
    if not asked:
        raise nothing_left(filters)
    facts = facts_of(packages, "what is installed here")
    plan = plan_id(
        __version__, "compiled", [device.name for device in targets], [one.text for one in filters],
        msgspec.to_builtins(facts), [[cell.key for cell, _ in group] for group in asked], list(tokens),
    )  # fmt: skip
    blank = [cell for group in groups for cell, _ in group]
    done: dict[int, Result] = {}
    work, first = [], 0
    with Journal(plan, shard, resume) as journal:
        for group in groups:
            numbers = []
            for number, (cell, told) in enumerate(group, first):
                found = told or journal.found.get(cell.key)
                if found is None:
                    numbers.append(number)
                else:
                    done[number] = found
            if numbers:
                work.append(_job(known, group, first, numbers, tokens))
            first += len(group)
        left, red = len(blank) - len(done), 0
        width = jobs or max(1, os.cpu_count() or 1)
        for answer in run(work, width=width, limit_s=limit_s, budget_s=budget_s):
            result = msgspec.convert(answer.result, Result)
            done[answer.cell] = result
            journal.keep(blank[answer.cell].key, result)
            left, red = left - 1, red + (result.status in RED)
            words = result.explanation[:120] if result.status != "ok" else f"{result.registers} registers"
            failed = f", {red} failed" if red else ""
            say(f"{blank[answer.cell].title}: {result.status}, {words}; {left} left{failed}")
        if left:
            say(f"the {budget_s:g} s of --budget are spent: {left} cells were not run; --resume runs them")
        spent = Result("skipped", f"not run: the {budget_s or 0:g} s of --budget were spent before")
        cells = [msgspec.structs.replace(cell, result=done.get(number, spent)) for number, cell in enumerate(blank)]
        head = header(
            known, targets, facts, {cell.case.op for group in asked for cell, _ in group}, kinds=("compiled",),
            tokens=(), plan=plan, shard=shard, filters=filters, compilers=compilers(),
            seconds=time.perf_counter() - begun,
        )  # fmt: skip
        if not left:
            journal.done()
        kept = [cell for cell in cells if takes_cell(filters, cell)]
        return Matrix(head, in_order(kept, [device.name for device in targets]))


def _one_an_arch(devices: Sequence[Device]) -> list[Device]:
    """The representative of each capability among these devices, or the first of its arch; no CPU."""
    from kernelmux.device import catalog, representative

    found: dict[str, Device] = {}
    names = {device.name for device in devices}
    for device in devices:
        if device.vendor == "cpu":
            continue
        stands = representative(device.capability) if device.capability else None
        if stands is not None and stands.name in names:
            device = catalog()[stands.name]
        found.setdefault(device.arch, device)
    return list(found.values())


_Asked = tuple[Cell, "Result | None"]  # a result where there is nothing to run


def _questions(
    known: Registry, packages: Packages, devices: Sequence[Device], filters: Sequence[Filter]
) -> list[list[_Asked]]:
    """A group a kernel and case; in it a cell a device."""
    groups: dict[tuple[Any, ...], list[_Asked]] = {}
    for op in known.ops():
        kernels = [k for k in known.kernels(op.name) if k.compile or (k.backend in OURS and _ours(k))]
        for device in devices:
            for case in cases(op, dtype_of(op, device), demands=False):
                if case.activation not in (None, _ACTIVATION):
                    continue
                for kernel in kernels:
                    if not takes(
                        filters, op=case.op, scheme=case.scheme, variant=case.variant, dtype=case.dtype,
                        device=device.name, kind="compiled", backend=kernel.backend, kernel=kernel.name,
                    ):  # fmt: skip
                        continue
                    answer = kernel.judge(op, device, packages, problem_of(case, op, 64))
                    if isinstance(answer, Rejected) and answer.code in _NOT_FOR_IT:
                        continue
                    cell = Cell(case, device.name, 0, _outcome(kernel, case, device), "compiled")
                    key = (case.op, case.scheme, case.variant, kernel.name)
                    groups.setdefault(key, []).append((cell, _told(kernel, device, answer)))
    return list(groups.values())


def _ours(kernel: Kernel) -> bool:
    return kernel.load.startswith("kernelmux.backends.triton") or kernel.load.startswith("kernelmux.backends.jit_cuda")


def _outcome(kernel: Kernel, case: Case, device: Device) -> Outcome:
    why = "compiled for this capability, not run"
    return Outcome(kernel.backend, kernel.name, case.scheme, "accepted", None, None, why, kernel.evidence_on(device))


def _told(kernel: Kernel, device: Device, answer: Any) -> Result | None:
    """What can be said without compiling: nobody here knows the GPU, or the kernel has no hook."""
    if isinstance(answer, Rejected):
        remedy = f"; {answer.remedy}" if answer.remedy else ""
        return Result("unknown", f"{answer.reason}{remedy}", arch=device.arch)
    if kernel.compile is None:
        return Result("skipped", "it is not compiled ahead of its first call: it declares no hook", arch=device.arch)
    if device.capability is None:
        return Result(
            "unknown", f"{device.arch} is Triton's HIP target, which is not compiled for here: what its library "
            "declares is all that is known", arch=device.arch,
        )  # fmt: skip
    unknown = knows(kernel.backend, device)
    return Result("unknown", unknown, arch=device.arch) if unknown else None


@lru_cache
def knows(backend: str, device: Device) -> str:
    """Why the compiler of a backend that is installed here cannot compile for a device; empty: it can."""
    try:
        if backend == "jit_cuda":
            from kernelmux.backends.jit_cuda.compiler import archs, version

            if device.arch not in archs():
                return f"NVRTC {version()} does not know {device.arch}; a later release may (11.0 needs NVRTC 13)"
        elif backend == "triton":
            return _triton_knows(device)
    except Exception as error:  # no compiler, or one that does not answer
        return f"no compiler answers here: {' '.join(str(error).split())[:200]}"
    return ""


def _triton_knows(device: Device) -> str:
    """Ask the assembler that Triton would call."""
    from importlib.metadata import version

    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    assert device.capability is not None
    arch = sm_arch_from_capability(device.capability.sm)
    found = get_ptxas(device.capability.sm) if get_ptxas.__code__.co_argcount else get_ptxas()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.ptx"
        source.write_text(f".version 7.8\n.target {arch}\n.address_size 64\n")
        given = [found.path, f"--gpu-name={arch}", str(source), "-o", str(Path(folder) / "empty.cubin")]
        said = subprocess.run(given, capture_output=True, text=True, check=False)
    if said.returncode and "gpu-name" in said.stderr:
        return f"Triton {version('triton')} and its ptxas {found.version} do not know {arch}; a later release may"
    return ""


def compilers() -> dict[str, str]:
    """The compilers of this machine with their versions."""
    found = {}
    triton = Packages.installed().get("triton")
    if triton:
        found["triton"] = triton
    try:
        from kernelmux.backends.jit_cuda.compiler import version

        found["nvrtc"] = version()
    except Exception:  # none is installed, or no CuPy to call it
        return found
    return found


def _job(known: Registry, group: Sequence[_Asked], first: int, numbers: Sequence[int], tokens: Sequence[int]) -> Job:
    cell = group[0][0]
    op = known.op(cell.case.op)
    shape: dict[str, Any] = dict(cell.case.shape)
    if op.token_axis:
        shape[op.token_axis] = [min(tokens), max(tokens)]
    payload = {
        "kind": "compiled", "op": cell.case.op, "kernel": cell.outcome.kernel, "shape": shape, "first": first,
        "devices": [one.device for one, _ in group], "dtypes": [one.case.dtype for one, _ in group],
    }  # fmt: skip
    return Job(payload, tuple(numbers), f"{cell.case.op}: {cell.outcome.kernel}")
