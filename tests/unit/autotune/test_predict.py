from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest

from kernelmux.autotune import priors, seeds
from kernelmux.autotune.compile import Facts, Task
from kernelmux.autotune.predict import choose, predict_moe, scores
from kernelmux.autotune.rank import expected_blocks, rank
from kernelmux.autotune.space import at_m, build_space
from kernelmux.backends.triton import moe_compile
from kernelmux.contracts.moe_shape import USUAL_M
from kernelmux.device import resolve_device
from kernelmux.errors import TuneError
from kernelmux.store.journal import Journal
from kernelmux.tuning_configs.heuristic import default_config
from kernelmux.tuning_configs.tile import Tile
from tests.unit.autotune.landscape import H100, QWEN, SMALL

FAKE_PACKAGE = "tests.unit.autotune.fake_compilers"


def spaces(shape, device):
    return {side: build_space(shape, device, side).tiles for side in ("up", "down")}


@pytest.mark.parametrize("mean, block_m", [(0.5, 16), (3, 16), (16, 16), (256, 64), (1024, 16)])
def test_expected_blocks_agree_with_drawing_them(mean, block_m):
    draw = random.Random(1)
    counts = [_poisson(draw, mean) for _ in range(4000)]
    seen = sum(math.ceil(c / block_m) for c in counts) / len(counts)
    assert expected_blocks(mean, block_m) == pytest.approx(seen, rel=0.05)


def _poisson(draw, mean):
    if mean > 100:
        return max(0, round(draw.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, draw.random()
    while product > limit:
        count += 1
        product *= draw.random()
    return count


def test_the_order_is_by_estimate_and_spills_push_a_tile_back():
    tiles = at_m(build_space(QWEN, H100, "up").tiles, QWEN, 512, direct=False)
    ordered = rank(tiles, QWEN, H100, "up", 512)
    assert [e.us for e in ordered] == sorted(e.us for e in ordered)
    first = ordered[0].tile
    spilt = rank(tiles, QWEN, H100, "up", 512, {first: Facts("ok", shared_bytes=65536, registers=255, stack_bytes=512)})
    assert spilt[0].tile != first


def test_every_block_m_has_its_share_of_any_beginning_of_the_order():
    tiles = at_m(build_space(QWEN, H100, "up").tiles, QWEN, 512, direct=False)
    ordered, _ = seeds.order(tiles, QWEN, H100, "up", 512)
    kinds = {t.block_m for t in ordered}
    for length in (40, 96):
        for block_m in kinds:
            assert sum(t.block_m == block_m for t in ordered[:length]) >= length // (2 * len(kinds)) - 1


def test_no_m_starves_when_binaries_are_capped():
    tiles = {m: at_m(build_space(QWEN, H100, "up").tiles, QWEN, m, direct=False) for m in USUAL_M}
    default = {m: default_config(QWEN, m, H100).up for m in USUAL_M}
    chosen = seeds.spread(tiles, default, 96, 100)
    assert len({t for ts in chosen.values() for t in ts} - set(default.values())) <= 100
    assert all(len(ts) >= 5 and default[m] == ts[0] for m, ts in chosen.items())


def test_votes_of_the_packaged_priors_name_the_known_winner_of_small_batches():
    votes = priors.smooth(priors.votes(QWEN, H100.capability, 1, "up"))
    assert not votes.thin
    assert votes.of(Tile(16, 64, 64, 1, 4, 4)) > 20 * votes.of(Tile(128, 64, 64, 1, 8, 3))


def test_smoothing_gives_each_knob_its_share():
    votes = priors.smooth({Tile(16, 64, 64, 1, 4, 3): 1.0, Tile(64, 128, 128, 16, 8, 4): 0.0})
    assert votes.of(Tile(16, 64, 64, 1, 4, 3)) == pytest.approx(1.0)
    assert votes.of(Tile(16, 128, 64, 1, 4, 3)) == pytest.approx(0.25)
    assert votes.of(Tile(16, 128, 128, 1, 4, 3)) == pytest.approx(0.0625)


def test_without_any_vote_the_default_is_predicted(monkeypatch):
    monkeypatch.setattr(priors, "load", lambda: ())
    picked = choose(QWEN, H100, spaces(QWEN, H100), (1, 32, 128), {})
    for m, config in picked.items():
        assert config.block_m == default_config(QWEN, m, H100).block_m


@pytest.mark.parametrize("name", ["h100-sxm", "rtx-pro-6000-server", "a100-sxm-80gb", "b200", "t4", "rtx-5090"])
def test_a_prediction_covers_every_m_and_fits_the_device(name):
    device = resolve_device(name)
    from kernelmux.tuning_configs.shared_law import fits

    picked = choose(QWEN, device, spaces(QWEN, device), USUAL_M, {})
    assert tuple(picked) == USUAL_M
    assert all(fits(t, device) for c in picked.values() for t in (c.up, c.down))
    blocks = [c.block_m for c in picked.values()]
    assert sum(b < a for a, b in pairwise(blocks)) <= 1


def test_a_tile_that_fails_to_compile_or_spills_is_not_predicted():
    tiles = spaces(QWEN, H100)
    before = choose(QWEN, H100, tiles, (64,), {})[64]
    facts = {
        Task("up", before.up): Facts("error", "PassManager::run failed"),
        Task("down", before.down): Facts("ok", "", 1024, 255, 2048, "x"),
    }
    after = choose(QWEN, H100, tiles, (64,), facts)[64]
    assert after.up != before.up
    assert after.down != before.down


def test_scores_never_include_a_tile_that_the_constraints_reject():
    device = resolve_device("rtx-pro-6000-server")
    assert all(
        t.block_m * t.block_n <= 224 * 32 * t.warps
        for t in scores(QWEN, device, spaces(QWEN, device)["up"], 1024, "up", {})
    )


def test_the_written_prediction_is_compiled_says_so_and_keeps_its_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(moe_compile, "source_hash", lambda: "0123")
    options = dict(out=tmp_path, effort="quick", ms=(64, 2048), workers=2, compile_with=FAKE_PACKAGE + ":refuses_128")
    with Journal(tmp_path / "j.sqlite") as journal:
        first = predict_moe(SMALL, H100, journal=journal, **options)
        again = predict_moe(SMALL, H100, journal=journal, **options)
    assert first.counts["compiled"] > 0
    assert again.counts["compiled"] == 0
    meta = json.loads(first.paths[2].read_text())
    assert meta["source"] == "predicted"
    assert "predicted" in first.paths[0].parts
    assert [line.config for line in first.lines] == [line.config for line in again.lines]
    # Public tables favour BLOCK_SIZE_N=128, which this compiler refuses, also where it is asked only on being picked.
    assert first.lines[-1].config.up.block_n != 128 != first.lines[-1].config.down.block_n
    assert any("no 128 here" in failure for failure in first.failures)


def test_a_short_budget_still_predicts_every_m_and_says_what_it_left_out(tmp_path):
    result = predict_moe(
        SMALL, H100, out=tmp_path, workers=1, compile_with=FAKE_PACKAGE + ":compile_tile", budget_s=1.5
    )
    assert len(result.lines) == len(USUAL_M)
    assert any("judged by formula" in note for note in result.notes)


def test_an_amd_gpu_is_refused_in_words(tmp_path):
    with pytest.raises(TuneError, match="NVIDIA GPUs only"):
        predict_moe(SMALL, resolve_device("mi300x"), out=tmp_path)
