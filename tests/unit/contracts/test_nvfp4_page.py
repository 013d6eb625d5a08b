"""docs/nvfp4.md says what the declarations and the contract say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kernelmux.contracts import nvfp4

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "nvfp4.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_declarations_say():
    spec = importlib.util.spec_from_file_location("render_nvfp4", ROOT / "scripts" / "render_nvfp4.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.rendered() == PAGE, "run `python scripts/render_nvfp4.py`"


def test_every_op_layout_and_out_is_on_the_page():
    for op in nvfp4.OPS:
        assert f"`{op.name}`" in PAGE and all(f"`{out}`" in PAGE for out in op.outs)
    assert all(f"`{layout}`" in PAGE for layout in nvfp4.LAYOUTS)


def test_every_file_the_page_names_exists():
    for name in (
        "kernelmux/contracts/nvfp4_math.py", "kernelmux/contracts/nvfp4_layouts.py",
        "kernelmux/contracts/nvfp4_checkpoint.py", "kernelmux/measure/library_tactics.py", "docs/ops.md",
    ):  # fmt: skip
        assert (ROOT / name).exists()
