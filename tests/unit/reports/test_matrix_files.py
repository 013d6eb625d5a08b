"""Reading, merging and packing matrices, and the environments they judge: every fault is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernelmux.errors import ConfigFileError, UsageError
from kernelmux.registry import Packages
from kernelmux.reports.matrix import Matrix
from kernelmux.reports.matrix_allow import read_allowed, sort_out
from kernelmux.reports.matrix_diff import compare, setting
from kernelmux.reports.matrix_files import MatrixFileError, merge, parse, read, to_json
from kernelmux.reports.matrix_packages import parse_freeze, read_freeze

from . import matrix_setting as made


@pytest.fixture(scope="module")
def static() -> Matrix:
    one = made.real()
    return made.Setting(one.registry, one.devices[2:4]).matrix()


@pytest.fixture(scope="module")
def whole(static: Matrix) -> Matrix:
    return made.joined(static, made.replayed(made.measured(), 0), made.compiled(made.compiled_facts()))


@pytest.mark.parametrize("packed", [False, True])
def test_a_matrix_comes_back_from_its_json(whole: Matrix, packed: bool) -> None:
    assert parse(to_json(whole, packed), "x.json") == whole


def test_plain_json_has_what_others_read(static: Matrix) -> None:
    data = json.loads(to_json(static))
    assert data["schema"] == 1
    for cell in data["cells"]:
        assert {"op", "scheme", "device", "m", "backend", "evidence", "why", "rejected"} <= cell.keys()
        assert cell["why"] and all(r["code"] and r["reason"] and r["remedy"] for r in cell["rejected"])
        assert cell["runner_up"] == (cell["outranked"][0] if cell["outranked"] else None)


def test_packed_json_says_everything_once(static: Matrix) -> None:
    packed = static.packed()
    assert len(set(packed["texts"])) == len(packed["texts"])
    assert len(to_json(static, packed=True)) < len(to_json(static)) / 10


def test_keys_tell_cells_apart(whole: Matrix) -> None:
    keys = [cell.key for cell in whole.cells]
    assert len(set(keys)) == len(keys)
    assert "rms_norm/none/-/bfloat16/H=4096/h100-sxm/64" in keys
    assert "live/rms_norm/none/-/bfloat16/H=4096/h200/64/kernelmux.rms_norm[jit_cuda]" in keys


def _edited(matrix: Matrix, packed: bool, edit: Any) -> bytes:
    data = json.loads(to_json(matrix, packed))
    edit(data)
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("packed", "edit", "says"),
    [
        (False, lambda d: d.pop("schema"), "no key schema"),
        (False, lambda d: d.update(schema=2), "has schema 2; this kernelmux reads schema 1. Read it with"),
        (False, lambda d: d.update(schema="1"), "has schema '1'"),
        (False, lambda d: d.update(schema=True), "has schema True"),
        (False, lambda d: d.pop("header"), "header"),
        (False, lambda d: d.update(cells={}), r"\$\.cells"),
        (False, lambda d: d["cells"][3].update(m="64"), r"\$\.cells\[3\]|\$\.cells\[...\]\.m"),
        (False, lambda d: d["cells"][3].pop("why"), "why"),
        (False, lambda d: d["cells"][3].update(kind="guess"), r"cells\[3\] has kind 'guess'"),
        (False, lambda d: d["cells"][3].update(device="h101"), r"cells\[3\] speaks of device 'h101'"),
        (False, lambda d: d["cells"][3].update(kind="live"), r"cells\[3\] is live and has no result"),
        (False, lambda d: d["cells"][3].update(result={"status": "ok"}), r"is chosen and has a result"),
        (False, lambda d: d["cells"].append(d["cells"][0]), "has a cell twice"),
        (False, lambda d: d.update(form="zipped"), "form 'zipped'"),
        (False, lambda d: d["header"].update(shard={"index": 3, "of": 2}), "shard 3 of 2"),
        (True, lambda d: d["cells"][0].__setitem__(4, 10**6), "an index leads nowhere"),
        (True, lambda d: d["cells"][0].__setitem__(0, -2), "an index leads nowhere"),
        (True, lambda d: d["cells"][0].pop(), "is damaged"),
        (True, lambda d: d["outcomes"][0].pop(), "is damaged"),
        (True, lambda d: d["cases"].__setitem__(0, {}), "is damaged"),
        (True, lambda d: d["texts"].__setitem__(0, 7), "is damaged"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(static: Matrix, packed: bool, edit: Any, says: str) -> None:
    with pytest.raises(MatrixFileError, match=says) as told:
        parse(_edited(static, packed, edit), "base.json")
    assert str(told.value).startswith("base.json: ")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1', b"7", b"\0" * 100])
def test_what_is_no_matrix_at_all_is_said(data: bytes) -> None:
    with pytest.raises(MatrixFileError, match="is no matrix"):
        parse(data, "x")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MatrixFileError, match="cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(MatrixFileError, match="cannot be read"):
        read(tmp_path)


# -- shards


def _shards(count: int) -> list[tuple[str, Matrix]]:
    from kernelmux.reports.matrix_packages import facts_of
    from kernelmux.reports.matrix_static import static

    one = made.real()
    facts = facts_of(one.packages, "a test")
    options = dict(registry=one.registry, tokens=(1, 64))
    return [
        (f"{i}.json", static(one.devices[2:4], one.packages, facts, shard=(i, count), **options))
        for i in range(1, count + 1)
    ]


def test_shards_make_the_whole(static: Matrix) -> None:
    joined = merge(_shards(3))
    assert joined.cells == static.cells
    assert joined.header.shard is None and joined.header.plan


def test_a_missing_shard_and_one_given_twice_are_named() -> None:
    shards = _shards(3)
    with pytest.raises(UsageError, match="shard 2/3 is missing"):
        merge([shards[0], shards[2]])
    with pytest.raises(UsageError, match="shard 1/3 is given twice"):
        merge([*shards, ("copy.json", shards[0][1])])
    with pytest.raises(UsageError, match="one of 3"):
        merge([*shards, *_shards(2)[:1]])


def test_shards_of_different_runs_do_not_mix(static: Matrix) -> None:
    first, second = _shards(2)
    other = msgspec.structs.replace(second[1], header=msgspec.structs.replace(second[1].header, plan="another"))
    with pytest.raises(UsageError, match="different runs"):
        merge([first, ("other.json", other)])
    with pytest.raises(UsageError, match="Merge the shards first"):
        merge([first, second, ("whole.json", static)])
    with pytest.raises(UsageError, match="is in a.json and in b.json"):
        merge([("a.json", static), ("b.json", static)])
    with pytest.raises(UsageError, match="Merge the shards first"):
        compare(static, first[1])


# -- comparing what was not asked for


def test_cells_that_were_not_asked_for_are_not_gone(static: Matrix, whole: Matrix) -> None:
    assert compare(whole, static) == []
    from kernelmux.reports.matrix_cases import Filter, takes_cell

    only = Filter.parse("op=rms_norm")
    some = msgspec.structs.replace(
        static, cells=tuple(c for c in static.cells if takes_cell([only], c)),
        header=msgspec.structs.replace(static.header, filters=("op=rms_norm",)),
    )  # fmt: skip
    assert compare(static, some) == [] and compare(some, static) == []
    with pytest.raises(UsageError, match="no cell in common"):
        compare(made.replayed(made.measured(), 0), made.compiled(made.compiled_facts()))


def test_the_setting_says_what_else_differs(static: Matrix) -> None:
    packages = msgspec.structs.replace(static.header.packages, versions={"triton": "3.7.0"})
    newer = msgspec.structs.replace(static, header=msgspec.structs.replace(static.header, packages=packages))
    assert setting(static, static) == []
    assert any("triton" in note and "3.7.0" in note for note in setting(static, newer))


# -- allowed changes


def test_an_allowed_change_with_its_reason_does_not_count(static: Matrix, tmp_path: Path) -> None:
    one = made.real()
    slower = one.with_kernel("kernelmux.rms_norm[jit_cuda]", lambda k: k.but(evidence={}))
    changes = compare(made.real().matrix(), slower.matrix())
    path = tmp_path / "allow.yaml"
    path.write_text(
        "allow:\n- change: [evidence-lost]\n  op: rms_norm\n  reason: the test was taken out\n"
        "- change: chosen\n  device: t4\n  reason: nothing of the kind happens\n",
    )
    verdict = sort_out(changes, read_allowed(path))
    assert (
        not verdict.failed
        and verdict.allowed
        and [entry.reason for entry in verdict.idle] == ["nothing of the kind happens"]
    )
    path.write_text("allow:\n- change: '*'\n  op: rms_norm\n  reason: the test was taken out\n  until: 2020-01-01\n")
    assert sort_out(changes, read_allowed(path)).failed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("allow: 3\n", "no list of allowed changes"),
        ("- a\n", "no list of allowed changes"),
        ("allow:\n- change: chosen\n  op: x\n", "line 2, entry 1, reason: every allowed change needs a reason"),
        ("allow:\n- change: chosen\n  op: x\n  reason: soon\n", "needs a reason, in words"),
        ("allow:\n- change: fast\n  op: x\n  reason: it is so\n", "no change 'fast'"),
        ("allow:\n- change: chosen\n  reason: it is so\n", "does not say where"),
        ("allow:\n- change: chosen\n  gpu: x\n  reason: it is so\n", "no key 'gpu'"),
        ("allow:\n- change: chosen\n  op: x\n  reason: it is so\n  until: soon\n", "is no date"),
        ("allow:\n- change: {a: 1}\n  op: x\n  reason: it is so\n", "no word"),
        ("allow:\n- chosen\n", "is not a set of keys"),
        ("allow: [\n", "line"),
    ],
)
def test_a_fault_in_the_list_of_allowed_changes_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "allow.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=says):
        read_allowed(path)


# -- environments


FREEZE = """\
# a comment
--extra-index-url https://download.pytorch.org/whl/cu130
torch==2.11.0+cu130
Triton == 3.6.0
flashinfer-python===0.7.2
ninja==1.13.0 ; python_version >= "3.8"
numpy==2.3.5 \\
    --hash=sha256:abc
