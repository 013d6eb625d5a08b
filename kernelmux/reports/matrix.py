"""The matrix as a value and as JSON, schema 1: what runs where, proven or declared, and what was found when it ran.

Every rendering (Markdown, HTML, JUnit, the comparison with a baseline, the history) is made from a ``Matrix`` alone.

A **cell** answers one question: an op under a scheme (a ``Case``), on a device, at M tokens. Its ``kind`` says which:

- ``chosen``: which kernel would be chosen there (nothing ran). One cell a case, device and M.
- ``live``: how one accepted kernel did on this machine. One cell a case, device, M and kernel; has a ``result``.
- ``compiled``: what the compiler made of one kernel for that device. As live; ``m`` is 0 (all sizes), and the device
  is the catalog's representative of its capability (``header.devices`` has the capability).

Plain JSON, what ``--format json`` writes (every key always there, in this order; ``null`` where there is nothing)::

    {"schema": 1, "header": {...}, "cells": [{
      "op": "rms_norm", "scheme": "none", "device": "h100-sxm", "m": 64,
      "backend": "jit_cuda",            null: no kernel can run; then also kernel, source, rule, evidence
      "evidence": "measured",           measured | compiled | declared: what is known of this kernel on this capability
      "why": "...",                     why it was chosen; for live and compiled cells: as what the kernel stands there
      "rejected": [{"backend", "kernel", "code", "reason", "remedy", "link"}],      one object a reason
      "kind": "chosen", "variant": "",  the words that tell cases of one op and scheme apart: "silu", "demanding ..."
      "dtype": "bfloat16", "shape": {"H": 4096},                                    without M
      "activation": null, "demands": [],
      "kernel": "kernelmux.rms_norm[jit_cuda]", "runs_as": "none",                  the scheme whose numerics it has
      "source": "policy",               override | measured | policy | fallback; of live cells: "accepted" too
      "rule": "rms-norm", "link": "https://...",                                    the rule and its evidence
      "config_source": null, "config_grade": null,                             where its launch configuration is from
      "conditions": ["..."], "runner_up": {"backend", "kernel", "by"} | null,
      "outranked": [{"backend", "kernel", "by"}],       [0]: what would be chosen without the chosen one
      "result": null                    of live and compiled cells: an object, see ``Result``
    }]}

Packed JSON, what pages embed and the history keeps: the same values, each text once::

    {"schema": 1, "form": "packed", "header": {...}, "texts": ["...", ...],
     "reasons": [[backend, kernel, code, reason, remedy, link], ...],               six indices into texts, -1 for null
     "cases": [{"op", "scheme", "variant", "dtype", "shape", "activation", "demands"}, ...],
     "outcomes": [[backend, kernel, runs_as, source, rule, link, why, evidence, config_source, config_grade,
                   conditions, outranked, rejected], ...],                          see matrix_packed.OUTCOME_FIELDS
     "results": [{...}, ...],                                                       as in plain JSON
     "cells": [[case, device, m, kind, outcome, result], ...]}                      see matrix_packed.CELL_FIELDS

``matrix_packed.unpack`` reads it. In an outcome the first ten are indices into texts (-1: null), ``conditions`` a list
of such, ``outranked`` a list of [backend, kernel, by] of such, ``rejected`` a list of indices into reasons. In a cell
``device`` counts in ``header.devices``, ``kind`` in KINDS, ``outcome`` and ``result`` in their tables (-1: none).

A cell's ``key`` is its identity over versions, for comparison and deep links: op/scheme/variant/dtype/shape/device/M,
and the kernel's name at the end for kinds other than chosen, whose word goes in front; each part with its slashes and
percent signs escaped as in URLs, ``-`` for an empty one: ``rms_norm/none/-/bfloat16/H=4096/h100-sxm/64``.
"""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA = 1
KINDS = ("chosen", "live", "compiled")
OK, UNKNOWN, SKIPPED = "ok", "unknown", "skipped"
STATUSES = (OK, "wrong", "error", "crash", "hang", UNKNOWN, SKIPPED)
"""How a kernel did. ``unknown``: the installed compiler does not know this GPU. ``skipped``: not run, and why."""
RED = frozenset({"wrong", "error", "crash", "hang"})


class Rejection(msgspec.Struct, frozen=True):
    """One reason why one kernel cannot run, and what would mend it."""

    backend: str
    kernel: str
    code: str
    reason: str
    remedy: str
    link: str | None = None


