"""The mutation test: every change of a committed list is reported, and a tree that did not change reports none."""

from __future__ import annotations

import functools

import pytest

from kernelmux.reports.matrix import Matrix
from kernelmux.reports.matrix_allow import sort_out
from kernelmux.reports.matrix_diff import BETTER, CODES, compare
from kernelmux.reports.matrix_markdown import changes as told

from . import matrix_setting as setting
from .matrix_mutations import MUTATIONS, Mutation


@functools.cache
def baseline(on: str) -> Matrix:
    if on == "static":
        return setting.real().matrix()
    return (
        setting.replayed(setting.measured(), seed=0) if on == "replayed" else setting.compiled(setting.compiled_facts())
    )


def mutated(one: Mutation) -> Matrix:
    if one.on == "static":
        return one.make(setting.real()).matrix()
    if one.on == "replayed":
        return setting.replayed(one.make(setting.measured()), seed=1)
    return setting.compiled(one.make(setting.compiled_facts()))


def test_the_list_is_long_enough_and_speaks_of_changes_that_exist() -> None:
    assert len(MUTATIONS) >= 30
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)
    for one in MUTATIONS:
        assert one.expect <= set(CODES)
        assert one.better == bool(one.expect & BETTER)


@pytest.mark.parametrize("one", MUTATIONS, ids=lambda one: one.name)
def test_every_mutation_is_reported(one: Mutation) -> None:
    changes = compare(baseline(one.on), mutated(one))
    assert {change.code for change in changes} & one.expect, [change.to_json() for change in changes][:5]
    verdict = sort_out(changes, ())
    assert verdict.failed is not one.better
    text = told(verdict)
    assert len(text) < 20_000, "a pull request must be able to show it"
    assert all(CODES[code].lower() in text.lower() for code in {c.code for c in verdict.against})


def test_an_unchanged_tree_reports_nothing_in_ten_runs() -> None:
    before = setting.joined(*(baseline(on) for on in ("static", "replayed", "compiled")))
    for run in range(1, 11):
        again = setting.joined(
            setting.real().matrix(), setting.replayed(setting.measured(), seed=run),
            setting.compiled(setting.compiled_facts()),
        )  # fmt: skip
        assert compare(before, again) == []


def test_the_noise_of_hundreds_of_cells_is_no_change() -> None:
    cells = [
        setting.Replayed(setting.Case("rms_norm", "none", f"case {i}", "bfloat16", ()), "k[triton]", "triton", 1.5 + i)
        for i in range(300)
    ]
    before = setting.replayed(cells, seed=100)
    assert [compare(before, setting.replayed(cells, seed=run)) for run in range(101, 111)] == [[]] * 10


def test_the_code_that_compares_never_reads_the_mutations() -> None:
    from pathlib import Path

    from kernelmux.reports import matrix_diff

    for path in Path(matrix_diff.__file__).parent.glob("matrix*.py"):
        assert "mutation" not in path.read_text(encoding="utf-8")
