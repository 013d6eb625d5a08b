"""The live matrix: every accepted kernel of every op on this machine, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kernelmux import __version__
from kernelmux.errors import DeviceNotFound, MissingPackage, NoKernel
from kernelmux.registry.decision import Conditional, Rejected
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
from kernelmux.reports.matrix_pool import START_S, Job, run
from kernelmux.reports.matrix_static import Chooser, header, nothing_left

if TYPE_CHECKING:
    from kernelmux.device import Device
    from kernelmux.registry.kernel import Kernel

EXPLANATION = "it failed without a word"


@dataclass(frozen=True, slots=True)
class _Question:
    """A case and a kernel, with the token counts the kernel takes."""

    case: Case
    kernel: Kernel
    outcomes: tuple[tuple[int, Outcome], ...]  # M, what stands in the cell


def live(
    spec: str,
    *,
    tokens: Sequence[int],
    filters: Sequence[Filter] = (),
    shard: tuple[int, int] | None = None,
    resume: bool = False,
    limit_s: float = 60.0,
    budget_s: float | None = None,
    jobs: int = 4,
    say: Progress = lambda text: None,
) -> Matrix:
    """Run, check and time. ``spec``: cuda:N, or cpu. Raises DeviceNotFound, MissingPackage, UsageError for no cell."""
    begun = time.perf_counter()
    device = here(spec)
    packages = Packages.installed()
    if not packages.has("torch"):
        raise MissingPackage("torch", "running kernels", "pip install 'kernelmux[torch]'")
    from kernelmux.registry.discovery import registry

    known = registry()
    asked = _questions(device, packages, tokens, filters)
    if not asked:
        raise nothing_left(filters)
    facts = facts_of(packages, "what is installed here")
    plan = plan_id(
        __version__, "live", device.name, device.torch_name, tokens, [one.text for one in filters],
        msgspec.to_builtins(facts), [(one.case, one.kernel.name) for one in asked],
    )  # fmt: skip
    mine = shard_of(asked, shard)
    places = [(question, m, outcome) for question in mine for m, outcome in question.outcomes]
    blank = [Cell(question.case, device.name, m, outcome, "live") for question, m, outcome in places]
    with Journal(plan, shard, resume) as journal:
        done = {number: journal.found[cell.key] for number, cell in enumerate(blank) if cell.key in journal.found}
        if done:
            say(f"{len(done)} cells were measured before")
        with tempfile.TemporaryDirectory(prefix="kernelmux-") as folder:
            lock = _lock(device, folder)
            work = _jobs(mine, done, spec, lock, limit_s)
            left, red = len(blank) - len(done), 0
            for answer in run(work, width=jobs, limit_s=limit_s, environment=_environment(device), budget_s=budget_s):
                result = msgspec.convert(answer.result, Result)
                if result.status != "ok" and not result.explanation:
                    result = msgspec.structs.replace(result, explanation=EXPLANATION)
                done[answer.cell] = result
                journal.keep(blank[answer.cell].key, result)
                left, red = left - 1, red + (result.status in RED)
                say(f"{_told(blank[answer.cell], result)}; {left} cells left" + (f", {red} failed" if red else ""))
        if left:
            say(f"the {budget_s:g} s of --budget are spent: {left} cells were not run; --resume runs them")
        spent = Result("skipped", f"not run: the {budget_s or 0:g} s of --budget were spent before")
        cells = [msgspec.structs.replace(cell, result=done.get(number, spent)) for number, cell in enumerate(blank)]
        cells = [cell for cell in cells if takes_cell(filters, cell)]
        names = {question.case.op for question in asked}
        head = header(
            known, [device], facts, names, kinds=("live",), tokens=tuple(tokens), plan=plan, shard=shard,
            filters=filters, seconds=time.perf_counter() - begun,
        )  # fmt: skip
        if not left:
            journal.done()
        return Matrix(head, in_order(cells, [device.name]))


def here(spec: str) -> Device:
    """The device of this machine that is meant."""
    from kernelmux.device import resolve_device

    try:
        found = resolve_device(spec)
    except DeviceNotFound as error:
        raise DeviceNotFound(
            f"--live runs kernels on a device of this machine, and {spec} does not answer. Take --device cpu to see "
            "the portable ones, or leave --live out: the static matrix needs no GPU."
        ) from error
    if not (found.live or found.vendor == "cpu"):
        raise DeviceNotFound(f"--live runs kernels here, and {found.name} is a described device. Take cuda:N or cpu.")
    return found


def _questions(device: Device, packages: Packages, tokens: Sequence[int], filters: Sequence[Filter]) -> list[_Question]:
    from kernelmux.registry.discovery import registry

    known = registry()
    chooser = Chooser(known, packages)
    found = []
    for op in known.ops():
        for case in cases(op, dtype_of(op, device), demands=False):
            if not takes(
                filters, op=case.op, scheme=case.scheme, variant=case.variant, dtype=case.dtype, device=device.name,
                kind="live",
            ):  # fmt: skip
                continue
            counts = [m for m in (tokens if op.token_axis else (0,)) if takes(filters, m=m)]
            chosen = {m: _chosen(chooser, case, device, m) for m in counts}
            for kernel in known.kernels(op.name):
                if not takes(filters, backend=kernel.backend, kernel=kernel.name):
                    continue
                outcomes = []
                for m in counts:
                    decision = kernel.judge(op, device, packages, problem_of(case, op, m))
                    if not isinstance(decision, Rejected) and not _cannot_run(decision, packages, kernel):
                        outcomes.append((m, _standing(chooser, case, kernel, device, m, chosen[m])))
                if outcomes:
                    found.append(_Question(case, kernel, tuple(outcomes)))
    return found


def _cannot_run(decision: Any, packages: Packages, kernel: Kernel) -> bool:
    """Whether all that is missing is something to run it with: a condition, for a machine that only decides."""
    from kernelmux.registry.requirements import NeedsPackage

    if not isinstance(decision, Conditional):
        return False
    return any(
        isinstance(need, NeedsPackage) and need.to_run and not packages.has(need.name, need.spec)
        for need in kernel.requirements
    )


def _chosen(chooser: Chooser, case: Case, device: Device, m: int) -> Outcome | None:
    try:
        return chooser.outcome(case, device, m)
    except NoKernel:
        return None


def _standing(chooser: Chooser, case: Case, kernel: Kernel, device: Device, m: int, chosen: Outcome | None) -> Outcome:
    """What stands in the cell of one kernel: its own part of the choice."""
    found = chooser.select(case, device, m, kernel.name)
    first = chosen is not None and chosen.kernel == kernel.name
    if first and chosen is not None:
        why, source, rule = f"chosen: {chosen.why}", chosen.source, chosen.rule
    else:
        taken = chosen.kernel if chosen is not None and chosen.kernel else "nothing"
        why, source, rule = f"can run; {taken} is chosen", "accepted", None
    return Outcome(
        kernel.backend, kernel.name, found.scheme.name, source, rule, chosen.link if first and chosen else None, why,
        kernel.evidence_on(device), found.config_source, found.config_grade, found.conditions,
    )  # fmt: skip


def _jobs(mine: Sequence[_Question], done: dict[int, Result], spec: str, lock: str | None, limit_s: float) -> list[Job]:
    work, first = [], 0
    for question in mine:
        count = len(question.outcomes)
        numbers = tuple(number for number in range(first, first + count) if number not in done)
        if numbers:
            payload = {
                "kind": "live", "case": msgspec.to_builtins(question.case), "kernel": question.kernel.name,
                "device": spec, "ms": [m for m, _ in question.outcomes], "first": first, "lock": lock,
                "start_s": START_S, "limit_s": limit_s,
            }  # fmt: skip
            work.append(Job(payload, numbers, f"{question.case.op} {question.case.scheme}: {question.kernel.name}"))
        first += count
    return work


def _environment(device: Device) -> dict[str, str]:
    """Of the probes: the check is theirs; on a processor they share its cores."""
    single = {"OMP_NUM_THREADS": "1"} if device.vendor == "cpu" else {}
    return {"KERNELMUX_TRUST": "off", **single}


def _lock(device: Device, folder: str) -> str | None:
    """The file whose lock gives leave to use the GPU; runs of one machine share that of a GPU."""
    if device.vendor == "cpu":
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", "-").replace("/", "-")
    name = f"kernelmux-gpu-{visible}-{device.index or 0}.lock"
    path = Path(tempfile.gettempdir()) / name
    try:
        path.touch()
    except OSError:
        path = Path(folder) / name
        path.touch()
    return str(path)


def _told(cell: Cell, result: Result) -> str:
    if result.status != "ok":
        return f"{cell.title}: {result.status}: {result.explanation[:160]}"
    time_us = result.time_us
    share = "" if result.roofline_percent is None else f", {result.roofline_percent:.0f}% of the roofline"
    return f"{cell.title}: " + ("ok" if time_us is None else f"{time_us.median:.2f} us{share}")
