"""vLLM's and SGLang's own look-up functions, taken from their source by ast and run with stubs around them.

Neither package is imported: of each file only the named functions are compiled, with the device's name, Triton's
version and the environment put in their place.
"""

from __future__ import annotations

import ast
import functools
import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VLLM = Path("vllm/model_executor/layers/fused_moe/fused_moe.py")
SGLANG = Path("sglang/srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py")
_NAMES = {
    "get_config_file_name", "get_moe_configs", "get_default_config", "try_get_optimal_moe_config",
    "should_moe_wna16_use_cuda", "_use_low_smem_fp8_default", "_get_config_dtype_str", "get_config_dtype_str",
}  # fmt: skip


class _Quiet(logging.Logger):
    def warning_once(self, *args: Any, **kwargs: Any) -> None:
        pass

    info_once = warning_once
    warning = info = warning_once  # type: ignore[assignment]


def _functions(path: Path, scope: dict[str, Any]) -> dict[str, Any]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in _NAMES]
    for node in wanted:
        for inner in ast.walk(node):  # the override that a caller may set: none here
            if isinstance(inner, ast.FunctionDef):
                inner.body = [line for line in inner.body if not isinstance(line, ast.ImportFrom)]
    scope = {
        "functools": functools, "json": json, "os": os, "logger": _Quiet("engine"), "Any": Any,
        "get_config": lambda: None, "Optional": Any, "List": list, "Dict": dict, "Tuple": tuple,
        "__file__": str(path), **scope,
    }  # fmt: skip
    module = ast.fix_missing_locations(ast.Module([*_annotations(), *wanted], []))
    exec(compile(module, str(path), "exec"), scope)
    return scope


def _annotations() -> list[ast.stmt]:
    return ast.parse("from __future__ import annotations").body


def vllm(root: Path, device: str, env_folder: Path | None = None, vendor: str = "nvidia") -> dict[str, Any]:
    """vLLM's functions, for a device of this (torch) name."""
    platform = SimpleNamespace(is_cuda=lambda: vendor == "nvidia", is_rocm=lambda: vendor == "amd")
    envs = SimpleNamespace(VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=str(env_folder) if env_folder else None)
    return _functions(
        root / VLLM,
        {
            "get_device_name_as_file_name": lambda: re.sub(r"[\s/]+", "_", device),
            "envs": envs,
            "current_platform": platform,
            "next_power_of_2": lambda n: 1 << (n - 1).bit_length(),
        },
    )


def sglang(root: Path, device: str, triton: str, vendor: str = "nvidia", low_shared: bool = False) -> dict[str, Any]:
    """SGLang's functions; SGLANG_MOE_CONFIG_DIR is read from the environment, as they do."""
    settings = SimpleNamespace(deterministic=SimpleNamespace(enable_deterministic_inference=False))
    return _functions(
        root / SGLANG,
        {
            "get_device_name": lambda: device,
            "triton": SimpleNamespace(__version__=triton),
            "get_exec": lambda: settings,
            "_is_hip": vendor == "amd",
            "_LOW_SMEM_FP8_DEFAULT_CUTOFF_BYTES": 128 * 1024,
            "_get_cuda_shared_memory_per_block_optin": lambda: 101_376 if low_shared else 232_448,
        },
    )
