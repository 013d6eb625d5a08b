"""What only a GPU shows of Triton's small ops: bf16 bits, bound calls, batch invariance, graphs, dependent launches."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

from kernelmux.backends.triton import activations, fp8_epilogues, norms, small_launch  # noqa: E402
from kernelmux.backends.triton.small_rules import Tile  # noqa: E402
from kernelmux.contracts import activations_math, norms_math  # noqa: E402
from kernelmux.contracts.rounding import exact_share, total_distance, ulps  # noqa: E402

pytestmark = pytest.mark.gpu
ORDERS = ("cast_before_mul", "fp32_mul")
SHARE = {torch.bfloat16: 0.999, torch.float16: 0.995}
HIDDEN = (128, 512, 2048, 2688, 2691, 2880, 5376, 16384, 40000)


def draw(*size, dtype, seed=0, scale=1.0, mean=0.0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return (mean + scale * torch.randn(*size, generator=generator, device="cuda")).to(dtype)


def close(got, want):
    if want.dtype == torch.float32:
        assert int(ulps(got, want).max()) <= 4
    else:
        assert exact_share(got, want) >= SHARE[want.dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_norms_have_the_bits_of_their_order(hidden, order, dtype):
    x, weight = draw(33, hidden, dtype=dtype), draw(hidden, dtype=dtype, seed=1, scale=0.3, mean=1.0)
    other = ORDERS[1 - ORDERS.index(order)]
    got = getattr(norms, f"rms_norm_{order}").run(x, weight)
    want = norms_math.rms_norm_rounded(x, weight, order)
    close(got, want)
    if dtype != torch.float32:
        assert total_distance(got, want) < total_distance(got, norms_math.rms_norm_rounded(x, weight, other))
    residual = draw(33, hidden, dtype=dtype, seed=2, scale=4)
    for kept in ("residual_rounded", "residual_fp32"):
        got = getattr(norms, f"fused_add_rms_norm_{order}_{kept}").run(x, weight, residual=residual, weight_bias=1.0)
        want = norms_math.fused_add_rms_norm_rounded(x, residual, weight, order, kept, weight_bias=1.0)
        assert torch.equal(got[1], want[1])
        close(got[0], want[0])
    for groups in (1, 8):
        if hidden % groups == 0:
            got = getattr(norms, f"gated_rms_norm_{order}").run(x, weight, z=residual, n_groups=groups)
            want = norms_math.gated_rms_norm_rounded(x, residual, weight, order, n_groups=groups)
            if dtype == torch.float32:
                assert int(ulps(got, want).max()) <= 6
            else:
                close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(activations.VARIANTS))
@pytest.mark.parametrize("hidden", [128, 2688, 2691])
def test_activations_have_the_bits_of_their_order(hidden, name, dtype):
    op, _, order = next((op, 0, name[len(op) + 1 :]) for op in activations_math.FORMULAS if name.startswith(op))
    gated = activations_math.IS_GATED[op]
    x = draw(65, hidden * (2 if gated else 1), dtype=dtype, scale=2)
    got = activations.VARIANTS[name].run(x)
    close(got, activations_math.gated_rounded(op, x, order) if gated else activations_math.unary_rounded(op, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_e4m3_results_are_those_specified(dtype):
    for call in norms_math.rms_norm_fp8_examples("cuda", dtype):
        want = norms_math.rms_norm_fp8_rounded(**call)
        got = fp8_epilogues.rms_norm_fp8.run(call.pop("x"), call.pop("weight"), **call)
        assert exact_share(got[0].cpu(), want[0].cpu()) >= 0.995
        assert not want[1].numel() or int(ulps(got[1], want[1]).max()) <= 4
    for call in activations_math.silu_and_mul_fp8_examples("cuda", dtype):
        want = activations_math.silu_and_mul_fp8_rounded(**call)
        got = fp8_epilogues.silu_and_mul_fp8.run(call["x"])
        assert exact_share(got[0].cpu(), want[0].cpu()) >= 0.995
        assert not want[1].numel() or int(ulps(got[1], want[1]).max()) <= 4


@pytest.mark.parametrize("hidden", [128, 384, 2688, 8192])
def test_a_row_has_the_same_bits_in_any_batch_and_however_tiles_are_dealt(hidden):
    x, weight = draw(9000, hidden, dtype=torch.bfloat16), draw(hidden, dtype=torch.bfloat16, seed=1, mean=1.0)
    run = norms.rms_norm_fp32_mul.run
    whole = run(x, weight)
    for m in (1, 2, 17, 600, 5000):
        assert torch.equal(run(x[:m], weight), whole[:m])
    tile = norms.rms_norm_fp32_mul.plan(
        {}, [small_launch.rows_of(t) for t in (x, weight, x)], small_launch.gpu_of("cuda", 0), None
    ).constants
    for stages, per_sm in ((1, 4), (2, 4), (3, 2)):
        config = Tile(tile["ROWS"], tile["BLOCK"], small_launch_warps(x, weight), stages, per_sm)
        assert torch.equal(run(x, weight, config=config), whole)


def small_launch_warps(x, weight):
    plan = norms.rms_norm_fp32_mul.plan
    return plan({}, [small_launch.rows_of(t) for t in (x, weight, x)], small_launch.gpu_of("cuda", 0), None).warps


def test_a_bound_call_serves_other_tensors_and_unaligned_ones():
    weight = draw(512, dtype=torch.bfloat16, seed=1, mean=1.0)
    base = draw(8 * 512 + 8, dtype=torch.bfloat16)
    out = torch.empty(8, 512, dtype=torch.bfloat16, device="cuda")
    call = norms.rms_norm_fp32_mul.bind({"eps": 1e-6, "weight_bias": 0.0}, base[: 8 * 512].view(8, 512), weight, out)
    for shift in (0, 8, 1, 3):
        x = base[shift : shift + 8 * 512].view(8, 512)
        call(x, weight, out)
        close(out, norms_math.rms_norm_rounded(x, weight, "fp32_mul"))


def test_calls_are_captured_in_a_graph_and_replayed_on_new_values():
    x, weight = draw(64, 4096, dtype=torch.bfloat16), draw(4096, dtype=torch.bfloat16, seed=1, mean=1.0)
    out, gate = torch.empty_like(x), torch.empty(64, 2048, dtype=torch.bfloat16, device="cuda")
    norms.rms_norm_cast_before_mul.run(x, weight, out=out)
    activations.VARIANTS["silu_and_mul_fp32_mul"].run(out, out=gate)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norms.rms_norm_cast_before_mul.run(x, weight, out=out)
        activations.VARIANTS["silu_and_mul_fp32_mul"].run(out, out=gate)
    for seed in range(5):
        x.copy_(draw(64, 4096, dtype=torch.bfloat16, seed=seed + 10))
        gate.zero_()
        graph.replay()
        want = norms_math.rms_norm_rounded(x, weight, "cast_before_mul")
        close(out, want)
        close(gate, activations_math.gated_rounded("silu_and_mul", out, "fp32_mul"))


def test_a_chain_of_dependent_launches_reads_what_the_one_before_wrote():
    x, weight = draw(1, 4096, dtype=torch.float32), torch.ones(4096, device="cuda")
    first = x.clone()
    for _ in range(200):  # each in place: a launch that read too early would read what is half written
        norms.rms_norm_fp32_mul.run(x, weight, out=x, eps=0.0)
    assert torch.allclose(x, norms_math.rms_norm_reference(first, weight, 0.0), rtol=1e-4)
