"""plan: every op of a model on one rank of a GPU, with the kernel that would run it and the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelmux.device import Device, resolve_device
from kernelmux.errors import KernelmuxError, UsageError
from kernelmux.models.fields import ModelConfig
from kernelmux.models.site import GEMM_OPS, Model, Placed, Site
from kernelmux.models.walk import describe
from kernelmux.policies.select import select_backend
from kernelmux.registry import discovery

if TYPE_CHECKING:
    from kernelmux.policies.selection import Selection
    from kernelmux.registry.packages import Packages

TOKENS = (1, 4096)
OUT_OF_SCOPE = "Attention itself is out of kernelmux's scope; its projections and norms are listed."

CHOSEN, OUTSIDE, UNREGISTERED, REFUSED, UNREADABLE = "chosen", "outside", "unregistered", "no kernel", "unreadable"


@dataclass(frozen=True, slots=True)
class Line:
    """One op of the plan. ``state`` is one of

    ``chosen`` (``selection`` holds the kernel), ``outside`` (no op of kernelmux: another library's work),
    ``unregistered`` (an op kernelmux names and has no declaration of), ``no kernel`` (none of its kernels can run it),
    ``unreadable`` (the config contradicts itself there). ``why`` is never empty.
    """

    placed: Placed
    state: str
    why: str
    selection: Selection | None = None

    @property
    def site(self) -> Site:
        return self.placed.site

    @property
    def kernel(self) -> str:
        """The kernel's name, or what runs instead, in a few words."""
        if self.selection is not None:
            return self.selection.kernel
        if self.state == OUTSIDE and self.site.what == "none GEMM":
            return "torch matmul"
        return "(the engine's own)" if self.state == OUTSIDE else f"({self.state})"

    @property
    def scheme(self) -> str:
        """The scheme of the weights, and where the kernel has other numerics than theirs, the one it runs as."""
        name = self.site.scheme.name
        if self.state == UNREADABLE:
            return "?"
        return name if self.runs_as == name else f"{name}, run as {self.runs_as}"

    @property
    def runs_as(self) -> str:
        """The scheme whose numerics the kernel has: ``nvfp4_w4a16`` where it leaves the activations of NVFP4 alone."""
        return self.site.scheme.name if self.selection is None else self.selection.scheme.name

    @property
    def needs_tuning(self) -> bool:
        """Whether its kernel reads a launch configuration that nobody measured for this shape and GPU."""
        chosen = self.selection
        return chosen is not None and chosen.configs is not None and chosen.config_source != "measured"

    def passed_over(self) -> list[tuple[str, str]]:
        """(backend or kernel, reason): what the rule prefers to the kernel it took, and why that cannot run here."""
        chosen = self.selection
        if chosen is None or chosen.policy_rule is None:
            return []
        found = []
        for word in chosen.policy_rule.prefer:
            if word in (chosen.backend, chosen.kernel):
                break
            refused = [other for other in chosen.rejected if word in (other.backend, other.kernel)]
            # Of several kernels of one backend, the one made for this scheme, and of those the one that lacks least.
            nearest = sorted(refused, key=lambda other: (other.code == "scheme", len(other.decision.every())))
            found += [(word, other.reason) for other in nearest[:1]]
        return found

    def shape(self) -> str:
        """``N=6144,K=2048``."""
        return ",".join(f"{axis}={size}" for axis, size in self.site.shape)

    def to_json(self) -> dict[str, Any]:
        site, chosen = self.site, self.selection
        return {
            "module": site.module,
            "layers": list(self.placed.layers),
            "op": site.op,
            "what": None if site.op else site.what,
            "shape": dict(site.shape),
            "rows_per_token": site.rows,
            "options": dict(site.options),
            "activation": site.activation,
            "scheme": None if self.state == UNREADABLE else site.scheme.name,
            "runs_as": None if chosen is None else self.runs_as,
            "state": self.state,
            "kernel": None if chosen is None else chosen.kernel,
            "backend": None if chosen is None else chosen.backend,
            "source": None if chosen is None else chosen.source,
            "rule": None if chosen is None else chosen.rule,
            "evidence": None if chosen is None else chosen.evidence,
            "config_source": None if chosen is None else chosen.config_source,
            "config_grade": None if chosen is None else chosen.config_grade,
            "conditions": [] if chosen is None else list(chosen.conditions),
            "needs_tuning": self.needs_tuning,
            "why": self.why,
            "passed_over": [{"name": name, "reason": reason} for name, reason in self.passed_over()],
            "note": site.note or None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The lines of a model on a device, in the order they run; ``notes`` say what is not among them."""

    model: Model
    device: Device
    tokens: tuple[int, int]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def to_tune(self) -> list[Line]:
        """One line of each MoE shape whose tiles nobody measured."""
        shapes: dict[tuple[Any, ...], Line] = {}
        for line in self.lines:
            if line.needs_tuning:
                shapes.setdefault((line.site.op, line.site.shape, line.site.scheme.name, line.site.activation), line)
        return list(shapes.values())

    def to_json(self) -> dict[str, Any]:
        device, model = self.device, self.model
        return {
            "model": {
                "model_type": model.family,
                "layers": model.layers,
                "dtype": model.dtype,
                "quantization": model.method,
            },
            "device": {"name": device.name, "capability": str(device.capability) if device.capability else None},
            "tp": model.tp,
            "tokens": list(self.tokens),
            "ops": [line.to_json() for line in self.lines],
            "to_tune": [
                {
                    "op": line.site.op,
                    "shape": dict(line.site.shape),
                    "scheme": line.site.scheme.name,
                    "activation": line.site.activation,
                    "config_source": None if line.selection is None else line.selection.config_source,
                    "command": tune_command(line, self),
                }
                for line in self.to_tune()
            ],
            "notes": list(self.notes),
        }


def plan(
    config: Mapping[str, Any] | str | Path,
    device: Any,
    *,
    tp: int = 1,
    tokens: tuple[int, int] = TOKENS,
    packages: Packages | None = None,
    policy: Any = None,
) -> Plan:
    """The kernel of every op of a model, on one of ``tp`` ranks.

    ``config``: a model's ``config.json`` (a path, the folder it lies in, or its content). ``tokens``: (lowest, highest)
    count in a step. What could not be read of the model is in ``notes``. Raises UsageError and ConfigFileError where
    nothing could be read, UnknownDevice.
    """
    if tokens[0] < 1 or tokens[0] > tokens[1]:
        raise UsageError(f"tokens {tokens[0]}..{tokens[1]} is no range. Write the smaller end first, at least 1.")
    read = config if isinstance(config, Mapping) else Path(config)
    model = describe(ModelConfig(read) if isinstance(read, Mapping) else ModelConfig.read(read), tp)
    here = resolve_device(device)
    lines = tuple(_line(placed, model, here, tokens, packages, policy) for placed in model.placed)
    untrusted = (
        () if here.trusted else (f"{here.name} is untrusted: nobody has listed this GPU, so portable kernels only.",)
    )
    return Plan(model, here, tokens, lines, (OUT_OF_SCOPE, *untrusted, *model.unread))


def _line(
    placed: Placed, model: Model, device: Device, tokens: tuple[int, int], packages: Packages | None, policy: Any
) -> Line:
    site = placed.site
    if site.trouble:
        return Line(placed, UNREADABLE, site.trouble)
    if site.op is None:
        return Line(placed, OUTSIDE, _outside(site))
    if site.op not in discovery.registry().names():
        return Line(placed, UNREGISTERED, f"kernelmux names an op {site.op} and has no declaration of it yet.")
    rows = (tokens[0] * site.rows, tokens[1] * site.rows)
    shape: dict[str, Any] = {"M": rows[0] if rows[0] == rows[1] else rows, **dict(site.shape)}
    try:
        chosen = select_backend(
            site.op, device=device, quant=site.scheme, dtype=_dtype(model, device), shape=shape,
            activation=site.activation, packages=packages, policy=policy,
        )  # fmt: skip
    except KernelmuxError as error:
        return Line(placed, REFUSED, " ".join(str(error).split()))
    return Line(placed, CHOSEN, chosen.why, chosen)


def _dtype(model: Model, device: Device) -> str:
    """The model's dtype; float16 for bfloat16 on a GPU without units for it, as engines serve it there."""
    wanted = "float16" if device.peak("fp16") and not device.peak("bf16") else model.dtype
    return wanted if model.dtype == "bfloat16" else model.dtype


def _outside(site: Site) -> str:
    if site.what == "none GEMM":
        return "an unquantized dense GEMM: torch matmul, not an op of kernelmux."
    if site.what.endswith("GEMM"):
        served = ", ".join(GEMM_OPS)
        return f"kernelmux has no dense GEMM for {site.scheme.name} (it has them for {served}): the engine's own runs."
    return f"{site.what}: not an op of kernelmux."


def tune_command(line: Line, plan: Plan) -> str:
    """The command line that tunes this shape on this GPU."""
    sizes = ",".join(f"{axis}={size}" for axis, size in line.site.shape)
    words = ["kernelmux tune", f"--shape {sizes}", f"--device {plan.device.name}"]
    if line.site.activation not in (None, "silu"):
        words.append(f"--activation {line.site.activation}")
    if line.site.scheme.name != "none":
        words.append(f"--quant {line.site.scheme.name}")
    return " ".join(words)
