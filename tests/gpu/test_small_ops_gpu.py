"""Every declared kernel of every small op on a live GPU: numbers, roundings, memory around results, graphs, binding.

``KERNELMUX_SMALL_GRID=little`` takes few shapes: for runs under a memory checker, which are many times slower.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU, or no torch built for one, on this machine", allow_module_level=True)

from filelock import FileLock  # noqa: E402

from kernelmux.contracts import sides  # noqa: E402
from kernelmux.measure import small_check  # noqa: E402
from kernelmux.measure.small_point import Point, draw  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402
from tests.gpu.small_calls import (  # noqa: E402
    DTYPES,
    KERNELS,
    KNOWN,
    OURS,
    bind,
    inputs,
    refusal,
    run,
    sweep,
    untouched,
    wrong,
)

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
LITTLE = os.environ.get("KERNELMUX_SMALL_GRID") == "little"
HIDDEN = (1, 7, 128, 2688, 5376) if LITTLE else (
    1, 2, 3, 7, 8, 33, 64, 127, 128, 129, 512, 1000, 2048, 2688, 2816, 2880, 4095, 4096, 5120, 5376, 7168, 8192, 8193,
    16384, 20480, 40960,
)  # fmt: skip
ROWS = (1, 5) if LITTLE else (1, 2, 5, 33, 300)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, tmp_path_factory, monkeypatch):
    """As everywhere, but for what is compiled: that is shared by all tests, and by all processes of one run."""
    shared = os.environ.get("KERNELMUX_TEST_COMPILE_CACHE") or str(tmp_path_factory.getbasetemp().parent / "compiled")
    monkeypatch.setenv("KERNELMUX_CACHE_DIR", shared)
    monkeypatch.setenv("KERNELMUX_CONFIG_DIR", str(tmp_path / "kernelmux-config"))


EVERY = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
OWN = pytest.mark.parametrize("kernel", OURS, ids=lambda kernel: kernel.name)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def compiled_anew(kernel):
    """Kernels that compile for seconds a width: they are called at few widths."""
    return kernel.backend == "torch_compile"


def grid(kernel, rows=ROWS, hidden=HIDDEN):
    return [(m, h) for h in (hidden[::6] if compiled_anew(kernel) else hidden) for m in rows]


def options_of(kernel, h):
    """What FlashInfer's static quantization needs to run at all."""
    if kernel.name.startswith("flashinfer.") and kernel.op == "rms_norm_fp8":
        return {"scale": torch.tensor([0.02], device="cuda")}
    return {}


@EACH_DTYPE
@EVERY
def test_every_kernel_is_right_at_every_size_and_touches_nothing_else(kernel, dtype):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, around = inputs(op, m, h, dtype, out_lies="strided", **options_of(kernel, h))
        call.poison()
        run(kernel, call)
        return wrong(kernel, dtype, call) or (None if untouched(around) else "memory beside the result was written")

    sweep(kernel, dtype, grid(kernel), check)


@pytest.mark.parametrize("lies", ["strided", "odd", "misaligned", "odd misaligned"])
@EACH_DTYPE
@EVERY
def test_rows_may_lie_anywhere(kernel, dtype, lies):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, around = inputs(op, m, h, dtype, lies=lies, out_lies=lies, **options_of(kernel, h))
        call.poison()
        run(kernel, call)
        return wrong(kernel, dtype, call) or (None if untouched(around) else "memory beside the result was written")

    sweep(kernel, dtype, grid(kernel, (1, 6), (7, 128, 2688, 2880, 8192)), check)


@EVERY
def test_results_into_a_row_slice_of_a_larger_buffer(kernel):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, _ = inputs(op, m, h, "bfloat16", **options_of(kernel, h))
        larger = [
            torch.full((m + 4, *out.shape[1:]), 3, device="cuda", dtype=torch.float32).to(out.dtype)
            for out in call.outs
        ]
        slices = tuple(whole[2 : m + 2] if out.dim() > 1 else out for whole, out in zip(larger, call.outs, strict=True))
        call = type(call)(call.given, slices)
        call.poison()
        results = run(kernel, call)
        if any(a.data_ptr() != b.data_ptr() for a, b in zip(results, slices, strict=True)):
            return "it did not return the outs it was given"
        for whole, out in zip(larger, slices, strict=True):
            if out.dim() > 1 and not bool((torch.cat((whole[:2], whole[m + 2 :])).float() == 3).all()):
                return "rows beside the slice were written"
        return wrong(kernel, "bfloat16", call)

    sweep(kernel, "bfloat16", [(5, 128), (3, 2688), (1, 4096)], check)


