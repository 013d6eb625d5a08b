"""The section on host cost: every contestant in its place, targets judged, nothing said where nothing was measured."""

from typing import Any

from kernelmux.reports import host_cost


def result(gpu: bool, ns: float = 2000.0) -> dict[str, Any]:
    targets = {"km.ops, out=": {"at_most": 1.0, "share": ns / 4000, "met": ns <= 4000}}
    row = {
        "op": "rms_norm", "M": 1, "H": 2048, "dtype": "bfloat16", "kernel": "kernelmux.rms_norm[jit_cuda]",
        "median_ns": {"F.relu": 3000.0, "km.ops, out=": ns, "aten.relu.out": 4000.0}, "base": "aten.relu.out",
        "targets": targets,
    }  # fmt: skip
    return {
        "device": "NVIDIA H200", "host": "a CPU, 2 cores", "gpu": gpu, "mode": "no_grad", "rounds": 5, "batch": 10,
        "versions": {"torch": "2.11.0"}, "parts_ns": {"the guard on three tensors": 216.0}, "rows": [row],
    }  # fmt: skip


def test_a_machine_with_a_gpu_comes_first_and_ours_above_torchs():
    said = "\n\n".join(host_cost.section([result(False), result(True)]))
    assert said.index("NVIDIA H200, on a CPU") < said.index("a CPU, 2 cores, no GPU")
    assert said.index("km.ops, out=") < said.index("F.relu")
    assert "2.00 (0.50)" in said and "the guard on three tensors 216" in said


def test_a_target_is_judged_in_words():
    met, missed = ("\n".join(host_cost.section([result(True, ns)])) for ns in (2000.0, 5000.0))
    assert "km.ops, out= is within 1 times aten.relu.out (0.50)" in met
    assert "km.ops, out= misses 1 times aten.relu.out (1.25)" in missed


def test_nothing_measured_is_said():
    assert "Not measured yet" in host_cost.section([])[0]
