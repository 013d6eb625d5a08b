"""Activations and fp8 epilogues in CUDA C++: compiled for every GPU, run on the host, their formulas on every input."""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelmux.backends.jit_cuda import (
    activation_geometry,
    activations,
    compiler,
    declare_activations,
    fp8_epilogues,
    launch,
    machine_code,
    rows_of_tensors,
)
from kernelmux.backends.jit_cuda.activation_geometry import Geometry
from kernelmux.contracts import activations_math, norms_math
from kernelmux.contracts.activation_table import ACTIVATIONS
from kernelmux.contracts.rounding import exact_share, round_to, ulps
from kernelmux.device import Capability, catalog
from kernelmux.errors import BadShape, UsageError
from kernelmux.registry.lazy import load
from tests.unit.backends import cuda_on_host

if sys.platform != "linux":
    pytest.skip("CuPy has no wheels for this system", allow_module_level=True)

ARCHS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
ACT = {each.name.removesuffix("_and_mul"): each.name for each in ACTIVATIONS}

# In fp64 without the cancellation of 1 + erf and 1 + tanh.
EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * torch.erfc(-x * math.sqrt(0.5)),
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "relu2": lambda x: torch.relu(x).square(),
}


def capability(arch: str) -> Capability:
    return Capability.parse(arch)


# ---- formulas -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def formulas(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = Path(__file__).with_name("formulas_on_host.cpp")
    library = tmp_path_factory.mktemp("formulas") / "formulas.so"
    made = cuda_on_host.compile_cpp(source, library, "-I", str(compiler.SOURCES))
    made.names.restype = ctypes.c_char_p
    return made


def evaluate(formulas: ctypes.CDLL, name: str, x: torch.Tensor, item: int, off: tuple[int, int] = (0, 0)) -> Any:
    y = torch.empty_like(x)
    pointers = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()))
    formulas.evaluate(formulas.names().decode().split().index(name), *pointers, ctypes.c_long(x.numel()), item, *off)
    return y


def every(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


def test_each_activation_of_the_contract_has_its_line_in_the_table(formulas: ctypes.CDLL) -> None:
    assert set(formulas.names().decode().split()) == set(ACT)
    assert set(EXACT) == set(ACT)


# Nobody knows the GPU's ex2 and rcp to the last place: they are off here by nothing, by anything they may be off by, by
# the most both ways. Then the share of all 65536 inputs (normal or not) whose result is another one, at most:
OFF = {(0, 0): 0.0005, (-2, -1): 0.001, (2, 1): 0.002, (2, 0): 0.002, (0, 1): 0.001}


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize("name", sorted(ACT))
def test_of_every_16_bit_input_the_result_is_the_rounded_function_but_for_one_in_a_thousand(
    formulas: ctypes.CDLL, name: str, dtype: torch.dtype
) -> None:
    x = every(dtype)
    want = round_to(EXACT[name](x.double()), dtype)
    for off, most in OFF.items():
        got = round_to(evaluate(formulas, name, x.float(), 2, off).double(), dtype)
        assert torch.equal(got.isnan(), want.isnan())
        numbers = ~want.isnan()
        apart = ulps(got[numbers], want[numbers])
        assert float((apart > 0).double().mean()) <= most
        far = x[numbers][apart > 1].float()  # where the result is below 2^-120, and 0 here
        assert bool((far < {"silu": -87.0, "gelu": -12.0, "gelu_tanh": -9.5, "relu2": -math.inf}[name]).all())


@pytest.mark.parametrize("name", sorted(ACT))
def test_an_fp32_result_is_within_a_few_units(formulas: ctypes.CDLL, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([4 * torch.randn(200_000, generator=generator), torch.linspace(-9.5, 100, 100_001)]).clamp_min(-9.5)
    want = EXACT[name](x.double()).float()
    assert int(ulps(evaluate(formulas, name, x, 4), want)[want.abs() > 1e-37].max()) <= 4


@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("name", sorted(ACT))
def test_infinities_zeros_and_what_underflows_are_as_torch_gives_them(
    formulas: ctypes.CDLL, name: str, item: int
) -> None:
    inf = math.inf
    x = torch.tensor([inf, -inf, math.nan, 0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, 1000.0, -1000.0, -100.0])
    want = activations_math.FORMULAS[ACT[name]](x)
    if name == "gelu":
        want[0] = inf  # torch's erf on a CPU has no value for it; on a GPU it has
        want[7] = 1e30
    got = evaluate(formulas, name, x, item)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()], want[~want.isnan()])
    assert torch.equal(got.signbit()[~want.isnan()], want.signbit()[~want.isnan()])


