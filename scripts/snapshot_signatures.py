"""Snapshots of the signatures our adapters call, read from wheels without importing them.

    pip download --no-deps -d wheels flashinfer-python==0.7.2.post1 sgl-deep-gemm==0.2.3.post2
    python scripts/snapshot_signatures.py wheels/*.whl --out tests/data/signatures

Each wheel of a library in LIBRARIES gives one JSON: package, version, file name, sha256 and the parameters of every
function named there; of FlashInfer also the capabilities its own declarations list, backend by backend.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_FI_CORE, _FI_GEMM = "flashinfer/fused_moe/core.py", "flashinfer/gemm/gemm_base.py"
_FI_ROUTER, _FI_QUANT = "flashinfer/gemm/routergemm.py", "flashinfer/quantization/fp4_quantization.py"
_FI_TUNER = "flashinfer/autotuner/autotuner.py"
_VLLM_UTILS = "vllm/model_executor/layers/quantization/utils"
_VLLM_MOE = "vllm/model_executor/layers/fused_moe"

# distribution -> the name an adapter calls -> (file in the wheel, function or Class)
LIBRARIES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "flashinfer-python": {
        "flashinfer:mm_fp4": (_FI_GEMM, "mm_fp4"),
        "flashinfer:bmm_fp8": (_FI_GEMM, "bmm_fp8"),
        "flashinfer:fp4_quantize": (_FI_QUANT, "fp4_quantize"),
        "flashinfer:block_scale_interleave": (_FI_QUANT, "block_scale_interleave"),
        "flashinfer:shuffle_matrix_a": (_FI_QUANT, "shuffle_matrix_a"),
        "flashinfer:shuffle_matrix_sf_a": (_FI_QUANT, "shuffle_matrix_sf_a"),
        "flashinfer.autotuner:autotune": (_FI_TUNER, "autotune"),
        "flashinfer.autotuner:AutoTuner.clear_cache": (_FI_TUNER, "clear_cache"),
        "flashinfer.autotuner:AutoTuner.load_configs": (_FI_TUNER, "load_configs"),
        "flashinfer:silu_and_mul": ("flashinfer/activation.py", "silu_and_mul"),
        "flashinfer:gelu_and_mul": ("flashinfer/activation.py", "gelu_and_mul"),
        "flashinfer:gelu_tanh_and_mul": ("flashinfer/activation.py", "gelu_tanh_and_mul"),
        "flashinfer.cute_dsl.utils:convert_sf_to_mma_layout": (
            "flashinfer/cute_dsl/utils.py",
            "convert_sf_to_mma_layout",
        ),
        "flashinfer.fused_moe:cute_dsl_fused_moe": ("flashinfer/fused_moe/cute_dsl/fused_moe.py", "cute_dsl_fused_moe"),
        "flashinfer.fused_moe:cutlass_fused_moe": (_FI_CORE, "cutlass_fused_moe"),
        "flashinfer.fused_moe:fused_topk_deepseek": (
            "flashinfer/fused_moe/fused_routing_dsv3.py",
            "fused_topk_deepseek",
        ),
        "flashinfer.fused_moe:trtllm_bf16_routed_moe": (_FI_CORE, "trtllm_bf16_routed_moe"),
        "flashinfer.fused_moe:trtllm_fp4_block_scale_routed_moe": (_FI_CORE, "trtllm_fp4_block_scale_routed_moe"),
        "flashinfer.fused_moe:trtllm_fp8_block_scale_routed_moe": (_FI_CORE, "trtllm_fp8_block_scale_routed_moe"),
        "flashinfer.fused_moe.core:_maybe_get_cached_w3_w1_permute_indices": (
            _FI_CORE,
            "_maybe_get_cached_w3_w1_permute_indices",
        ),
        "flashinfer.fused_moe.core:get_w2_permute_indices_with_cache": (_FI_CORE, "get_w2_permute_indices_with_cache"),
        "flashinfer.fused_moe.prepare:prepare_trtllm_bf16_weights": (
            "flashinfer/fused_moe/prepare.py",
            "prepare_trtllm_bf16_weights",
        ),
        "flashinfer.gemm:gemm_fp8_nt_groupwise": (_FI_GEMM, "gemm_fp8_nt_groupwise"),
        "flashinfer.gemm:mm_M1_16_K6144_N256": (_FI_ROUTER, "mm_M1_16_K6144_N256"),
        "flashinfer.gemm:mm_M1_16_K7168_N256": (_FI_ROUTER, "mm_M1_16_K7168_N256"),
        "flashinfer.gemm:mm_M1_16_K7168_N384": (_FI_ROUTER, "mm_M1_16_K7168_N384"),
        "flashinfer.gemm:mm_M1_16_K7168_N896": (_FI_ROUTER, "mm_M1_16_K7168_N896"),
        "flashinfer.gemm:mm_bf16": (_FI_GEMM, "mm_bf16"),
        "flashinfer.gemm:mm_bf16_fp4": ("flashinfer/gemm/gemm_bf16_fp4.py", "mm_bf16_fp4"),
        "flashinfer.gemm:prepare_bf16_fp4_weights": ("flashinfer/gemm/gemm_bf16_fp4.py", "prepare_bf16_fp4_weights"),
        "flashinfer.norm:_use_cuda_norm": ("flashinfer/norm/__init__.py", "_use_cuda_norm"),
        "flashinfer.norm:fused_add_rmsnorm": ("flashinfer/norm/__init__.py", "fused_add_rmsnorm"),
        "flashinfer.norm:gemma_fused_add_rmsnorm": ("flashinfer/norm/__init__.py", "gemma_fused_add_rmsnorm"),
        "flashinfer.norm:gemma_rmsnorm": ("flashinfer/norm/__init__.py", "gemma_rmsnorm"),
        "flashinfer.norm:rmsnorm": ("flashinfer/norm/__init__.py", "rmsnorm"),
        "flashinfer.norm:rmsnorm_quant": ("flashinfer/norm/__init__.py", "rmsnorm_quant"),
    },
    "sgl-deep-gemm": {"deep_gemm:fp8_gemm_nt": ("deep_gemm/__init__.py", "fp8_gemm_nt")},
    "vllm": {
        "vllm.model_executor.layers.fused_moe.experts.marlin_moe:fused_marlin_moe": (
            f"{_VLLM_MOE}/experts/marlin_moe.py",
            "fused_marlin_moe",
        ),
        **{
            f"vllm.model_executor.layers.quantization.utils.{module}:{name}": (f"{_VLLM_UTILS}/{module}.py", name)
            for module, names in {
                "marlin_utils_fp4": (
                    "apply_fp4_marlin_linear",
                    "prepare_fp4_layer_for_marlin",
                    "prepare_moe_mxfp4_layer_for_marlin",
                    "prepare_nvfp4_moe_layer_for_marlin",
                ),
                "marlin_utils_fp8": (
                    "apply_fp8_marlin_linear",
                    "prepare_fp8_layer_for_marlin",
                    "prepare_fp8_moe_layer_for_marlin",
                ),
            }.items()
            for name in names
        },
        "vllm.third_party.deep_gemm:fp8_gemm_nt": ("vllm/third_party/deep_gemm/_C.py", "fp8_gemm_nt"),
    },
}

# FlashInfer's functions whose decorator maps backends to checkers that list capabilities
_DECORATED = {
    "mm_fp4": _FI_GEMM,
    "bmm_fp8": _FI_GEMM,
    "gemm_fp8_nt_groupwise": _FI_GEMM,
    "mm_bf16": _FI_GEMM,
    "mm_bf16_fp4": "flashinfer/gemm/gemm_bf16_fp4.py",
    "fused_topk_deepseek": "flashinfer/fused_moe/fused_routing_dsv3.py",
    "mm_M1_16_K7168_N256": _FI_ROUTER,
}
_CONFIGS = "flashinfer/fused_moe/api.py"  # classes *Config with supported(arch)


def snapshot(wheel: Path) -> dict[str, Any]:
    """What this wheel says of the functions our adapters call. Raises SystemExit naming what it lacks."""
    with zipfile.ZipFile(wheel) as archive:
        package, version = _identity(archive)
        if package not in LIBRARIES:
            raise SystemExit(f"{wheel.name}: no adapter calls {package}. Known: {', '.join(LIBRARIES)}.")
        trees: dict[str, ast.Module] = {}

        def tree(path: str) -> ast.Module:
            if path not in trees:
                trees[path] = ast.parse(archive.read(path).decode())
            return trees[path]

        signatures = {name: _parameters(tree(path), function) for name, (path, function) in LIBRARIES[package].items()}
        found: dict[str, Any] = {
            "snapshot": f"signatures as {wheel.name} holds them; nothing of it was imported or run",
            "package": package,
            "version": version,
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "made_by": "scripts/snapshot_signatures.py",
            "signatures": signatures,
        }
        if package == "flashinfer-python":
            found["capabilities"] = {name: _backends(tree, path, name) for name, path in _DECORATED.items()}
            found["moe_configs"] = _supported(tree(_CONFIGS))
        if package == "sgl-deep-gemm":
            found["exports"] = sorted(_names(tree("deep_gemm/__init__.py")))
    return found


def _identity(archive: zipfile.ZipFile) -> tuple[str, str]:
    path = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
    fields = dict(re.findall(r"^(Name|Version): (.+)$", archive.read(path).decode(), re.M))
    return re.sub(r"[-_.]+", "-", fields["Name"]).lower(), fields["Version"]


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function of this name, also where the name is an alias (an assignment, or a key of a dict) of another."""
    by_name = {function.name: function for function in _functions(tree)}
    by_name |= {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}  # before an inner one
    if name in by_name:
        return by_name[name]
    for node in ast.walk(tree):
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, ast.Assign):
            pairs = [(getattr(target, "id", None), node.value) for target in node.targets]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        for key, value in pairs:
            if key == name and isinstance(value, ast.Name) and value.id in by_name:
                return by_name[value.id]
    raise SystemExit(f"the wheel defines no {name}: an adapter that calls it needs a new name.")


