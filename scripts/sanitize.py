#!/usr/bin/env python3
"""Run the correctness tests of the small ops under compute-sanitizer, memcheck and racecheck, and write what it found.

python scripts/sanitize.py --out build/sanitize.json [--limit 500] [--jobs 6] [--ops rms_norm,...] [--tools memcheck]

One run an op and tool, several at once, spread over the GPUs there are. Only kernelmux's own kernels, at few shapes
(KERNELMUX_SMALL_GRID=little); memory is not cached by torch, so that each tensor's end is its allocation's. Where the
tool is missing or refuses the GPU, the outcome says so. Exit code 1 for an error or a hazard, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITE = "tests/gpu/test_small_ops_gpu.py"
# What needs graphs, processes of its own, or gigabytes; and what no memory error can hide in.
LEFT_OUT = ("captured", "late_producers", "bench_measures", "32_bits", "current_stream", "same_bits")
TOOLS = ("memcheck", "racecheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)[^\n]*")
REFUSED = ("Device not supported", "not supported on this", "Unable to", "failed to initialize", "Failed to initialize")


def ops() -> list[str]:
    from kernelmux.measure.small_point import small_ops
    from kernelmux.registry.discovery import registry

    return [op.name for op in small_ops(registry().ops())]


def run(tool: str, op: str, gpu: str, deadline: float, extra: list[str]) -> dict[str, Any]:
    """One op under one tool: its outcome."""
    line = [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", "97", "--print-limit", "20",
        *(["--racecheck-report", "all"] if tool == "racecheck" else []), *extra,
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", SUITE, "-k", wanted(op),
    ]  # fmt: skip
    environment = {
        **os.environ, "KERNELMUX_SMALL_GRID": "little", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    said: dict[str, Any] = {"tool": tool, "op": op}
    began, left = time.monotonic(), deadline - time.monotonic()
    if left < 20:
        return {**said, "outcome": "not run: no time was left"}
    try:
        ran = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=left)
        text, code = ran.stdout + ran.stderr, ran.returncode
    except subprocess.TimeoutExpired as late:
        text = "".join(_text(part) for part in (late.stdout, late.stderr))
        code = None
    found = [int(number) for number in SUMMARY.findall(text)]
    tests = next((line for line in reversed(text.splitlines()) if " passed" in line or " failed" in line), "")
    return {
        **said,
        "outcome": _outcome(code, found, text),
        "found": max(found, default=None),
        "tests": tests.strip("= ").strip(),
        "seconds": round(time.monotonic() - began, 1),
        "reports": [line for line in text.splitlines() if line.startswith("=========")][:40] if any(found) else [],
    }


def wanted(op: str) -> str:
    """For pytest's -k: the ids are names such as ``kernelmux.rms_norm[jit_cuda]``, and -k takes parts of them."""
    others = [other for other in ops() if op in other and other != op]
    return " and ".join([f"kernelmux.{op}", "(jit_cuda or triton)", *(f"not {word}" for word in (*others, *LEFT_OUT))])


def _text(part: Any) -> str:
    return part.decode(errors="replace") if isinstance(part, bytes) else part or ""


def _outcome(code: int | None, found: list[int], text: str) -> str:
    if any(found):
        return f"{max(found)} found"
    refused = next((word for word in REFUSED if word in text), None)
    if refused and " passed" not in text:
        line = next(line for line in text.splitlines() if refused in line)
        return f"refused: {line.strip('= ').strip()[:200]}"
    if code is None:
        return "not finished in time; nothing found until then"
    if code == 5:
        return "no test of this op"
    if code == 0 and found:
        return "clean"
    return f"the tests failed (exit code {code}): {text[-600:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=500.0, help="seconds for everything")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--ops", type=lambda text: text.split(","))
    parser.add_argument("--tools", type=lambda text: text.split(","), default=list(TOOLS))
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        help="another option of compute-sanitizer, as in --extra=--kernel-name-"
        "exclude=kernel_substring=at6native, which leaves out torch's own kernels",
    )
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    result: dict[str, Any] = {
        "what": "compute-sanitizer over the correctness tests of the small ops",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python scripts/sanitize.py --out FILE",
        "left_out": list(LEFT_OUT),
        "runs": [],
    }
    if shutil.which("compute-sanitizer") is None:
        result["refused"] = "compute-sanitizer is not installed here: it comes with the CUDA toolkit"
    else:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("no NVIDIA GPU answers on this machine, or torch is not built for one.")
        version = subprocess.run(["compute-sanitizer", "--version"], capture_output=True, text=True).stdout
        result |= {
            "device": torch.cuda.get_device_name(0),
            "version": next((line for line in version.splitlines() if "ersion" in line), version.strip()),
        }
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        places = gpus.split(",")
        deadline = time.monotonic() + options.limit
        work = [(tool, op) for tool in options.tools for op in options.ops or ops()]
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = [
                pool.submit(run, tool, op, places[i % len(places)], deadline, options.extra)
                for i, (tool, op) in enumerate(work)
            ]
            for done in waiting:
                entry = done.result()
                result["runs"].append(entry)
                print(f"{entry['tool']} {entry['op']}: {entry['outcome'][:300]} {entry.get('tests', '')}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if "refused" in result:
        print(result["refused"])
    return 1 if any(" found" in entry["outcome"] for entry in result["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
