"""Fill a Registry: the declarations kernelmux ships, then those other distributions announce.

An out-of-tree package announces its kernels by an entry point of group ``kernelmux.kernels`` whose object is an Op, a
Kernel, or an iterable of them. One that cannot be imported or does not pass the checks is left out and named in
``Registry.faults``; it never breaks a selection.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from kernelmux.errors import UsageError
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.op import Op
from kernelmux.registry.packages import distributions
from kernelmux.registry.registry import Registry

GROUP = "kernelmux.kernels"

# Modules with OP (or OPS) and KERNELS. They import types and facts, never what runs.
BUILTIN = (
    "kernelmux.contracts.fused_moe",
    "kernelmux.contracts.norms",
    "kernelmux.contracts.activations",
    "kernelmux.contracts.router",
    "kernelmux.contracts.gemm_fp8",
    "kernelmux.contracts.nvfp4",
    "kernelmux.backends.torch.declare",
    "kernelmux.backends.triton.declare",
)


def discover(modules: Iterable[str] = BUILTIN) -> Registry:
    """A registry of everything declared in these modules and announced by installed distributions."""
    items: list[Op | Kernel] = []
    for name in modules:
        module = import_module(name)
        items += [
            *getattr(module, "OPS", ()),
            *([module.OP] if hasattr(module, "OP") else []),
            *getattr(module, "KERNELS", ()),
        ]
    registry = Registry(items)
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
