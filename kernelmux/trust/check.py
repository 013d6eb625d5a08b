"""The check itself: about a second of calls on live tensors, each against the op's reference.

Imported only where torch is about to be used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DeviceLost, DeviceNotFound, FrozenError, MissingPackage, UsageError
from ..policies.selection import Selection
from ..registry import Op, Rejected
from ..registry.lazy import load
from ..registry.packages import Packages
from .judge import Decode, Finding, judge
from .subject import Subject, place
from .subjects import subjects

# The problem's own M goes first. 8 and a mixed batch are in every check, also of a kernel that compiles for each M;
# 3 and 33 are odd, 65, 129 and 257 one over a tile.
EVERY = ((8, False), (1, False), (33, True), (65, False))
MORE = ((3, False), (257, False), (129, True), (16, False), (2, False))
BUDGET_S = 1.0  # after it the calls of MORE are left out
MOST_M = 512
_NO_MEMORY = "there is no memory for the check"
_ENVIRONMENT = (MissingPackage, FrozenError, DeviceNotFound, DeviceLost)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the check."""

    m: int
    mixed: bool
    finding: Finding

    @property
    def brief(self) -> str:
        return f"M={self.m}{', mixed batch' if self.mixed else ''}"

    def to_json(self) -> dict[str, Any]:
        found = self.finding
        numbers = {"error": found.error, "of_allowed": found.share, "cosine": found.cosine}
        told = {name: round(number, 6) if number == number else None for name, number in numbers.items()}
        return {"m": self.m, "mixed": self.mixed, **told, **({"fault": found.fault} if found.fault else {})}