@EACH_DTYPE
@EVERY
def test_in_place(kernel, dtype):
    op = KNOWN.op(kernel.op)
    if not op.inplace:
        pytest.skip("the op has no in-place form")

    def check(m, h):
        call, _ = inputs(op, m, h, dtype, **options_of(kernel, h))
        want = small_check.reference(op, call.given)
        if any(call.given[argument].shape != want[0].shape for _, argument in op.inplace):
            return None
        same = dict(zip(op.outs, call.outs, strict=True)) | {out: call.given[name] for out, name in op.inplace}
        results = run(kernel, type(call)(call.given, tuple(same[name] for name in op.outs)))
        verdict = small_check.judge(op, dtype, results, want)
        return None if verdict.ok else verdict.reason

    sweep(kernel, dtype, grid(kernel, (1, 9), (7, 128, 2688, 4096, 16384)), check)


@EVERY
def test_no_row_is_a_no_op_and_any_leading_shape_is_rows(kernel):
    op = KNOWN.op(kernel.op)
    if refusal(kernel, "bfloat16", 6, 256):
        pytest.skip(refusal(kernel, "bfloat16", 6, 256))
    empty, _ = inputs(op, 0, 256, "bfloat16", **options_of(kernel, 256))
    for result, out in zip(run(kernel, empty, with_outs=False), empty.outs, strict=True):
        assert result.shape == out.shape
    assert run(kernel, empty)[0].data_ptr() == empty.outs[0].data_ptr()
    call, _ = inputs(op, 6, 256, "bfloat16", **options_of(kernel, 256))
    flat = run(kernel, call, with_outs=False)
    for shape in ((2, 3), (1, 1, 6), (3, 1, 2)):
        folded = {
            name: value.view(*shape, value.shape[-1])
            if isinstance(value, torch.Tensor) and value.dim() > 1 and name not in op.weights
            else value
            for name, value in call.given.items()
        }
        for result, want in zip(run(kernel, type(call)(folded, ()), with_outs=False), flat, strict=True):
            assert result.shape == (want.shape if want.dim() < 2 else (*shape, want.shape[-1]))
            assert torch.equal(result.reshape(want.shape).view(torch.uint8), want.view(torch.uint8))
    one = {
        name: value[0] if isinstance(value, torch.Tensor) and value.dim() > 1 else value
        for name, value in call.given.items()
    }
    assert run(kernel, type(call)(one, ()), with_outs=False)[0].dim() == 1


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op == "gated_rms_norm"], ids=lambda kernel: kernel.name)
@EACH_DTYPE
def test_every_number_of_groups(kernel, dtype):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        for n_groups in (n for n in (1, 2, 3, 7, 8, 21, 64, h) if h % n == 0):
            call, _ = inputs(op, m, h, dtype, n_groups=n_groups)
            call.poison()
            run(kernel, call)
            fault = wrong(kernel, dtype, call)
            if fault:
                return f"n_groups={n_groups}: {fault}"
        return None

    sweep(
        kernel,
        dtype,
        [(1, 64), (5, 2688)] if compiled_anew(kernel) else grid(kernel, (1, 5), (7, 64, 2688, 8192)),
        check,
    )


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if "weight_bias" in KNOWN.op(k.op).schema], ids=lambda kernel: kernel.name
)
def test_gemmas_weight(kernel):
    op = KNOWN.op(kernel.op)
    if kernel.name.startswith("flashinfer.") and kernel.op == "rms_norm_fp8":
        pytest.skip("FlashInfer quantizes with the weight as stored only")

    def check(m, h):
        call, _ = inputs(op, m, h, "bfloat16", weight_bias=1.0)
        call.given["weight"].sub_(1.0)
        call.poison()
        run(kernel, call)
        return wrong(kernel, "bfloat16", call)

    sweep(kernel, "bfloat16", [(3, 128), (5, 2688), (2, 7168)], check)


