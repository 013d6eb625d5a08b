"""Fill a Registry: the declarations kernelmux ships, op by op, and those other distributions announce.

An out-of-tree package announces its kernels by an entry point of group ``kernelmux.kernels`` whose object is an Op, a
Kernel, or an iterable of them. One that cannot be imported or does not pass the checks is left out and named in
``Registry.faults``; it never breaks a selection.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from kernelmux.errors import UsageError
from kernelmux.registry import frozen
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.op import Op
from kernelmux.registry.packages import distributions
from kernelmux.registry.registry import Registry

GROUP = "kernelmux.kernels"

_CONTRACTS, _BACKENDS = "kernelmux.contracts.", "kernelmux.backends."
_FLASHINFER_GEMM = f"{_BACKENDS}flashinfer.declare_gemm"
_FLASHINFER_MOE = f"{_BACKENDS}flashinfer.declare_moe"
_FLASHINFER_SMALL = f"{_BACKENDS}flashinfer.declare_small"
_CUDA_ACTIVATIONS = f"{_BACKENDS}jit_cuda.declare_activations"  # and the fp8 epilogues
_CUDA_NORMS = f"{_BACKENDS}jit_cuda.declare_norms"
_TORCH = f"{_BACKENDS}torch.declare"
_TORCH_COMPILE = f"{_BACKENDS}torch_compile.declare"
_TRITON = f"{_BACKENDS}triton.declare"
_TRITON_SMALL = f"{_BACKENDS}triton.declare_small"
_DEEPGEMM, _MARLIN = f"{_BACKENDS}deepgemm.declare", f"{_BACKENDS}marlin.declare"
_CUDA_NVFP4 = f"{_BACKENDS}jit_cuda.declare_nvfp4"
_NVFP4 = (f"{_CONTRACTS}nvfp4", _TORCH, f"{_BACKENDS}triton.declare_nvfp4")
_NORMS = (f"{_CONTRACTS}norms", _TORCH, _TORCH_COMPILE, _TRITON_SMALL)
_ACTIVATIONS = (f"{_CONTRACTS}activations", _TORCH, _TORCH_COMPILE, _TRITON_SMALL, _CUDA_ACTIVATIONS)

# Op -> the module of its contract, then those that declare kernels of it: OP (or OPS) and KERNELS. They import types
# and facts, never what runs, and are read when the op is first asked for: each costs a first selection 1 ms.
BUILTIN: Mapping[str, tuple[str, ...]] = {
    "fused_moe": (f"{_CONTRACTS}fused_moe", _TORCH, _TRITON, _FLASHINFER_MOE, _MARLIN),
    "nvfp4_gemm": (*_NVFP4, _CUDA_NVFP4, _FLASHINFER_GEMM, _MARLIN),
    "nvfp4_quantize": (*_NVFP4, _FLASHINFER_GEMM),
    "nvfp4_dequantize": _NVFP4,
    "nvfp4_mm": (*_NVFP4, _FLASHINFER_GEMM),
    "silu_and_mul_nvfp4": _NVFP4,
    "rms_norm_nvfp4": _NVFP4,
    "fp8_gemm": (f"{_CONTRACTS}gemm_fp8", _TORCH, _FLASHINFER_GEMM, _DEEPGEMM, _MARLIN),
    "rms_norm": (*_NORMS, _CUDA_NORMS, _FLASHINFER_SMALL),
    "fused_add_rms_norm": (*_NORMS, _CUDA_NORMS, _FLASHINFER_SMALL),
    "gated_rms_norm": (*_NORMS, _CUDA_NORMS),
    "silu_and_mul": (*_ACTIVATIONS, _FLASHINFER_SMALL),
    "gelu_and_mul": (*_ACTIVATIONS, _FLASHINFER_SMALL),
    "gelu_tanh_and_mul": (*_ACTIVATIONS, _FLASHINFER_SMALL),
    "relu2": _ACTIVATIONS,
    "rms_norm_fp8": (*_NORMS, _CUDA_ACTIVATIONS, _FLASHINFER_SMALL),
    "silu_and_mul_fp8": _ACTIVATIONS,
    "router_gemm": (f"{_CONTRACTS}router", _TORCH, _FLASHINFER_GEMM),
    "topk": (f"{_CONTRACTS}router", _TORCH, _FLASHINFER_SMALL),
}


class Discovered(Registry):
    """A registry that reads the declarations of an op when they are first asked for."""

    def __init__(self, declared: Mapping[str, tuple[str, ...]]):
        self._declared = declared
        self._read: set[str] = set()
        super().__init__()

    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self._declared, *self._ops}))

    def ops(self) -> tuple[Op, ...]:
        self._read_all()
        return super().ops()

    def op(self, name: str) -> Op:
        self._read_op(name)
        return super().op(name)

    def kernels(self, op: str) -> tuple[Kernel, ...]:
        self._read_op(op)
        return super().kernels(op)

    def kernel(self, name: str) -> Kernel | None:
        self._read_all()
        return super().kernel(name)

    def __iter__(self) -> Iterator[Kernel]:
        self._read_all()
        return super().__iter__()

    def add(self, *items: Op | Kernel) -> None:
        for item in items:
            self._read_op(item.op if isinstance(item, Kernel) else getattr(item, "name", ""))
        super().add(*items)

    def _read_all(self) -> None:
        for name in self._declared:
            self._read_op(name)

    def _read_op(self, name: str) -> None:
        if name in self._read or name not in self._declared:
            return
        frozen.guard(f"read the declarations of {name}")
        modules = [import_module(module) for module in self._declared[name]]
        items: list[Op | Kernel] = [item for module in modules for item in _declared_in(module)]
        mine = [item for item in items if name == (item.op if isinstance(item, Kernel) else item.name)]
        self._take(mine)
        self._read.add(name)


def _declared_in(module: Any) -> list[Op | Kernel]:
    own = [module.OP] if hasattr(module, "OP") else []
    return [*own, *getattr(module, "OPS", ()), *getattr(module, "KERNELS", ())]


def discover(declared: Mapping[str, tuple[str, ...]] = BUILTIN) -> Registry:
    """A registry of everything declared in these modules and announced by installed distributions."""
    registry = Discovered(declared)
    for announced, value, owner in announced_kernels():
        fault = _add_announced(registry, value)
        if fault:
            registry.faults.append(f"{owner}: entry point {announced} = {value}: {fault}")
    return registry


def _add_announced(registry: Registry, value: str) -> str:
    try:
        registry.add(*_items(_resolve(value)))
    except Exception as error:  # someone else's package: any fault of it is a fact to report, not ours to raise
        return str(error) or type(error).__name__
    return ""


def announced_kernels() -> list[tuple[str, str, str]]:
    """(entry point name, ``module:attribute``, distribution) of every announcement, sorted by distribution.

    Reads ``entry_points.txt`` of each distribution directly: no other group is parsed, nothing is imported.
    """
    found = []
    for owner, (_, folder) in sorted(distributions().items()):
        if not folder:
            continue
        try:
            with open(os.path.join(folder, "entry_points.txt"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        if GROUP in text:
            found += [(name, value, owner) for name, value in _group(text)]
    return found


def _group(text: str) -> list[tuple[str, str]]:
    inside, found = False, []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.append((name.strip(), value.partition("[")[0].strip()))
    return found


def _resolve(value: str) -> Any:
    module, _, name = value.partition(":")
    found: Any = import_module(module)
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    return found


def _items(value: Any) -> list[Op | Kernel]:
    if isinstance(value, (Op, Kernel)):
        return [value]
    if hasattr(value, "KERNELS"):  # a whole module
        return [*getattr(value, "OPS", ()), *value.KERNELS]
    if isinstance(value, Iterable):
        return list(value)
    raise UsageError(f"it must be an Op, a Kernel or a list of them, not {type(value).__name__}")


_registry: Registry | None = None


def registry() -> Registry:
    """The registry of this process, filled on first use."""
    global _registry
    if _registry is None:
        _registry = discover()
    return _registry


def is_discovered() -> bool:
    """Whether ``registry()`` answers from memory."""
    return _registry is not None


def forget() -> None:
    """Discover anew at the next question."""
    global _registry
    _registry = None