def _parameters(tree: ast.Module, name: str) -> str:
    """The parameters as Python writes them, ``...`` for every default: ``a, b, alpha=..., *, backend``."""
    spec = _function(tree, name).args
    plain = [*spec.posonlyargs, *spec.args]
    without = len(plain) - len(spec.defaults)
    words = []
    for place, argument in enumerate(plain):
        words.append(argument.arg if place < without else f"{argument.arg}=...")
        if spec.posonlyargs and argument is spec.posonlyargs[-1]:
            words.append("/")
    if spec.vararg:
        words.append(f"*{spec.vararg.arg}")
    elif spec.kwonlyargs:
        words.append("*")
    for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        words.append(argument.arg if default is None else f"{argument.arg}=...")
    if spec.kwarg:
        words.append(f"**{spec.kwarg.arg}")
    return ", ".join(words)


def _call(decorators: list[ast.expr], name: str) -> ast.Call | None:
    calls = (node for node in decorators if isinstance(node, ast.Call))
    return next((call for call in calls if getattr(call.func, "id", None) == name), None)


def _backends(tree: Callable[[str], ast.Module], path: str, name: str) -> dict[str, list[int]]:
    """Backend -> capabilities (major * 10 + minor) of one decorated function; a single one is called ``only``."""
    here = tree(path)
    decorator = _call(_function(here, name).decorator_list, "backend_requirement")
    if decorator is None:
        raise SystemExit(f"{name} carries no backend_requirement any more: read its capabilities some other way.")
    checks = decorator.args[0]
    assert isinstance(checks, ast.Dict)
    if not checks.keys:
        common = next(word.value for word in decorator.keywords if word.arg == "common_check")
        return {"only": _listed(tree, path, common)}
    return {
        str(getattr(key, "value", "")): _listed(tree, path, value)
        for key, value in zip(checks.keys, checks.values, strict=True)
    }


