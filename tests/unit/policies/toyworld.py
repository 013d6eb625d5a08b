"""A small world with nothing of kernelmux's own ops: what is generic must work for it too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelmux.device import Device, capabilities, resolve_device
from kernelmux.policies.policy import Policy
from kernelmux.policies.rule import read_rule
from kernelmux.quant import Scheme
from kernelmux.registry import (
    ANY,
    DtypeIn,
    Kernel,
    NeedsPackage,
    Numerics,
    OnCapability,
    Op,
    Packages,
    Problem,
    Registry,
    SchemeIn,
)

GPUS = ("t4", "a100-sxm-80gb", "l40s", "h100-sxm", "b200", "b300", "jetson-thor", "rtx-5090", "gb10", "mi300x", "cpu")
HERE = __name__
CALLS: list[tuple[Any, ...]] = []


def make_op(name: str = "mix", **changes: Any) -> Op:
    facts: dict[str, Any] = {
        "summary": "mixes",
        "schema": f"{name}(Tensor x) -> Tensor",
        "reference": f"{HERE}:run",
        "meta": f"{HERE}:run",
        "examples": f"{HERE}:run",
        "problem": f"{HERE}:shape_of_call",
        "axes": ("M", "K"),
        "token_axis": "M",
        "schemes": frozenset({"none", "nvfp4"}),
        "dtypes": ("bfloat16", "float16"),
        "activations": ("silu", "relu"),
    }
    return Op(name=name, **{**facts, **changes})


def make_kernel(backend: str, on: Any = ANY, *more: Any, name: str = "", op: str = "mix", **facts: Any) -> Kernel:
    on = capabilities(*on) if isinstance(on, tuple) else on
    return Kernel(
        name=name or f"toy.{op}[{backend}]",
        op=op,
        backend=backend,
        load=facts.pop("load", f"{HERE}:run"),
        requirements=(OnCapability(on), *more),
        **facts,
    )


def run(x: Any, weights: Any, *, config: Any, **op_args: Any) -> tuple[Any, ...]:
    return ("ran", x, weights, config, op_args)


def prepare(device: Device, **tensors: Any) -> tuple[Any, ...]:
    return ("prepared", device.name, tensors)


def shape_of_call(x: Any, weights: Any, **op_args: Any) -> dict[str, int]:
    return {"M": len(x)}


def warm(selection: Any, ms: tuple[int, ...]) -> None:
    CALLS.append((selection.kernel, ms))


@dataclass
class Choice:
    source: str = "measured"
    grade: str = "exact"
    why: str = "a table of this GPU"
    path: Path | None = None
    tuned_on: str = ""
    asked: list[int] = field(default_factory=list)

    def at(self, m: int) -> Any:
        self.asked.append(m)
        return f"config-{m}"

    def to_json(self, m: int | None) -> dict[str, Any]:
        return {"at": m}


CHOICE = Choice()


def configs(device: Device, packages: Packages, problem: Problem) -> Choice:
    return CHOICE


def rule(identity: str, prefer: list[str], why: str = "because it was measured", **when: Any) -> dict[str, Any]:
    extra = {"holds_for": when.pop("holds_for")} if "holds_for" in when else {}
    condition = {"op": "mix", **when}
    return {
        "id": identity,
        "when": condition,
        "prefer": prefer,
        "why": why,
        "evidence": "https://example.org/1",
        **extra,
    }


def make_policy(*rules: dict[str, Any]) -> Policy:
    return Policy(tuple(read_rule(entry) for entry in rules))


def make_problem(shape: dict[str, Any] | None = None, **changes: Any) -> Problem:
    scheme = Scheme.of(changes.pop("quant", None))
    facts = {"dtype": "bfloat16", "activation": "silu", **changes}
    return Problem("mix", scheme, shape={"M": 64, "K": 128} if shape is None else shape, **facts)


def world(extra: Iterable[Kernel] = ()) -> Registry:
    """cutlass on 10.x, cudnn on 12.x with a package, triton and torch anywhere."""
    return Registry(
        [
            make_op(),
            make_kernel("cutlass", ("10.x",), numerics=Numerics(promises=frozenset({"deterministic"}))),
            make_kernel("cudnn", ("12.x",), NeedsPackage("cudnn-frontend", ">=1.5", why="its graph API")),
            make_kernel("triton", ANY, DtypeIn(frozenset({"bfloat16", "float16"})), configs=f"{HERE}:configs"),
            make_kernel("torch", ANY, SchemeIn(frozenset({"none"})), prepare=f"{HERE}:prepare", warmup=f"{HERE}:warm"),
            *extra,
        ]
    )


def gpu(name: str) -> Device:
    return resolve_device(name)


def unlisted_gpu() -> Device:
    from dataclasses import replace

    return replace(gpu("h100-sxm"), name="nvidia-x1", torch_name="NVIDIA X1", trusted=False)
