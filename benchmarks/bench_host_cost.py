"""What a call costs the host: km.ops, torch.ops.kernelmux, torch's own small ops, torch.compile and FlashInfer.

    python benchmarks/bench_host_cost.py --out benchmarks/results/host-cost-h200.json       # on a GPU
    python benchmarks/bench_host_cost.py --out benchmarks/results/host-cost-cpu.json        # without one

Time until a call returns, not until the GPU is done: rounds of short batches on tensors small enough for the GPU to
keep up, each batch after a wait. The contestants of an op take turns in every round, in another order each time; a
figure is the median over the rounds of a batch's mean. torch's relu is measured on tensors of the same shape. Without a
GPU the kernel behind km.ops does nothing, so that kernelmux's own part is measured; torch's relu there also computes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = "aten.relu.out"  # the call that targets are shares of
TARGETS = {"km.ops, out=": 1.0, "torch.ops, .out": 3.0}
Call = Callable[[], Any]


def nothing_bound(scalars: Any, *tensors: Any) -> Callable[..., None]:
    """The stand-in kernel: a launch that does nothing, with as many arguments as the op has tensors."""
    if len(tensors) == 2:
        return lambda x, out: None
    return lambda x, weight, out: None


def not_run(*_: Any, **__: Any) -> Any:
    raise AssertionError("the stand-in kernel is bound, never run")


def stand_in() -> None:
    """Have km.ops choose a kernel that does nothing."""
    import kernelmux.ops.calls as calls
    from kernelmux.registry import ANY, Kernel, OnCapability
    from kernelmux.registry.discovery import registry

    sys.modules.setdefault("bench_host_cost", sys.modules[__name__])
    for op in ("rms_norm", "silu_and_mul"):
        registry().add(
            Kernel(
                name=f"nothing.{op}", op=op, backend="torch", load="bench_host_cost:not_run",
                bind="bench_host_cost:nothing_bound", requirements=(OnCapability(ANY),),
            )
        )  # fmt: skip
    chosen = calls.select_backend
    calls.select_backend = lambda op, **options: chosen(op, **options, backend=f"nothing.{op}")  # type: ignore[attr-defined]


def rms_norm(device: str, rows: int, hidden: int) -> dict[str, Call]:
    import torch
    import torch.nn.functional as F

    import kernelmux as km

    x = torch.randn(rows, hidden, device=device, dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.ones(hidden, device=device, dtype=torch.bfloat16), requires_grad=False)
    out = torch.empty_like(x)
    face = km.ops.rms_norm
    packet = torch.ops.kernelmux.rms_norm
    into = packet.out
    calls: dict[str, Call] = {
        "km.ops, out=": lambda: face(x, weight, 1e-6, out=out),
        "km.ops": lambda: face(x, weight, 1e-6),
        "torch.ops, .out": lambda: into(x, weight, 1e-6, out=out),
        "torch.ops": lambda: packet(x, weight, 1e-6),
        "F.rms_norm": lambda: F.rms_norm(x, (hidden,), weight, 1e-6),
        **relus(x, out),
    }
    if device != "cpu":
        compiled = torch.compile(lambda x: F.rms_norm(x, (hidden,), weight, 1e-6), dynamic=False)
        calls["torch.compile"] = lambda: compiled(x)
        try:
            from flashinfer.norm import rmsnorm

            calls["FlashInfer, out="] = lambda: rmsnorm(x, weight, 1e-6, out=out)
        except ImportError:
            pass
    return calls


def silu_and_mul(device: str, rows: int, hidden: int) -> dict[str, Call]:
    import torch
    import torch.nn.functional as F

    import kernelmux as km

    x = torch.randn(rows, 2 * hidden, device=device, dtype=torch.bfloat16)
    half = x[:, :hidden].contiguous()
    out = torch.empty_like(half)
    face = km.ops.silu_and_mul
    packet = torch.ops.kernelmux.silu_and_mul
    into = packet.out
    calls: dict[str, Call] = {
        "km.ops, out=": lambda: face(x, out=out),
        "km.ops": lambda: face(x),
        "torch.ops, .out": lambda: into(x, out=out),
        "torch.ops": lambda: packet(x),
        **relus(half, out),
    }
    if device != "cpu":
        compiled = torch.compile(lambda x: F.silu(x[:, :hidden]) * x[:, hidden:], dynamic=False)
        calls["torch.compile"] = lambda: compiled(x)
        try:
            from flashinfer.activation import silu_and_mul as theirs

            calls["FlashInfer, out="] = lambda: theirs(x, out)
        except ImportError:
            pass
    return calls


def relus(x: Any, out: Any) -> dict[str, Call]:
    """torch's: relu with an out, as torch.ops has it; the function; and the leanest call with an out."""
    import torch
    import torch.nn.functional as F

    relu_out = torch.ops.aten.relu.out
    return {
        BASE: lambda: relu_out(x, out=out),
        "F.relu": lambda: F.relu(x),
        "torch.clamp_min, out=": lambda: torch.clamp_min(x, 0, out=out),
    }