def _listed(tree: Callable[[str], ast.Module], path: str, checker: ast.expr) -> list[int]:
    """What a checker's ``supported_compute_capability`` lists; one that is imported is looked up where it is."""
    assert isinstance(checker, ast.Name)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == checker.id for alias in node.names):
            folders = path.split("/")[: -node.level] if node.level else []
            source = "/".join([*folders, *(node.module or "").split(".")]) + ".py"
            return _listed(tree, source, checker)
    call = _call(_function(tree(path), checker.id).decorator_list, "supported_compute_capability")
    if call is None:
        raise SystemExit(f"{checker.id} in {path} lists no capabilities any more.")
    values = [ast.literal_eval(value) for value in getattr(call.args[0], "elts", ())]
    return [int(value) for value in values]


def _supported(tree: ast.Module) -> dict[str, list[int]]:
    """Class -> capabilities that its ``supported(arch)`` accepts."""
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                if isinstance(node.value, ast.Name) and node.value.id in values:
                    values[node.targets[0].id] = values[node.value.id]
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for function in node.body:
            if isinstance(function, ast.FunctionDef) and function.name == "supported":
                test = function.body[-1]
                if isinstance(test, ast.Return) and isinstance(test.value, ast.Compare):
                    right = test.value.comparators[0]
                    listed = values.get(right.id) if isinstance(right, ast.Name) else ast.literal_eval(right)
                    if listed is not None:
                        found[node.name] = [listed] if isinstance(listed, int) else list(listed)
    return found


def _names(tree: ast.Module) -> set[str]:
    from kernelmux.backends.deepgemm.exports import exported_names

    return {name for name in exported_names(ast.unparse(tree)) if not name.startswith("_")}


def _pretty(found: Mapping[str, Any]) -> str:
    """JSON with one line for each list of numbers."""
    text = json.dumps(found, indent=1, sort_keys=True)
    return re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", text) + "\n"


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("wheels", nargs="+", type=Path)
    reader.add_argument("--out", type=Path, default=Path("tests/data/signatures"))
    options = reader.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for wheel in options.wheels:
        found = snapshot(wheel)
        path = options.out / f"{found['package']}.json"
        path.write_text(_pretty(found), encoding="utf-8")
        print(f"{path}: {found['package']} {found['version']}, {len(found['signatures'])} functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