@pytest.mark.parametrize("scale", [0.02, 0.001])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op == "rms_norm_fp8"], ids=lambda kernel: kernel.name)
def test_a_given_scale_saturates_and_comes_back(kernel, scale):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, _ = inputs(op, m, h, "bfloat16", scale=torch.tensor([scale], device="cuda"))
        call.poison()
        values, back = run(kernel, call)
        if not bool(values.float().isfinite().all()) or values.float().abs().max() > 448:
            return "it does not saturate"
        if float(back) != float(call.given["scale"]):
            return f"the scale came back as {float(back)}"
        return wrong(kernel, "bfloat16", call)

    sweep(kernel, "bfloat16", [(3, 128), (5, 2688), (2, 7168), (1, 7)], check)


# -- numerics


@EACH_DTYPE
@EVERY
def test_a_kernel_rounds_as_it_promises(kernel, dtype):
    if KNOWN.op(kernel.op).decoded:
        pytest.skip("packed results: tests/gpu/test_nvfp4_quantize_gpu.py compares their bytes")
    strict = kernel.name.startswith("kernelmux.")
    kind = getattr(torch, dtype)
    for seed, hidden in enumerate((1024, 2688) if compiled_anew(kernel) else (128, 1024, 2688, 5376, 16384)):
        if refusal(kernel, dtype, 64, hidden):
            pytest.skip(refusal(kernel, dtype, 64, hidden))
        call = sides.telling(kernel.op, kind, rows=64, hidden=hidden, device="cuda", seed=seed)
        op = KNOWN.op(kernel.op)
        given = dict(call)
        x, weight = given.pop("x"), given.pop("weight", None)
        given |= options_of(kernel, hidden)
        result = load(kernel.load)(x, weight, config=None, **given)
        results = result if isinstance(result, tuple) else (result,)
        fault = sides.fault(kernel.op, {**call, **options_of(kernel, hidden)}, kernel.numerics.promises, results)
        if fault and not strict:  # a library's own arithmetic: approximate functions may cost it some last places
            assert "nearer" not in fault, (op.name, hidden, fault)
        else:
            assert fault is None, (hidden, fault)


@EACH_DTYPE
@EVERY
def test_a_row_does_not_depend_on_the_rows_beside_it(kernel, dtype):
    if "batch_invariant" not in kernel.numerics.promises:
        pytest.skip("it does not promise batch_invariant")
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, _ = inputs(op, m, h, dtype, **options_of(kernel, h))
        whole = run(kernel, call, with_outs=False)
        for first, count in ((0, 1), (m - 1, 1), (m // 2, 2), (1, min(m - 1, 17)), (0, m // 2)):
            part = {
                name: value[first : first + count]
                if isinstance(value, torch.Tensor) and value.dim() > 1 and name not in op.weights
                else value
                for name, value in call.given.items()
            }
            for mine, all_rows in zip(run(kernel, type(call)(part, ()), with_outs=False), whole, strict=True):
                want = all_rows[first : first + count] if all_rows.dim() > 1 else all_rows
                if not torch.equal(mine.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8)):
                    return f"rows {first}..{first + count - 1} alone differ from the same rows among {m}"
        return None

    sweep(kernel, dtype, [(m, h) for h in (128, 2688, 8192, 16384) for m in (4, 300, 4096)], check)


@EVERY
def test_the_same_call_gives_the_same_bits(kernel):
    if "deterministic" not in kernel.numerics.promises:
        pytest.skip("it does not promise deterministic")
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, _ = inputs(op, m, h, "bfloat16", **options_of(kernel, h))
        first = [result.clone() for result in run(kernel, call)]
        for _ in range(5):
            call.poison()
            run(kernel, call)
            for a, b in zip(first, call.outs, strict=True):
                if not torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)):
                    return "two runs differ"
        return None

    sweep(kernel, "bfloat16", [(300, 2688), (64, 16384)], check)


