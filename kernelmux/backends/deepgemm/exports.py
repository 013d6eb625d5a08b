"""Which distribution carries DeepGEMM, and what the installed one exports, read without importing it."""

from __future__ import annotations

import ast
import os
import sys
from typing import TYPE_CHECKING

from ...registry import Conditional, Decision, Packages, Rejected

if TYPE_CHECKING:
    from ...device import Device
    from ...registry import Problem

# distribution -> its module, in the order they are tried
MODULES = {"sgl-deep-gemm": "deep_gemm", "deep-gemm": "deep_gemm", "vllm": "vllm.third_party.deep_gemm"}

# SGLang asks for these three before it uses DeepGEMM on 12.x (deep_gemm_wrapper/configurer.py).
NEEDED_ON_SM12X = ("fp8_einsum", "m_grouped_fp8_fp4_gemm_nt_contiguous", "transform_sf_into_required_layout")
LINK = "https://github.com/deepseek-ai/DeepGEMM/pull/419"


def ready_for_sm12x(device: Device, packages: Packages, problem: Problem) -> Decision:
    """12.x: only if the installed library exports what it needs there. A described set of packages cannot say so."""
    if packages is not Packages.installed():
        return Rejected(
            "exports",
            "on 12.x it depends on what the installed DeepGEMM exports, which a list of packages does not tell",
            "decide on the machine itself, or choose cutlass or triton",
            LINK,
        )
    missing = [name for name in NEEDED_ON_SM12X if name not in installed_exports()]
    if missing:
        reason = f"the installed DeepGEMM does not export {', '.join(missing)}, which it needs on 12.x"
        return Rejected("exports", reason, "install a later DeepGEMM, or choose cutlass or triton", LINK)
    return Conditional(
        ("some builds of DeepGEMM read FP8 weights as FP4 on 12.x, without an error: check the output once",)
    )


def installed_exports() -> frozenset[str]:
    """Names that the installed DeepGEMM's ``__init__.py`` defines or imports; empty where there is none."""
    for name in dict.fromkeys(MODULES.values()):
        for entry in sys.path:
            path = os.path.join(entry or os.curdir, *name.split("."), "__init__.py")
            try:
                with open(path, encoding="utf-8") as file:
                    return exported_names(file.read())
            except (OSError, SyntaxError):
                continue
    return frozenset()


def exported_names(source: str) -> frozenset[str]:
    """Every name bound at the top of a module or inside its ``try`` and ``if`` blocks."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)
