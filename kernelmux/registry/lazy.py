"""Load a ``module:function`` when it is needed, once, and say what is missing when it cannot be."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kernelmux.errors import MissingPackage
from kernelmux.registry.frozen import guard

_loaded: dict[str, Any] = {}

# What to install for an import that fails; the name of the module otherwise.
_INSTALL = {
    "torch": "pip install 'kernelmux[torch]'",
    "triton": "pip install triton",
    "flashinfer": "pip install 'kernelmux[flashinfer]'",
    "cupy": "pip install 'kernelmux[cuda12]' (or cuda13)",
}


def is_spec(text: object) -> bool:
    """Whether the text reads as ``package.module:function``."""
    if not isinstance(text, str) or text.count(":") != 1:
        return False
    module, _, name = text.partition(":")
    return bool(name) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def load(spec: str, needed_for: str = "") -> Any:
    """The object behind ``module:function``; imports the module on first use.

    Raises MissingPackage when a third-party package of that module is not importable, FrozenError after ``freeze()``.
    """
    try:
        return _loaded[spec]
    except KeyError:
        guard(f"load {spec}")
    module, _, name = spec.partition(":")
    try:
        value: Any = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not missing or missing == "kernelmux" or "." in missing:
            raise  # a package that is there lacks a module: nothing to install would mend it
        install = _INSTALL.get(missing, f"pip install {missing}")
        raise MissingPackage(missing, needed_for or spec, install) from error
    for part in name.split("."):
        value = getattr(value, part)
    _loaded[spec] = value
    return value
