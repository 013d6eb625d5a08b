from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.contracts.moe_quant import MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import resolve_device
from kernelmux.reports.ceilings import Ceilings
from kernelmux.reports.tuning import Provenance, Shipped, build, throttle, verdict
from tests.unit.reports.small import OTHER, TILE, measured, predicted

H200 = resolve_device("h200")
SHAPE = MoeShape(128, 384, 2048, 8)


def report(tuned, device=H200, **more):
    return build(tuned, device=device, provenance=Provenance(), **more)


def test_a_report_is_plain_json_and_survives_it():
    value = report(measured())
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_a_difference_from_the_default_inside_its_interval_is_a_tie():
    assert [row["verdict"] for row in report(measured())["rows"]] == ["faster", "tie", "same", "slower"]


def test_the_default_itself_is_no_tie_and_no_gain():
    value = report(measured())
    assert value["rows"][2]["verdict"] == "same"
    assert value["summary"]["same"] == 1
    assert value["summary"]["tie"] == 1


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(0, 100))
def test_a_verdict_agrees_with_the_sign_of_the_difference(us, default_us, half):
    said = verdict(us, default_us, [us - half, us + half], same=False)
    if abs(us - default_us) <= 1.4 * half:
        assert said == "tie"
    if said != "tie":
        assert said == ("faster" if us < default_us else "slower")


def test_the_mean_gain_is_geometric_and_counts_ties_as_they_were_measured():
    expected = 1 - math.exp(sum(math.log(a / b) for a, b in ((20, 25), (60, 60.5), (140, 140), (200, 190))) / 4)
    assert report(measured())["summary"]["mean_gain"] == pytest.approx(expected)


def test_a_table_without_times_has_tiles_and_no_verdict_but_the_default():
    tuned = predicted()
    tuned["table"][1] |= {"up": TILE, "down": TILE}
    value = report(tuned)
    assert [row["verdict"] for row in value["rows"]] == [None, "same"]
    assert value["summary"]["timed"] == 0
    assert value["summary"]["mean_gain"] is None
    assert all(row["roofline"] is None and row["floor_us"] > 0 for row in value["rows"])


def test_a_missing_default_leaves_gain_and_verdict_open():
    tuned = measured()
    tuned["table"][0] |= {"default": None, "default_us": None}
    row = report(tuned)["rows"][0]
    assert (row["default"], row["gain"], row["verdict"]) == (None, None, None)


def test_a_borrowed_line_says_whose_tiles_it_has():
    tuned = measured()
    tuned["table"][0] |= {"us": None, "up_us": None, "down_us": None, "interval_us": None, "from_m": 8}
    row = report(tuned)["rows"][0]
    assert (row["from_m"], row["us"], row["roofline"]) == (8, None, None)


def test_the_roofline_follows_the_contracts_work():
    from kernelmux.contracts.fused_moe import work
    from kernelmux.quant import Scheme
    from kernelmux.registry.problem import Problem

    rates = Ceilings(781.0, 4245.2, "measured", "")
    for m in (1, 64, 4096):
        todo = work(Problem("fused_moe", Scheme.of(None), "bfloat16", {**SHAPE.axes(), "M": m}, activation="silu"))
        us, bound = rates.floor(SHAPE, m)
        assert us == pytest.approx(max(todo.flops / 781e6, todo.bytes / 4245.2e3))
        assert bound == ("compute" if todo.flops / 781e6 > todo.bytes / 4245.2e3 else "memory")


def test_quantized_weights_take_half_the_time_to_read():
    rates = Ceilings(1e9, 1000.0, "measured", "")
    wide, _ = rates.floor(SHAPE, 64)
    narrow, _ = rates.floor(SHAPE, 64, MoeQuant.of("fp8_block"))
    assert 0.5 < narrow / wide < 0.51  # tokens stay as wide as they are


def test_measured_ceilings_replace_the_data_sheets_which_stay_beside():
    value = report(measured(), ceilings=Ceilings(781.0, 4245.2, "measured", "w"))
    assert value["ceilings"]["source"] == "measured"
    assert value["datasheet"]["bandwidth_gbs"] == H200.bandwidth_gbs
    assert report(measured())["ceilings"]["source"] == "datasheet"


def test_a_gpu_nobody_listed_has_no_roofline():
    value = report(measured(), device=None)
    assert value["ceilings"] is None
    assert value["rows"][0]["roofline"] is None
    assert value["device"]["torch_name"] == "h200"


def test_reasons_of_single_ms_are_folded_and_keep_their_ms():
    found = {d["reason"]: d for d in report(measured())["discards"]}
    assert found["behind the first 128 of the order"] == {
        "reason": "behind the first 128 of the order", "up": 43, "down": 1112, "ms": [64, 1024],
    }  # fmt: skip
    assert found["more shared memory than a block may have"]["ms"] == []


def test_stages_sum_up_to_the_total():
    value = report(measured())
    assert sum(s["seconds"] for s in value["seconds"]) == value["total_seconds"] == 100
    assert value["seconds"][-1]["stage"] == "other"


@pytest.mark.parametrize(
    "bits, words",
    [("0x0", "none"), ("0x4", "power cap"), ("0x24", "power cap, temperature"), ("?", "?"), ("0x8000", "0x8000")],
)
def test_throttle_bits_are_told_in_words(bits, words):
    assert throttle(bits) == words


def test_shipped_entries_stand_at_their_m():
    shipped = Shipped("vllm 0.33.0", "NVIDIA_H200", {8: {"up": OTHER, "down": OTHER}})
    rows = report(measured(), shipped=shipped)["rows"]
    assert [row["shipped"] for row in rows] == [None, {"up": OTHER, "down": OTHER}, None, None]


@pytest.mark.parametrize("source, said", [("measured", "--effort quick"), ("predicted", "--offline --device h200")])
def test_a_report_says_how_to_tune_again(source, said):
    tuned = {**measured(), "effort": "quick", "config_source": source}
    again = report(tuned)["provenance"]["again"]
    assert again.startswith("kernelmux tune --shape E=128,N=384,K=2048,topk=8")
    assert said in again
