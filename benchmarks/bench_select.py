"""What a selection costs: a warm call, and the first call of a process that has only imported kernelmux.

    python benchmarks/bench_select.py --out benchmarks/results/select-latency.json

Every sample is one fresh interpreter in which torch cannot be imported. ``first`` is the time from after
``import kernelmux`` to the Selection for a described Device; ``import`` is that import. ``warm`` is the mean
of one call over 5000, keyword arguments and the shape dictionary made anew at each; of five such means the least,
because what else the machine does only ever adds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS_US = {"warm": 2.0, "first": 50_000.0}

CHILD = """
import sys, time

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
CALL = 'select_backend("fused_moe", device="h100-sxm", quant=quant, dtype="bfloat16", ' \\
       'shape={"M": 64, "E": 128, "N": 384, "K": 2048, "topk": 8}, activation="silu")'

start = time.perf_counter()
import kernelmux
imported = time.perf_counter()
first = eval(compile(CALL, "call", "eval"), {"select_backend": kernelmux.select_backend, "quant": None})
done = time.perf_counter()
assert first.backend == "triton" and "torch" not in sys.modules
modules = sorted({name.partition(".")[0] for name in sys.modules} & {"yaml", "msgspec", "packaging", "json", "sqlite3"})
result = {"import_us": (imported - start) * 1e6, "first_us": (done - imported) * 1e6, "warm_us": {}}
if sys.argv[1:] == ["warm"]:
    import timeit
    schemes = {"None": None, "name": "none", "Scheme": kernelmux.Scheme.of("none")}
    for name, quant in schemes.items():
        timer = timeit.Timer(CALL, globals={"select_backend": kernelmux.select_backend, "quant": quant})
        timer.timeit(1000)
        result["warm_us"][name] = min(timer.repeat(5, 5000)) / 5000 * 1e6
import json
result["modules"] = modules
print(json.dumps(result))
"""


def child(*args: str, environment: dict[str, str]) -> dict[str, object]:
    command = [sys.executable, "-c", CHILD, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr}")
    return json.loads(done.stdout)


def clean_environment(folder: str) -> dict[str, str]:
    """Bytecode is cached, as in an installed package; nobody's overrides and journal count."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("KERNELMUX_", "PYTHONDONTWRITE"))}
    own = {"PYTHONPYCACHEPREFIX": f"{folder}/pyc", "KERNELMUX_CACHE_DIR": f"{folder}/cache"}
    return {**environment, **own, "KERNELMUX_CONFIG_DIR": f"{folder}/config", "PYTHONPATH": str(ROOT)}


def summary(samples: list[float], target_us: float | None = None) -> dict[str, object]:
    median = statistics.median(samples)
    judged = {} if target_us is None else {"target_us": target_us, "within_target": median <= target_us}
    return {
        "median_us": round(median, 3),
        "min_us": round(min(samples), 3),
        "max_us": round(max(samples), 3),
        **judged,
        "samples_us": [round(sample, 3) for sample in samples],
    }


def measure(runs: int) -> dict[str, object]:
    from kernelmux import __version__
    from kernelmux.registry.packages import Packages

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        environment = clean_environment(folder)
        child(environment=environment)  # writes the bytecode
        cold = [child(environment=environment) for _ in range(runs)]
        warm = [child("warm", environment=environment)["warm_us"] for _ in range(runs)]
    packages = Packages.installed()
    return {
        "what": 'select_backend("fused_moe", device="h100-sxm", bf16, Qwen3-30B-A3B TP2), torch not importable',
        "device": f"{cpu_name()}, {os.cpu_count()} cores",
        "load_average_before": round(load, 2),
        "versions": {
            "python": platform.python_version(),
            "kernelmux": __version__,
            **{name: packages.get(name, "not installed") for name in ("triton", "pyyaml")},
        },
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": f"python benchmarks/bench_select.py --runs {runs} --out benchmarks/results/select-latency.json",
        "imported": cold[0]["modules"],
        "import": summary([run["import_us"] for run in cold]),
        "first": summary([run["first_us"] for run in cold], TARGETS_US["first"]),
        "warm": {name: summary([run[name] for run in warm], TARGETS_US["warm"]) for name in warm[0]},
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21, help="fresh processes a figure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    result = measure(options.runs)
    text = json.dumps(result, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    for name in ("import", "first"):
        print(f"{name}: median {result[name]['median_us'] / 1000:.1f} ms, min {result[name]['min_us'] / 1000:.1f}")
    for name, figures in result["warm"].items():
        print(f"warm, quant {name}: median {figures['median_us']:.2f} us")


if __name__ == "__main__":
    main()
