"""Small matrices for tests: made from the real rules and kernels, from samples drawn anew, from compiled facts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kernelmux.device import Device, catalog
from kernelmux.measure.stats import interval
from kernelmux.policies.policy import Policy
from kernelmux.registry import Packages, Registry, discovery
from kernelmux.reports.matrix import Case, Cell, Header, Matrix, Outcome, Result, TimeUs
from kernelmux.reports.matrix_files import merge
from kernelmux.reports.matrix_packages import facts_of
from kernelmux.reports.matrix_static import header, static

DEVICES = ("t4", "a100-sxm-80gb", "h100-sxm", "h200", "b200", "rtx-5090", "gb10", "mi300x")
TOKENS = (1, 64)
LIVE_KERNELS = (
    ("rms_norm", "kernelmux.rms_norm[jit_cuda]", "jit_cuda", 3.1),
    ("rms_norm", "kernelmux.rms_norm[triton]", "triton", 3.4),
    ("silu_and_mul", "kernelmux.silu_and_mul[jit_cuda]", "jit_cuda", 5.0),
    ("topk", "kernelmux.topk[torch]", "torch", 41.0),
    ("fused_moe", "kernelmux.fused_moe[triton]", "triton", 180.0),
)
SAMPLES = 15
SPREAD, DRIFT = 0.02, 0.01  # of samples in a run; of a run as a whole


@dataclass
class Setting:
    """What a static matrix is made of. A mutation changes a copy."""

    registry: Registry
    devices: list[Device]
    packages: Packages = field(default_factory=Packages.assume_all)
    policies: dict[str, Policy] = field(default_factory=dict)

    def kernel(self, name: str) -> Any:
        found = self.registry.kernel(name)
        assert found is not None, f"no kernel {name}: the mutation must name another"
        return found

    def with_kernel(self, name: str, make: Callable[[Any], Any]) -> Setting:
        """One kernel made anew (None: taken out)."""
        old = self.kernel(name)
        items = [*self.registry.ops(), *(k for k in self.registry if k is not old)]
        new = make(old)
        return replace(self, registry=Registry([*items, *([] if new is None else [new])]))

    def with_op(self, name: str, make: Callable[[Any], Any]) -> Setting:
        ops = [make(op) if op.name == name else op for op in self.registry.ops()]
        kept = [op for op in ops if op is not None]
        names = {op.name for op in kept}
        return replace(self, registry=Registry([*kept, *(k for k in self.registry if k.op in names)]))

    def with_rules(self, op: str, make: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Setting:
        return replace(self, policies={**self.policies, op: Policy(make(self.policy(op).rules))})

    def with_devices(self, make: Callable[[list[Device]], list[Device]]) -> Setting:
        return replace(self, devices=make(list(self.devices)))

    def policy(self, op: str) -> Policy:
        return self.policies.get(op) or Policy.builtin(op)

    def matrix(self) -> Matrix:
        facts = facts_of(self.packages, "a test")
        return static(self.devices, self.packages, facts, registry=self.registry, policy_of=self.policy, tokens=TOKENS)


def real() -> Setting:
    known = discovery.registry()
    return Setting(Registry([*known.ops(), *known]), [catalog()[name] for name in DEVICES])


# -- replayed: what a run on a GPU measured, drawn anew for each run


OK = Result(
    "ok", correct=True, checked=40, error=0.31, peak_bytes=1 << 20, capture=True, deterministic=True,
    first_call_ms=120.0,
)  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """One live cell before noise: its true time, and what else was found."""

    case: Case
    kernel: str
    backend: str
    us: float
    result: Result = OK

    def cell(self, noise: random.Random) -> Cell:
        outcome = Outcome(self.backend, self.kernel, "none", "accepted", None, None, "can run", "measured")
        result = self.result
        if result.status == "ok" or result.status == "wrong":
            run = self.us * (1 + noise.gauss(0, DRIFT))
            samples = [run * (1 + abs(noise.gauss(0, SPREAD))) for _ in range(SAMPLES)]
            found = interval(samples, f"{self.kernel}/{self.us}")
            result = changed(result, time_us=TimeUs(found.mid, found.low, found.high, SAMPLES))
        return Cell(self.case, "h200", 64, outcome, "live", result)


def changed(result: Result, **fields: Any) -> Result:
    import msgspec

    return msgspec.structs.replace(result, **fields)


def measured() -> list[Replayed]:
    return [
        Replayed(Case(op, "none", "", "bfloat16", (("H", 4096),)), kernel, backend, us)
        for op, kernel, backend, us in LIVE_KERNELS
    ]


def replayed(cells: list[Replayed], seed: int) -> Matrix:
    """A live matrix of these cells, with the noise of one run."""
    noise = random.Random(seed)
    return Matrix(_head(("live",)), tuple(one.cell(noise) for one in cells))


# -- compiled


def compiled_facts() -> list[Cell]:
    return [
        Cell(
            Case(op, "none", "", "bfloat16", (("H", 4096),)), device, 0,
            Outcome("jit_cuda", f"kernelmux.{op}[jit_cuda]", "none", "accepted", None, None, "compiled", "compiled"),
            "compiled", Result("ok", registers=40, spills=0, shared_bytes=64, jobs=3, failed=0, arch="sm_90"),
        )
        for op in ("rms_norm", "silu_and_mul") for device in ("h100-sxm", "b200")
    ]  # fmt: skip


def compiled(cells: list[Cell]) -> Matrix:
    return Matrix(_head(("compiled",)), tuple(cells))


def _head(kinds: tuple[str, ...]) -> Header:
    known = discovery.registry()
    devices = [catalog()[name] for name in DEVICES]
    names = ["rms_norm", "silu_and_mul", "topk", "fused_moe"]
    return header(known, devices, facts_of(Packages({"torch": "2.11.0"}), "a test"), names, kinds=kinds,
                  tokens=TOKENS, plan="test")  # fmt: skip


def joined(*parts: Matrix) -> Matrix:
    return merge([(f"part {number}", part) for number, part in enumerate(parts)])