# ---- cross-compilation ----------------------------------------------------------------------------------------------

DTYPE_NAMES = ("bfloat16", "float16", "float32")


def compiled(
    arch: str, source: str, kernel: str, defines: Any, *, fast: bool = False, look: bool = True
) -> compiler.Cubin:
    made = compiler.compile_source(source, kernel, dict(defines), arch, fast=fast)
    assert made.spills == 0, (arch, defines)
    if not look:
        return made
    assert machine_code.spills(made.code, kernel) == 0
    assert machine_code.before_wait(made.code, kernel) == () or capability(arch).major < 9
    return made


@pytest.mark.parametrize("arch", ARCHS)
def test_every_activation_compiles_without_spills_and_loads_as_wide_as_the_gpu(arch: str) -> None:
    widest = compiler.vector_bytes(capability(arch))
    for i, variant in enumerate(activations.VARIANTS.values()):
        for j, dtype in enumerate(DTYPE_NAMES):
            defines = variant.defines(dtype, Geometry(256, (4, 2, 1)[(i + j) % 3]), widest)
            made = compiled(arch, activations.SOURCE, activations.KERNEL, defines, look=not j)
            if not j:
                assert machine_code.widest_load(made.code, activations.KERNEL) == widest
                assert machine_code.widest_store(made.code, activations.KERNEL) == widest


@pytest.mark.parametrize("arch", ["sm_90", "sm_120"])
def test_narrow_accesses_and_fast_math_compile(arch: str) -> None:
    silu, gelu = (activations.VARIANTS[f"{name}_and_mul_cast_before_mul"] for name in ("silu", "gelu_tanh"))
    for access in (2, 4, 8):
        made = compiled(
            arch, activations.SOURCE, activations.KERNEL, silu.defines("bfloat16", Geometry(128), access), fast=True
        )
        assert machine_code.widest_load(made.code, activations.KERNEL) == access
    compiled(arch, activations.SOURCE, activations.KERNEL, gelu.defines("float32", Geometry(128, 2), 16), fast=True)


@pytest.mark.parametrize("unroll", [1, 2, 4])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_all_loads_of_a_turn_are_under_way_before_any_arithmetic(name: str, unroll: int) -> None:
    variant = activations.VARIANTS[f"{name}_and_mul_fp32_mul"]
    defines = variant.defines("bfloat16", Geometry(256, unroll), 16)
    made = compiled("sm_90", activations.SOURCE, activations.KERNEL, defines)
    order = [
        each for each in machine_code.instructions(made.code, activations.KERNEL) if "LDG" in each or "MUFU" in each
    ]
    runs, run = [], 0
    for each in order:
        run = run + 1 if "LDG" in each else 0
        runs.append(run)
    assert max(runs) == 2 * unroll


@pytest.mark.parametrize("arch", ARCHS)
def test_the_fp8_epilogues_compile_without_spills_and_load_as_wide_as_the_gpu(arch: str) -> None:
    here = capability(arch)
    widest = compiler.vector_bytes(here)
    for dtype, unroll in (("bfloat16", 1), ("float16", 4), ("float32", 2)):
        elements = widest // activations.DTYPES[dtype][1]
        defines = fp8_epilogues.block_defines(dtype, Geometry(256, unroll), elements, widest, 32)
        made = compiled(arch, fp8_epilogues.SOURCE, fp8_epilogues.BLOCKS, defines)
        assert machine_code.widest_load(made.code, fp8_epilogues.BLOCKS) == widest
    for dtype, hidden, static in (
        ("bfloat16", 128, False), ("float16", 2688, True), ("bfloat16", 16384, False), ("float32", 5376, False),
        ("bfloat16", 100_352, True),
    ):  # fmt: skip
        elements = fp8_epilogues.elements_of(hidden, activations.DTYPES[dtype][1], here)
        geometry = fp8_epilogues.row_geometries(hidden, dtype, here)[0]
        defines = fp8_epilogues.row_defines(hidden, dtype, geometry, elements, 32, 32, static, 1.0)
        made = compiled(arch, fp8_epilogues.SOURCE, fp8_epilogues.ROWS, defines)
        assert machine_code.widest_load(made.code, fp8_epilogues.ROWS) == widest


