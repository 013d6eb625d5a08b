from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from kernelmux.registry import discovery, packages
from kernelmux.registry.packages import Packages, satisfies

releases = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
versions = st.builds(
    lambda release, tail: release + tail,
    releases,
    st.sampled_from(["", "", "", "+cpu", "+cu128", "rc1", ".dev3", ".post1", "a2"]),
)
clauses = st.builds(
    lambda sign, space, release: sign + space + release,
    st.sampled_from([">=", "<=", ">", "<", "==", "!="]),
    st.sampled_from(["", " "]),
    releases,
)


@given(versions, st.lists(clauses, max_size=3).map(",".join))
def test_ranges_mean_what_packaging_says(version: str, spec: str) -> None:
    assert satisfies(version, spec) == SpecifierSet(spec).contains(version, prereleases=True)


@pytest.mark.parametrize(
    ("version", "spec", "inside"),
    [
        ("3.6.0", ">=3.5,<4", True),
        ("3.6", "==3.6.0", True),
        ("2.13.0+cpu", ">=2.13", True),
        ("2.9.1", "~=2.9.0", True),
        ("2.9.1", "==2.*", True),
        ("2.10rc1", ">=2.10", False),
        ("2024.1.post3", ">2024.1", False),
    ],
)
def test_ranges_by_example(version: str, spec: str, inside: bool) -> None:
    assert satisfies(version, spec) is inside


def test_names_are_compared_as_an_index_does() -> None:
    there = Packages({"Flashinfer_Python": "0.7.2"})
    assert there.has("flashinfer-python", ">=0.7")
    assert there.has("flashinfer.python")
    assert there["FLASHINFER-PYTHON"] == "0.7.2"


def test_what_is_assumed_is_there_in_a_version_that_suits_and_in_no_known_window() -> None:
    everything = Packages.assume_all()
    assert everything.has("anything", ">=99")
    assert "anything" not in everything


def test_packages_are_values() -> None:
    assert Packages({"a": "1"}) == Packages({"A": "1"})
    assert hash(Packages({"a": "1"})) == hash(Packages({"A": "1"}))
    assert Packages({"a": "1"}) != Packages({"a": "2"})
    assert Packages() != Packages.assume_all()


def test_installed_versions_agree_with_importlib() -> None:
    from importlib import metadata

    found = Packages.installed()
    for name in ("pytest", "click", "msgspec", "pyyaml", "hypothesis"):
        assert found[name] == metadata.version(name)
    assert found.get("no-such-package") is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site folder of its own in front of sys.path, read anew."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(packages, "_distributions", None)
    monkeypatch.setattr(packages, "_installed", None)
    return tmp_path


def install(folder: Path, stem: str, entry_points: str = "") -> None:
    info = folder / f"{stem}.dist-info"
    info.mkdir(parents=True)
    name, _, version = stem.partition("-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points)


def test_the_first_folder_of_the_path_wins(folder: Path) -> None:
    install(folder, "pytest-0.0.1")
    assert Packages.installed()["pytest"] == "0.0.1"


def test_an_egg_info_folder_is_read_from_its_pkg_info(folder: Path) -> None:
    (folder / "toy_pack.egg-info").mkdir()
    (folder / "toy_pack.egg-info" / "PKG-INFO").write_text("Name: toy-pack\nVersion: 1.2\n")
    (folder / "named-3.4-py3.11.egg-info").write_text("")
    assert Packages.installed()["toy-pack"] == "1.2"
    assert Packages.installed()["named"] == "3.4"


def test_a_zip_on_the_path_is_asked_through_importlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder / "things.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("zipped-7.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 7.0\n")
    monkeypatch.setattr(sys, "path", [str(archive), *sys.path])
    assert Packages.installed()["zipped"] == "7.0"


# out-of-tree kernels

PLUGIN = """
from kernelmux.device import capabilities
from kernelmux.registry import Kernel, OnCapability

KERNELS = [
    Kernel(name="plug.fused_moe[marlin]", op="fused_moe", backend="marlin", load="plug_moe:run",
           requirements=(OnCapability(capabilities("9.0")),)),
]
BROKEN = [Kernel(name="plug.bad", op="fused_moe", backend="fastest", load="plug_moe.run", requirements=())]
NUMBER = 3
"""


def test_a_kernel_of_another_package_is_found_by_its_entry_point(folder: Path) -> None:
    (folder / "plug_moe.py").write_text(PLUGIN)
    install(folder, "plug-1.0", "[console_scripts]\nplug = plug:main\n\n[kernelmux.kernels]\nmoe = plug_moe:KERNELS\n")
    registry = discovery.discover()
    assert registry.faults == []
    assert registry.kernel("plug.fused_moe[marlin]") is not None


def test_a_faulty_announcement_is_left_out_and_named(folder: Path) -> None:
    (folder / "plug_moe.py").write_text(PLUGIN)
    points = "bad = plug_moe:BROKEN\nnone = no_such_plug:KERNELS\nnumber = plug_moe:NUMBER\ngone = plug_moe:GONE\n"
    install(folder, "plug-1.0", f"[kernelmux.kernels]\n{points}")
    registry = discovery.discover()
    assert len(registry.faults) == 4
    text = "\n".join(registry.faults)
    for words in ("plug: entry point bad", "backend 'fastest'", "module:function", "exactly one OnCapability"):
        assert words in text
    assert "No module named 'no_such_plug'" in text
    assert registry.kernel("plug.bad") is None
    assert registry.kernels("fused_moe")


def test_assuming_all_keeps_the_version_of_what_is_known() -> None:
    assumed = Packages.assume_all(Packages({"triton": "3.6.0"}))
    assert assumed["triton"] == "3.6.0"
    assert assumed.has("flashinfer-python", ">=0.6")
    assert not assumed.has("triton", ">=4")
    assert assumed != Packages.assume_all()