@OWN
def test_more_elements_than_32_bits_count(kernel):
    if LITTLE or torch.cuda.get_device_properties(0).total_memory < 100 << 30:
        pytest.skip("takes tens of GB")
    op, m, h = KNOWN.op(kernel.op), 540_672, 4096  # 2.2e9 elements a tensor
    if refusal(kernel, "bfloat16", m, h):
        pytest.skip(refusal(kernel, "bfloat16", m, h))
    with FileLock(Path(os.environ["KERNELMUX_CACHE_DIR"]).with_suffix(".large")):  # one process at a time
        call = draw(op, Point(op.name, m, h), 1, "cuda")[0]
        for out in call.outs:
            out.view(torch.uint8)[-3:].fill_(0x7F)
        run(kernel, call)
        last = {
            name: value[-3:] if isinstance(value, torch.Tensor) and value.dim() > 1 else value
            for name, value in call.given.items()
        }
        fault = wrong(kernel, "bfloat16", type(call)(last, ()), tuple(out[-3:] for out in call.outs))
        del call, last, out
        torch.cuda.empty_cache()
    assert fault is None, fault


# -- launches


@EVERY
def test_a_captured_call_replays_on_new_values(kernel):
    if not kernel.capturable:
        pytest.skip("it is not declared capturable")
    op = KNOWN.op(kernel.op)

    def check(m, h):
        call, _ = inputs(op, m, h, "bfloat16", **options_of(kernel, h))
        other, _ = inputs(op, m, h, "bfloat16", seed=5, **options_of(kernel, h))
        run(kernel, call)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(kernel, call)
        for name, value in call.given.items():
            if isinstance(value, torch.Tensor):
                value.copy_(other.given[name])
        call.poison()
        graph.replay()
        torch.cuda.synchronize()
        return wrong(kernel, "bfloat16", call)

    sweep(kernel, "bfloat16", [(1, 4096), (33, 2688)], check)


@EACH_DTYPE
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.bind], ids=lambda kernel: kernel.name)
def test_a_bound_call_takes_tensors_that_lie_elsewhere(kernel, dtype):
    op = KNOWN.op(kernel.op)

    def check(m, h):
        first, _ = inputs(op, m, h, dtype)
        bound, tensors = bind(kernel, first)
        first.poison()
        bound(*tensors)
        fault = wrong(kernel, dtype, first)
        for seed, (lies, out_lies) in enumerate(
            (("packed", "packed"), ("misaligned", "packed"), ("packed", "misaligned"), ("misaligned", "misaligned"))
        ):
            other, around = inputs(op, m, h, dtype, lies=lies, out_lies=out_lies, seed=seed + 20)
            other.poison()
            bound(*other.tensors, *other.outs)
            fault = fault or wrong(kernel, dtype, other)
            fault = fault or (
                None if untouched(around) else f"{lies}, {out_lies}: memory beside the result was written"
            )
        return fault

    sweep(kernel, dtype, [(m, h) for h in (7, 128, 2688, 8192) for m in (1, 19)], check)


@OWN
def test_it_runs_on_the_current_stream(kernel):
    op = KNOWN.op(kernel.op)
    if refusal(kernel, "bfloat16", 64, 2048):
        pytest.skip(refusal(kernel, "bfloat16", 64, 2048))
    call, _ = inputs(op, 64, 2048, "bfloat16")
    other, _ = inputs(op, 64, 2048, "bfloat16", seed=9)
    run(kernel, call)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(30_000_000)  # what comes next on this stream comes late
        call.given["x"].copy_(other.given["x"])
        call.poison()
        run(kernel, call)
    side.synchronize()
    assert wrong(kernel, "bfloat16", call) is None


@pytest.mark.skipif(torch.cuda.get_device_capability() < (9, 0), reason="dependent launches need 9.0")
def test_late_producers_are_waited_for_with_dependent_launches_on_and_off():
    pytest.importorskip("cupy")
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bench_pdl.py"), "--check"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": _paths()},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _paths():
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


# -- measuring


def test_bench_measures_and_select_goes_by_it(tmp_path):
    line = [sys.executable, "-m", "kernelmux.cli", "bench", "rms_norm", "--m", "16", "--h", "2688", "--json"]
    own = {**os.environ, "PYTHONPATH": _paths(), "KERNELMUX_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300, env=own)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    (race,) = said["races"]
    assert race["ceiling_us"] > 0 and said["recorded"] > 0 and race["selected"]["source"] == "measured"
    times = {one["name"]: one["us"] for one in race["contestants"] if one["kind"] == "kernel" and "us" in one}
    assert race["selected"]["kernel"] == min(times, key=times.get)
    assert all(one["us"] > 0.3 and one["gbs"] < 1.2 * 4900 for one in race["contestants"] if "us" in one)
