"""The plot of races, where matplotlib is there."""

import pytest

pytest.importorskip("matplotlib")

from kernelmux.errors import StoreError
from kernelmux.reports import small_plot

RACES = [
    {
        "op": op, "h": h, "dtype": "bfloat16", "m": m,
        "contestants": [
            {"name": "kernelmux.x[triton]", "kind": "kernel", "percent_of_copy": 90.0},
            {"name": "copy, torch", "kind": "copy", "percent_of_copy": 100.0},
            {"name": "flashinfer, direct", "kind": "peer", "status": "error", "reason": "no"},
        ],
    }
    for op in ("rms_norm", "relu2") for h in (2048, 4096) for m in (1, 16)
]  # fmt: skip


def test_it_has_a_panel_for_each_op_and_size_and_only_who_ran(tmp_path):
    small_plot.draw(RACES, tmp_path / "races.svg", "made up")
    said = (tmp_path / "races.svg").read_text()
    assert said.startswith("<?xml") and len(said) > 10_000
    small_plot.draw(RACES, tmp_path / "races.png", "made up")
    assert (tmp_path / "races.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["races.xyz", "no/such/folder/races.png"])
def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, name):
    with pytest.raises(StoreError, match=r"cannot write the plot"):
        small_plot.draw(RACES, tmp_path / name, "made up")
