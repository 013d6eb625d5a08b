"""What is installed, and the two commands of the README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest

import kernelmux as km

ROOT = Path(__file__).parents[2]
SCRIPTS = ["scripts/setup-env.sh", "scripts/tune-example.sh", ".ci/run"]


def test_the_installed_version_is_the_packages() -> None:
    try:
        installed = version("kernelmux")
    except PackageNotFoundError:
        pytest.skip("kernelmux is not installed here, only on the path")
    assert installed == km.__version__


def test_torch_is_an_extra_and_never_a_dependency() -> None:
    try:
        needs = metadata("kernelmux").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        pytest.skip("kernelmux is not installed here, only on the path")
    core = {re.split(r"[^A-Za-z0-9_-]", need)[0].lower() for need in needs if "extra ==" not in need}
    assert core == {"triton", "click", "rich", "msgspec", "pyyaml", "filelock", "platformdirs", "packaging"}
    extras = set(metadata("kernelmux").get_all("Provides-Extra") or [])
    assert {"torch", "flashinfer", "cuda12", "cuda13", "gpu", "plots", "dev"} <= extras


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_run_and_parses(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_make_command_of_the_readme_exists() -> None:
    said = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"tune", "test"} <= said <= targets


def test_what_make_bench_runs_needs_no_argument_and_no_gpu() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = re.findall(r"(benchmarks/\S+)", makefile)
    assert run == ["benchmarks/bench_select.py"], "others ask for a GPU, or for a vLLM by its path"
    done = subprocess.run([sys.executable, ROOT / run[0], "--runs", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "first: median" in done.stdout


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shells = "\n".join(re.findall(r"```bash\n(.*?)```", readme, re.DOTALL))
    said = {
        *re.findall(r"^kernelmux ([a-z]+)", shells, re.MULTILINE),
        *re.findall(r"`kernelmux ([a-z]+)[^`\n]*`", readme),
    }
    assert {"select", "tune", "devices", "doctor", "configs"} <= said
    missing = {name for name in said if not (ROOT / "kernelmux" / "cli" / f"{name}.py").exists()}
    assert not missing
