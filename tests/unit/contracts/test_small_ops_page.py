"""docs/small-ops.md says what the declarations and the contracts say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kernelmux.contracts import activations, norms
from kernelmux.contracts.activation_table import ACTIVATIONS
from kernelmux.registry import discovery

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "small-ops.md").read_text(encoding="utf-8")
OPS = (*norms.OPS, *activations.OPS)


def test_the_table_is_what_the_declarations_say():
    spec = importlib.util.spec_from_file_location("render_declared", ROOT / "scripts" / "render_declared.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.rendered() == PAGE, "run `python scripts/render_declared.py`"


def test_every_op_and_every_out_is_on_the_page():
    for op in OPS:
        assert op.name in PAGE
        for word in (*op.outs, *(pair for pairs in op.inplace for pair in pairs)):
            assert word in PAGE


def test_every_activation_is_an_op_with_a_row_of_its_own():
    rows = {name for name, modules in discovery.BUILTIN.items() if modules[0].endswith(".activations")}
    assert rows == {activation.name for activation in ACTIVATIONS} | {"silu_and_mul_fp8"}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_every_backend_that_declares_an_activation_has_its_formula(activation):
    """The backends declare a kernel for every line of the table."""
    line = {
        "contracts/activations_math.py": f'"{activation.name}":',
        "backends/triton/activation_kernels.py": f'if OP == "{activation.name}"',
        "backends/jit_cuda/csrc/formulas.cuh": f"FORMULA({activation.name.removesuffix('_and_mul')},",
    }
    lacking = [
        name for name, text in line.items() if text not in (ROOT / "kernelmux" / name).read_text(encoding="utf-8")
    ]
    assert not lacking, f"{activation.name} has no formula in {', '.join(lacking)}"
    assert all(name in PAGE for name in line)


def test_every_link_of_the_page_to_a_file_exists():
    for name in ("kernelmux/contracts/sides.py", "kernelmux/contracts/activation_table.py", "docs/ops.md"):
        assert (ROOT / name).exists()
    assert "kernelmux/contracts/sides.py" in PAGE and "kernelmux/contracts/activation_table.py" in PAGE