class Other(msgspec.Struct, frozen=True):
    """A kernel that could run and was not taken; ``by`` names the rule or the choice that took another."""

    backend: str
    kernel: str
    by: str


class TimeUs(msgspec.Struct, frozen=True):
    """Microseconds of one call: the median and its 95% interval, from so many samples."""

    median: float
    low: float
    high: float
    samples: int = 0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was found when a kernel ran or was compiled. What was not looked at is null (left out of JSON).

    ``explanation`` is compulsory unless ``status`` is ok. ``error`` is the worst row's error over the one allowed: at
    most 1 is right. ``peak_bytes`` is what a call allocates at its height beyond its inputs. ``capture``: whether it
    ran in a CUDA graph and gave the same. ``deterministic``: whether repeated calls gave the same bits.
    ``first_call_ms`` is the first call at this M; at the first M in a fresh process, so compilation is included.
    ``floor_us`` is the roofline's least time for ``flops`` and ``bytes``, by the rates in ``header.devices``; ``bound``
    is memory or compute.

    Of compiled kernels: the largest of each over all ``jobs``; ``spills`` are bytes of local memory a thread.
    """

    status: str
    explanation: str = ""
    correct: bool | None = None
    checked: int | None = None  # calls compared with the reference
    error: float | None = None
    time_us: TimeUs | None = None
    floor_us: float | None = None
    roofline_percent: float | None = None
    bound: str | None = None
    flops: float | None = None
    bytes: float | None = None
    peak_bytes: int | None = None
    capture: bool | None = None
    deterministic: bool | None = None
    first_call_ms: float | None = None
    notes: tuple[str, ...] = ()  # what else is worth saying: why there is no capture, what differs
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    jobs: int | None = None  # compilations
    failed: int | None = None
    arch: str | None = None  # what it was compiled for, "sm_90a"
    seconds: float | None = None  # what this cell cost


class Case(msgspec.Struct, frozen=True):
    """One way an op is asked for, on any device and at any M. ``shape`` lists (axis, size), M left out."""

    op: str
    scheme: str
    variant: str = ""
    dtype: str | None = None
    shape: tuple[tuple[str, int], ...] = ()
    activation: str | None = None
    demands: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What stands in a cell, without where. Equal outcomes are one object in memory and in packed JSON."""

    backend: str | None
    kernel: str | None
    runs_as: str | None
    source: str | None
    rule: str | None
    link: str | None
    why: str
    evidence: str | None
    config_source: str | None = None
    config_grade: str | None = None
    conditions: tuple[str, ...] = ()
    outranked: tuple[Other, ...] = ()
    rejected: tuple[Rejection, ...] = ()


class Cell(msgspec.Struct, frozen=True):
    """One answer. See the head of this file for the kinds."""

    case: Case
    device: str
    m: int
    outcome: Outcome
    kind: str = "chosen"
    result: Result | None = None

    @property
    def key(self) -> str:
        case = self.case
        shape = ",".join(f"{axis}={size}" for axis, size in case.shape)
        parts = [case.op, case.scheme, case.variant, case.dtype or "", shape, self.device, str(self.m)]
        if self.kind != "chosen":
            parts = [self.kind, *parts, self.outcome.kernel or ""]
        return "/".join(_part(part) for part in parts)

    @property
    def title(self) -> str:
        """The cell in words, for people."""
        case = self.case
        sizes = case.shape if self.kind == "compiled" else (("M", self.m), *case.shape)
        shape = ",".join(f"{axis}={size}" for axis, size in sizes)
        scheme = "" if case.scheme == "none" else case.scheme
        words = (case.op, scheme, case.variant, case.dtype or "", shape)
        kernel = f": {self.outcome.kernel}" if self.kind != "chosen" else ""
        return f"{' '.join(word for word in words if word)} on {self.device}{kernel}"


class DeviceFacts(msgspec.Struct, frozen=True):
    """A device as the catalog or the machine has it. Rates are dense TFLOP/s by fp32, bf16, fp16, fp8, int8, fp4."""

    name: str
    torch_name: str
    vendor: str
    capability: str | None
    arch: str
    sm_count: int
    shared_bytes: int
    l2_bytes: int
    bandwidth_gbs: float
    memory_gb: float
    peak_tflops: dict[str, float]
    trusted: bool = True
    live: bool = False
    driver: str | None = None
    note: str = ""


class OpFacts(msgspec.Struct, frozen=True):
    """An op of the matrix and the kernels that are declared for it. ``tolerance``: dtype -> (rtol, atol)."""

    name: str
    summary: str
    schemes: tuple[str, ...]
    dtypes: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    tolerance: dict[str, tuple[float, float]] = {}


