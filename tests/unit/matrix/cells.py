"""The selection matrix: what every op gets on every GPU of the catalog, as if every optional package were installed.

A cell is one (op, scheme, variant, device, M). Cells with the same outcome are one entry of the golden files, so that
a changed rule shows as a few changed lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kernelmux.device import Device, catalog
from kernelmux.errors import NoKernel
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import resolve
from kernelmux.policies.selection import Selection
from kernelmux.quant import Scheme
from kernelmux.registry import Op, Packages, Problem, Registry, discovery

TOKENS = (1, 64, 4096)

# A shape of models in use for each op: Qwen3-30B-A3B's experts, Qwen3-8B's layers, Nemotron-3 Nano's relu2 and Mamba.
_SHAPES: dict[str, dict[str, int]] = {
    "fused_moe": {"E": 128, "N": 768, "K": 2048, "topk": 8},
    "nvfp4_gemm": {"N": 4096, "K": 4096},
    "nvfp4_quantize": {"K": 4096},
    "nvfp4_dequantize": {"K": 4096},
    "nvfp4_mm": {"N": 4096, "K": 4096},
    "fp8_gemm": {"N": 4096, "K": 4096},
    "router_gemm": {"N": 128, "K": 2048},
    "topk": {"E": 128, "topk": 8},
    "relu2": {"H": 1856},
}
_HIDDEN = {"H": 4096}


@dataclass(frozen=True)
class Case:
    """One way an op is asked for: its words in the golden file, and the problem without M."""

    op: Op
    scheme: str
    variant: str = ""
    shape: tuple[tuple[str, int], ...] = ()
    activation: str | None = None
    demands: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return " ".join(word for word in (self.op.name, self.scheme, self.variant) if word)

    def problem(self, m: int) -> Problem:
        shape = {"M": m, **dict(self.shape)}
        return Problem(self.op.name, Scheme.of(self.scheme), None, shape, self.activation, self.demands)


def cases(op: Op) -> Iterator[Case]:
    """Every scheme of the op; both kinds of activation for experts; the numerics a caller may demand of norms."""
    shape = tuple(_SHAPES.get(op.name, _HIDDEN).items())
    for scheme in sorted(op.schemes):
        if op.activations:
            for activation in ("silu", "relu2"):
                yield Case(op, scheme, activation, shape, activation)
            continue
        yield Case(op, scheme, "", shape)
        for demand in _DEMANDS.get(op.name, ()):
            yield Case(op, scheme, f"demanding {demand}", shape, None, frozenset({demand}))


_DEMANDS = {
    "rms_norm": ("cast_before_mul", "batch_invariant"),
    "fused_add_rms_norm": ("cast_before_mul", "batch_invariant", "residual_fp32"),
    "gated_rms_norm": ("cast_before_mul",),
    "silu_and_mul": ("no_fast_math", "cast_before_mul"),
    "topk": ("deepseek_v3_routing",),
    "nvfp4_quantize": ("bit_exact",),
}


@dataclass(frozen=True)
class Outcome:
    """What a cell says: the choice with its reasons, or every reason why there is none."""

    head: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, found: Selection | NoKernel) -> Outcome:
        if isinstance(found, NoKernel):
            refused = found.rejected
            return cls("no kernel", (_refused(refused),))
        scheme = "" if found.scheme is found.problem.scheme else f", run as {found.scheme}"
        lines = [f"{found.source}{f' {found.rule}' if found.rule else ''}: {found.why}"]
        others = ", ".join(other.kernel for other in found.outranked)
        lines += [f"over: {others}"] if others else []
        lines += [_refused(found.rejected)] if found.rejected else []
        return cls(f"{found.kernel} ({found.evidence}){scheme}", tuple(lines))


def _refused(rejected: Any) -> str:
    by_code: dict[str, list[str]] = {}
    for other in rejected:
        by_code.setdefault(other.code, []).append(other.kernel)
    return "not: " + "; ".join(f"{code}: {', '.join(names)}" for code, names in sorted(by_code.items()))


def ask(case: Case, device: Device, m: int, registry: Registry | None = None, **more: Any) -> Selection | NoKernel:
    """The Selection of one cell, or the NoKernel that tells why there is none."""
    known = registry or discovery.registry()
    packages = more.pop("packages", Packages.assume_all())
    policy = more.pop("policy", None) or Policy.builtin(case.op.name)
    try:
        return resolve(case.op.name, device, packages, case.problem(m), policy=policy, registry=known, **more)
    except NoKernel as error:
        return error


def render(op: Op) -> str:
    """The golden text of one op: for each case its outcomes, each with the cells that have it."""
    text = []
    for case in cases(op):
        cells: dict[Outcome, dict[str, list[int]]] = {}
        for device in catalog().values():
            for m in TOKENS:
                outcome = Outcome.of(ask(case, device, m))
                cells.setdefault(outcome, {}).setdefault(device.name, []).append(m)
        text.append(f"== {case.title} ==\n")
        for outcome, where in cells.items():
            text.append(f"{outcome.head}\n")
            text += [f"    {line}\n" for line in outcome.lines]
            by_tokens: dict[tuple[int, ...], list[str]] = {}
            for name, tokens in where.items():
                by_tokens.setdefault(tuple(tokens), []).append(name)
            text += [f"    M={','.join(map(str, ms))} on: {' '.join(names)}\n" for ms, names in by_tokens.items()]
        text.append("\n")
    return "".join(text).rstrip("\n") + "\n"


def parse(text: str) -> dict[tuple[str, str, int], str]:
    """(case, device, M) -> the outcome as it stands in a golden text."""
    found: dict[tuple[str, str, int], str] = {}
    title, block = "", []
    for line in text.splitlines():
        if line.startswith("== "):
            title = line.strip("= ")
        elif not line.startswith("    "):
            block = [line]
        elif line.startswith("    M="):
            tokens, _, names = line.strip().removeprefix("M=").partition(" on: ")
            for name in names.split():
                for m in tokens.split(","):
                    found[title, name, int(m)] = "\n".join(block)
        else:
            block.append(line)
    return found
