"""The CUDA norms without a GPU: machine code for every GPU, the kernel itself run by fibres on the host, the rules."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from kernelmux.backends.jit_cuda import declare_norms, machine_code, norm_geometry, norms  # noqa: E402
from kernelmux.backends.jit_cuda.compiler import compile_source, vector_bytes  # noqa: E402
from kernelmux.backends.jit_cuda.norm_geometry import ITEM_BYTES, OPS, Geometry, chunks_of, fault  # noqa: E402
from kernelmux.backends.jit_cuda.norm_variants import (  # noqa: E402
    ENTRY,
    SOURCE,
    VARIANTS,
    Variant,
    aligned_to,
    defines,
    pick,
)
from kernelmux.contracts import norms_math  # noqa: E402
from kernelmux.contracts.rounding import EXACT_SHARE, FP32_ULPS, exact_share, ulps  # noqa: E402
from kernelmux.contracts.tensor_checks import row_stride  # noqa: E402
from kernelmux.device import Capability, capabilities, resolve_device  # noqa: E402
from kernelmux.errors import BadShape, UsageError  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry.decision import Rejected  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402
from kernelmux.registry.packages import Packages  # noqa: E402
from kernelmux.registry.problem import Problem  # noqa: E402
from tests.unit.backends import fake_driver  # noqa: E402

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HOPPER, BLACKWELL = Capability(9, 0), Capability(10, 0)
ARCHS = sorted(capabilities("8.0", "8.9", "9.0", "10.0", "10.3", "12.0"))
RMS, ADD, GATED = (Variant(op, "cast_before_mul") for op in OPS)


# --- machine code ---------------------------------------------------------------------------------------------------


def compiled(variant, dtype, length, capability, geometry=None, parts=4096, **more):
    chosen = pick(variant.op, length, dtype, parts, capability, 132, geometry)
    access = more.pop("access", aligned_to(length * ITEM_BYTES[dtype], vector_bytes(capability)))
    groups, bias = more.pop("n_groups", 1), more.pop("weight_bias", 0)
    told = defines(variant, dtype, length, groups, bias, chosen, capability, access=access, **more)
    return compile_source(SOURCE, ENTRY, dict(told), capability.arch)


@pytest.mark.parametrize("capability", ARCHS, ids=str)
@pytest.mark.parametrize("variant", [RMS, Variant("fused_add_rms_norm", "fp32_mul", "residual_fp32"), GATED], ids=str)
def test_they_compile_for_every_gpu_at_full_width_without_spills(variant, capability):
    for dtype, length, parts in (("bfloat16", 4096, 4096), ("float16", 2688, 1), ("float32", 8192, 4096)):
        cubin = compiled(variant, dtype, length, capability, parts=parts)
        assert cubin.spills == 0
        assert machine_code.spills(cubin.code, ENTRY) == 0
        assert machine_code.widest_load(cubin.code, ENTRY) == vector_bytes(capability)
        assert machine_code.widest_store(cubin.code, ENTRY) == vector_bytes(capability)
        assert not machine_code.before_wait(cubin.code, ENTRY) or capability < HOPPER


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_rounding_compiles_for_rows_of_any_kind(variant):
    assert compiled(variant, "bfloat16", 2880, HOPPER, "192x1-f2-ordered-stream", nested=True).spills == 0
    assert compiled(variant, "float16", 101, HOPPER, weight_bias=1).spills == 0
    assert compiled(variant, "bfloat16", 200_000, HOPPER, "long").spills == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_just_short_of_too_long_do_not_spill(op, dtype):
    length = max(n for n in range(4096, 65536, 4096) if not norm_geometry.is_long(op, n, ITEM_BYTES[dtype], 16))
    for parts in (1, 4096):
        assert compiled(Variant(op, "fp32_mul"), dtype, length, HOPPER, parts=parts).spills == 0


def test_what_is_aligned_to_less_is_loaded_in_smaller_pieces():
    for access in (2, 4, 8, 16):
        cubin = compiled(RMS, "bfloat16", 4096, HOPPER, access=access)
        assert machine_code.widest_load(cubin.code, ENTRY) == access


def test_ordered_loads_ask_for_the_weight_before_anything_waits_for_x():
    code = machine_code.instructions(compiled(RMS, "bfloat16", 8192, HOPPER, "256x1-ordered").code, ENTRY)
    begun = [i for i, one in enumerate(code) if "LDG" in one]
    assert len(begun) == 8
    assert max(begun) < min(i for i, one in enumerate(code) if "FFMA" in one)


# --- the kernel, run on the host ------------------------------------------------------------------------------------

HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("norms"), {}
    source = (Path(norms.__file__).parent / "csrc" / "norms.cu").read_text().replace('#include "common.cuh"', "")
    (folder / "norms.inc").write_text(source)

    def library(told):
        if told not in made:
            path = folder / f"{len(made)}.so"
            flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f'-DNORMS="{folder / "norms.inc"}"']
            flags += [f"-D{name}={value}" for name, value in told]
            subprocess.run(["g++", *flags, "-o", path, HERE / "norms_on_host.cpp"], check=True)
            made[told] = ctypes.CDLL(str(path))
        return made[told]

    return library


def call_on_host(library, variant, scalars, tensors, geometry=None, capability=HOPPER):
    """What norms.bind_with does, with a few SMs and the host's kernel. Returns bytes an access."""
    two, three = variant.op != "rms_norm", variant.op == "fused_add_rms_norm"
    x, weight, out = tensors[0], tensors[1 + two], tensors[2 + two]
    second, total = tensors[1] if two else None, tensors[-1] if three else None
    rows, groups = norms.rows_of(x, second), scalars.get("n_groups", 1)
    dtype, length, parts = str(x.dtype).removeprefix("torch."), x.shape[-1] // groups, rows.count * groups
    chosen = pick(variant.op, length, dtype, parts, capability, 3, geometry)
    out_stride, total_stride = row_stride(out), row_stride(total) if three else 0
    bits = 0
    for step in (out_stride, total_stride, rows.x, rows.second, rows.x_outer, rows.second_outer, length):
        bits |= step * x.element_size()
    for tensor in tensors:
        bits |= tensor.data_ptr()
    access = aligned_to(bits, vector_bytes(capability))
    bias = int(scalars.get("weight_bias", 0))
    told = defines(variant, dtype, length, groups, bias, chosen, capability, access=access, nested=rows.inner > 0)
    order = [x, weight, out, *([second] if two else []), *([total] if three else [])]
    values = [ctypes.c_void_p(tensor.data_ptr()) for tensor in order]
    values += [ctypes.c_float(scalars["eps"]), ctypes.c_uint(parts)]
    strides = [rows.x, out_stride, *[rows.second] * two, *[total_stride] * three]
    values += map(ctypes.c_longlong, strides)
    if rows.inner:
        outer = [rows.x_outer, *[rows.second_outer] * two]
        values += [ctypes.c_uint(rows.inner), *map(ctypes.c_longlong, outer)]
    array = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    readable = [x, weight, *([second] if two else []), out, *([total] if three else [])]
    ends = [end for tensor in readable for end in extent(tensor)]
    grid, first_out = chosen.grid(parts, 3), 2 + two
    library(told).launch(grid, chosen.threads, array, (ctypes.c_uint64 * len(ends))(*ends), len(readable), first_out)
    return access


