"""``kernelmux bench``: with a stand that makes up its times, and on a machine without a GPU."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from kernelmux.cli import bench as command
from kernelmux.cli.app import run
from kernelmux.device import resolve_device
from kernelmux.measure.small import Race, Standing


class MadeUp:
    """Answers at once: contestants take 10, 11, 12, ... us in the order of their names, and the last one is wrong."""

    def race(self, op, point, contestants, rounds=25, refused=None):
        order = sorted(c.name for c in contestants if c.kind == "kernel")
        standings = []
        for c in contestants:
            us = 10.0 + order.index(c.name) if c.kind == "kernel" else 8.0
            ok = c.name != order[-1]
            standings.append(
                Standing(c.name, c.backend, c.kind, (us,) * rounds, us=us, low=us, high=us)
                if ok
                else Standing(c.name, c.backend, c.kind, status="wrong", reason="wrong result: made up")
            )
        return Race(point, tuple(standings), refused, 4096, 4096, 8, rounds, "made up")


@pytest.fixture
def gpu(monkeypatch):
    here = replace(resolve_device("h200"), live=True, index=0, driver="580.1.1")
    monkeypatch.setattr(command, "live", lambda spec: here)
    monkeypatch.setattr(command, "stand", lambda device: MadeUp())
    return here


def test_without_a_gpu_it_is_one_clear_sentence(capsys):
    for spec in ("cpu", "h100-sxm", "cuda:0"):
        assert run(["bench", "rms_norm", "--device", spec]) == 1
        said = capsys.readouterr().err
        assert said.startswith("Error: ") and len(said.splitlines()) == 1 and "GPU" in said


def test_an_unknown_op_is_told_before_the_gpu_is_looked_for(capsys):
    assert run(["bench", "rms_nrom"]) == 2
    assert "rms_norm" in capsys.readouterr().err


def test_the_table_ranks_and_the_choice_is_measured_from_then_on(gpu, capsys):
    assert run(["bench", "rms_norm", "--m", "1,16", "--h", "2048"]) == 0
    out, err = capsys.readouterr()
    assert "rms_norm M=16 H=2048 bfloat16" in out and "wrong result: made up" in out and "of a copy" in out
    assert "select_backend goes by them" in err
    assert [line.split()[-1] for line in out.strip().splitlines()[-2:]] == ["measured", "measured"]


def test_json_is_one_object_with_every_sample(gpu, capsys):
    assert run(["bench", "silu_and_mul", "--m", "16", "--h", "2048,2880", "--rounds", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(r["m"], r["h"]) for r in said["races"]] == [(16, 2048), (16, 2880)]
    first = said["races"][0]
    assert first["selected"]["source"] == "measured" and said["recorded"] > 0
    assert len(first["contestants"][0]["samples_us"]) == 3
    assert {one["kind"] for one in first["contestants"]} == {"kernel", "peer", "copy"}


def test_no_record_leaves_the_choice_alone(gpu, capsys):
    assert run(["bench", "rms_norm", "--m", "16", "--h", "2048", "--no-record", "--no-peers", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recorded"] == 0 and said["journal"] is None and said["races"][0]["selected"]["source"] != "measured"
    assert not any(one["kind"] == "peer" for one in said["races"][0]["contestants"])


@pytest.mark.parametrize(
    "line, words",
    [
        (["rms_norm", "--m", "0"], "at least 1"),
        (["rms_norm", "--h", "big"], "whole numbers"),
        (["fused_moe"], "only ops of M and H"),
        (["rms_nrom"], "rms_norm"),
        (["rms_norm", "--backends", "marlin"], "has no kernel on"),
        (["rms_norm", "--dtype", "bf17"], "unknown dtype"),
    ],
)
def test_words_that_are_off_are_usage_errors(gpu, capsys, line, words):
    assert run(["bench", *line]) == 2
    assert words in capsys.readouterr().err


def test_a_plot_without_matplotlib_names_the_extra_before_anything_runs(gpu, capsys, monkeypatch):
    from kernelmux.reports import small_plot

    monkeypatch.setattr(small_plot, "find_spec", lambda name: None)
    assert run(["bench", "rms_norm", "--plot", "x.png"]) == 1
    out, err = capsys.readouterr()
    assert "kernelmux[plots]" in err and not out
