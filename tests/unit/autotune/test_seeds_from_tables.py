"""An earlier table (imported, predicted, measured) is where a run starts from, and it must prove itself anew."""

from __future__ import annotations

import json

from kernelmux.autotune.run import tune_moe
from kernelmux.autotune.space import at_m, build_space
from kernelmux.registry import epoch
from kernelmux.store.paths import config_dir
from tests.unit.autotune.landscape import H100, SMALL, Landscape

M = 256


def import_table(tile):
    """As an engine's table that somebody put into the user's folder; no sidecar says where it is from."""
    folder = config_dir() / "triton_3_6_0"
    folder.mkdir(parents=True)
    name = f"E={SMALL.E},N={SMALL.N},device_name={H100.table_name}.json"
    (folder / name).write_text(json.dumps({str(M): tile.to_json()}))
    (folder / name.replace(".json", "_down.json")).write_text(json.dumps({str(M): tile.to_json()}))


def tuned(bench, out):
    return tune_moe(SMALL, H100, bench=bench, effort="quick", out=out, compile_with=None, ms=(M,))


def test_an_imported_tile_that_no_order_would_reach_is_timed_and_wins_if_it_is_best(tmp_path):
    first = Landscape(SMALL, seed=5)
    tuned(first, tmp_path / "first")
    seen = {tile for (_, _, tile, _) in first.timed}
    both = set(build_space(SMALL, H100, "up").tiles) & set(build_space(SMALL, H100, "down").tiles)
    unseen = next(t for t in sorted(at_m(both, SMALL, M, direct=False)) if t not in seen)
    import_table(unseen)
    epoch.bump()  # written behind the look-up's back

    class Favouring(Landscape):
        def true_us(self, m, side, tile):
            return super().true_us(m, side, tile) * (0.2 if tile == unseen else 1.0)

    bench = Favouring(SMALL, seed=5)
    result = tuned(bench, tmp_path / "second")
    assert unseen in {tile for (_, _, tile, _) in bench.timed}
    assert result.lines[0].config.up == result.lines[0].config.down == unseen


def test_an_imported_tile_that_is_slow_loses(tmp_path):
    unseen = sorted(at_m(build_space(SMALL, H100, "up").tiles, SMALL, M, direct=False))[0]
    import_table(unseen)
    epoch.bump()
    bench = Landscape(SMALL, seed=5)
    result = tuned(bench, tmp_path)
    config = result.lines[0].config
    total = sum(bench.true_us(M, side, getattr(config, side)) for side in ("up", "down"))
    assert total <= 1.002 * sum(bench.true_us(M, side, unseen) for side in ("up", "down"))