vllm @ https://example.org/wheels/vllm-0.12.0-cp312-cp312-linux_x86_64.whl#sha256=12
sgl_kernel @ file:///home/me/sgl_kernel
# Editable install with no version control (mine==0.1)
-e /home/me/mine
-e git+https://github.com/a/b@0123456789abcdef#egg=deep_gemm
"""


def test_a_freeze_is_read_as_pip_writes_it() -> None:
    found = parse_freeze(FREEZE, "freeze.txt")
    assert dict(found) == {
        "torch": "2.11.0+cu130", "triton": "3.6.0", "flashinfer-python": "0.7.2", "ninja": "1.13.0", "numpy": "2.3.5",
        "vllm": "0.12.0", "mine": "0.1",
    }  # fmt: skip
    assert found.unknown == {"sgl-kernel", "deep-gemm"}
    assert found.has("deep_gemm", ">=3") and not found.has("cupy") and found["sgl-kernel"] == "any"
    assert found != Packages(dict(found)) and hash(found) is not None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_freeze_of_any_shell_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "freeze.txt"
    path.write_bytes(FREEZE.replace("\n", "\r\n").encode(encoding))
    assert read_freeze(path)["triton"] == "3.6.0"
    path.write_bytes(b"")
    assert dict(read_freeze(path)) == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("torch==2.11.0\nhello world\n", 2),
        ("Package    Version\n---------- -------\ntorch      2.11.0\n", 1),
        ("torch=2.11.0=py312_0\n", 1),
        ("\n\ntorch>=2\n", 3),
        ("torch==not.a.version!\n", 1),
        ("torch==2.11.0\ntorch==2.10.0\n", 2),
        ("-r other.txt\n", 1),
        ("torch==2.11.0 and more\n", 1),
        ("<html><body>404</body></html>\n", 1),
        ('{"torch": "2.11.0"}\n', 1),
    ],
)
def test_nonsense_in_a_freeze_names_file_and_line(text: str, line: int) -> None:
    with pytest.raises(ConfigFileError, match=f"freeze.txt at line {line}: "):
        parse_freeze(text, "freeze.txt")


@pytest.mark.parametrize("data", [b"\x7fELF\x00\x00\x01", b"torch==2.11.0\n\xff\xfe\xfd\n"])
def test_what_is_no_text_names_the_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "freeze.txt"
    path.write_bytes(data)
    with pytest.raises(ConfigFileError, match=r"freeze.txt at line \d: this is not text"):
        read_freeze(path)


def test_what_an_upgrade_changes_is_one_comparison() -> None:
    one = made.real()
    old = made.Setting(
        one.registry, one.devices, parse_freeze("torch==2.11.0\nflashinfer-python==0.6.5\ntriton==3.6.0\n", "a")
    )
    new = made.Setting(
        one.registry, one.devices, parse_freeze("torch==2.11.0\nflashinfer-python==0.7.2\ntriton==3.6.0\n", "b")
    )
    assert {change.code for change in compare(old.matrix(), new.matrix())} & {"chosen", "candidate", "reason"}
