"""What the built-in rules do, one behaviour a test."""

from __future__ import annotations

from typing import Any

import pytest

from kernelmux.device import catalog, resolve_device
from kernelmux.errors import NoKernel
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import resolve
from kernelmux.policies.selection import Selection
from kernelmux.quant import Scheme
from kernelmux.registry import ANY, Measurement, Numerics, OnCapability, Packages, Problem, Registry, discovery

from .cells import _HIDDEN, _SHAPES

EVERYTHING = Packages.assume_all()


def on(device: str, op: str, quant: str = "none", act: str | None = None, m: int = 64, **more: Any) -> Selection:
    shape = {"M": m, **_SHAPES.get(op, _HIDDEN), **more.pop("shape", {})}
    demands = frozenset(more.pop("demands", ()))
    problem = Problem(op, Scheme.of(quant), more.pop("dtype", None), shape, act, demands)
    packages = more.pop("packages", EVERYTHING)
    registry = more.pop("registry", None) or discovery.registry()
    policy = Policy.builtin(op)
    return resolve(op, resolve_device(device), packages, problem, policy=policy, registry=registry, **more)


def reasons(found: Selection | NoKernel, backend: str) -> set[str]:
    return {r.code for other in found.rejected if other.backend == backend for r in other.decision.every()}


def having(*names: str, **versions: str) -> Packages:
    """Some packages, FlashInfer's companions among them."""
    common = {"triton": "3.6.0", "torch": "2.11.0+cu130", "nvidia-cutlass-dsl": "4.8.0", "flashinfer-cubin": "0.7.2"}
    return Packages({**common, **{name.replace("_", "-"): version for name, version in versions.items()}})


GPUS_10X, GPUS_12X = ("b200", "gb200", "b300", "gb300"), ("rtx-5090", "rtx-pro-6000-server", "gb10")
GPUS_8_TO_9 = ("a100-sxm-80gb", "rtx-3090", "l40s", "h100-sxm", "h200")


# NVFP4 GEMM


@pytest.mark.parametrize("device", GPUS_10X)
def test_nvfp4_gemm_on_10_x_is_cutedsl_and_trtllm_where_that_is_missing(device: str) -> None:
    assert on(device, "nvfp4_gemm", "nvfp4").backend == "cutedsl"
    without_dsl = Packages({"torch": "2.11.0+cu130", "flashinfer-python": "0.7.2"})
    assert on(device, "nvfp4_gemm", "nvfp4", packages=without_dsl).backend == "trtllm"
    odd = {"N": 4128}  # trtllm shuffles tiles of 128 rows
    assert on(device, "nvfp4_gemm", "nvfp4", packages=without_dsl, shape=odd).backend == "cutlass"


@pytest.mark.parametrize("device", GPUS_12X)
def test_nvfp4_gemm_on_12_x_is_cutlass_and_not_cudnn(device: str) -> None:
    found = on(device, "nvfp4_gemm", "nvfp4")
    assert found.backend == "cutlass"
    assert "cudnn" in found.why
    assert {other.backend for other in found.outranked} >= {"cudnn"}


def test_the_windows_in_which_cudnn_and_cutlass_were_broken_on_12_x_are_known() -> None:
    for version, broken in (("0.6.9", "cudnn"), ("0.6.5", "cutlass")):
        packages = having(flashinfer_python=version, nvidia_cudnn_frontend="1.32.0", nvidia_cudnn_cu13="9.24.0")
        found = on("rtx-5090", "nvfp4_gemm", "nvfp4", packages=packages)
        for backend in ("cudnn", "cutlass"):
            assert ("known_issue" in reasons(found, backend)) is (backend == broken), (version, backend)


def test_nvfp4_gemm_on_11_0_is_cutlass() -> None:
    assert on("jetson-thor", "nvfp4_gemm", "nvfp4").backend == "cutlass"


@pytest.mark.parametrize("device", GPUS_8_TO_9)
def test_nvfp4_gemm_on_8_0_to_9_0_is_weight_only_and_said_as_a_change_of_numerics(device: str) -> None:
    found = on(device, "nvfp4_gemm", "nvfp4")
    assert found.kernel == "kernelmux.nvfp4_weight_only[jit_cuda]"
    assert "marlin" in {other.backend for other in found.outranked}
    assert (found.problem.scheme.name, found.scheme.name) == ("nvfp4", "nvfp4_w4a16")
    assert found.to_json()["scheme"] == "nvfp4_w4a16"
    assert any("weight-only" in condition and "numerics" in condition for condition in found.conditions)


@pytest.mark.parametrize("device", ["t4", "mi300x", "cpu"])
def test_nvfp4_gemm_below_8_0_and_off_nvidia_is_torch(device: str) -> None:
    assert on(device, "nvfp4_gemm", "nvfp4").backend == "torch"


