"""The callable face: ``km.ops.fused_moe(x, w1, w2, ...)`` selects a kernel, remembers the choice and runs it.

Each op is a Python function with the op's own signature, and ``torch.ops.kernelmux.<name>``: ``default`` returns new
tensors, ``out`` writes those it is given, ``inplace`` replaces its inputs. An eager call goes round torch's dispatcher
when nothing traces, profiles or needs gradients. For inference: no op has a gradient formula.

A kernel that wants its weights in a layout of its own converts them at every call here. Where that matters, select
once, keep what ``Selection.prepare`` gives, and call the Selection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MissingPackage, UnknownOp
from ..registry import Op
from ..registry.discovery import registry


def __getattr__(name: str) -> Callable[..., Any]:
    known = registry()
    if name.startswith("__") or name not in known.names():
        # AttributeError is what hasattr() and completion expect; the words are UnknownOp's.
        raise AttributeError(str(UnknownOp(name, known.names())))
    function = _function(known.op(name))
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return list(registry().names())


def _function(op: Op) -> Callable[..., Any]:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackage("torch", f"Running {op.name}", "pip install 'kernelmux[torch]'") from error
    from .torch_ops import register

    return register(op)


def ready(name: str) -> None:
    """Register the op, so that calls of it also run after ``freeze()``; for ``km.warmup()``."""
    if name not in globals() and name in registry().names():
        __getattr__(name)