def parts(device: str) -> dict[str, float]:
    """ns of what a call of km.ops is made of, each by itself."""
    import timeit

    import torch
    from torch.autograd import profiler
    from torch.overrides import has_torch_function_unary

    from kernelmux.ops.guards import guard_of
    from kernelmux.policies import select

    x = torch.randn(16, 512, device=device)
    weight, out = torch.ones(512, device=device), torch.empty_like(x)
    names = {
        "x": x, "weight": weight, "out": out, "check": guard_of(x, weight, out), "profiler": profiler,
        "tracing": torch.compiler.is_dynamo_compiling, "override": select.override_in_force,
        "unset": select.environment_without, "VARIABLES": select.variables("rms_norm"),
        "intercepted": has_torch_function_unary, "into": {(x.shape, 1e-6, 0.0): ()}.get,
    }  # fmt: skip
    statements = {
        "tracing?": "tracing()",
        "an override block?": "override() is None",
        "an environment variable?": "unset(VARIABLES)",
        "a profiler?": "profiler._is_profiler_enabled",
        "a function mode?": "intercepted(x)",
        "looking up shape and scalars": "into((x.shape, 1e-6, 0.0), ())",
        "the guard on three tensors": "check(x, weight, out)",
    }
    count = 500

    def typical(statement: str) -> float:
        return statistics.median(timeit.Timer(statement, globals=names).repeat(501, count)) / count * 1e9

    empty = typical("pass")
    return {what: round(typical(statement) - empty, 1) for what, statement in statements.items()}


def race(calls: dict[str, Call], wait: Callable[[], None], rounds: int, batch: int) -> dict[str, list[float]]:
    """ns a call, one figure a round."""
    for call in calls.values():
        for _ in range(20):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            call = calls[name]
            wait()
            start = time.perf_counter_ns()
            for _ in range(batch):
                call()
            samples[name].append((time.perf_counter_ns() - start) / batch)
    return samples


def overhead(rounds: int, batch: int) -> float:
    """ns of the loop and of the lambda around each call, which every figure lacks."""
    return statistics.median(race({"nothing": lambda: None}, lambda: None, rounds, batch)["nothing"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import kernelmux as km
    from kernelmux.registry.packages import Packages

    gpu = torch.cuda.is_available() and not options.cpu
    device = "cuda" if gpu else "cpu"
    if not gpu:
        stand_in()
        torch.set_num_threads(1)
    wait = torch.cuda.synchronize if gpu else lambda: None
    load = os.getloadavg()[0]
    rows = []
    with torch.inference_mode() if options.inference else torch.no_grad():
        loop = overhead(options.rounds, options.batch)
        for name, make in {"rms_norm": rms_norm, "silu_and_mul": silu_and_mul}.items():
            samples = race(make(device, options.m, options.hidden), wait, options.rounds, options.batch)
            ns = {who: round(statistics.median(values) - loop, 1) for who, values in samples.items()}
            least = {who: round(min(values) - loop, 1) for who, values in samples.items()}
            shape = {"M": options.m, "H": options.hidden, "dtype": "bfloat16"}
            kernel = f"nothing.{name}" if not gpu else chosen(name, shape)
            targets = {
                who: {"at_most": share, "share": round(ns[who] / ns[BASE], 3), "met": ns[who] <= share * ns[BASE]}
                for who, share in TARGETS.items()
            }
            rows.append(
                {
                    "op": name,
                    **shape,
                    "kernel": kernel,
                    "median_ns": ns,
                    "min_ns": least,
                    "base": BASE,
                    "targets": targets,
                }
            )
    packages = Packages.installed()
    return {
        "what": "host time of one call",
        "device": torch.cuda.get_device_name() if gpu else cpu_name(),
        "host": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": gpu,
        "mode": "inference_mode" if options.inference else "no_grad",
        "rounds": options.rounds,
        "batch": options.batch,
        "load_average_before": round(load, 2),
        "versions": {
            "python": platform.python_version(), "kernelmux": km.__version__, "torch": torch.__version__,
            **{name: packages[name] for name in ("triton", "flashinfer-python") if name in packages},
        },
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": f"python benchmarks/bench_host_cost.py --rounds {options.rounds} --batch {options.batch}"
        + (" --inference" if options.inference else ""),
        "parts_ns": parts(device),
        "rows": rows,
    }  # fmt: skip


def chosen(op: str, shape: dict[str, Any]) -> str:
    import kernelmux as km

    sizes = {axis: shape[axis] for axis in ("M", "H")}
    return km.select_backend(op, device="cuda:0", dtype=shape["dtype"], shape=sizes).kernel


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--batch", type=int, default=200, help="calls a sample")
    parser.add_argument("--m", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inference", action="store_true", help="under inference_mode instead of no_grad")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    result = measure(options)
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for part, ns in result["parts_ns"].items():
        print(f"{ns:8.0f} ns  {part}")
    for row in result["rows"]:
        print(f"{row['op']}, M={row['M']}, H={row['H']}, {row['kernel']}")
        for who, ns in sorted(row["median_ns"].items(), key=lambda pair: pair[1]):
            print(f"{ns:8.0f} ns  {who}  (least {row['min_ns'][who]:.0f}, {ns / row['median_ns'][BASE]:.2f} of {BASE})")


if __name__ == "__main__":
    main()
