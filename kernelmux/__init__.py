"""kernelmux: which GPU kernel should run an LLM op here, with which launch configuration, and why.

Importing this package loads the words of its interface (Device, Scheme, the errors) and of other packages nothing:
whatever decides, reads a file or runs is loaded on first use, and torch only when a kernel runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernelmux import errors
from kernelmux.device import Device
from kernelmux.quant import Scheme

__version__ = "0.1.0"

_HOMES = {
    "select_backend": "kernelmux.policies.select",
    "override": "kernelmux.policies.select",
    "warmup": "kernelmux.policies.select",
    "freeze": "kernelmux.policies.select",
    "refresh": "kernelmux.policies.select",
    "Selection": "kernelmux.policies.selection",
}

__all__ = [
    "Device",
    "Scheme",
    "Selection",
    "errors",
    "freeze",
    "ops",
    "override",
    "refresh",
    "select_backend",
    "warmup",
]

if TYPE_CHECKING:
    from kernelmux import ops
    from kernelmux.policies.select import freeze, override, refresh, select_backend, warmup
    from kernelmux.policies.selection import Selection


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "ops":
        value: Any = import_module("kernelmux.ops")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'kernelmux' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