@dataclass(frozen=True, slots=True)
class Report:
    """``ok`` is None where nothing could be checked; ``reason`` says why, or what is wrong."""

    ok: bool | None
    reason: str
    sizes: Mapping[str, int]
    cases: tuple[Case, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Of a kernel that passed the worst case alone: the file is read by selections."""
        told = [max(self.cases, key=lambda case: case.finding.share)] if self.ok else self.cases
        return {
            "sizes": dict(self.sizes),
            "seconds": round(self.seconds, 3),
            "calls": len(self.cases),
            "cases": [case.to_json() for case in told],
        }


def check(selection: Selection) -> Report:
    """Check the Selection's kernel on its device. Raises what is missing here to run it (MissingPackage, ...)."""
    start = time.perf_counter()
    why = "no call of its op that it can run is known here"
    with _apart(selection):
        tried = subjects(selection)
        while True:
            try:
                subject = next(tried, None)
            except torch.OutOfMemoryError:
                return Report(None, _NO_MEMORY, {}, (), time.perf_counter() - start)
            except Exception as error:  # nothing of the kernel has run yet
                return Report(None, f"no call could be drawn: {error}", {}, (), time.perf_counter() - start)
            if subject is None:
                return Report(None, why, {}, (), time.perf_counter() - start)
            if not _accepted(selection, subject.sizes, None):
                continue
            cases, refused = _run(selection, subject, start)
            if cases:
                bad = [case for case in cases if case.finding.fault]
                reason = "; ".join(f"{case.brief}: {case.finding.fault}" for case in bad[:3])
                return Report(not bad, reason, subject.sizes, tuple(cases), time.perf_counter() - start)
            why = refused or why


class _Same:
    """One configuration for any number of tokens: the one that the problem's own will run, and no other compiled."""

    def __init__(self, config: Any):
        self._config = config

    def at(self, m: int) -> Any:
        return self._config


def _configs(selection: Selection) -> Any:
    return selection.configs if selection.configs is None or not selection.tokens else _Same(selection.config)


def _accepted(selection: Selection, sizes: Mapping[str, int], m: int | None) -> bool:
    axis = selection.op.token_axis
    shape = {**sizes, **({axis: m} if axis and m is not None else {})}
    problem = selection.problem.but(shape=shape)
    decision = selection.declaration.judge(selection.op, selection.device, Packages.installed(), problem)
    return not isinstance(decision, Rejected)


def _counts(selection: Selection, subject: Subject) -> list[tuple[int, bool]]:
    """(M, mixed), without repeats: the ends of the problem's own range among them."""
    axis = selection.op.token_axis
    if axis is None:
        return [(1, False)]
    tokens = (*(selection.problem.tokens(axis) or ()), *([subject.own_m] if subject.own_m else []))
    own = [(m, False) for m in dict.fromkeys(tokens) if 0 < m <= MOST_M]
    return list(dict.fromkeys((*own, *EVERY, *MORE)))


def _run(selection: Selection, subject: Subject, start: float) -> tuple[list[Case], str]:
    """The cases until one fails, and why none could be run where none could."""
    cases: list[Case] = []
    refused = ""
    trial = selection.but(
        problem=selection.problem.but(shape=dict(subject.sizes)),
        configs=_configs(selection),
        _by_tokens={},
        _state={"checked": True},
    )
    weights: Any = None
    prepared = False
    for nth, (m, mixed) in enumerate(_counts(selection, subject)):
        spare = (m, mixed) in MORE and cases and time.perf_counter() - start > BUDGET_S
        if spare or not _accepted(selection, subject.sizes, m):
            continue
        try:
            given = subject.call(m, mixed, nth)
            with _exact_products():
                want = subject.want(given)
        except torch.OutOfMemoryError:
            refused = _NO_MEMORY
            break
        except Exception as error:  # nothing of the kernel has run yet: the call itself is none
            refused = str(error)
            continue
        try:
            if not prepared:
                weights = trial.prepare(**subject.weights) if subject.weights else None
                prepared = True
            finding = _twice(trial, given, weights, want, subject)
        except _ENVIRONMENT:
            raise
        except torch.OutOfMemoryError:
            refused = _NO_MEMORY
            break
        except (UsageError, NotImplementedError) as error:  # it does not do this call, and says so
            refused = str(error)
            continue
        except Exception as error:
            finding = Finding(f"it raised {type(error).__name__}: {str(error).strip()[:300]}")
        cases.append(Case(m, mixed, finding))
        if finding.fault:
            break
    return cases, refused


def _twice(
    trial: Selection, given: Mapping[str, Any], weights: Any, want: tuple[Tensor, ...], subject: Subject
) -> Finding:
    """Two calls with the same arguments, on memory that holds NaN and then on memory that holds large numbers."""
    name, x = next(iter(given.items()))
    rest = {key: value for key, value in given.items() if key != name}
    before = [value.clone() for value in given.values() if isinstance(value, Tensor)]
    _litter(want, 0xFF, x.device)
    first = _results(trial(x, weights, **rest))
    kept = [tensor.clone() for tensor in first]
    promises, decode = trial.declaration.numerics.promises, _decode(trial.op, given)
    exact = "bit_exact" in promises
    found = judge(kept, want, subject.limits, decode, exact=exact)
    if found.fault:
        return found
    now = [value for value in given.values() if isinstance(value, Tensor)]
    if not all(map(_same, before, now)):
        return Finding("it changed its arguments", found.error, found.share, found.cosine)
    outs = {}
    if trial.op.outs:
        outs = {out: _filled(torch.empty_like(tensor), 0xFF) for out, tensor in zip(trial.op.outs, kept, strict=True)}
    else:
        _litter(want, 0x7B, x.device)
    second = _results(trial(x, weights, **rest, **outs))
    again = judge(second, want, subject.limits, decode, exact=exact)
    if again.fault:
        return Finding(f"at its second call: {again.fault}", again.error, again.share, again.cosine)
    if "deterministic" in promises and not all(map(_same, kept, second)):
        return Finding(
            "two equal calls gave two results, and it promises not to", found.error, found.share, found.cosine
        )
    return found if found.share >= again.share else again


def _decode(op: Op, given: Mapping[str, Any]) -> Decode | None:
    """What the op's packed results mean."""
    if op.decoded is None:
        return None
    decoded = load(op.decoded)
    return lambda results: tuple(decoded(results, **given))


def _results(made: Any) -> tuple[Tensor, ...]:
    results = made if isinstance(made, (tuple, list)) else (made,)
    if not all(isinstance(result, Tensor) for result in results):
        raise TypeError(f"a kernel returns tensors, not {type(made).__name__}")
    return tuple(results)


def _same(left: Tensor, right: Tensor) -> bool:
    return bool(torch.equal(_bytes(left), _bytes(right)))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat


def _filled(tensor: Tensor, byte: int) -> Tensor:
    """The tensor with every byte this one; 0xFF is NaN in every float."""
    if tensor.numel():
        tensor.view(-1).view(torch.uint8).fill_(byte)
    return tensor


def _litter(want: tuple[Tensor, ...], byte: int, device: torch.device) -> None:
    """Leave such bytes in memory of the sizes that the results will take, so that what is not written is seen."""
    left = [
        torch.full((max(tensor.numel() * width, 1),), byte, dtype=torch.uint8, device=device)
        for tensor in want
        for width in (1, 2, 4)
    ]
    del left


@contextmanager
def _apart(selection: Selection) -> Iterator[None]:
    """Nothing the caller has switched on reaches the check: modes, autograd, autocast, another current GPU."""
    where = place(selection)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        with suppress(ImportError):  # private: where it is gone, a mode sees the check
            from torch.utils._python_dispatch import _disable_current_modes

            stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.autocast(device_type=where.type, enabled=False))
        if where.type == "cuda":
            stack.enter_context(torch.cuda.device(where))
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """fp32 products of the reference in fp32, whatever the caller allows."""
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    except RuntimeError:  # the newer switches of torch were set, which the older ones do not mix with
        before = None
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