def test_b12x_is_a_candidate_on_12_0_that_a_measurement_promotes_and_never_one_on_12_1() -> None:
    found = on("rtx-5090", "nvfp4_gemm", "nvfp4")
    assert "b12x" in {other.backend for other in found.outranked}
    assert "capability" in reasons(on("gb10", "nvfp4_gemm", "nvfp4"), "b12x")
    measured = Measurement(
        op="nvfp4_gemm",
        device=resolve_device("rtx-5090").table_name,
        scheme="nvfp4",
        dtype="bfloat16",
        shape=tuple(sorted(_SHAPES["nvfp4_gemm"].items())),
        activation=None,
        m_lo=1,
        m_hi=64,
        kernel="flashinfer.mm_fp4[b12x]",
        us=3.0,
    )
    promoted = on("rtx-5090", "nvfp4_gemm", "nvfp4", measurements=[measured])
    assert (promoted.backend, promoted.source) == ("b12x", "measured")


@pytest.mark.parametrize("device", [*GPUS_8_TO_9, *GPUS_10X, *GPUS_12X])
def test_a_w4a16_checkpoint_runs_weight_only_by_our_own_kernels_and_needs_no_library(device: str) -> None:
    found = on(device, "nvfp4_gemm", "nvfp4_w4a16")
    assert found.kernel == "kernelmux.nvfp4_weight_only[jit_cuda]"
    assert on(device, "nvfp4_gemm", "nvfp4_w4a16", packages=having()).kernel == "kernelmux.nvfp4_weight_only[triton]"


@pytest.mark.parametrize("device", [*GPUS_10X, "rtx-5090"])
def test_without_flashinfer_tensor_cores_with_nvfp4_run_triton(device: str) -> None:
    for op, quant in (("nvfp4_gemm", "nvfp4"), ("nvfp4_mm", "none")):
        assert on(device, op, quant, packages=having()).kernel == f"kernelmux.{op}[triton]"


@pytest.mark.parametrize("device", GPUS_8_TO_9)
def test_quantizing_below_10_0_is_tritons_alone_or_behind_an_activation_or_a_norm(device: str) -> None:
    for op in ("nvfp4_quantize", "silu_and_mul_nvfp4", "rms_norm_nvfp4"):
        assert on(device, op).backend == "triton"
    assert on(device, "nvfp4_mm").backend == "torch"


@pytest.mark.parametrize("device", [*GPUS_8_TO_9, *GPUS_10X, *GPUS_12X])
def test_who_demands_the_references_bytes_gets_no_library(device: str) -> None:
    assert on(device, "nvfp4_quantize", demands=("bit_exact",)).backend == "triton"


def test_nvfp4_quantization_below_10_0_is_never_the_librarys_that_writes_nothing() -> None:
    for device in catalog().values():
        found = on(device.name, "nvfp4_quantize")
        listed = device.capability is not None and device.capability.major >= 10
        assert (found.backend in ("cutedsl", "jit_cuda")) is listed, device.name


# NVFP4 experts


@pytest.mark.parametrize("device", GPUS_10X)
def test_nvfp4_experts_on_10_x_are_trtllm(device: str) -> None:
    assert on(device, "fused_moe", "nvfp4", "silu").backend == "trtllm"


@pytest.mark.parametrize("device", GPUS_12X)
def test_nvfp4_experts_on_12_x_are_cutlass_because_trtllm_gen_exists_for_10_x_alone(device: str) -> None:
    found = on(device, "fused_moe", "nvfp4", "silu")
    assert found.backend == "cutlass"
    assert "10.x alone" in found.why
    assert "capability" in reasons(found, "trtllm")


def test_nvfp4_experts_on_11_0_are_not_cutlass_while_no_release_has_mended_it() -> None:
    found = on("jetson-thor", "fused_moe", "nvfp4", "silu")
    assert (found.backend, found.scheme.name) == ("torch", "nvfp4_w4a16")
    assert "known_issue" in reasons(found, "cutlass")
    assert "issues/3134" in found.explain()
    assert on("jetson-thor", "fused_moe", "none", "silu").backend == "triton"


@pytest.mark.parametrize("device", GPUS_8_TO_9)
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_nvfp4_experts_on_8_0_to_9_0_are_marlin(device: str, activation: str) -> None:
    found = on(device, "fused_moe", "nvfp4", activation)
    assert (found.backend, found.scheme.name) == ("marlin", "nvfp4_w4a16")


@pytest.mark.parametrize("device", [*GPUS_10X, *GPUS_12X])
def test_a_w4a16_checkpoint_excludes_kernels_that_quantize_activations(device: str) -> None:
    found = on(device, "fused_moe", "nvfp4_w4a16", "silu")
    assert found.backend == "marlin"
    assert all("w4a4" not in discovery.registry().kernel(o.kernel).numerics.promises for o in found.outranked)  # type: ignore[union-attr]
    assert "scheme" in reasons(found, "cutlass")


