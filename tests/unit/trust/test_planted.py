"""Every way to be wrong is seen, kept, and tried again in its time; the next kernel is taken, loudly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from kernelmux.errors import NoKernel, TrustError, UsageError
from kernelmux.policies import standing
from kernelmux.registry import epoch
from kernelmux.store import quarantine
from tests.unit.trust import planted
from tests.unit.trust.world import choose

ROOT = Path(__file__).parents[3]
OTHERS = {
    "rms_norm": (planted.kernel("norm_without_weight", "rms_norm"), {}),
    "router_gemm": (planted.kernel("half_of_k", "router_gemm"), {}),
    "topk": (planted.kernel("ids_off_by_one", "topk"), {"dtype": "float32"}),
    "nvfp4_quantize": (planted.kernel("packed_high_first", "nvfp4_quantize"), {}),
    "fused_moe": (planted.kernel("gate_and_up_swapped", "fused_moe", promises=frozenset()), {"activation": "silu"}),
    "fp8_gemm": (planted.kernel("scale_of_the_first_channel", "fp8_gemm"), {"quant": "fp8_channel"}),
    "nvfp4_gemm": (
        planted.kernel("reads_swizzled_as_linear", "nvfp4_gemm", prepare=f"{planted.HERE}:prepare_swizzled"),
        {"quant": "nvfp4_w4a16"},
    ),
}


def verdicts(status: str = quarantine.QUARANTINED) -> list[quarantine.Verdict]:
    return [verdict for verdict in quarantine.Book(quarantine.quarantine_path()) if verdict.status == status]


def settled(kernels: Any, *args: Any, **asked: Any) -> Any:
    """A Selection after its check, whose warnings are left aside."""
    selection = choose(kernels, *args, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        selection.check()
    return selection


@pytest.mark.parametrize("name", planted.WRONG)
def test_a_wrong_kernel_is_caught_and_the_next_one_taken_loudly(name: str) -> None:
    selection = choose(planted.kernel(name))
    assert selection.kernel == f"planted.{name}[triton]", "selecting checks nothing"
    assert not quarantine.quarantine_path().exists()
    with pytest.warns(RuntimeWarning, match=rf"planted\.{name}.*quarantined.*kernelmux\.silu_and_mul\[torch.*is taken"):
        selection.check()
    assert selection.backend == "torch"
    refused = next(one for one in selection.rejected if one.kernel == f"planted.{name}[triton]")
    assert refused.code == "quarantined"
    assert f"kernelmux doctor --retry 'planted.{name}[triton]'" in refused.remedy
    (verdict,) = verdicts()
    assert re.search(planted.WRONG[name], verdict.reason), verdict.reason
    assert re.search(planted.WRONG[name], refused.reason)
    assert any("quarantined" in condition for condition in selection.conditions)
    x = torch.randn(8, 384, dtype=torch.bfloat16)
    assert torch.isfinite(selection(x)).all()


@pytest.mark.parametrize("op", OTHERS)
def test_a_wrong_kernel_of_another_op_is_caught_before_weights_are_converted_for_it(op: str) -> None:
    kernel, asked = OTHERS[op]
    selection = settled(kernel, op, **asked)
    assert selection.backend == "torch"
    assert [verdict.kernel for verdict in verdicts()] == [kernel.name]


@pytest.mark.parametrize("op", OTHERS)
def test_the_same_kernels_pass_once_they_are_right(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "mended", True)
    kernel, asked = OTHERS[op]
    selection = choose(kernel, op, **asked)
    selection.check()
    assert selection.kernel == kernel.name, verdicts()


def test_the_evidence_names_numbers_sizes_versions_and_the_date() -> None:
    settled(planted.kernel("twice"))
    entry = json.loads(quarantine.quarantine_path().read_text())["verdicts"][0]
    assert entry["fingerprint"]["torch"] == standing.Packages.installed()["torch"]
    assert {"device", "capability", "driver", "kernelmux", "source"} <= entry["fingerprint"].keys()
    assert entry["when"][:2] == "20"
    assert entry["evidence"]["sizes"] == {"H": 192}
    assert entry["evidence"]["asked"] == {"M": 8, "H": 192}
    (case,) = entry["evidence"]["cases"]
    assert case["m"] == 8
    assert 0.9 < case["error"] < 1.1
    assert case["cosine"] > 0.999
    assert case["fault"]


def test_a_kernel_that_passed_is_not_checked_again() -> None:
    kernel = planted.kernel("right")
    selection = choose(kernel)
    selection.check()
    ran = planted.runs["right"]
    assert ran >= 8
    choose(kernel, shape={"M": 77, "H": 192}).check()
    epoch.bump()
    choose(kernel).check()
    assert planted.runs["right"] == ran
    choose(kernel, dtype="float16").check()
    assert planted.runs["right"] > ran, "another dtype is another form"


CHILD = """
import sys, json, warnings
warnings.simplefilter("ignore")
from tests.unit.trust import planted
from tests.unit.trust.world import choose
planted.version = sys.argv[2]
planted.mended = sys.argv[3:] == ["mended"]
selection = choose(planted.kernel(sys.argv[1]))
print(json.dumps([selection.kernel, [one.code for one in selection.rejected if one.kernel.startswith("planted")]]))
before = dict(planted.runs)
selection.check()
print(json.dumps([selection.kernel, planted.runs]))
"""


def child(*args: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ["nan_at_8", "zeros_in_a_tile", "right_at_1_alone"])
def test_a_quarantine_outlives_the_process_and_ends_with_another_version(name: str) -> None:
    settled(planted.kernel(name))
    (chosen, codes), (_, runs) = child(name, "1")
    assert chosen == "kernelmux.silu_and_mul[torch]"
    assert codes == ["quarantined"]
    assert name not in runs, "it is not run again"
    (chosen, codes), (kept, runs) = child(name, "2")
    assert chosen == f"planted.{name}[triton]"
    assert codes == []
    assert kept == "kernelmux.silu_and_mul[torch]"
    assert runs[name] >= 1, "another version is checked"
    (_, _), (kept, _) = child(name, "3", "mended")
    assert kept == f"planted.{name}[triton]"


def test_the_wrong_scale_layout_outlives_the_process_too() -> None:
    kernel, asked = OTHERS["nvfp4_gemm"]
    settled(kernel, "nvfp4_gemm", **asked)
    assert planted.runs["prepare_swizzled"] == 1, "only what the check made was prepared for it"
    script = (
        "from tests.unit.trust.test_planted import OTHERS, choose\n"
        "kernel, asked = OTHERS['nvfp4_gemm']\n"
        "selection = choose(kernel, 'nvfp4_gemm', **asked)\n"
        "print(selection.kernel, *(one.code for one in selection.rejected if one.kernel == kernel.name))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["kernelmux.nvfp4_gemm[torch]", "quarantined"]


def test_another_version_of_a_package_is_checked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted.kernel("nan_at_8")
    settled(kernel)
    assert choose(kernel).backend == "torch"
    versions = {**standing.Packages.installed(), "torch": "99.0"}
    monkeypatch.setattr(standing.Packages, "installed", classmethod(lambda cls: cls(versions)))
    standing.forget()
    epoch.bump()
    assert choose(kernel).kernel == kernel.name
    monkeypatch.setattr(planted, "mended", True)
    assert settled(kernel).kernel == kernel.name
    assert {verdict.status for verdict in quarantine.book()} == {"trusted", "quarantined"}


def test_the_driver_is_part_of_what_a_verdict_is_about() -> None:
    from dataclasses import replace

    from kernelmux.device import resolve_device

    kernel, gpu = planted.kernel("right"), replace(resolve_device("h200"), live=True, index=0)
    prints = [standing.fingerprint(kernel, replace(gpu, driver=driver)) for driver in ("570.1", "580.2")]
    assert prints[0] != prints[1]
    assert prints[0] is not None
    assert prints[0]["device"] == gpu.torch_name


def test_what_a_library_may_build_is_part_of_a_verdict_on_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelmux.device import resolve_device
    from kernelmux.registry import NeedsPackage

    gpu = resolve_device("h200")
    library = planted.kernel("right", requirements=(NeedsPackage("flashinfer-python"),))
    monkeypatch.delenv("FLASHINFER_DISABLE_JIT", raising=False)
    before = standing._fingerprint(library, gpu), standing._fingerprint(planted.kernel("right"), gpu)
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    assert standing._fingerprint(library, gpu) != before[0]  # one that could not be built is checked anew elsewhere
    assert standing._fingerprint(planted.kernel("right"), gpu) == before[1]
    versions = {**standing.Packages.installed(), "flashinfer-jit-cache": "0.6.0"}
    monkeypatch.setattr(standing.Packages, "installed", classmethod(lambda cls: cls(versions)))
    assert standing._fingerprint(library, gpu)["flashinfer-jit-cache"] == "0.6.0"


def test_each_wrong_kernel_is_passed_over_until_one_is_right() -> None:
    wrong = [planted.kernel(name) for name in ("twice", "nan_at_8", "all_zeros")]
    selection = choose([*wrong, planted.kernel("right")])
    with pytest.warns(RuntimeWarning) as said:
        selection.check()
    assert selection.kernel == "planted.right[triton]"
    assert len([one for one in said if "quarantined" in str(one.message)]) == 3
    assert [verdict.kernel for verdict in verdicts()] == [kernel.name for kernel in wrong]


# explicit choices


def test_a_kernel_that_was_asked_for_is_not_replaced() -> None:
    kernel = planted.kernel("twice")
    asked = choose(kernel, backend=kernel.name)
    with pytest.raises(TrustError, match=r"twice.*failed its check.*asked for, so no other"):
        asked.check()
    with pytest.raises(NoKernel, match=r"failed its check on this GPU.*--retry") as raised:
        choose(kernel, backend=kernel.name)
    assert [one.code for one in raised.value.rejected] == ["quarantined"]


def test_switched_off_the_quarantine_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted.kernel("twice")
    settled(kernel)
    monkeypatch.setenv("KERNELMUX_TRUST", "off")
    epoch.bump()
    assert settled(kernel).kernel == kernel.name
    assert choose(kernel, backend=kernel.name).source == "override"


def test_an_unknown_word_for_the_gate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELMUX_TRUST", "maybe")
    with pytest.raises(UsageError, match="KERNELMUX_TRUST=maybe is none of off, on, strict"):
        choose(planted.kernel("right"))


def test_by_default_nothing_is_checked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELMUX_TRUST")
    assert settled(planted.kernel("twice")).kernel == "planted.twice[triton]"
    assert not planted.runs


# after preparation


def test_a_failure_after_weights_were_prepared_raises() -> None:
    kernel, asked = OTHERS["nvfp4_gemm"]
    question = {**asked, "shape": {"M": 4, "N": 256, "K": 256}}
    early = choose(kernel, "nvfp4_gemm", **question)
    weights = planted.prepare_swizzled(
        w=torch.zeros(256, 128, dtype=torch.uint8), w_scale=torch.zeros(256, 16).to(torch.float8_e4m3fn),
        w_global_scale=torch.ones(()),
    )  # fmt: skip
    with pytest.raises(TrustError, match=r"weights are prepared for it already.*Select again"), pytest.warns():
        early(torch.zeros(4, 256, dtype=torch.bfloat16), weights)
    assert [verdict.kernel for verdict in verdicts()] == [kernel.name]


def test_weights_that_need_no_preparation_are_anybodys() -> None:
    selection = choose(OTHERS["rms_norm"][0], "rms_norm")
    x, weight = torch.randn(4, 256, dtype=torch.bfloat16), torch.full((256,), 2.0, dtype=torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="quarantined"):
        y = selection(x, weight)
    assert selection.backend == "torch"
    assert 1.5 < float(y.float().abs().mean()) / 0.8 < 2.5


def test_a_prepared_selection_keeps_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted.kernel("right")
    selection = choose(kernel)
    selection.check()
    verdict = next(iter(quarantine.book()))
    quarantine.book().record(verdict.but(status="quarantined", reason="seen elsewhere"))
    selection.check()
    assert selection.kernel == kernel.name
    assert choose(kernel).backend == "torch"


def test_where_no_other_kernel_is_left_the_table_says_why() -> None:
    from kernelmux.policies.select import select_backend
    from kernelmux.registry.discovery import registry

    kernel = planted.kernel("twice")
    registry().add(kernel)
    policy = {"id": "pinned", "when": {"op": "silu_and_mul"}, "pin": kernel.name, "why": "planted"}
    from kernelmux.policies.policy import Policy
    from kernelmux.policies.rule import read_rule

    pinned = Policy((read_rule({**policy, "evidence": "https://example.org"}),))
    question = dict(device="cpu", dtype="bfloat16", shape={"M": 8, "H": 192}, policy=pinned)
    with pytest.raises(NoKernel, match=r"twice|failed its check"):
        select_backend("silu_and_mul", **question).check()


def test_a_kernel_that_can_do_no_call_is_unchecked_which_strict_does_not_accept() -> None:
    kernel = planted.kernel("refuses")
    selection = choose(kernel)
    with pytest.warns(RuntimeWarning, match="runs unchecked on .*not these rows"):
        selection.check()
    assert selection.backend == "torch"
    assert [verdict.reason for verdict in verdicts("unchecked")] == ["not these rows"]
