"""The gate: before a kernel is first used by itself on a GPU, it is checked; one that fails is quarantined.

``gate`` is what the prepare hook of a Selection calls. It never runs in ``select_backend``, and it checks nothing after
``freeze()`` or in a capture. torch is imported only when a check begins.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from ..errors import FrozenError, TrustError
from ..policies import select, standing
from ..registry import epoch
from ..store import quarantine
from ..store.quarantine import QUARANTINED, TRUSTED, UNCHECKED, Verdict

if TYPE_CHECKING:
    from ..policies.selection import Selection
    from .check import Report


def gate(selection: Selection) -> Selection | None:
    """The Selection to take instead, or None if this one's kernel may be used.

    Raises NoKernel where no other kernel is left, FrozenError where a check would be needed and none can be made,
    TrustError for a kernel that was asked for by name (in strict mode alone are those checked).
    """
    current = selection
    while True:
        following = _next(current)
        if following is None:
            break
        current = following
    return None if current is selection else current


def _next(selection: Selection) -> Selection | None:
    """None if the Selection stands, else the next one to look at."""
    kernel, asked_for = selection.declaration, selection.source == "override"
    if standing.exempt(kernel) or (asked_for and standing.mode() != standing.STRICT):
        return None
    found = standing.verdict(kernel, selection.device, selection.problem)
    if found is None and standing.restricted():
        select.drop(lambda kept: kept is selection)
        other = selection.again()
        if other is None or other.declaration is kernel:
            raise FrozenError(
                f"kernelmux is frozen or a CUDA graph is being captured, and {kernel.name} has not been checked on "
                f"{selection.device.torch_name}. Check it before, with km.warmup()."
            )
        return other
    if found is None:
        found = _checked(selection)
    if found.status == TRUSTED or (found.status == UNCHECKED and standing.mode() != standing.STRICT):
        return None
    if asked_for:
        raise TrustError(f"{kernel.name} {_said(found)}. It was asked for, so no other is taken in its place.")
    other = selection.again()  # NoKernel where none is left, with this one's reason in its table
    if other is None or other.declaration is kernel:
        raise TrustError(f"{kernel.name} {_said(found)}. Select again to have another kernel.")
    if found.status == QUARANTINED:
        _warn(selection, found, f"{other.kernel} is taken instead.")
    return other


def _said(found: Verdict) -> str:
    if found.status == UNCHECKED:
        return f"could not be checked ({found.reason}), which {standing.VARIABLE}=strict does not accept"
    return standing.quarantined(found).reason.replace("it failed", "failed", 1)


def _warn(selection: Selection, found: Verdict, then: str) -> None:
    warnings.warn(
        f"{found.kernel} failed its check on {selection.device.torch_name} and is quarantined: {found.reason}. {then} "
        f"`kernelmux doctor` shows the evidence; `kernelmux doctor --retry '{found.kernel}'` tries it again.",
        RuntimeWarning,
        stacklevel=6,
    )


def _checked(selection: Selection) -> Verdict:
    """Look what others have found since, else check now and keep the outcome."""
    book = quarantine.book()
    book.reload()
    found = standing.verdict(selection.declaration, selection.device, selection.problem)
    return found if found is not None else examine(selection)


def examine(selection: Selection) -> Verdict:
    """Check now, whatever is known already, and keep the outcome."""
    from .check import check

    verdict = _verdict(selection, check(selection))
    quarantine.book().record(verdict)
    if verdict.status == QUARANTINED:
        _still_alive(selection, verdict)
    elif verdict.status == UNCHECKED:
        warnings.warn(
            f"{verdict.kernel} runs unchecked on {selection.device.torch_name}: {verdict.reason}.",
            RuntimeWarning,
            stacklevel=5,
        )
    if verdict.status != QUARANTINED and standing.passed_over(verdict.kernel):
        epoch.bump_op(verdict.op)  # what was chosen without it is chosen anew
    return verdict


def _verdict(selection: Selection, report: Report) -> Verdict:
    problem = selection.problem
    identity = standing.fingerprint(selection.declaration, selection.device)
    return Verdict(
        kernel=selection.kernel,
        op=selection.op.name,
        scheme=problem.scheme.name,
        dtype=problem.dtype or "",
        activation=problem.activation,
        fingerprint=identity or {},
        status={True: TRUSTED, False: QUARANTINED, None: UNCHECKED}[report.ok],
        reason=report.reason,
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        evidence={**report.to_json(), "asked": dict(problem.shape)},
    )


def _still_alive(selection: Selection, verdict: Verdict) -> None:
    """Raise TrustError where the failure took the process's GPU context with it: no other kernel can run there."""
    if selection.device.vendor == "cpu":
        return
    import torch

    try:
        torch.cuda.synchronize(selection.device.index or 0)
    except RuntimeError as error:
        raise TrustError(
            f"{verdict.kernel} broke the GPU's context in its check ({verdict.reason}). It is quarantined: start the "
            "process again, and another kernel is taken."
        ) from error
