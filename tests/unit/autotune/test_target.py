"""Tuning for the engines: one tile for both GEMMs (vLLM), tensor descriptors on the down side only (SGLang)."""

from __future__ import annotations

import pytest

from kernelmux.autotune import predict, priors
from kernelmux.autotune.run import tune_moe
from kernelmux.autotune.space import at_m, build_space
from kernelmux.autotune.target import KERNELMUX, Target
from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.device import resolve_device
from kernelmux.measure.bench import SIDES
from kernelmux.tuning_configs import check, shared_law, sidecar
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.entry import tile_of
from tests.unit.autotune.landscape import H100, QWEN, Landscape

MS = (1, 16, 256, 4096)
VLLM, SGLANG = Target("vllm"), Target("sglang")


def total(bench, m, up, down):
    return bench.true_us(m, "up", up) + bench.true_us(m, "down", down) + bench.align_us(m, up.block_m)


@pytest.mark.parametrize("seed", [1, 2])
def test_vllm_gets_one_tile_near_the_least_sum_of_both_sides(seed, tmp_path):
    bench = Landscape(seed=seed)
    result = tune_moe(QWEN, H100, bench=bench, out=tmp_path, compile_with=None, ms=MS, target=VLLM)
    shared = set(build_space(QWEN, H100, "up", target=VLLM).tiles) & set(
        build_space(QWEN, H100, "down", target=VLLM).tiles
    )
    for line in result.lines:
        tile = line.config.up
        assert tile == line.config.down and not tile.use_tma
        least = min(total(bench, line.m, t, t) for t in at_m(shared, QWEN, line.m, direct=VLLM.direct(QWEN, line.m)))
        assert total(bench, line.m, tile, tile) <= 1.03 * least
        default = VLLM.default(QWEN, line.m, H100)
        assert total(bench, line.m, tile, tile) <= 1.002 * total(bench, line.m, default["up"], default["down"])


def test_sglang_gets_a_pair_with_one_block_size_m_and_descriptors_on_both_sides(tmp_path):
    bench = Landscape(seed=3)
    result = tune_moe(QWEN, H100, bench=bench, out=tmp_path, compile_with=None, ms=MS, target=SGLANG)
    assert all(line.config.up.block_m == line.config.down.block_m for line in result.lines)
    assert {side for (_, side, tile, _) in bench.timed if tile.use_tma} == set(SIDES)


def test_no_side_of_vllm_is_offered_a_descriptor():
    assert not any(t.use_tma for side in SIDES for t in build_space(QWEN, H100, side, target=VLLM).tiles)
    assert any(t.use_tma for t in build_space(QWEN, H100, "up", target=KERNELMUX).tiles)


def test_a_quantization_block_clamps_block_size_k():
    target = Target("vllm", MoeQuant.of("fp8_block"))
    assert {t.block_k for t in build_space(QWEN, H100, "up", target=target).tiles} == {64, 128}


def test_eight_bit_operands_leave_room_for_larger_tiles():
    half = len(build_space(QWEN, H100, "up", target=Target("vllm")).tiles)
    eighth = len(build_space(QWEN, H100, "up", target=Target("vllm", MoeQuant.of("fp8_tensor"))).tiles)
    assert eighth > half


def test_sglang_always_sorts():
    assert KERNELMUX.direct(QWEN, 1) and VLLM.direct(QWEN, 1) and not SGLANG.direct(QWEN, 1)


@pytest.mark.parametrize("scheme", ["none", "fp8_tensor", "fp8_block", "int8_w8a16"])
def test_a_prediction_for_vllm_is_one_tile_that_fits_a_small_gpu(scheme):
    target, device = Target("vllm", MoeQuant.of(scheme)), resolve_device("rtx-pro-6000-server")
    tiles = {side: build_space(QWEN, device, side, target=target).tiles for side in SIDES}
    chosen = predict.choose(QWEN, device, tiles, MS, {}, target=target)
    assert sorted(chosen) == sorted(MS)
    for config in chosen.values():
        assert config.up == config.down and not config.up.use_tma
        sizes = target.element_bytes(QWEN)
        assert shared_law.lower_bound(config.up, device.capability, *sizes) <= device.shared_bytes


def test_public_winners_of_another_dtype_have_no_vote():
    fp8 = priors.votes(QWEN, H100.capability, 64, "up", kind="fp8_block")
    bf16 = priors.votes(QWEN, H100.capability, 64, "up")
    assert fp8 and bf16 and fp8 != bf16
    assert all(point.kind in priors.KINDS for point in priors.load())


@pytest.mark.parametrize("scheme", ["none", "fp8_block"])
def test_each_engine_finds_what_was_written_for_it_at_every_m(scheme, tmp_path):
    for engine in ("vllm", "sglang"):
        target, out = Target(engine, MoeQuant.of(scheme)), tmp_path / engine
        bench = Landscape(seed=4)
        result = tune_moe(QWEN, H100, bench=bench, out=out, compile_with=None, ms=MS, effort="quick", target=target)
        question = target.question(QWEN, H100)
        for m in MS:
            if engine == "vllm":
                found = vllm.lookup(question, m, tmp_path / "nothing", out)
                assert (found.source, found.key, tile_of(found.entry)) == ("file", m, result.table.at(m).up)
            else:
                found = sglang.lookup(question, m, out, bench.fingerprint()["triton"])
                assert (found.source, found.key, tile_of(found.entry)) == ("file", m, result.table.at(m).up)
                assert tile_of(found.down.entry) == result.table.at(m).down
        kept = sidecar.load(result.paths[-1])
        assert (kept.reader, kept.quant) == (engine, target.quant)
        assert check.check([out])[0].ok


def test_a_prediction_for_an_engine_lies_where_no_engine_takes_it_unasked(tmp_path):
    device = resolve_device("rtx-pro-6000-server")
    result = predict.predict_moe(QWEN, device, out=tmp_path, compile_with=None, ms=MS, target=Target("sglang"))
    assert all(path.is_relative_to(tmp_path / "predicted") for path in result.paths)
    assert sglang.lookup(Target("sglang").question(QWEN, device), 1, tmp_path, "3.6.0").source != "file"
