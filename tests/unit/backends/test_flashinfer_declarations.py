"""What kernelmux declares of FlashInfer's kernels, against what FlashInfer itself lists."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from kernelmux.backends.flashinfer import declare_gemm, declare_moe, declare_small
from kernelmux.device import Capability, catalog, resolve_device
from kernelmux.quant import Scheme
from kernelmux.registry import Conditional, Kernel, Packages, Problem, Rejected
from kernelmux.registry.discovery import discover
from tests.unit.backends.fake_library import snapshot

KERNELS = {k.name: k for k in (*declare_gemm.KERNELS, *declare_moe.KERNELS, *declare_small.KERNELS)}
DIFFERENCES = json.loads((Path(__file__).parents[2] / "data" / "flashinfer_differences.json").read_text())

# our kernel -> FlashInfer's function and backend
DECORATED = {
    **{f"flashinfer.mm_fp4[{word}]": ("mm_fp4", word) for word in ("cutlass", "cudnn", "trtllm", "b12x")},
    "flashinfer.mm_fp4[cutedsl]": ("mm_fp4", "cute-dsl"),
    **{f"flashinfer.nvfp4_mm[{word}]": ("mm_fp4", word) for word in ("cutlass", "cudnn", "b12x")},
    "flashinfer.nvfp4_mm[cutedsl]": ("mm_fp4", "cute-dsl"),
    "flashinfer.mm_fp4[cutedsl_low_latency]": ("mm_fp4", "cutedsl_low_latency"),
    "flashinfer.mm_bf16_fp4[cutedsl]": ("mm_bf16_fp4", "cute-dsl"),
    "flashinfer.mm_bf16_fp4[cudnn]": ("mm_bf16_fp4", "cudnn"),
    **{f"flashinfer.bmm_fp8[{word}]": ("bmm_fp8", word) for word in ("cublas", "cudnn", "cutlass")},
    **{f"flashinfer.gemm_fp8_nt_groupwise[{w}]": ("gemm_fp8_nt_groupwise", w) for w in ("cutlass", "trtllm")},
    "flashinfer.mm_bf16[cublas]": ("mm_bf16", "cublaslt"),
    "flashinfer.mm_M1_16[jit_cuda]": ("mm_M1_16_K7168_N256", "only"),
    "flashinfer.fused_topk_deepseek[jit_cuda]": ("fused_topk_deepseek", "default"),
}
# our kernel -> the class of FlashInfer's unified MoE API that speaks for it
CONFIGS = {
    "flashinfer.cutlass_fused_moe[cutlass]": "CutlassBf16Config",
    "flashinfer.cutlass_fused_moe_fp8[cutlass]": "CutlassFp8PerTensorConfig",
    "flashinfer.cutlass_fused_moe_fp8_block[cutlass]": "CutlassFp8BlockConfig",
    "flashinfer.cutlass_fused_moe_nvfp4[cutlass]": "CutlassNvfp4Config",
    "flashinfer.trtllm_bf16_routed_moe[trtllm]": "TrtllmBf16Config",
    "flashinfer.trtllm_fp8_block_scale_routed_moe[trtllm]": "TrtllmFp8BlockConfig",
    "flashinfer.trtllm_fp4_block_scale_routed_moe[trtllm]": "TrtllmFp4Config",
    "flashinfer.cute_dsl_fused_moe[cutedsl]": "CuteDslConfig",
    "flashinfer.cute_dsl_fused_moe_w4a16[cutedsl]": "CuteDslConfig",
}
# of these FlashInfer lists nothing: what they do on a GPU is in their code
UNLISTED = (
    "fp4_quantize", "rmsnorm", "rmsnorm_quant", "fused_add_rmsnorm", "silu_and_mul", "gelu_and_mul",
    "gelu_tanh_and_mul",
)  # fmt: skip


def _differences(listed: dict[str, set[int]]) -> set[tuple[str, str, str]]:
    """(kernel, capability, who lists it) for every capability that one side has and the other lacks."""
    found = set()
    for name, theirs in listed.items():
        ours = {capability.sm for capability in KERNELS[name].capabilities or ()}
        for side, missing in (("flashinfer", theirs - ours), ("kernelmux", ours - theirs)):
            found |= {(name, f"{sm // 10}.{sm % 10}", side) for sm in missing}
    return found


def _unexplained(listed: dict[str, set[int]]) -> tuple[list[str], list[str]]:
    """(differences nobody has explained, explanations of none)."""
    found = _differences(listed)
    kept = [(entry["kernel"], entry["capability"], entry["listed_by"]) for entry in DIFFERENCES["capabilities"]]
    for name, capability, side in sorted(found):
        print(f"{name} on {capability}: {side} alone lists it")
    new = [one for one in sorted(found) if not any(k in (one[0], "*") and (c, s) == one[1:] for k, c, s in kept)]
    idle = [one for one in kept if not any(one[0] in (f[0], "*") and f[1:] == one[1:] for f in found)]
    return [str(one) for one in new], [str(one) for one in idle]


def _of_snapshot() -> dict[str, set[int]]:
    held = snapshot("flashinfer-python")
    listed = {name: set(held["capabilities"][function][backend]) for name, (function, backend) in DECORATED.items()}
    return listed | {name: set(held["moe_configs"][config]) for name, config in CONFIGS.items()}


def test_every_difference_from_the_snapshot_is_listed_with_its_reason():
    new, idle = _unexplained(_of_snapshot())
    assert not new, f"FlashInfer and kernelmux disagree and no reason is given: {new}"
    assert not idle, f"these differences are gone, take their reasons out: {idle}"
    assert all(entry["reason"] for entry in DIFFERENCES["capabilities"] + DIFFERENCES["undeclared"])


def test_every_difference_from_the_installed_flashinfer_is_listed_with_its_reason():
    pytest.importorskip("flashinfer", reason="flashinfer-python is not installed: only its snapshot was compared")
    gemm, moe = importlib.import_module("flashinfer.gemm"), importlib.import_module("flashinfer.fused_moe")
    every = sorted({75, 80, 86, 87, 89, 107, *(d.capability.sm for d in catalog().values() if d.capability)})
    listed = {}
    for name, (function, backend) in DECORATED.items():
        asked = getattr(gemm, function, None) or getattr(moe, function)
        if backend == "only":
            listed[name] = {sm for sm in every if asked.is_compute_capability_supported(sm)}
        else:
            listed[name] = {sm for sm in every if asked.is_backend_supported(backend, sm)}
    listed |= {name: {sm for sm in every if getattr(moe, c).supported(sm)} for name, c in CONFIGS.items()}
    new, _ = _unexplained(listed)
    assert not new, f"the installed FlashInfer and kernelmux disagree and no reason is given: {new}"


def test_every_backend_flashinfer_lists_is_declared_or_left_out_with_a_reason():
    listed = {(f, b) for f, backends in snapshot("flashinfer-python")["capabilities"].items() for b in backends}
    left_out = {(entry["function"], entry["backend"]) for entry in DIFFERENCES["undeclared"]}
    assert listed - set(DECORATED.values()) == left_out


def test_every_moe_config_of_flashinfer_is_declared_or_left_out_with_a_reason():
    left_out = {config for entry in DIFFERENCES["undeclared_moe"] for config in entry["configs"]}
    assert set(snapshot("flashinfer-python")["moe_configs"]) - set(CONFIGS.values()) == left_out
    assert all(entry["reason"] for entry in DIFFERENCES["undeclared_moe"])


def test_every_kernel_is_compared_or_known_to_be_unlisted():
    rest = set(KERNELS) - set(DECORATED) - set(CONFIGS)
    assert {name.split(".")[1].split("[")[0] for name in rest} == set(UNLISTED)


def test_nothing_is_declared_to_have_run():
    assert all(kernel.evidence_on(device) == "declared" for kernel in KERNELS.values() for device in catalog().values())


def _judge(kernel: Kernel, device: str, shape: dict[str, int], packages: Packages, **facts: object) -> object:
    facts = {"scheme": "none", "dtype": "bfloat16", **facts}
    problem = Problem(
        op=kernel.op,
        scheme=Scheme.of(facts["scheme"]),
        dtype=facts["dtype"],
        shape=shape,
        activation=facts.get("activation"),
        demands=frozenset(facts.get("demands", ())),
    )
    return kernel.judge(discover().op(kernel.op), resolve_device(device), packages, problem)


def _codes(answer: object) -> dict[str, Rejected]:
    return {reason.code: reason for reason in answer.every()} if isinstance(answer, Rejected) else {}


ALL = Packages.assume_all()
GEMM = {"M": 64, "N": 4096, "K": 4096}


@pytest.mark.parametrize("device", ["rtx-pro-6000-server", "gb10", "jetson-thor", "h100-sxm", "a100-sxm-80gb"])
def test_trtllm_kernels_are_for_10x_alone(device):
    for kernel in KERNELS.values():
        if kernel.backend == "trtllm":
            assert "capability" in _codes(_judge(kernel, device, {}, ALL))


def test_fp4_quantize_is_refused_below_10_0_where_it_writes_nothing():
    kernel = KERNELS["flashinfer.fp4_quantize[jit_cuda]"]
    assert _codes(_judge(kernel, "b200", {"M": 1, "K": 64}, ALL)) == {}
    refused = _codes(_judge(kernel, "h100-sxm", {"M": 1, "K": 64}, ALL))
    assert "never written" in refused["known_issue"].reason


def test_cudnn_fp4_is_refused_on_12x_in_the_versions_that_gave_nan():
    kernel = KERNELS["flashinfer.mm_fp4[cudnn]"]

    def codes(version: str, device: str) -> dict[str, Rejected]:
        found = {"flashinfer-python": version, "nvidia-cudnn-frontend": "1.32", "nvidia-cudnn-cu13": "9.20"}
        return _codes(_judge(kernel, device, GEMM, Packages(found), scheme="nvfp4"))

    assert codes("0.6.9", "gb10")["known_issue"].link.endswith("/pull/3192")
    assert "known_issue" not in codes("0.6.7", "gb10")
    assert "known_issue" not in codes("0.6.11", "gb10")
    assert "known_issue" not in codes("0.6.9", "b200")
    assert codes("0.7.2.post1", "gb10") == {}


def test_cutlass_moe_is_refused_on_11_0_until_a_release_holds_the_fix():
    for name in ("cutlass_fused_moe", "cutlass_fused_moe_fp8", "cutlass_fused_moe_nvfp4"):
        kernel = KERNELS[f"flashinfer.{name}[cutlass]"]
        assert _codes(_judge(kernel, "jetson-thor", {}, ALL))["known_issue"].link.endswith("/issues/3134")


def test_shapes_that_hang_or_are_refused_are_known_issues():
    bf16, fp4 = KERNELS["flashinfer.cutlass_fused_moe[cutlass]"], KERNELS["flashinfer.cutlass_fused_moe_nvfp4[cutlass]"]
    gemma = {"M": 8, "E": 128, "N": 704, "K": 2816, "topk": 8}
    assert "known_issue" in _codes(_judge(bf16, "b200", gemma, ALL, activation="silu"))
    assert "known_issue" not in _codes(_judge(bf16, "h100-sxm", gemma, ALL, activation="silu"))
    nemotron = {"M": 8, "E": 128, "N": 1856, "K": 2688, "topk": 6}
    assert "known_issue" in _codes(_judge(fp4, "gb10", nemotron, ALL, activation="relu2", scheme="nvfp4"))
    assert "known_issue" not in _codes(_judge(fp4, "gb10", nemotron, ALL, activation="silu", scheme="nvfp4"))


def test_w4a16_checkpoints_get_kernels_that_leave_activations_alone():
    for kernel in KERNELS.values():
        if kernel.op in ("nvfp4_gemm", "fused_moe"):
            takes = "scheme" not in _codes(_judge(kernel, "b200", {}, ALL, scheme="nvfp4_w4a16"))
            assert not takes or "w4a16" in kernel.numerics.promises, kernel.name


def test_every_moe_kernel_takes_its_routing_from_outside():
    assert all("routing_outside" in kernel.numerics.promises for kernel in declare_moe.KERNELS)


def test_b12x_wants_cuda_12_9_and_never_runs_on_12_1():
    kernel = KERNELS["flashinfer.mm_fp4[b12x]"]
    found = {"flashinfer-python": "0.7.2", "nvidia-cutlass-dsl": "4.7.1"}
    old = _judge(kernel, "rtx-5090", GEMM, Packages({**found, "nvidia-cuda-runtime-cu12": "12.8.90"}), scheme="nvfp4")
    assert "needs CUDA>=12.9" in _codes(old)["package_version"].reason
    for carrier in ({"nvidia-cuda-runtime": "13.0.96"}, {"torch": "2.11.0+cu130"}, {"cuda": "12.9"}):
        assert _codes(_judge(kernel, "rtx-5090", GEMM, Packages({**found, **carrier}), scheme="nvfp4")) == {}
    unknown = _judge(kernel, "rtx-5090", GEMM, Packages(found), scheme="nvfp4")
    assert isinstance(unknown, Conditional)
    assert any("version of CUDA" in text for text in unknown.conditions)
    assert "capability" in _codes(_judge(kernel, "gb10", GEMM, ALL, scheme="nvfp4"))


def test_a_low_latency_gemm_takes_no_range_it_cannot_serve():
    kernel = KERNELS["flashinfer.mm_fp4[cutedsl_low_latency]"]
    assert _codes(_judge(kernel, "b200", {**GEMM, "M": 8}, ALL, scheme="nvfp4")) == {}
    assert "size" in _codes(_judge(kernel, "b200", {**GEMM, "M": (1, 64)}, ALL, scheme="nvfp4"))


def test_deepseek_routing_is_offered_on_demand_alone():
    kernel = KERNELS["flashinfer.fused_topk_deepseek[jit_cuda]"]
    shape = {"M": 4, "E": 256, "topk": 8}
    assert "demand" in _codes(_judge(kernel, "h100-sxm", shape, ALL, dtype="float32"))
    assert _codes(_judge(kernel, "h100-sxm", shape, ALL, dtype="float32", demands=("deepseek_v3_routing",))) == {}


def test_every_refusal_says_why_and_what_would_mend_it():
    for kernel in KERNELS.values():
        for device in catalog():
            for reason in _codes(_judge(kernel, device, {}, Packages({}))).values():
                assert reason.reason, (kernel.name, device)
                assert reason.remedy, (kernel.name, device)


def test_capabilities_are_explicit_sets_within_the_catalog():
    known = {d.capability for d in catalog().values() if d.capability is not None}
    for kernel in KERNELS.values():
        assert kernel.capabilities is not None
        assert kernel.capabilities <= known
        assert all(isinstance(capability, Capability) for capability in kernel.capabilities)