def test_relu2_excludes_kernels_that_have_only_gated_activations() -> None:
    found = on("b200", "fused_moe", "fp8_tensor", "relu2")
    assert found.backend == "cutlass"
    block = on("b200", "fused_moe", "fp8_block", "relu2")
    assert block.backend == "torch"
    assert "activation" in reasons(block, "trtllm")


def test_routing_outside_the_kernel_excludes_kernels_that_route_inside() -> None:
    inside = next(
        k for k in discovery.registry().kernels("fused_moe") if k.name == "flashinfer.trtllm_bf16_routed_moe[trtllm]"
    )
    kernels = [k for k in discovery.registry().kernels("fused_moe") if k is not inside]
    alone = inside.but(name="toy.routes_inside[trtllm]", numerics=Numerics())
    registry = Registry([discovery.registry().op("fused_moe"), *kernels, alone])
    asked: dict[str, Any] = {"act": "silu", "registry": registry}
    assert on("b200", "fused_moe", **asked).kernel == "toy.routes_inside[trtllm]"
    outside = on("b200", "fused_moe", demands=["routing_outside"], **asked)
    assert outside.backend == "cutlass"
    assert "numerics" in reasons(outside, "trtllm")


# Nemotron-style experts


@pytest.mark.parametrize(
    ("device", "quant", "backend"),
    [
        *((device, "none", "trtllm") for device in GPUS_10X),
        *((device, "nvfp4", "trtllm") for device in GPUS_10X),
        *((device, "nvfp4", "marlin") for device in GPUS_8_TO_9),
        *((device, quant, "cutlass") for device in GPUS_12X for quant in ("none", "nvfp4", "fp8_tensor")),
        *((device, "none", "cutlass") for device in ("l40s", "h100-sxm", "h200")),
        *((device, "none", "triton") for device in ("a100-sxm-80gb", "rtx-3090", "jetson-thor")),
    ],
)
def test_nemotron_style_experts(device: str, quant: str, backend: str) -> None:
    shape = {"E": 128, "N": 1920, "K": 2688, "topk": 6}
    assert on(device, "fused_moe", quant, "relu2", shape=shape).backend == backend


def test_8_bit_experts_without_a_library_kernel_run_weight_only_and_say_so() -> None:
    for quant in ("fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8"):
        found = on("mi300x", "fused_moe", quant, "silu")
        assert found.backend == "torch"
        assert any("weight-only" in condition and "w8a16" in condition for condition in found.conditions)
        assert found.scheme.name == ("int8_w8a16" if quant == "int8_w8a8" else quant)


# DeepGEMM


def test_deepgemm_is_for_9_0_and_10_x_only() -> None:
    for device in catalog().values():
        found = on(device.name, "fp8_gemm", "fp8_block")
        capability = str(device.capability)
        assert (found.backend == "deepgemm") is (capability in ("9.0", "10.0", "10.3")), device.name


