"""What races of small ops show: ratios, misses, the page; and that parts are put together."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from kernelmux.reports import small_ops

ROOT = Path(__file__).resolve().parents[3]
JIT, TRITON, TORCH = (f"kernelmux.rms_norm[{backend}]" for backend in ("jit_cuda", "triton", "torch"))


def one(name, us, kind="kernel", backend=None, last=None):
    backend = backend or name.partition("[")[2].rstrip("]") or "torch"
    samples = [us] * 4 + [last or us] * 5
    return {"name": name, "backend": backend, "kind": kind, "us": us, "gbs": 1000.0, "samples_us": samples}


def row(m, h, jit=10.0, triton=11.0, peer=10.5, copy=9.8, chosen=JIT, measured=JIT, size=1000):
    contestants = [
        one(JIT, jit), one(TRITON, triton), one(TORCH, 50.0),
        one("torch.compile, this shape", peer, "peer", "torch_compile"), one("copy, torch", copy, "copy", "torch"),
        {"name": "flashinfer, direct", "backend": "flashinfer", "kind": "peer", "status": "error", "reason": "a | b"},
    ]  # fmt: skip
    return {
        "op": "rms_norm", "m": m, "h": h, "dtype": "bfloat16", "read_bytes": size, "written_bytes": size,
        "rounds": 9, "ceiling_us": copy, "contestants": contestants,
        "selected": {
            "policy": {"kernel": chosen, "source": "policy"}, "measured": {"kernel": measured, "source": "measured"},
        },
    }  # fmt: skip


def test_only_kernels_of_our_own_are_ours_and_the_faster_counts():
    said = row(1, 128, jit=10.0, triton=8.0, peer=8.4)
    assert small_ops.best(said, small_ops.ours)["name"] == TRITON
    assert small_ops.against_peers(said) == pytest.approx(1.05)
    assert small_ops.choice(said, "policy") == pytest.approx(1.25)


def test_the_summary_finds_the_least_and_what_falls_short():
    rows = [
        row(1, 128),
        row(16, 128, jit=11.0, triton=12.0, peer=10.0, chosen=TRITON),
        row(4096, 8192, copy=9.0, size=200_000_000),
    ]
    (said,) = small_ops.summary(rows)
    assert said["peers_least"] == (pytest.approx(10 / 11), 16, 128) and said["peers_below"] == [(128, 16)]
    assert said["peers_geomean"] == pytest.approx((1.05 * 1.05 * 10 / 11) ** (1 / 3))
    assert said["copy_least"] == (pytest.approx(0.9), 4096, 8192) and said["copy_below"] == [(8192, 4096)]
    assert (said["policy_within"], said["policy_judged"]) == (2, 3)
    assert said["policy_beyond"] == [((128, 16), 1.091)]


def test_a_measured_choice_is_judged_by_the_samples_it_was_not_made_on():
    said = row(1, 128)
    said["contestants"][0] = one(JIT, 10.0, last=14.0)
    assert small_ops.choice(said, "measured") == pytest.approx(14 / 11)
    said["selected"]["measured"]["source"] = "policy"
    assert small_ops.choice(said, "measured") is None


def result(rows):
    return {
        "device": "NVIDIA H200", "sm_count": 132, "capability": "9.0", "driver": "580", "date": "2026-11-22",
        "versions": {"torch": "2.11"}, "command": "python x", "rounds": 9, "rows": rows, "lost": [], "seconds": 1.0,
        "seconds_before": 1.0,
    }  # fmt: skip


def test_the_page_has_every_point_and_says_what_did_not_run():
    said = small_ops.page(result([row(1, 128), row(16, 128, peer=9.0)]), "python scripts/render_benchmarks.py")
    assert "| 128 | 1 | jit_cuda | 10.00 | torch.compile, this shape | 10.50 | 1.050 |" in said
    assert "slower than the better peer by more than allowed: M=16 H=128" in said
    assert "a \\| b (2 points, the first M=1 H=128)" in said
    lacking = small_ops.page({**result([row(1, 128)]), "failed": [{"op": "relu2", "h": 512, "said": "gone"}]}, "x")
    assert "relu2, H=512, no contestant: gone" in lacking


def test_parts_are_put_together_once_each(tmp_path, monkeypatch, capsys):
    paths = []
    for i, rows in enumerate(([row(1, 128)], [row(1, 128), row(1, 512)])):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps({**result(rows), "command": f"python x --part {i + 1}/2"}))
    out = tmp_path / "whole.json"
    monkeypatch.setattr(sys, "argv", ["bench_small_ops.py", "--merge", *map(str, paths), "--out", str(out)])
    runpy.run_path(str(ROOT / "benchmarks" / "bench_small_ops.py"), run_name="__main__")
    whole = json.loads(out.read_text())
    assert [(r["m"], r["h"]) for r in whole["rows"]] == [(1, 128), (1, 512)]
    assert whole["command"] == "python x --part I/N" and whole["parts"] == 2


def test_parts_share_every_pair_out_once(monkeypatch):
    script = runpy.run_path(str(ROOT / "benchmarks" / "bench_small_ops.py"), run_name="script")
    import argparse

    every = [
        pair
        for i in (1, 2, 3)
        for pair in script["pairs"](argparse.Namespace(ops=None, h=None, part=(i, 3)))
    ]  # fmt: skip
    assert len(every) == len(set(every)) and {h for op, h in every if op == "rms_norm"} == set(script["ALL_H"])
    assert {h for op, h in every if op == "relu2"} == set(script["FEW_H"])


def test_one_op_that_fails_does_not_end_a_part(tmp_path, monkeypatch, capsys):
    import argparse
    from types import SimpleNamespace

    pytest.importorskip("torch")
    from kernelmux import device
    from kernelmux.errors import BadShape
    from kernelmux.measure import small, small_bench

    class Stand:
        def __init__(self, device):
            pass

        def race(self, op, point, field, rounds, refused):
            if op.name == "rms_norm_nvfp4":
                raise BadShape("unknown layout")
            return SimpleNamespace(to_json=lambda: {"op": op.name, "m": point.m, "h": point.h, "contestants": []})

    script = runpy.run_path(str(ROOT / "benchmarks" / "bench_small_ops.py"), run_name="script")
    inside = script["measure"].__globals__
    chosen = {"kernel": "a", "source": "policy"}
    monkeypatch.setattr(small, "SmallStand", Stand)
    monkeypatch.setattr(device, "detect", lambda index: None)
    monkeypatch.setattr(small_bench, "selected_by_policy", lambda point, device: chosen)
    monkeypatch.setitem(inside, "contestants", lambda *given: ([], {}))
    monkeypatch.setitem(inside, "judged_later", lambda races, device: [chosen] * len(races))
    monkeypatch.setitem(inside, "head", lambda *given: {"rows": [], "lost": [], "seconds": 0.0, "seconds_before": 0.0})
    options = argparse.Namespace(
        out=tmp_path / "part.json", resume=False, budget=0.0, ops=["rms_norm_nvfp4", "relu2"], h=[128], m=[1, 2],
        part=(1, 1), dtype="bfloat16", rounds=3,
    )  # fmt: skip
    script["measure"](options)
    made = json.loads(options.out.read_text())
    assert [(row["op"], row["m"]) for row in made["rows"]] == [("relu2", 1), ("relu2", 2)]
    assert made["failed"] == [{"op": "rms_norm_nvfp4", "h": 128, "said": "BadShape: unknown layout"}]
    assert "was not measured: BadShape" in capsys.readouterr().out
    options.resume, options.ops = True, ["relu2"]
    script["measure"](options)
    assert len(json.loads(options.out.read_text())["rows"]) == 2


def test_the_page_says_what_the_sanitizer_found_or_why_it_did_not_look():
    said = {"what": "compute-sanitizer", "date": "2026-11-22", "command": "python x", "runs": []}
    assert "is not installed" in small_ops.page(None, "x", sanitized={**said, "refused": "it is not installed"})
    run = {"tool": "racecheck", "op": "relu2", "outcome": "clean", "tests": "9 passed"}
    page = small_ops.page(None, "x", sanitized={**said, "device": "H200", "version": "2025.3", "runs": [run]})
    assert "| racecheck | relu2 | clean | 9 passed |" in page
