"""When a call may go round torch's dispatcher, and whether a later call is like an earlier one.

A *guard* is made of the tensors of one call and says of others whether they are alike in all that a bound launch
depends on: type, dtype, device, sizes, strides, ``requires_grad``, dispatch keys with those that the thread adds
(dispatch modes, functorch, tracing, inference mode, autocast). What it does not see: values, addresses, the profiler,
function modes and whether gradients are on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import profiler

from . import face

Check = Callable[..., bool]

_EXACT = (torch.Tensor, torch.nn.Parameter)
_INCLUDED = torch._C._dispatch_tls_local_include_set


def _keys(*names: str) -> int:
    """The bits of these dispatch keys, of those that this torch has."""
    bits = 0
    for name in names:
        key = getattr(torch._C.DispatchKey, name, None)
        if key is not None:
            bits |= torch._C.DispatchKeySet(key).raw_repr()
    return bits


# Data that lies in memory as it says, autograd above it, autocast (which our ops ignore): nothing that would intercept.
_PLAIN = _keys(
    "CPU", "CUDA", "BackendSelect", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA"
)  # fmt: skip


def needs_gradient(tensors: tuple[Any, ...]) -> list[bool]:
    """For each tensor (or None) whether autograd, or a transform of torch.func, would have to record what uses it."""
    if not torch.is_grad_enabled():
        return [False] * len(tensors)
    return [isinstance(tensor, torch.Tensor) and (tensor.requires_grad or _is_tracked(tensor)) for tensor in tensors]


def _is_tracked(tensor: torch.Tensor) -> bool:
    """Whether one of the wrappers of torch.func around it takes gradients."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def is_plain(tensors: tuple[Any, ...]) -> bool:
    """Whether nothing traces, profiles or intercepts, and these are tensors without surprises. None is left out.

    Whether gradients are needed is another question.
    """
    if profiler._is_profiler_enabled or torch._C._is_torch_function_mode_enabled() or torch.compiler.is_compiling():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    if not all(type(tensor) in _EXACT for tensor in given):
        return False
    bits = _INCLUDED().raw_repr()
    for tensor in given:
        bits |= torch._C._dispatch_keys(tensor).raw_repr()
    return not bits & ~_PLAIN


def _native(*tensors: torch.Tensor) -> Check:
    """torch.compile's own guard on tensors, one call for all of them (0.2 us for three). Passes no tensor twice."""
    from torch._C._dynamo.guards import TensorGuards

    check: Check = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    return check


def _portable(*tensors: torch.Tensor) -> Check:
    """The same in Python (2 us for three), for a torch whose guard is another."""
    wanted = _described(tensors)
    return lambda *given: _described(given) == wanted


def _described(tensors: tuple[Any, ...]) -> Any:
    exact = all(type(tensor) in _EXACT for tensor in tensors)
    return exact and (
        _INCLUDED().raw_repr(),
        *(
            (
                type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad,
                torch._C._dispatch_keys(tensor).raw_repr(),
            )
            for tensor in tensors
        ),
    )  # fmt: skip


def works(make: Callable[..., Check]) -> bool:
    """Whether a guard of this kind tells apart what it must."""
    one, row = torch.empty(2, 3), torch.empty(3)
    wide, other = torch.empty(2, 4)[:, :3], torch.empty(2, 3, dtype=torch.float16)
    try:
        check = make(one, row)
        with torch.utils._python_dispatch.TorchDispatchMode():
            in_mode = check(one, row)
        apart = (wide, other, one.t(), one[:1], one.requires_grad_(), torch.nn.Parameter(one), None)
        return (
            check(torch.empty(2, 3), torch.empty(3))
            and not in_mode
            and not any(check(x, row) for x in apart)
            and not check(torch.empty(2, 3), torch.empty(4))
        )
    except Exception:  # a private class of torch's may be another, or gone
        return False


_make: Callable[..., Check] = _native if works(_native) else _portable


def guard_of(*tensors: torch.Tensor) -> Check:
    """The guard of these tensors, to be called with as many. Where some are one, those of a call must be too."""
    first: dict[int, int] = {}
    places = tuple(first.setdefault(id(tensor), i) for i, tensor in enumerate(tensors))
    if len(first) == len(tensors):
        return _make(*tensors)
    return face.make("repeated", face.repeated(places), {"check": _make(*(tensors[i] for i in first.values()))})
