"""FlashInfer's adapters call the library as its signatures demand: a snapshot always, the installed one where it is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import operator
import sys

import pytest

torch = pytest.importorskip("torch")

from kernelmux.backends.flashinfer import (  # noqa: E402
    activations,
    fp8_gemm,
    layouts,
    moe,
    moe_cutedsl,
    norms,
    nvfp4_gemm,
    quantize,
    router,
)
from kernelmux.device import catalog  # noqa: E402
from kernelmux.errors import NoKernel, UsageError  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Packages, Problem, Rejected  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from tests.unit.backends.fake_library import ActivationType, install, snapshot  # noqa: E402
from tests.unit.backends.flashinfer_calls import E, K, M, N, record  # noqa: E402


def test_every_adapter_binds_to_the_snapshot_and_gives_the_shape_of_its_op(monkeypatch):
    _, out = record(monkeypatch)
    for name in out:
        if name.startswith(("mm_fp4", "mm_bf16", "bmm_fp8", "gemm_fp8")):
            assert tuple(out[name].shape) == (M, N), name
        elif name.startswith(("cutlass", "trtllm", "cutedsl")):
            assert tuple(out[name].shape) == (M, K), name
    assert out["mm_bf16[cublas]"].dtype == torch.float32


def test_every_function_of_the_snapshot_is_called_by_some_adapter(monkeypatch):
    calls, _ = record(monkeypatch)
    assert {call.function for call in calls} == set(snapshot("flashinfer-python")["signatures"])


def test_a_renamed_argument_fails_here(monkeypatch):
    install(monkeypatch, "flashinfer-python", {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'block'"):
        sys.modules["flashinfer"].mm_fp4(1, 2, 3, 4, block=16)


def test_every_call_binds_to_the_installed_flashinfer(monkeypatch):
    with monkeypatch.context() as patched:
        calls, _ = record(patched)
    pytest.importorskip("flashinfer", reason="flashinfer-python is not installed: only its snapshot was checked")
    dsl = importlib.util.find_spec("cutlass") is not None
    unbound = []
    for call in calls:
        place, _, name = call.function.partition(":")
        try:
            function = operator.attrgetter(name)(importlib.import_module(place))
        except (ModuleNotFoundError, AttributeError):
            if "cute_dsl" in call.function and not dsl:  # exists where nvidia-cutlass-dsl does
                continue
            raise
        try:
            inspect.signature(function).bind(*call.args, **call.kwargs)
        except TypeError as error:
            unbound.append(f"{call.function}: {error}")
    assert not unbound, "\n".join(sorted(set(unbound)))


def test_enums_and_types_the_adapters_name_exist_in_the_installed_flashinfer():
    library = pytest.importorskip("flashinfer", reason="flashinfer-python is not installed")
    fused_moe = importlib.import_module("flashinfer.fused_moe")
    assert library.SfLayout.layout_linear is not None
    for name in moe.ACTIVATION_TYPES.values():
        assert getattr(fused_moe.ActivationType, name).value == ActivationType[name].value
    assert fused_moe.WeightLayout.MajorK is not None
    assert fused_moe.WeightLayout.BlockMajorK is not None
    assert fused_moe.Fp8QuantizationType.DeepSeekFp8 is not None
    assert fused_moe.SwiGLU() != fused_moe.ReLU2()


def test_the_environment_never_decides_how_fp4_is_rounded(monkeypatch):
    calls, _ = record(monkeypatch)
    quantized = [call for call in calls if call.function == "flashinfer:fp4_quantize"]
    assert quantized
    assert all(call.bound["nvfp4_4over6"] is None for call in quantized)
    assert all(call.bound["global_scale"].dtype == torch.float32 for call in quantized)


def test_the_routed_scaling_factor_is_applied_once(monkeypatch):
    calls, _ = record(monkeypatch)
    routed = [call for call in calls if "routed_moe" in call.function]
    assert routed
    assert all(call.bound["routed_scaling_factor"] is None for call in routed)
    _, weights = moe.routing(torch.ones(2, 2), torch.zeros(2, 2), 2.5)
    assert weights.tolist() == [[2.5, 2.5], [2.5, 2.5]]


def test_alpha_is_the_product_of_both_global_scales(monkeypatch):
    calls, _ = record(monkeypatch)
    call = next(call for call in calls if call.function == "flashinfer:mm_fp4")
    assert call.bound["alpha"].item() == 0.5 * 0.25
    quantized = next(call for call in calls if call.function == "flashinfer:fp4_quantize")
    assert quantized.bound["global_scale"].item() == 4.0


def test_scales_of_nvfp4_experts_are_combined_as_the_kernels_expect(monkeypatch):
    """Global scales 0.5 and 0.25, inputs' 0.125 and 2: what FlashInfer's tests call g1_alphas, a2_gs, g2_alphas."""
    calls, _ = record(monkeypatch)
    cutlass = next(c for c in calls if c.function.endswith("cutlass_fused_moe") and len(c.bound["quant_scales"]) == 6)
    x_inverse, _, up, inner_inverse, _, down = cutlass.bound["quant_scales"]
    assert (x_inverse.item(), up.tolist(), inner_inverse.item(), down.tolist()) == (8.0, [0.0625] * E, 0.5, [0.5] * E)
    gated, plain = [c for c in calls if c.function.endswith("fp4_block_scale_routed_moe")]
    assert gated.bound["output1_scale_scalar"].tolist() == [0.0625 / 2] * E
    assert plain.bound["output1_scale_scalar"].tolist() == [0.5] * E
    assert gated.bound["output1_scale_gate_scalar"].tolist() == [0.0625] * E
    assert gated.bound["output2_scale_scalar"].tolist() == [0.5] * E


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (1, 1), (130, 5), (256, 16)])
def test_swizzled_scales_lie_where_the_formula_says(rows, columns):
    linear = torch.randint(0, 255, (2, rows, columns), dtype=torch.uint8)
    flat = layouts.swizzle_128x4(linear).reshape(2, -1)
    tiles = -(-columns // 4)
    for r, c in ((0, 0), (rows - 1, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)):
        offset = (r // 128 * tiles + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
        assert torch.equal(flat[:, offset], linear[:, r, c])


def test_gate_and_up_change_places():
    rows = torch.arange(8).reshape(1, 4, 2)
    assert layouts.up_first(rows)[0, :, 0].tolist() == [4, 6, 0, 2]
    many = torch.arange(256).reshape(1, 256, 1)
    assert moe_cutedsl.interleave(many)[0, ::64, 0].tolist() == [0, 128, 64, 192]


def test_the_norm_that_was_not_selected_is_never_run(monkeypatch):
    install(monkeypatch, "flashinfer-python", {"flashinfer.norm:_use_cuda_norm": lambda bound: False})
    x, weight = torch.zeros(2, 8), torch.ones(8)
    with pytest.raises(NoKernel, match="FLASHINFER_USE_CUDA_NORM=1"):
        norms.rmsnorm_jit_cuda(x, weight)


def test_fused_add_leaves_its_inputs_as_they_were(monkeypatch):
    def in_place(bound):
        bound["input"].fill_(7)
        bound["residual"].fill_(8)

    install(
        monkeypatch,
        "flashinfer-python",
        {"flashinfer.norm:_use_cuda_norm": lambda bound: True, "flashinfer.norm:fused_add_rmsnorm": in_place},
    )
    x, residual = torch.zeros(2, 3, 8), torch.ones(2, 3, 8)
    out, total = norms.fused_add_rmsnorm_jit_cuda(x, torch.ones(8), residual=residual)
    assert (out.unique().item(), total.unique().item()) == (7, 8)
    assert (x.unique().item(), residual.unique().item()) == (0, 1)


CUDA_NORM = {"flashinfer.norm:_use_cuda_norm": lambda bound: True}


def the_call(calls, function):
    return next(call for call in calls if call.function == function)


def test_fused_add_in_place_works_on_the_callers_own_memory(monkeypatch):
    calls = install(monkeypatch, "flashinfer-python", CUDA_NORM)
    x, residual = torch.zeros(2, 3, 8), torch.ones(2, 3, 8)
    out, total = norms.fused_add_rmsnorm_jit_cuda(
        x, torch.ones(8), residual=residual, out=x, residual_out=residual, weight_bias=1.0
    )
    bound = the_call(calls, "flashinfer.norm:gemma_fused_add_rmsnorm").bound
    assert (bound["input"].data_ptr(), bound["residual"].data_ptr()) == (x.data_ptr(), residual.data_ptr())
    assert out is x and total is residual


def test_results_are_written_where_the_caller_wants_them(monkeypatch):
    calls = install(monkeypatch, "flashinfer-python", CUDA_NORM)
    buffer, x = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(4, 32, dtype=torch.bfloat16)
    weight = torch.ones(32, dtype=torch.bfloat16)
    assert norms.rmsnorm_jit_cuda(x, weight, out=buffer[:, :32]).data_ptr() == buffer.data_ptr()
    assert the_call(calls, "flashinfer.norm:rmsnorm").bound["out"].data_ptr() == buffer.data_ptr()


def test_rows_that_vector_loads_cannot_take_are_copied_in_and_out(monkeypatch):
    def fill(bound):
        assert bound["input"].data_ptr() % 16 == 0 and bound["input"].stride(0) % 8 == 0
        assert bound["weight"].data_ptr() % 16 == 0
        bound["out"].fill_(3)

    install(monkeypatch, "flashinfer-python", CUDA_NORM | {"flashinfer.norm:rmsnorm": fill})
    odd = torch.zeros(4, 65, dtype=torch.bfloat16)[:, 1:33]
    out = torch.zeros(4, 67, dtype=torch.bfloat16)[:, 3:35]
    got = norms.rmsnorm_jit_cuda(odd, torch.ones(33, dtype=torch.bfloat16)[1:], out=out)
    assert got is out and out.unique().item() == 3
    silu = {"flashinfer:silu_and_mul": lambda bound: bound["out"].fill_(2)}
    calls = install(monkeypatch, "flashinfer-python", silu)
    assert activations.silu_and_mul(torch.zeros(4, 64), out=(slice := torch.zeros(4, 64)[:, :32])) is slice
    assert slice.unique().item() == 2 and calls[0].bound["out"].is_contiguous()


def test_no_row_launches_nothing(monkeypatch):
    calls = install(monkeypatch, "flashinfer-python", CUDA_NORM)
    x, weight = torch.zeros(0, 32), torch.ones(32)
    assert norms.rmsnorm_jit_cuda(x, weight).shape == (0, 32)
    assert norms.fused_add_rmsnorm_jit_cuda(x, weight, residual=x)[1].shape == (0, 32)
    assert norms.rmsnorm_quant_jit_cuda(x, weight, scale=torch.tensor(2.0))[1].item() == 2.0
    assert activations.gelu_and_mul(x).shape == (0, 16)
    assert {call.function for call in calls} == {"flashinfer.norm:_use_cuda_norm"}


def test_rmsnorm_quant_takes_one_given_scale_and_gives_it_back(monkeypatch):
    calls = install(monkeypatch, "flashinfer-python", CUDA_NORM)
    x, weight, scale = torch.zeros(2, 32), torch.ones(32), torch.tensor(0.25)
    out, used = norms.rmsnorm_quant_jit_cuda(x, weight, scale=scale)
    assert (out.dtype, out.shape, used.item()) == (torch.float8_e4m3fn, (2, 32), 0.25) and used is not scale
    assert the_call(calls, "flashinfer.norm:rmsnorm_quant").bound["scale"].shape == (1,)
    with pytest.raises(UsageError, match="takes a given scale"):
        norms.rmsnorm_quant_jit_cuda(x, weight)
    with pytest.raises(UsageError, match="the weight as stored"):
        norms.rmsnorm_quant_jit_cuda(x, weight, scale=scale, weight_bias=1.0)


def test_the_static_fp8_norm_is_taken_on_demand_only():
    everything = Packages.assume_all()
    problem = Problem("rms_norm_fp8", Scheme.of(None), "bfloat16", {"H": 4096})
    op, kernel = registry().op("rms_norm_fp8"), registry().kernel("flashinfer.rmsnorm_quant[cutedsl]")
    refused = kernel.judge(op, catalog()["h100-sxm"], everything, problem)
    assert isinstance(refused, Rejected) and "takes a given scale" in refused.reason
    asked = problem.but(demands=frozenset({"static_scale"}))
    assert not isinstance(kernel.judge(op, catalog()["h100-sxm"], everything, asked), Rejected)


def test_what_an_adapter_does_not_pass_on_is_refused():
    with pytest.raises(UsageError, match="expert_map"):
        moe.refuse(torch.zeros(2), False)
    with pytest.raises(UsageError, match="weighs outputs"):
        moe.refuse(None, True)
    with pytest.raises(UsageError, match="sigmoid scores with a bias"):
        router.topk_deepseek(torch.zeros(2, 8), topk=2)


def test_a_missing_library_is_told_with_its_pip_command(monkeypatch):
    from kernelmux.errors import MissingPackage

    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(MissingPackage, match="pip install 'flashinfer-python"):
        layouts.flashinfer()


@pytest.mark.parametrize(("capability", "fine"), [((8, 0), False), ((9, 0), False), ((10, 0), True), ((12, 1), True)])
def test_the_quantizer_is_refused_below_10_0_by_the_adapter_as_well(monkeypatch, capability, fine):
    """Whoever calls it, on 9.0 it would return memory that nobody wrote."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    quantize._require_units.cache_clear()
    try:
        if fine:
            quantize._require_units(0)
        else:
            with pytest.raises(UsageError, match=rf"writes nothing on {capability[0]}\.{capability[1]}"):
                quantize._require_units(0)
    finally:
        quantize._require_units.cache_clear()