@pytest.mark.parametrize("device", GPUS_12X)
def test_deepgemm_on_12_x_depends_on_what_the_installed_library_exports(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelmux.backends.deepgemm import exports

    assert "exports" in reasons(on(device, "fp8_gemm", "fp8_block"), "deepgemm")
    here = having(flashinfer_python="0.7.2", sgl_deep_gemm="0.2.3")
    monkeypatch.setattr(Packages, "installed", classmethod(lambda cls: here))
    for exported, candidate in ((frozenset(), False), (frozenset(exports.NEEDED_ON_SM12X), True)):
        monkeypatch.setattr(exports, "installed_exports", lambda exported=exported: exported)
        found = on(device, "fp8_gemm", "fp8_block", packages=here)
        assert found.backend == "cutlass"
        assert ("deepgemm" in {other.backend for other in found.outranked}) is candidate


def test_deepgemm_declares_on_which_gpus_scales_are_powers_of_two() -> None:
    (kernel,) = [k for k in discovery.registry().kernels("fp8_gemm") if k.backend == "deepgemm"]
    assert any("power-of-two scales from 10.0 on" in step for step in kernel.numerics.rounding)


# norms and activations


@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm"])
@pytest.mark.parametrize("device", ["h100-sxm", "b200", "rtx-5090", "mi300x", "cpu"])
def test_the_rounding_order_of_hugging_face_gets_a_kernel_that_declares_it(op: str, device: str) -> None:
    found = on(device, op, demands=["cast_before_mul"])
    assert "cast_before_mul" in found.declaration.numerics.promises
    assert found.rule == f"{op.replace('_', '-')}-{'cpu' if device == 'cpu' else 'hf-order'}"
    assert all("cast_before_mul" in discovery.registry().kernel(o.kernel).numerics.promises for o in found.outranked)  # type: ignore[union-attr]


@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm"])
def test_batch_invariance_gets_a_kernel_that_promises_it(op: str) -> None:
    found = on("h100-sxm", op, demands=["batch_invariant"])
    assert (found.backend, found.rule) == ("jit_cuda", f"{op.replace('_', '-')}-batch-invariant")
    assert "numerics" in reasons(found, "cutedsl")


def test_a_demand_on_the_residual_is_kept() -> None:
    found = on("h100-sxm", "fused_add_rms_norm", demands=["residual_rounded"])
    assert "residual_rounded" in found.declaration.numerics.promises
    every = {"cast_before_mul", "residual_fp32", "batch_invariant", "no_fast_math"}
    assert every <= on("h100-sxm", "fused_add_rms_norm", demands=every).declaration.numerics.promises
    with pytest.raises(NoKernel, match="does not promise"):
        on("h100-sxm", "fused_add_rms_norm", demands=["cast_before_mul", "fp32_mul"])


SMALL = ("rms_norm", "fused_add_rms_norm", "gated_rms_norm", "rms_norm_fp8", "silu_and_mul", "gelu_and_mul",
         "gelu_tanh_and_mul", "relu2", "silu_and_mul_fp8")  # fmt: skip


@pytest.mark.parametrize("op", SMALL)
def test_small_ops_are_ours_in_cuda_then_triton_then_torch(op: str) -> None:
    for device in (*GPUS_8_TO_9, *GPUS_10X, *GPUS_12X, "jetson-thor"):
        assert on(device, op).kernel == f"kernelmux.{op}[jit_cuda]"
    ours = having(cupy="0")
    assert on("h100-sxm", op, packages=ours).kernel == f"kernelmux.{op}[triton]"
    assert on("mi300x", op).backend in ("triton", "torch") and on("cpu", op).backend == "torch"


@pytest.mark.parametrize("op", ["rms_norm", "silu_and_mul"])
def test_without_cupy_and_triton_flashinfer_is_next(op: str) -> None:
    only = Packages({"torch": "2.11.0+cu130", "flashinfer-python": "0.7.2", "ninja": "1.13"})
    assert on("h100-sxm", op, packages=only).kernel.startswith("flashinfer.")


def test_a_given_scale_at_every_call_may_have_flashinfers_norm() -> None:
    found = on("h100-sxm", "rms_norm_fp8", demands=["static_scale"])
    assert (found.kernel, found.rule) == ("flashinfer.rmsnorm_quant[cutedsl]", "rms-norm-fp8-static")


ACTIVATIONS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("device", [*GPUS_10X, *GPUS_12X, "jetson-thor", "mi300x"])
def test_fast_math_is_never_chosen_on_10_x_and_later_or_rocm(op: str, device: str) -> None:
    found = on(device, op)
    assert not found.declaration.numerics.fast_math
    assert not any(discovery.registry().kernel(o.kernel).numerics.fast_math for o in found.outranked)  # type: ignore[union-attr]
    theirs = next(other for other in found.rejected if other.kernel == f"flashinfer.{op}[jit_cuda]")
    assert {reason.code for reason in theirs.decision.every()} & {"forbidden", "vendor", "capability"}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_fast_math_is_a_candidate_elsewhere_only_where_the_declared_numerics_allow(op: str) -> None:
    theirs = f"flashinfer.{op}[jit_cuda]"
    assert theirs in {other.kernel for other in on("h100-sxm", op).outranked}
    assert theirs not in {other.kernel for other in on("h100-sxm", op, demands=["no_fast_math"]).outranked}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_a_width_the_vector_loads_do_not_fit_goes_to_a_kernel_that_takes_every_width(op: str) -> None:
    found = on("h100-sxm", op, shape={"H": 1859})
    assert found.kernel == f"kernelmux.{op}[jit_cuda]"
    assert "alignment" in reasons(found, "jit_cuda")


# every rule


def test_every_rule_says_why_with_evidence() -> None:
    for rule in Policy.builtin_all().rules:
        assert len(rule.why) > 20, rule.id
        assert rule.evidence.startswith("https://"), rule.id


def test_every_op_has_a_rule_for_every_gpu_of_the_catalog() -> None:
    for op in discovery.registry().ops():
        for device in catalog().values():
            try:
                found = on(device.name, op.name, sorted(op.schemes)[-1], "silu" if op.activations else None)
            except NoKernel:
                continue
            assert found.source == "policy", (op.name, device.name)


def test_with_nothing_installed_every_choice_is_portable() -> None:
    for op in discovery.registry().ops():
        if "none" in op.schemes:
            found = on("b200", op.name, packages=Packages({}))
            assert isinstance(found.declaration.requirements[0], OnCapability)
            assert found.declaration.requirements[0].capabilities is ANY