# ---- geometry -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_a_multiplication_divides(divisor: int, n: int) -> None:
    magic, shift = activation_geometry.division(divisor)
    assert magic < 2**32
    for each in (n, divisor - 1, divisor, n // divisor * divisor, 2**31 - 1):
        assert (each * magic) >> shift == each // divisor


GEOMETRIES = st.sampled_from(activation_geometry.geometries("silu_and_mul"))


@given(GEOMETRIES, st.integers(1, 50_000), st.integers(1, 160))
@settings(deadline=None, max_examples=200)
def test_every_access_is_some_threads_exactly_once(geometry: Geometry, accesses: int, sms: int) -> None:
    grid, turn = geometry.grid(accesses, sms), geometry.threads * geometry.unroll
    assert 1 <= grid <= max(sms * geometry.blocks, -(-accesses // turn) if not geometry.blocks else 0)
    starts = [first for block in range(grid) for first in range(block * turn, accesses, grid * turn)]
    assert sorted(starts) == list(range(0, accesses, turn))


@given(GEOMETRIES)
def test_a_geometrys_name_is_read_back(geometry: Geometry) -> None:
    assert Geometry.parse(geometry.name) == geometry


@pytest.mark.parametrize("name", ["", "256", "100x1", "2048x1", "1024x4", "256x3", "256x1-third", "256x1-p"])
def test_a_geometry_that_no_kernel_has_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="geometry"):
        Geometry.parse(name)


@given(st.sampled_from(sorted(catalog())), st.integers(0, 40), st.sampled_from(DTYPE_NAMES), st.integers(0, 1000))
@settings(deadline=None)
def test_any_number_of_accesses_has_a_geometry(device: str, log: int, dtype: str, more: int) -> None:
    here = catalog()[device]
    if here.capability is not None:
        for op in ("silu_and_mul", "silu_and_mul_fp8"):
            geometry = activation_geometry.choose(op, dtype, (1 << log) + more, here.capability, here.sm_count)
            assert activation_geometry.fault(geometry) is None
            assert not op.endswith("fp8") or geometry.share == 1


@given(st.integers(1, 200_000), st.sampled_from(DTYPE_NAMES), st.sampled_from(("sm_80", "sm_90", "sm_100")))
@settings(deadline=None)
def test_a_row_of_any_length_is_held_or_read_again(hidden: int, dtype: str, arch: str) -> None:
    elements = fp8_epilogues.elements_of(hidden, activations.DTYPES[dtype][1], capability(arch))
    assert hidden % elements == 0
    for geometry in fp8_epilogues.row_geometries(hidden, dtype, capability(arch)):
        assert geometry.lanes % 32 == 0
        assert 32 <= geometry.lanes * geometry.rows <= 1024
        assert geometry.rows == 1 or geometry.lanes == 32
        held = -(-hidden // elements // geometry.lanes) * elements
        assert geometry.long or held <= fp8_epilogues.MOST_HELD
        assert fp8_epilogues.RowGeometry.parse(geometry.name) == geometry


# ---- on the host ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> cuda_on_host.Host:
    return cuda_on_host.Host(tmp_path_factory.mktemp("host"))


@pytest.fixture
def host(host_folder: cuda_on_host.Host, monkeypatch: pytest.MonkeyPatch) -> cuda_on_host.Host:
    """Bound calls run on this CPU, as on a GPU of 9.0 with 4 SMs, where no geometry was measured."""
    monkeypatch.setattr(activation_geometry, "measured", lambda capability, op, item: ())
    for module in (activations, fp8_epilogues):
        monkeypatch.setattr(module, "launch", host_folder)
        monkeypatch.setattr(module, "capability_of", lambda index: Capability(9, 0))
        monkeypatch.setattr(module, "sm_count", lambda index: 4)
        monkeypatch.setattr(module, "require_gpu", lambda op, x: 0)
        monkeypatch.setattr(module, "_calls", {})
    host_folder.given.clear()
    return host_folder


def specified(variant: activations.Variant, x: torch.Tensor) -> torch.Tensor:
    exact = EXACT[variant.op.removesuffix("_and_mul")]
    if not variant.gated:
        return round_to(exact(x.double()), x.dtype)
    gate, up = x.double().chunk(2, dim=-1)
    active = exact(gate)
    if variant.order == "cast_before_mul":
        active = round_to(active, x.dtype).double()
    return round_to(active * up, x.dtype)


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_as_specified(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.dtype == torch.float32:
        assert int(ulps(got, want).max()) <= 4
    else:
        assert exact_share(got, want) >= 0.998
        assert int(ulps(got, want).max()) <= 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", sorted(activations.VARIANTS))
def test_every_variant_is_on_its_own_side_of_the_roundings(
    name: str, dtype: torch.dtype, host: cuda_on_host.Host
) -> None:
    variant = activations.VARIANTS[name]
    x = drawn(6, 2688, dtype=dtype)
    got = getattr(activations, name)(x)
    assert_as_specified(got, specified(variant, x))
    if variant.gated and dtype != torch.float32:
        other = {"fp32_mul": "cast_before_mul", "cast_before_mul": "fp32_mul"}[variant.order]
        assert exact_share(got, specified(activations.Variant(variant.op, True, other), x)) < 0.95


@pytest.mark.parametrize("geometry", activation_geometry.geometries("silu_and_mul"), ids=lambda each: each.name)
def test_no_geometry_changes_a_result(geometry: Geometry, host: cuda_on_host.Host) -> None:
    x = drawn(37, 2 * 1352)
    got = activations.silu_and_mul_cast_before_mul(x, config=geometry.name)
    assert torch.equal(got, activations.silu_and_mul_cast_before_mul(x))
    quantized = [geometry] if geometry in activation_geometry.geometries("silu_and_mul_fp8") else []
    for each in quantized:
        y = drawn(19, 2 * 640)
        one, two = fp8_epilogues.silu_and_mul_fp8(y, config=each), fp8_epilogues.silu_and_mul_fp8(y)
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, two, strict=True))


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows apart": lambda pool: pool[: 9 * 512].view(9, 512)[:, :192],
    "rows apart by an odd number": lambda pool: pool[: 9 * 501].view(9, 501)[:, :192],
    "one element in": lambda pool: pool[1 : 1 + 7 * 192].view(7, 192),
    "four elements in": lambda pool: pool[4 : 4 + 7 * 192].view(7, 192),
    "an odd width": lambda pool: pool[: 5 * 90].view(5, 90),
    "width 2": lambda pool: pool[:66].view(33, 2),
    "one dimension": lambda pool: pool[:192],
    "the same row again": lambda pool: pool[:192].expand(5, 192),
    "transposed leading dimensions": lambda pool: pool[: 3 * 4 * 192].view(3, 4, 192).transpose(0, 1),
    "four dimensions, cut": lambda pool: pool[: 2 * 3 * 4 * 192].view(2, 3, 4, 192)[:, :2, 1:3],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["silu_and_mul_fp32_mul", "relu2"])
def test_x_may_lie_anywhere_and_out_may_be_a_slice_of_rows(view: str, name: str, host: cuda_on_host.Host) -> None:
    variant = activations.VARIANTS[name]
    x = VIEWS[view](drawn(8192))
    want = specified(variant, x)
    assert_as_specified(getattr(activations, name)(x), want)
    rows, width = want.numel() // want.shape[-1], want.shape[-1]
    for before, gap in ((0, 0), (8, 8), (1, 0), (3, 5)):
        pool = torch.full((rows, before + width + gap), math.nan, dtype=x.dtype)
        out = pool[:, before : before + width].view(*want.shape)
        assert getattr(activations, name)(x, out=out) is out
        assert_as_specified(out, want)
        assert bool(pool[:, :before].isnan().all())
        assert bool(pool[:, before + width :].isnan().all())


def test_a_call_that_is_bound_takes_tensors_of_any_alignment(host: cuda_on_host.Host) -> None:
    x, out = drawn(5, 256), torch.empty(5, 128, dtype=torch.bfloat16)
    call = activations.bind_silu_and_mul_fp32_mul({}, x, out)
    assert host.given[-1]["ACCESS_BYTES"] == 4  # little to do: a quarter of 16 bytes
    for start in (0, 1, 2, 3, 4, 7, 8):
        elsewhere = torch.empty(5 * 256 + 8, dtype=torch.bfloat16)[start : start + 5 * 256].view(5, 256).copy_(x)
        into = torch.empty(5 * 128 + 8, dtype=torch.bfloat16)[start : start + 5 * 128].view(5, 128)
        call(elsewhere, into)
        assert_as_specified(into, specified(activations.VARIANTS["silu_and_mul_fp32_mul"], x))


def test_results_may_be_written_where_the_input_was(host: cuda_on_host.Host) -> None:
    x = drawn(7, 200)
    want = activations.relu2(x)
    assert activations.relu2(x, out=x) is x
    assert torch.equal(x, want)
    x = drawn(7, 400)
    want = activations.gelu_and_mul_fp32_mul(x)
    assert torch.equal(activations.gelu_and_mul_fp32_mul(x, out=x[:, :200]), want)


def test_more_accesses_than_a_launch_numbers_are_several_launches(
    host: cuda_on_host.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "MOST_ACCESSES", 100)
    monkeypatch.setattr(fp8_epilogues, "MOST_ACCESSES", 100)
    x = drawn(11, 256)
    host.grids.clear()
    assert_as_specified(
        activations.silu_and_mul_fp32_mul(x), specified(activations.VARIANTS["silu_and_mul_fp32_mul"], x)
    )
    assert len(host.grids) == 11
    host.grids.clear()
    values, scales = fp8_epilogues.silu_and_mul_fp8(x)
    assert len(host.grids) == 2
    want, want_scales = activations_math.silu_and_mul_fp8_rounded(x)
    assert exact_share(values, want) >= 0.995
    assert torch.allclose(scales, want_scales, rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_silu_and_mul_fp8_is_the_specification(dtype: torch.dtype, host: cuda_on_host.Host) -> None:
    for call in activations_math.silu_and_mul_fp8_examples(dtype=dtype):
        x = call["x"]
        assert isinstance(x, torch.Tensor)
        values, scales = fp8_epilogues.silu_and_mul_fp8(x)
        want, want_scales = activations_math.silu_and_mul_fp8_rounded(x)
        assert torch.allclose(scales, want_scales, rtol=1e-6)
        assert exact_share(values, want) >= 0.995
    x = drawn(6 * 512 + 3, dtype=dtype)[3:].view(3, 2, 512).transpose(0, 1)
    out = torch.full((6, 300), 7, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale_out = torch.full((6, 5), math.nan)
    fp8_epilogues.silu_and_mul_fp8(x, out=out[:, 5:261].view(2, 3, 256), scale_out=scale_out[:, 1:3].view(2, 3, 2))
    want, want_scales = activations_math.silu_and_mul_fp8_rounded(x)
    assert exact_share(out[:, 5:261].reshape(2, 3, 256), want) >= 0.995
    assert torch.allclose(scale_out[:, 1:3].reshape(2, 3, 2), want_scales, rtol=1e-6)
    rest = torch.cat([out.view(torch.uint8)[:, :5], out.view(torch.uint8)[:, 261:]], dim=1)
    assert bool((rest == 7).all())
    assert bool(scale_out[:, [0, 3, 4]].isnan().all())


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rms_norm_fp8_is_the_specification(dtype: torch.dtype, static: bool, host: cuda_on_host.Host) -> None:
    calls = list(norms_math.rms_norm_examples(dtype=dtype))
    calls += [
        {"x": drawn(2, hidden, dtype=dtype), "weight": drawn(hidden, dtype=dtype)} for hidden in (24, 5376, 33_000)
    ]
    for call in calls:
        x, weight = call.pop("x"), call.pop("weight")
        scale = torch.tensor([0.01]) if static else None
        values, scales = fp8_epilogues.rms_norm_fp8(x, weight, scale=scale, **call)
        want, want_scales = norms_math.rms_norm_fp8_rounded(x, weight, scale, **call)
        assert scales is scale or torch.allclose(scales, want_scales, rtol=1e-6)
        assert exact_share(values, want) >= 0.995


def test_rms_norm_fp8_writes_where_it_is_told_to(host: cuda_on_host.Host) -> None:
    x, weight = drawn(12 * 96 + 1)[1:].view(3, 4, 96).transpose(0, 1), drawn(96)
    for scale in (None, torch.tensor(0.02)):
        out = torch.zeros(12, 111, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, 7:103].view(4, 3, 96)
        scale_out = torch.zeros(12, 2)[:, :1].view(4, 3, 1) if scale is None else torch.zeros(())
        call = fp8_epilogues.bind_rms_norm_fp8({"eps": 1e-5, "weight_bias": 1.0}, x, weight, scale, out, scale_out)
        call(x, weight, scale, out, scale_out)
        want, want_scales = norms_math.rms_norm_fp8_rounded(x, weight, scale, 1e-5, 1.0)
        assert exact_share(out.contiguous(), want) >= 0.995
        assert torch.allclose(scale_out, want_scales, rtol=1e-6)


def test_a_row_of_rms_norm_fp8_is_the_same_in_any_batch(host: cuda_on_host.Host) -> None:
    x, weight = drawn(9, 2688), drawn(2688)
    values, scales = fp8_epilogues.rms_norm_fp8(x, weight)
    for row in range(9):
        alone, scale = fp8_epilogues.rms_norm_fp8(x[row : row + 1], weight)
        assert torch.equal(alone.view(torch.uint8), values[row : row + 1].view(torch.uint8))
        assert torch.equal(scale, scales[row : row + 1])


def test_nan_and_infinity_reach_the_scales_as_in_torch(host: cuda_on_host.Host) -> None:
    x = drawn(4, 512)
    x[0, 3], x[1, 256 + 7], x[2, 130] = math.nan, math.inf, -math.inf
    values, scales = fp8_epilogues.silu_and_mul_fp8(x)
    want, want_scales = activations_math.silu_and_mul_fp8_reference(x)
    assert torch.equal(scales.isnan(), want_scales.isnan())
    assert torch.equal(scales.isinf(), want_scales.isinf())
    assert torch.equal(values.float().isnan(), want.isnan())


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_no_row_is_nothing_to_do(host: cuda_on_host.Host) -> None:
    host.grids.clear()
    empty = torch.empty(0, 256, dtype=torch.bfloat16)
    assert activations.silu_and_mul_fp32_mul(empty).shape == (0, 128)
    assert activations.relu2(empty).shape == (0, 256)
    assert [tuple(each.shape) for each in fp8_epilogues.silu_and_mul_fp8(empty)] == [(0, 128), (0, 1)]
    weight, scale = drawn(256), torch.tensor(0.5)
    assert tuple(fp8_epilogues.rms_norm_fp8(empty, weight)[1].shape) == (0, 1)
    scale_out = torch.zeros(())
    fp8_epilogues.rms_norm_fp8(empty, weight, scale=scale, scale_out=scale_out)
    assert float(scale_out) == 0.5
    out = torch.empty(0, 128, dtype=torch.bfloat16)
    activations.bind_silu_and_mul_fp32_mul({}, empty, out)(empty, out)
    assert host.grids == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: activations.silu_and_mul_fp32_mul(torch.zeros(())),
        lambda: activations.silu_and_mul_fp32_mul(torch.zeros(2, 7)),
        lambda: activations.silu_and_mul_fp32_mul(torch.zeros(2, 8, dtype=torch.int32)),
        lambda: activations.gelu_and_mul_fp32_mul(torch.zeros(8, 2).t()),
        lambda: activations.silu_and_mul_fp32_mul(torch.zeros(2, 8), out=torch.zeros(2, 8)),
        lambda: activations.relu2(torch.zeros(2, 8), out=torch.zeros(2, 8, dtype=torch.float16)),
        lambda: fp8_epilogues.silu_and_mul_fp8(torch.zeros(2, 64)),
        lambda: fp8_epilogues.rms_norm_fp8(torch.zeros(2, 64), torch.zeros(64), eps=-1.0),
        lambda: fp8_epilogues.rms_norm_fp8(torch.zeros(2, 64), torch.zeros(32)),
        lambda: fp8_epilogues.rms_norm_fp8(torch.zeros(2, 64), torch.zeros(64), scale=torch.zeros(2)),
    ],
)
def test_what_does_not_fit_is_one_clear_error(call: Callable[[], Any]) -> None:
    with pytest.raises(BadShape):
        call()


def test_tensors_of_the_cpu_are_refused_with_a_remedy() -> None:
    with pytest.raises(BadShape, match="NVIDIA GPUs"):
        activations.silu_and_mul_fp32_mul(torch.zeros(2, 8))
    with pytest.raises(BadShape, match="NVIDIA GPUs"):
        fp8_epilogues.silu_and_mul_fp8(torch.zeros(2, 256))


def test_declared_kernels_name_what_is_there() -> None:
    for kernel in declare_activations.KERNELS:
        assert kernel.faults() == []
        for spec in (kernel.load, kernel.bind, kernel.compile, kernel.warmup):
            assert spec is not None
            assert callable(load(spec, kernel.name))
    names = {kernel.name for kernel in declare_activations.KERNELS}
    assert {f"kernelmux.{each.name}[jit_cuda]" for each in ACTIVATIONS} <= names


def test_what_compiling_ahead_prepares_is_what_a_call_uses(host: cuda_on_host.Host) -> None:
    device = catalog()["h200-sxm"] if "h200-sxm" in catalog() else next(d for n, d in catalog().items() if "h200" in n)
    assert device.capability is not None
    variant = activations.VARIANTS["silu_and_mul_fp32_mul"]
    ahead = set(activations.needed(variant, device.capability, 4, "bfloat16", {"M": 5, "H": 96}))
    activations.silu_and_mul_fp32_mul(drawn(5, 192))
    assert {tuple(host.given[-1].items())} == ahead
    assert [job.what for job in activations.compile_relu2(device, "float16", {"M": (1, 64), "H": 4096})]
    assert launch.function is not host.function


@pytest.mark.parametrize("shape", [(3, 4, 8), (1, 8), (8,), (2, 1, 3, 8)])
def test_rows_are_found_wherever_they_lie(shape: tuple[int, ...]) -> None:
    whole = torch.arange(1000.0)
    x = whole[: math.prod(shape)].view(shape)
    for view in (x, x.transpose(0, -2) if x.dim() > 2 else x, x[..., 1:5], x[:1]):
        found = [
            whole[run.offset + view.storage_offset() + row * run.stride :][: view.shape[-1]]
            for run in rows_of_tensors.uniform_rows(view)
            for row in range(run.rows)
        ]
        assert torch.equal(torch.stack(found), view.reshape(-1, view.shape[-1]))


def test_a_table_of_measured_geometries_is_what_is_chosen_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "geometries": {"9.0": {"silu_and_mul": {"2": [[100.0, "64x1-quarter"], [None, "512x2-stream"]]}}},
        "rows": {"9.0": {"2": {"4096": "512x1"}}},
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    monkeypatch.setattr(activation_geometry, "MEASURED", path)
    for cached in (activation_geometry._table, activation_geometry.measured):
        cached.cache_clear()
    try:
        nine, ten = Capability(9, 0), Capability(10, 0)

        def chosen(op: str, dtype: str, accesses: int, where: Capability) -> str:
            return activation_geometry.choose(op, dtype, accesses, where, 10).name

        assert chosen("silu_and_mul", "bfloat16", 1000, nine) == "64x1-quarter"
        assert chosen("silu_and_mul", "bfloat16", 1001, nine) == "512x2-stream"
        assert chosen("relu2", "float32", 1001, nine) == "512x2-stream"  # what was not timed goes by what was
        assert chosen("silu_and_mul_fp8", "bfloat16", 10, nine) == "64x1"
        assert chosen("silu_and_mul", "bfloat16", 10**6, ten) == activation_geometry.BANDS[-1].geometry.name
        assert fp8_epilogues.row_geometry(4096, "bfloat16", nine).name == "512x1"
        assert fp8_epilogues.row_geometry(4096, "bfloat16", ten).name != "512x1"
    finally:
        for cached in (activation_geometry._table, activation_geometry.measured):
            cached.cache_clear()