def test_mm_fp4_without_an_input_scale_is_told_what_it_lacks():
    w, scale = torch.zeros(N, K // 2, dtype=torch.uint8), torch.zeros(N, K // 16, dtype=torch.float8_e4m3fn)
    with pytest.raises(UsageError, match="nvfp4_w4a16"):
        nvfp4_gemm.prepare_swizzled(None, w=w, w_scale=scale, w_global_scale=torch.tensor(1.0))


def test_each_row_of_x_keeps_a_scale_of_its_own_through_bmm_fp8(monkeypatch):
    """The library multiplies by one scale of x: rows a thousand times smaller must come out as exact as the others."""

    def bmm(bound):
        out = bound["A"][0].float() @ bound["B"][0].float() * bound["A_scale"] * bound["B_scale"]
        return out.to(bound["dtype"]).unsqueeze(0)

    install(monkeypatch, "flashinfer-python", {"flashinfer:bmm_fp8": bmm})
    torch.manual_seed(0)
    x = torch.randn(3, K, dtype=torch.bfloat16) * torch.tensor([[1e-3], [1.0], [30.0]]).bfloat16()
    w, w_scale = torch.randn(N, K).to(torch.float8_e4m3fn), torch.tensor(0.5)
    weights = fp8_gemm.prepare_tensor(None, w=w, w_scale=w_scale)
    exact = x.float() @ (w.float() * w_scale).T
    for out_dtype in (None, torch.float16):
        out = fp8_gemm.run_bmm_fp8_cublas(x, weights, out_dtype=out_dtype).float()
        assert ((out - exact).norm(dim=1) / exact.norm(dim=1)).max().item() < 0.04
    out = fp8_gemm.run_bmm_fp8_cublas(x, weights, x_scale=torch.tensor(0.25)).float()
    assert ((out - exact).norm(dim=1) / exact.norm(dim=1))[1:].max().item() < 0.04
