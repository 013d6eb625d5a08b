"""The launch that a weight-only or native NVFP4 GEMM gets is one that can be: at every size, on every GPU."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelmux.backends.jit_cuda import nvfp4_gemv_rules as gemv
from kernelmux.backends.jit_cuda.nvfp4_gemv_rules import GemvTile
from kernelmux.backends.triton import nvfp4_configs, nvfp4_native_rules, nvfp4_rules
from kernelmux.backends.triton.nvfp4_quantize_rules import geometry
from kernelmux.backends.triton.nvfp4_rules import Nvfp4Tile

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
SMALL = [16 * i for i in range(1, 33)]
KS = st.one_of(st.sampled_from(SMALL), st.integers(1, 4096).map(lambda i: 16 * i))
NS = st.one_of(st.integers(1, 600), st.integers(1, 4096).map(lambda i: 16 * i))
MS = st.one_of(st.integers(1, 300), st.integers(1, 40000))
MANY = settings(max_examples=400, deadline=None)


def fault(tile, m, n, k, capability):
    """Why a chosen launch cannot be."""
    if isinstance(tile, GemvTile):
        few = -(-k // nvfp4_rules.CHUNK) < tile.cluster
        return "more blocks in a cluster than chunks" if few else gemv.fault(tile, m, k, capability)
    return nvfp4_rules.fault(tile, n, k, capability)


@MANY
@given(m=MS, n=NS, k=KS, capability=st.sampled_from(CAPABILITIES), sms=st.sampled_from((1, 84, 108, 132, 148)))
@example(m=1, n=48, k=64, capability=(9, 0), sms=132)
@example(m=1, n=4096, k=128, capability=(9, 0), sms=132)
@example(m=4096, n=48, k=16, capability=(9, 0), sms=132)
def test_the_chosen_launch_can_be_at_every_size(m, n, k, capability, sms):
    for kind in ("triton", "gemv"):
        tile = nvfp4_configs.Choice(kind, n, k, sms, capability).at(m)
        assert fault(tile, m, n, k, capability) is None
    if capability >= (10, 0):
        native = nvfp4_configs.Choice("native", n, k, sms, capability).at(m)
        assert 1 <= native.split <= nvfp4_native_rules.most_split(k, native.block_k)


@MANY
@given(m=MS, n=NS, k=KS, other_m=MS, other_n=NS, other_k=KS, capability=st.sampled_from(CAPABILITIES))
@example(m=5, n=48, k=64, other_m=1, other_n=4096, other_k=4096, capability=(9, 0))
def test_a_launch_chosen_for_other_sizes_is_made_to_fit(m, n, k, other_m, other_n, other_k, capability):
    tile = nvfp4_configs.Choice("triton", other_n, other_k, 132, capability).at(other_m)
    made = nvfp4_rules.fitted(tile, k)
    assert fault(made, m, n, k, capability) is None
    assert made == tile or made.split < tile.split
    few = nvfp4_configs.Choice("gemv", other_n, other_k, 132, capability).at(other_m)
    if isinstance(few, GemvTile):
        assert gemv.fitted(few, k).cluster <= max(1, -(-k // nvfp4_rules.CHUNK))
    native = nvfp4_native_rules.heuristic(other_m, other_n, other_k, (10, 0), 148)
    assert nvfp4_native_rules.fitted(native, k).split <= nvfp4_native_rules.most_split(k, native.block_k)


def test_a_fitting_launch_stays_as_it_is():
    tile = Nvfp4Tile(64, 16, 64, 0, 4, 4, 3, True)
    assert nvfp4_rules.fitted(tile, 1024) is tile
    assert nvfp4_rules.fitted(tile, 512) == replace(tile, split=2)
    assert nvfp4_rules.fitted(tile, 256) == replace(tile, split=1, pdl=False)
    assert "there are fewer" in nvfp4_rules.fault(tile, 64, 256, (9, 0))
    assert "early" in nvfp4_rules.fault(tile, 64, 1024, (8, 0))
    assert "shared memory" in nvfp4_rules.fault(Nvfp4Tile(128, 256, 64, stages=5), 64, 1024, (8, 6))


def test_a_config_for_other_sizes_reaches_the_kernel_fitted(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from kernelmux.backends.jit_cuda import nvfp4_gemv
    from kernelmux.backends.triton import nvfp4_weight_only as weight_only
    from kernelmux.contracts.nvfp4_math import gemm_examples, gemm_reference

    taken = []
    monkeypatch.setattr(weight_only, "launch", lambda x, weights, out, tile: taken.append(tile))
    call = next(call for call in gemm_examples() if call["x"].shape[-1] <= 128)
    x, call = call["x"], {name: value for name, value in call.items() if name.startswith("w")}
    assert gemm_reference(x, **call).shape[-1] == call["w"].shape[0]
    tile = Nvfp4Tile(64, 16, 64, 0, 4, 4, 3, True)
    for run in (weight_only.run, nvfp4_gemv.run_any):
        run(x, weight_only.prepare(**call), config=tile)
    assert [(one.split, one.pdl) for one in taken] == [(1, False)] * 2


@given(m=MS, k=KS, whole=st.booleans())
def test_a_quantizing_program_is_no_larger_than_its_matrix_and_holds_whole_blocks(m, k, whole):
    rows, width, warps = geometry(m, k, whole)
    assert width % 16 == 0 and width & (width - 1) == 0 and rows & (rows - 1) == 0
    assert rows < 2 * m and width < 2 * max(k, 16) and warps in (1, 2, 4, 8, 16)
    assert (width >= k) if whole else rows * width <= 4096


def test_a_large_matrix_is_quantized_in_programs_of_4096_values():
    assert geometry(16384, 7168, False) == (4, 1024, 4) and geometry(1024, 4096, False) == (2, 1024, 4)
