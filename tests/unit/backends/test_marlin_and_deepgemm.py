"""Marlin and DeepGEMM come as large CUDA wheels: their calls are bound to snapshots of those wheels' signatures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from kernelmux.backends.deepgemm import declare as deepgemm_declare  # noqa: E402
from kernelmux.backends.deepgemm import exports, fp8_gemm  # noqa: E402
from kernelmux.backends.marlin import declare as marlin_declare  # noqa: E402
from kernelmux.backends.marlin import linear, moe  # noqa: E402
from kernelmux.device import catalog, resolve_device  # noqa: E402
from kernelmux.errors import UsageError  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Conditional, Packages, Problem, Rejected  # noqa: E402
from kernelmux.registry.discovery import discover  # noqa: E402
from tests.unit.backends.fake_library import install, snapshot  # noqa: E402

M, N, K, E, TOPK = 4, 128, 256, 2, 2
FP8 = torch.float8_e4m3fn
UTILS = "vllm.model_executor.layers.quantization.utils"
MOE = "vllm.model_executor.layers.fused_moe"
A100, H100, B200, T4 = (resolve_device(name) for name in ("a100-sxm-80gb", "h100-sxm", "b200", "t4"))


def _zeros(bound):
    return torch.zeros(bound["input"].shape[0], bound["size_n"], dtype=bound["input"].dtype)


def _same_experts(bound):
    return bound["w13_weight"], bound["w2_weight"], bound["w13_weight_scale"], bound["w2_weight_scale"]


VLLM_RESULTS = {
    f"{UTILS}.marlin_utils_fp4:apply_fp4_marlin_linear": _zeros,
    f"{UTILS}.marlin_utils_fp8:apply_fp8_marlin_linear": _zeros,
    f"{UTILS}.marlin_utils_fp4:prepare_nvfp4_moe_layer_for_marlin": lambda b: (
        b["w13"], b["w13_scale"], b["w13_scale_2"], b["w2"], b["w2_scale"], b["w2_scale_2"],
    ),
    f"{UTILS}.marlin_utils_fp4:prepare_moe_mxfp4_layer_for_marlin": lambda b: (
        b["w13"], b["w2"], b["w13_scale"], b["w2_scale"], b["w13_bias"], b["w2_bias"],
    ),
    f"{UTILS}.marlin_utils_fp8:prepare_fp8_moe_layer_for_marlin": _same_experts,
    f"{MOE}.experts.marlin_moe:fused_marlin_moe": lambda b: torch.zeros_like(b["hidden_states"]),
    "vllm.third_party.deep_gemm:fp8_gemm_nt": lambda b: None,
}  # fmt: skip
VLLM_FACTS = {
    "vllm.scalar_type:scalar_types": SimpleNamespace(
        float4_e2m1f=SimpleNamespace(id=1), float8_e4m3fn=SimpleNamespace(id=2)
    ),
    f"{MOE}.activation:MoEActivation": SimpleNamespace(
        SILU="silu", GELU="gelu", GELU_TANH="gelu_tanh", RELU2_NO_MUL="relu2_no_mul"
    ),
}


def _marlin_calls(monkeypatch):
    calls = install(monkeypatch, "vllm", VLLM_RESULTS, VLLM_FACTS)
    x = torch.zeros(M, K, dtype=torch.bfloat16)
    fp4 = {"w": torch.zeros(N, K // 2, dtype=torch.uint8), "w_scale": torch.zeros(N, K // 16, dtype=FP8)}
    ready = linear.prepare_nvfp4(A100, **fp4, w_global_scale=torch.tensor(0.5), input_scale=torch.tensor(1.0))
    assert tuple(linear.run_nvfp4(x, ready).shape) == (M, N)
    for scale in (torch.tensor(0.5), torch.ones(N), torch.ones(1, 2)):
        ready = linear.prepare_fp8(A100, w=torch.zeros(N, K, dtype=FP8), w_scale=scale)
        assert tuple(linear.run_fp8(x, ready).shape) == (M, N)
    routing = {"topk_weights": torch.ones(M, TOPK), "topk_ids": torch.zeros(M, TOPK, dtype=torch.int32)}
    for activation, rows in (("silu", 2 * N), ("relu2", N)):
        experts = moe.prepare_nvfp4(
            A100,
            w1=torch.zeros(E, rows, K // 2, dtype=torch.uint8),
            w2=torch.zeros(E, K, N // 2, dtype=torch.uint8),
            w1_scale=torch.zeros(E, rows, K // 16, dtype=FP8),
            w2_scale=torch.zeros(E, K, N // 16, dtype=FP8),
            w1_global_scale=torch.ones(E),
            w2_global_scale=torch.ones(E),
        )
        out = moe.run(x, experts, activation=activation, routed_scaling_factor=2.5, **routing)
        assert tuple(out.shape) == (M, K)
    experts = moe.prepare_fp8(
        A100,
        w1=torch.zeros(E, 2 * N, K, dtype=FP8),
        w2=torch.zeros(E, K, N, dtype=FP8),
        w1_scale=torch.ones(E, 2, 2),
        w2_scale=torch.ones(E, 2, 1),
    )
    assert tuple(moe.run(x, experts, **routing).shape) == (M, K)
    packed, two_packed = torch.zeros(E, 2 * N, K // 2, dtype=torch.uint8), torch.zeros(E, K, N // 2, dtype=torch.uint8)
    scales = {"w1_scale": packed[..., : K // 32], "w2_scale": two_packed[..., : N // 32]}
    experts = moe.prepare_mxfp4(A100, w1=packed, w2=two_packed, **scales)
    assert tuple(moe.run(x, experts, **routing).shape) == (M, K)
    return calls


def test_marlin_calls_bind_to_the_snapshot_of_the_vllm_wheel(monkeypatch):
    calls = _marlin_calls(monkeypatch)
    called = {call.function for call in calls}
    assert called == {name for name in snapshot("vllm")["signatures"] if "deep_gemm" not in name}


def test_marlin_gets_blocks_told_from_channels_and_gates_told_from_none(monkeypatch):
    calls = _marlin_calls(monkeypatch)
    layers = [call.bound["layer"] for call in calls if call.function.endswith("prepare_fp8_layer_for_marlin")]
    assert [getattr(one, "weight_block_size", None) for one in layers] == [None, None, [128, 128]]
    gates = [c.bound["is_act_and_mul"] for c in calls if c.function.endswith("prepare_nvfp4_moe_layer_for_marlin")]
    assert gates == [True, False]
    weights = [c.bound["topk_weights"].unique().item() for c in calls if c.function.endswith("fused_marlin_moe")]
    assert weights == [2.5, 2.5, 1.0, 1.0]


def test_marlin_prepares_scales_in_fp16_on_a_gpu_without_bf16(monkeypatch):
    calls = install(monkeypatch, "vllm", VLLM_RESULTS, VLLM_FACTS)
    for device in (T4, A100):
        linear.prepare_fp8(device, w=torch.zeros(N, K, dtype=FP8), w_scale=torch.tensor(0.5))
    assert [call.bound["layer"].orig_dtype for call in calls] == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(("package", "name"), [("sgl-deep-gemm", "deep_gemm"), ("vllm", "vllm.third_party.deep_gemm")])
def test_deepgemm_calls_bind_to_the_snapshot_of_either_wheel(monkeypatch, package, name):
    monkeypatch.setattr(fp8_gemm, "find_spec", lambda top: object() if top == name.partition(".")[0] else None)
    calls = install(monkeypatch, package, {})
    for device, cast in ((H100, False), (B200, True)):
        ready = fp8_gemm.prepare(device, w=torch.zeros(N, K, dtype=FP8), w_scale=torch.ones(N // 128, K // 128))
        out = fp8_gemm.run(torch.zeros(2, M, K, dtype=torch.bfloat16), ready)
        assert tuple(out.shape) == (2, M, N)
        assert calls[-1].bound["disable_ue8m0_cast"] is not cast
    assert {call.function for call in calls} == {f"{name}:fp8_gemm_nt"}


def test_scales_become_powers_of_two_and_the_weights_keep_their_values():
    torch.manual_seed(0)
    w, scale = torch.randn(256, 256).mul(100).to(FP8), torch.rand(2, 2) + 0.1
    values, powers = fp8_gemm.requantize(w, scale)
    assert torch.equal(powers.log2(), powers.log2().round())
    assert bool((powers >= scale).all())

    def dequantized(stored, scales):
        return stored.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)

    before, after = dequantized(w, scale), dequantized(values, powers)
    assert ((before - after).norm() / before.norm()).item() < 0.04


def test_deepgemm_writes_bf16_alone():
    ready = fp8_gemm.BlockWeights(torch.zeros(N, K, dtype=FP8), torch.ones(1, 2), False)
    with pytest.raises(UsageError, match="writes bfloat16"):
        fp8_gemm.run(torch.zeros(M, K), ready, out_dtype=torch.float16)


def _judge(kernel, device, packages, scheme, dtype="bfloat16", shape=None):
    problem = Problem(
        op=kernel.op, scheme=Scheme.of(scheme), dtype=dtype, shape=shape or {"M": 64, "N": 4096, "K": 4096}
    )
    return kernel.judge(discover().op(kernel.op), device, packages, problem)


def _codes(answer):
    return {reason.code for reason in answer.every()} if isinstance(answer, Rejected) else set()


DEEPGEMM = deepgemm_declare.KERNELS[0]
ALL = Packages.assume_all()


def test_deepgemm_is_for_9_0_and_10_x():
    takes = {name for name, device in catalog().items() if not _codes(_judge(DEEPGEMM, device, ALL, "fp8_block"))}
    assert {str(catalog()[name].capability) for name in takes} == {"9.0", "10.0", "10.3"}


def test_deepgemm_on_12x_asks_the_installed_library_what_it_exports(monkeypatch):
    gb10 = resolve_device("gb10")
    assert "exports" in _codes(_judge(DEEPGEMM, gb10, ALL, "fp8_block"))
    here = Packages({"sgl-deep-gemm": "0.2.3"})
    monkeypatch.setattr(Packages, "installed", classmethod(lambda cls: here))
    monkeypatch.setattr(exports, "installed_exports", lambda: frozenset({"fp8_gemm_nt"}))
    refused = _judge(DEEPGEMM, gb10, here, "fp8_block")
    assert "does not export fp8_einsum" in refused.reason
    monkeypatch.setattr(exports, "installed_exports", lambda: frozenset(snapshot("sgl-deep-gemm")["exports"]))
    accepted = _judge(DEEPGEMM, gb10, here, "fp8_block")
    assert isinstance(accepted, Conditional)
    assert any("read FP8 weights as FP4" in text for text in accepted.conditions)


def test_exports_are_read_without_importing():
    source = "from ._C import (\n fp8_einsum,\n other as renamed,\n)\n"
    source += "try:\n    def late(): ...\nexcept: pass\nalias = late\n"
    assert exports.exported_names(source) == {"fp8_einsum", "renamed", "late", "alias"}


def test_marlin_is_a_change_of_numerics_and_says_so():
    for kernel in marlin_declare.KERNELS:
        assert kernel.numerics.promises & {"w4a16", "w8a16"}
        assert all(kernel.evidence_on(device) == "declared" for device in catalog().values())


def test_marlin_takes_fp16_on_7_5_and_bf16_elsewhere():
    kernel = next(k for k in marlin_declare.KERNELS if k.op == "nvfp4_gemm")
    for device, good, bad in ((T4, "float16", "bfloat16"), (A100, "bfloat16", "float16")):
        assert _codes(_judge(kernel, device, ALL, "nvfp4", good)) == set()
        assert "dtype" in _codes(_judge(kernel, device, ALL, "nvfp4", bad))


def test_marlin_is_for_every_gpu_of_the_catalog_but_11_0_where_nobody_has_reported_it():
    for kernel in marlin_declare.KERNELS:
        lacking = {device.capability for device in catalog().values() if device.capability} - set(kernel.capabilities)
        assert {str(capability) for capability in lacking} == {"11.0"}