def extent(tensor):
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def drawn(*shape, dtype, seed, scale=1.0):
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def inside(tensor, pad, shift):
    """The same rows within wider ones, the first element ``shift`` from their start."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + pad), float("nan"), dtype=tensor.dtype)
    view = wide[..., shift : shift + tensor.shape[-1]]
    return view.copy_(tensor)


def check(
    library, variant, hidden, rows, dtype, geometry=None, *, capability=HOPPER, inplace=False, lay=None, **scalars
):
    """Runs it, compares with the specification, and returns (outputs, bytes an access)."""
    lay = lay or (lambda tensor: tensor)
    scalars = {"eps": 1e-5, **scalars}
    x, second = (lay(drawn(rows, hidden, dtype=dtype, seed=seed, scale=seed)) for seed in (1, 3))
    weight = (drawn(hidden, dtype=dtype, seed=5, scale=0.3).float() + 1).to(dtype)
    asked = dict(x=x.clone(), weight=weight, order=variant.order, **scalars)
    out = x if inplace else lay(torch.full((rows, hidden), float("nan"), dtype=dtype))
    if variant.op == "rms_norm":
        wanted, tensors = (norms_math.rms_norm_rounded(**asked),), (x, weight, out)
    elif variant.op == "gated_rms_norm":
        wanted, tensors = (norms_math.gated_rms_norm_rounded(z=second, **asked),), (x, second, weight, out)
    else:
        asked |= dict(residual=second.clone(), residual_rounding=variant.residual)
        wanted = norms_math.fused_add_rms_norm_rounded(**asked)
        total = second if inplace else lay(torch.full((rows, hidden), float("nan"), dtype=dtype))
        tensors = (x, second, weight, out, total)
    access = call_on_host(library, variant, scalars, tensors, geometry, capability)
    got = tensors[-len(wanted) :]
    for mine, specified in zip(got, wanted, strict=True):
        if dtype == FP32:
            assert ulps(mine, specified).max() <= FP32_ULPS
        else:
            assert exact_share(mine, specified) >= EXACT_SHARE[dtype] - 2 / mine.numel()
    return tuple(each.clone() for each in got), access


@needs_compiler
@pytest.mark.parametrize(
    "variant, hidden, rows, dtype, names",
    [
        (RMS, 128, 37, BF16, ("16x4-u2", "8x8-f1", "32x2-ordered", "2x16")),
        (RMS, 2688, 5, BF16, ("96x2-p2", "192x1-u2-stream", "32x3")),
        (Variant("fused_add_rms_norm", "cast_before_mul", "residual_fp32"), 5376, 4, BF16, ("224x1", "672x1-f1")),
        (Variant("gated_rms_norm", "fp32_mul"), 2880, 3, FP16, ("128x1-keep", "64x2-f1")),
    ],
)
def test_no_geometry_changes_a_bit(host, variant, hidden, rows, dtype, names):
    first, _ = check(host, variant, hidden, rows, dtype)
    for name in names:
        again, _ = check(host, variant, hidden, rows, dtype, name)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), name


@needs_compiler
@pytest.mark.parametrize("hidden, dtype", [(1, BF16), (7, FP16), (101, FP32), (4097, BF16), (70_001, FP16)])
def test_any_width_and_any_dtype(host, hidden, dtype):
    for variant in (Variant("rms_norm", "fp32_mul"), ADD):
        check(host, variant, hidden, 3, dtype, weight_bias=1.0)


@needs_compiler
def test_rows_of_any_alignment_give_the_same_bits(host):
    whole, access = check(host, RMS, 2688, 3, BF16)
    assert access == 16
    for pad, shift, bytes_each in ((8, 4, 8), (4, 2, 4), (3, 1, 2)):
        again, access = check(host, RMS, 2688, 3, BF16, lay=lambda tensor: inside(tensor, pad, shift))  # noqa: B023
        assert access == bytes_each
        assert torch.equal(again[0], whole[0])


@needs_compiler
@pytest.mark.parametrize("n_groups", [1, 8, 56, 2688])
def test_groups_are_normalised_apart_in_one_launch(host, n_groups):
    check(host, GATED, 2688, 3, BF16, n_groups=n_groups)


@needs_compiler
def test_in_place_gives_what_out_of_place_gives(host):
    for variant, more in ((RMS, {}), (ADD, {"weight_bias": 1.0}), (GATED, {"n_groups": 4})):
        apart, _ = check(host, variant, 2880, 5, BF16, **more)
        within, _ = check(host, variant, 2880, 5, BF16, "64x2-f1", inplace=True, **more)
        assert all(torch.equal(a, b) for a, b in zip(apart, within, strict=True))
    check(host, ADD, 70_000, 2, BF16, inplace=True)


@needs_compiler
def test_wide_vectors_of_newer_gpus(host):
    for hidden, bytes_each in ((2880, 32), (136, 16)):
        _, access = check(host, ADD, hidden, 3, BF16, capability=BLACKWELL)
        assert access == bytes_each


@needs_compiler
def test_rows_at_two_strides_are_read_where_they_lie(host):
    heads = drawn(6, 5 * 128, dtype=BF16, seed=1)[:, : 3 * 128].view(6, 3, 128)
    gate = drawn(6, 4 * 128, dtype=BF16, seed=2)[:, 128:].view(6, 3, 128)
    weight, out = drawn(128, dtype=BF16, seed=3), torch.full((6, 3, 128), float("nan"), dtype=BF16)
    call_on_host(host, RMS, {"eps": 1e-6}, (heads, weight, out))
    assert torch.equal(out, norms_math.rms_norm_rounded(heads, weight, "cast_before_mul", 1e-6))
    call_on_host(host, GATED, {"eps": 1e-6, "n_groups": 2}, (heads, gate, weight, out), "16x2-p1")
    wanted = norms_math.gated_rms_norm_rounded(heads, gate, weight, "cast_before_mul", 1e-6, 2)
    assert exact_share(out, wanted) > 0.998


# --- the rules ------------------------------------------------------------------------------------------------------

LENGTHS = st.one_of(st.integers(1, 600), st.integers(1, 5000).map(lambda n: 8 * n), st.integers(1, 200_000))
CASES = st.tuples(
    st.sampled_from(OPS), LENGTHS, st.sampled_from(sorted(ITEM_BYTES)), st.sampled_from(ARCHS), st.integers(1, 100_000)
)


@given(CASES)
@settings(max_examples=150, deadline=None)
def test_every_row_has_a_geometry_that_covers_every_chunk_once(case):
    op, length, dtype, capability, parts = case
    vector = vector_bytes(capability)
    chunks = chunks_of(length, ITEM_BYTES[dtype], vector)
    chosen = norm_geometry.choose(op, length, dtype, parts, capability, 132)
    assert fault(chosen, op, length, ITEM_BYTES[dtype], vector) is None
    assert chosen.threads <= 1024 and chosen.threads % 32 == 0
    held = [k * chosen.lanes + t for t in range(chosen.lanes) for k in range(-(-chunks // chosen.lanes))]
    assert sorted(c for c in held if c < chunks) == list(range(chunks))
    lines = -(-chunks // 32)
    shared = 0 if chosen.long else 2 * chosen.batch * -(-lines // 4) * 16
    assert shared <= 48 * 1024
    assert norm_geometry.choose(op, length, dtype, parts, capability, 132) == chosen


@given(CASES.filter(lambda case: case[4] < 3000), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_candidate_covers_every_row_once(case, sm_count):
    op, length, dtype, capability, parts = case
    for geometry in norm_geometry.geometries(op, length, dtype, capability):
        grid = geometry.grid(parts, sm_count)
        step = geometry.batch
        turns = range(0, parts, grid * step) if geometry.blocks else (0,)
        taken = [
            base + block * step + u * geometry.rows + group
            for block in range(grid)
            for base in turns
            if base + block * step < parts
            for u in range(geometry.unroll)
            for group in range(geometry.rows)
        ]
        assert sorted(row for row in taken if row < parts) == list(range(parts))
        assert Geometry.parse(geometry.name) == geometry


def test_the_threads_of_few_rows_are_many_and_ask_for_the_weight_first():
    few, many = (norm_geometry.choose("rms_norm", 3072, "bfloat16", m, HOPPER, 132) for m in (1, 16384))
    assert few.lanes > many.lanes
    assert few.loads == "ordered"


def test_what_was_measured_is_taken_up_to_its_number_of_rows(monkeypatch, tmp_path):
    table = tmp_path / "table.json"
    table.write_text('{"geometries": {"9.0": {"rms_norm": {"2": {"4096": [[64, "512x1-ordered"], [null, "128x2"]]}}}}}')
    monkeypatch.setattr(norm_geometry, "MEASURED", table)
    caches = (norm_geometry._table, norm_geometry.measured)
    for each in caches:
        each.cache_clear()
    try:
        names = [norm_geometry.choose("rms_norm", 4096, "float16", m, HOPPER, 132).name for m in (1, 64, 65)]
    finally:
        for each in caches:
            each.cache_clear()
    assert names == ["512x1-ordered", "512x1-ordered", "128x2"]


def test_the_packaged_table_holds_only_what_can_be_built():
    for capability, ops in norm_geometry._table().items():
        for op, items in ops.items():
            for item, lengths in items.items():
                for length, steps in lengths.items():
                    assert [most for most, _ in steps][-1] is None
                    vector = vector_bytes(Capability.parse(capability))
                    for _, name in steps:
                        assert fault(Geometry.parse(name), op, int(length), int(item), vector) is None


# --- arguments ------------------------------------------------------------------------------------------------------


def test_a_geometry_is_asked_for_by_name():
    assert pick("rms_norm", 4096, "bfloat16", 1, HOPPER, 132, "256x1-f4").name == "256x1-f4"
    with pytest.raises(UsageError, match="256x1-u2-f4"):
        pick("rms_norm", 4096, "bfloat16", 1, HOPPER, 132, "fast")
    for name, why in (("48x1", "whole warps"), ("2048x1", "1024"), ("16x2", "32 chunks"), ("32x1-u4", "more than 32")):
        with pytest.raises(BadShape, match=why):
            pick("rms_norm", 4096, "bfloat16", 1, HOPPER, 132, name)


@pytest.mark.parametrize("kernel", declare_norms.KERNELS, ids=lambda kernel: kernel.name)
def test_a_tensor_that_no_gpu_holds_is_refused_and_no_row_is_no_work(kernel):
    run = load(kernel.load)
    extra = {"fused_add_rms_norm": "residual", "gated_rms_norm": "z"}.get(kernel.op)
    for rows in (0, 2):
        x, weight = torch.randn(rows, 64, dtype=BF16), torch.ones(64, dtype=BF16)
        more = {extra: x.clone()} if extra else {}
        if rows:
            with pytest.raises(BadShape, match="is on cpu"):
                run(x, weight, **more)
        else:
            result = run(x, weight, **more)
            assert (result[0] if isinstance(result, tuple) else result).shape == (0, 64)
            bound = load(kernel.bind)(
                {"eps": 1e-6}, x, *more.values(), weight, *[x.clone()] * (1 + (extra == "residual"))
            )
            bound(x, *more.values(), weight, *[x.clone()] * (1 + (extra == "residual")))


def test_what_does_not_fit_is_said_before_anything_is_launched():
    run, x, weight = norms.rms_norm_fp32_mul, torch.randn(2, 64, dtype=BF16), torch.ones(64, dtype=BF16)
    for call, words in (
        (dict(x=x, weights=weight.float()), "dtype"),
        (dict(x=x.t(), weights=torch.ones(2, dtype=BF16)), "contiguous"),
        (dict(x=x, weights=weight, eps=-1.0), "eps"),
        (dict(x=x, weights=weight, weight_bias=0.5), "weight_bias"),
        (dict(x=torch.tensor(1.0), weights=weight), "x"),
        (dict(x=x, weights=weight, out=x.float()), "out"),
    ):
        with pytest.raises(BadShape, match=words):
            run(**call)


def test_rows_that_lie_at_one_stride_or_two_are_told_apart():
    x = torch.empty(4, 6, 32)
    assert norms.rows_of(x, None) == norms.Rows(24, 32)
    assert norms.rows_of(x[:, :5], None) == norms.Rows(20, 32, 0, 5, 192)
    assert norms.rows_of(x[:, :5], torch.empty(4, 5, 32)) == norms.Rows(20, 32, 32, 5, 192, 160)
    assert norms.rows_of(x[0, 0], None) == norms.Rows(1, 0)
    assert norms.rows_of(torch.empty(4, 6, 8, 32)[:, :3, :5], None) is None


def test_without_cupy_they_are_rejected_with_a_remedy():
    device, packages = resolve_device("h200-sxm"), Packages({"torch": "2.11.0"})
    found = registry()
    for kernel in declare_norms.KERNELS:
        assert not kernel.faults()
        shape = {"M": 16, "H": 4096}
        problem = Problem(kernel.op, Scheme.of(None), "bfloat16", shape)
        answer = kernel.judge(found.op(kernel.op), device, packages, problem)
        assert isinstance(answer, Rejected) and answer.code == "package_missing" and "pip install" in answer.remedy


def test_kernelmux_compile_has_jobs_for_each_norm():
    device = resolve_device("h200-sxm")
    for kernel in declare_norms.KERNELS:
        jobs = list(load(kernel.compile)(device, "bfloat16", {"H": 4096}))
        assert 1 <= len(jobs) <= 4
        assert all("norm_rows" in job.what for job in jobs)


# --- launches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def driver_of_tests(tmp_path, monkeypatch):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    from types import SimpleNamespace

    from kernelmux.backends.jit_cuda import launch

    monkeypatch.setenv("KERNELMUX_CACHE_DIR", str(tmp_path / "cache"))
    fake = fake_driver.install(fake_driver.build(tmp_path), monkeypatch)
    monkeypatch.setattr(launch, "stream_getter", lambda: lambda index: 77)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(multi_processor_count=132))
    return fake


def bound(variant, scalars, tensors, geometry=None):
    """bind_with, for tensors that no GPU holds."""
    two, three = variant.op != "rms_norm", variant.op == "fused_add_rms_norm"
    rows, bits = norms.rows_of(tensors[0], tensors[1] if two else None), 0
    for tensor in tensors:
        bits |= tensor.data_ptr()
    out, total = tensors[2 + two], tensors[-1] if three else None
    return norms._bound(variant, scalars, rows, tensors[0], out, total, geometry, bits)


def test_a_launch_hands_over_what_the_kernel_takes(driver_of_tests):
    fake, weight = driver_of_tests, torch.ones(128, dtype=BF16)
    heads, residual = torch.zeros(6, 5 * 128, dtype=BF16)[:, :384].view(6, 3, 128), torch.zeros(6, 3, 128, dtype=BF16)
    out, total = torch.zeros(6, 3, 128, dtype=BF16), torch.zeros(18, 256, dtype=BF16)[:, :128].view(6, 3, 128)
    call = bound(ADD, {"eps": 0.5, "weight_bias": 1.0}, (heads, residual, weight, out, total), "16x4")
    fake.set(argument_count=14)
    call(heads, residual, weight, out, total)
    pointers = tuple(tensor.data_ptr() for tensor in (heads, weight, out, residual, total))
    assert fake.values("PPPPPfiqqqqiqq") == (*pointers, 0.5, 18, 128, 128, 128, 256, 3, 640, 384)
    assert (fake.config.grid[0], fake.config.block[0], fake.config.stream) == (5, 64, 77)

    fake.set(argument_count=9)
    x, z, gated = (torch.zeros(4, 128, dtype=BF16) for _ in range(3))
    bound(GATED, {"eps": 0.25, "n_groups": 4}, (x, z, weight, gated), "1x32")(x, z, weight, gated)
    pointers = tuple(tensor.data_ptr() for tensor in (x, weight, gated, z))
    assert fake.values("PPPPfiqqq") == (*pointers, 0.25, 16, 128, 128, 128)


def test_another_alignment_at_a_later_call_takes_another_kernel(driver_of_tests):
    weight, room = torch.ones(128, dtype=BF16), torch.zeros(4 * 128 + 8, dtype=BF16)
    x, odd = (room[shift : shift + 512].view(4, 128) for shift in (0, 1))
    call = bound(RMS, {"eps": 1e-6}, (x, weight, x))
    assert driver_of_tests.loads == 1
    driver_of_tests.set(argument_count=3)
    call(odd, weight, odd)
    assert driver_of_tests.loads == 2
    call(x, weight, x)
    call(odd, weight, odd)
    assert (driver_of_tests.loads, driver_of_tests.launches) == (2, 3)
    assert driver_of_tests.values("PPP") == (odd.data_ptr(), weight.data_ptr(), odd.data_ptr())
