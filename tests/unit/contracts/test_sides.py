"""The specified roundings: exact rounding, distances, which side a torch kernel is on; a wrong side is told."""

import pytest

torch = pytest.importorskip("torch", reason="torch runs the references")

import kernelmux as km  # noqa: E402
from kernelmux.contracts import sides  # noqa: E402
from kernelmux.contracts.rounding import EXACT_SHARE, exact_share, round_to, ulps  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402

OPS = ("rms_norm", "fused_add_rms_norm", "gated_rms_norm", "rms_norm_fp8", "silu_and_mul", "gelu_and_mul",
       "gelu_tanh_and_mul", "relu2", "silu_and_mul_fp8")  # fmt: skip
TORCH = [kernel for op in OPS for kernel in registry().kernels(op) if kernel.backend == "torch"]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])


def results_of(kernel, call, dtype):
    call = dict(call)
    selection = km.select_backend(kernel.op, device="cpu", dtype=dtype, backend=kernel.name)
    got = selection(call.pop("x"), call.pop("weight", None), **call)
    return got if isinstance(got, tuple) else (got,)


@DTYPES
@pytest.mark.parametrize("kernel", TORCH, ids=lambda kernel: kernel.name)
def test_a_torch_kernel_is_on_the_side_it_declares(kernel, dtype):
    for seed, hidden in enumerate((1024, 896)):
        call = sides.telling(kernel.op, dtype, rows=12, hidden=hidden, seed=seed)
        got = results_of(kernel, call, dtype)
        assert sides.fault(kernel.op, call, kernel.numerics.promises, got) is None


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("relu2", "rms_norm_fp8", "silu_and_mul_fp8")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_other_side_is_told_from_it(op, dtype):
    call = sides.telling(op, dtype, rows=16)
    specified = sides.specifications(op, call)
    assert len(specified) in (2, 4) and sides.differ(op, call)
    for key, results in specified.items():
        assert sides.fault(op, call, key, results) is None
        for other in specified.keys() - {key}:
            assert sides.fault(op, call, other, results)


def test_gemmas_weight_and_groups_are_part_of_the_specification():
    call = sides.telling("rms_norm", torch.bfloat16)
    gemma = call | {"weight_bias": 1.0}
    kernel = registry().kernel("kernelmux.rms_norm[torch]")
    assert sides.fault("rms_norm", gemma, kernel.numerics.promises, results_of(kernel, gemma, torch.bfloat16)) is None
    assert sides.fault("rms_norm", gemma, kernel.numerics.promises, results_of(kernel, call, torch.bfloat16))
    grouped = sides.telling("gated_rms_norm", torch.bfloat16) | {"n_groups": 8}
    kernel = registry().kernel("kernelmux.gated_rms_norm[torch, cast_before_mul]")
    got = results_of(kernel, grouped, torch.bfloat16)
    assert sides.fault("gated_rms_norm", grouped, kernel.numerics.promises, got) is None


def test_promises_that_name_no_side_are_a_fault():
    call = sides.telling("rms_norm", torch.bfloat16, rows=2)
    assert "must promise one of cast_before_mul | fp32_mul" in sides.fault("rms_norm", call, {"deterministic"}, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_value_just_above_a_tie_is_rounded_up_once(dtype):
    eps = torch.finfo(dtype).eps
    tie = torch.tensor([1 + eps / 2, -1 - eps / 2], dtype=torch.float64)
    above = tie * (1 + 2.0**-40)  # fp32 cannot tell it from the tie
    assert round_to(tie, dtype).tolist() == [1.0, -1.0]
    assert round_to(above, dtype).double().tolist() == [1 + eps, -1 - eps]
    assert above.float().to(dtype).tolist() == [1.0, -1.0], "what a cast through fp32 makes of it"


def test_rounding_keeps_what_is_exact_infinite_or_nothing():
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e300, 3.0, 65520.0, 1e-60], dtype=torch.float64)
    got = round_to(values, torch.float16)
    assert got.tolist() == [0.0, 0.0, float("inf"), -float("inf"), float("inf"), 3.0, float("inf"), 0.0]
    assert round_to(torch.tensor(float("nan"), dtype=torch.float64), torch.bfloat16).isnan()


def test_ulps_count_representable_values():
    one = torch.ones(3, dtype=torch.bfloat16)
    other = torch.tensor([1.0, 1.0 + 2 * torch.finfo(torch.bfloat16).eps, 1.0 - torch.finfo(torch.bfloat16).eps])
    assert ulps(one, other.bfloat16()).tolist() == [0, 2, 2]
    zeros = torch.tensor([0.0, -0.0, 0.0]), torch.tensor([-0.0, 0.0, -1e-45])
    assert ulps(*zeros).tolist() == [0, 0, 1]
    assert exact_share(one, other.bfloat16()) == pytest.approx(1 / 3)
    with pytest.raises(TypeError, match="bfloat16 against"):
        ulps(one, other)
    assert EXACT_SHARE[torch.bfloat16] == 0.999 and EXACT_SHARE[torch.float16] == 0.995
