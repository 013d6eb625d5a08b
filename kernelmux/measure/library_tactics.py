"""Tune a library's kernel by the library's own autotuner, then time and check what it chose, and record it.

The library decides on the tactic; whether the kernel is any good at it is measured here as for every other kernel, so
that ``select_backend`` can compare: a Measurement for each token count, and the samples, the time before and the
tactics as rows of a run in the journal. A tactic whose result is wrong is thrown away with the whole file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..policies.autotune import should_autotune
from ..registry.lazy import load
from ..registry.measurement import Measurement
from ..registry.packages import Packages
from .small_record import token_ranges, versions

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.selection import Selection

Timer = Callable[[Callable[[], Any]], tuple[float, ...]]
"""Microseconds of one call, a sample each."""

RUNG = "library"
SLACK = 2.0  # times the op's tolerance; a tactic that is wrong is far beyond it


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it: microseconds by token count, before and after; ``wrong`` says what is not right after it."""

    kernel: str
    us: Mapping[int, float]
    before_us: Mapping[int, float]
    raced: bool
    why: str
    tactics: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    wrong: Mapping[int, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()


def tune(
    selection: Selection,
    tensors: Mapping[str, Tensor | None],
    xs: Mapping[int, Tensor],
    *,
    timer: Timer,
    journal: Path | None = None,
    packages: Packages | None = None,
) -> Tuned:
    """Race the tactics of the selected nvfp4_gemm kernel, if the rules say that it has any, and record the outcome.

    ``tensors`` are the weights as a checkpoint has them, ``xs`` an input for each token count. Raises UsageError for
    another op or an empty ``xs``, FrozenError after freeze.
    """
    from ..backends.flashinfer import autotuner

    if selection.op.name not in autotuner.OPERATIONS or not xs or selection.op.name != "nvfp4_gemm":
        raise UsageError("tune takes a Selection of nvfp4_gemm and an x for at least one token count.")
    installed = packages if packages is not None else Packages.installed()
    weights = selection.prepare(**tensors)  # the trust gate may move the Selection to another kernel
    answer = should_autotune(selection)
    before = {m: timer(lambda x=x: selection(x, weights)) for m, x in xs.items()}  # type: ignore[misc]
    file = autotuner.tactics_file(selection.device, installed)
    after, tactics = before, {}
    if answer:
        with autotuner.racing(file):
            selection(xs[max(xs)], weights)
        tactics = autotuner.chosen(file, autotuner.OPERATIONS[selection.op.name])
    wrong = {m: said for m, x in xs.items() if (said := _fault(selection, x, weights, tensors))}
    if wrong and answer:
        autotuner.throw_away(file)
    elif answer:
        after = {m: timer(lambda x=x: selection(x, weights)) for m, x in xs.items()}  # type: ignore[misc]
    right = {m: median(samples) for m, samples in after.items() if m not in wrong}
    found = _measurements(selection, right, xs, tensors, installed)
    tuned = Tuned(
        kernel=selection.kernel,
        us={m: median(samples) for m, samples in after.items()},
        before_us={m: median(samples) for m, samples in before.items()},
        raced=bool(answer),
        why=answer.why,
        tactics=tactics,
        wrong=wrong,
        measurements=found,
    )
    _record(tuned, selection, before, after, file, journal)
    return tuned


def _fault(selection: Selection, x: Tensor, weights: Any, tensors: Mapping[str, Any]) -> str:
    """What is wrong with the kernel's result on x, row by row; empty where nothing is."""
    want = load(selection.op.reference)(x, **tensors).float()
    got = selection(x, weights).float()
    if not bool(got.isfinite().all()):
        return "NaN or infinity in the result"
    name = str(x.dtype).removeprefix("torch.")
    tolerance = selection.op.tolerance[name]
    size = want.shape[-1]
    limit = SLACK * (tolerance.rtol * want.reshape(-1, size).norm(dim=1) + tolerance.atol * size**0.5) + 1e-30
    worst = float(((got - want).reshape(-1, size).norm(dim=1) / limit).max()) if want.numel() else 0.0
    return "" if worst <= 1 else f"a row is {worst:.3g} times as far from the reference as it may be"


def _measurements(
    selection: Selection,
    us: Mapping[int, float],
    xs: Mapping[int, Tensor],
    tensors: Mapping[str, Any],
    packages: Packages,
) -> tuple[Measurement, ...]:
    if not us:
        return ()
    ranges = token_ranges(us)
    n, k = tensors["w"].shape[0], next(iter(xs.values())).shape[-1]
    known = versions(selection.declaration, selection.device, packages)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return tuple(
        Measurement(
            op=selection.op.name,
            device=selection.device.table_name,
            scheme=selection.problem.scheme.name,
            dtype=str(xs[m].dtype).removeprefix("torch."),
            shape=(("K", k), ("N", n)),
            activation=None,
            m_lo=ranges[m][0],
            m_hi=ranges[m][1],
            kernel=selection.kernel,
            us=round(value, 4),
            versions=known,
            when=when,
        )
        for m, value in us.items()
    )


def _record(
    tuned: Tuned,
    selection: Selection,
    before: Mapping[int, Sequence[float]],
    after: Mapping[int, Sequence[float]],
    file: Path,
    journal: Path | None,
) -> None:
    from ..store.journal import Journal
    from ..store.paths import journal_path
    from ..store.records import Row, canonical

    shape = dict(tuned.measurements[0].shape) if tuned.measurements else {}
    known = dict(tuned.measurements[0].versions) if tuned.measurements else {}
    tile = canonical({"kernel": tuned.kernel, "tactics": {key: list(value) for key, value in tuned.tactics.items()}})
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    with Journal(journal or journal_path()) as book:
        run = book.start_run(
            {"device": selection.device.table_name, "kernel": tuned.kernel, **known}, shape, "library autotuner"
        )
        book.record(
            *(
                Row(
                    run, m, "gemm", tile, RUNG,
                    status="wrong" if m in tuned.wrong else "ok",
                    reason=tuned.wrong.get(m, ""),
                    samples_us=tuple(after[m]),
                    extra={"before_us": list(before[m]), "raced": tuned.raced, "why": tuned.why, "sha256": sha256},
                )
                for m in after
            )
        )  # fmt: skip
        if tuned.measurements:
            book.record_measurement(*tuned.measurements)


def cold_timer(device_index: int = 0, samples: int = 25) -> Timer:
    """Times one call as a CUDA graph, what the L2 held being read away before each replay."""
    import torch

    place = torch.device("cuda", device_index)
    l2 = int(getattr(torch.cuda.get_device_properties(place), "L2_cache_size", 0) or 64 << 20)
    wash = torch.ones(3 * l2 // 4, device=place)
    sink = torch.empty((), device=place)

    def timer(call: Callable[[], Any]) -> tuple[float, ...]:
        with torch.cuda.device(place):
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):  # what a first call compiles or allocates is no part of the graph
                call()
                call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = call()
            found = []
            for _ in range(samples):
                torch.sum(wash, dim=0, out=sink)
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                graph.replay()
                last.record()
                last.synchronize()
                found.append(1e3 * first.elapsed_time(last))
            del kept
        return tuple(found)

    return timer