class PackageFacts(msgspec.Struct, frozen=True):
    """What was taken for installed: ``title`` says it in words; ``everything``: and all else in a fitting version."""

    title: str
    everything: bool = False
    versions: dict[str, str] = {}


class Shard(msgspec.Struct, frozen=True):
    """Part ``index`` (from 1) of ``of`` of a plan; parts of one plan can be merged."""

    index: int
    of: int


class Header(msgspec.Struct, frozen=True):
    """Of what and when. ``plan`` identifies the list of cells a run was to make; ``created`` is ISO 8601 in UTC."""

    kernelmux: str
    created: str
    packages: PackageFacts
    devices: tuple[DeviceFacts, ...] = ()
    ops: tuple[OpFacts, ...] = ()
    kinds: tuple[str, ...] = ("chosen",)
    tokens: tuple[int, ...] = ()
    filters: tuple[str, ...] = ()
    compilers: dict[str, str] = {}  # of compiled cells: triton, nvrtc -> version
    plan: str = ""
    shard: Shard | None = None
    seconds: float | None = None


class Matrix(msgspec.Struct, frozen=True):
    """A header and its cells, in the order they are shown."""

    header: Header
    cells: tuple[Cell, ...]

    def plain(self) -> dict[str, Any]:
        """Plain JSON, as the head of this file describes it."""
        return {"schema": SCHEMA, "header": msgspec.to_builtins(self.header), "cells": [*map(_plain, self.cells)]}

    def packed(self) -> dict[str, Any]:
        """Packed JSON."""
        from kernelmux.reports.matrix_packed import pack

        return pack(self)

    def counts(self) -> dict[str, int]:
        """How many cells have each status; of chosen cells the evidence, or ``no kernel``, is the status."""
        found: dict[str, int] = {}
        for cell in self.cells:
            word = cell.result.status if cell.result else cell.outcome.evidence or "no kernel"
            found[word] = found.get(word, 0) + 1
        return found


def _part(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F") or "-"


def _plain(cell: Cell) -> dict[str, Any]:
    case, outcome = cell.case, cell.outcome
    outranked = [msgspec.to_builtins(other) for other in outcome.outranked]
    return {
        "op": case.op, "scheme": case.scheme, "device": cell.device, "m": cell.m, "backend": outcome.backend,
        "evidence": outcome.evidence, "why": outcome.why,
        "rejected": [msgspec.to_builtins(reason) for reason in outcome.rejected],
        "kind": cell.kind, "variant": case.variant, "dtype": case.dtype, "shape": dict(case.shape),
        "activation": case.activation, "demands": list(case.demands), "kernel": outcome.kernel,
        "runs_as": outcome.runs_as, "source": outcome.source, "rule": outcome.rule, "link": outcome.link,
        "config_source": outcome.config_source, "config_grade": outcome.config_grade,
        "conditions": list(outcome.conditions), "runner_up": outranked[0] if outranked else None,
        "outranked": outranked, "result": None if cell.result is None else msgspec.to_builtins(cell.result),
    }  # fmt: skip


class PlainCell(msgspec.Struct, frozen=True):
    """A cell as it stands in plain JSON; only the keys of the first line of it are compulsory."""

    op: str
    scheme: str
    device: str
    m: int
    backend: str | None
    evidence: str | None
    why: str
    rejected: tuple[Rejection, ...]
    kind: str = "chosen"
    variant: str = ""
    dtype: str | None = None
    shape: dict[str, int] = {}
    activation: str | None = None
    demands: tuple[str, ...] = ()
    kernel: str | None = None
    runs_as: str | None = None
    source: str | None = None
    rule: str | None = None
    link: str | None = None
    config_source: str | None = None
    config_grade: str | None = None
    conditions: tuple[str, ...] = ()
    outranked: tuple[Other, ...] = ()
    result: Result | None = None

    def cell(self) -> Cell:
        case = Case(
            self.op, self.scheme, self.variant, self.dtype, tuple(self.shape.items()), self.activation, self.demands
        )
        outcome = Outcome(
            self.backend, self.kernel, self.runs_as, self.source, self.rule, self.link, self.why, self.evidence,
            self.config_source, self.config_grade, self.conditions, self.outranked, self.rejected,
        )  # fmt: skip
        return Cell(case, self.device, self.m, outcome, self.kind, self.result)
