"""The CUDA driver through ctypes: load code, look at it, launch it. Nothing here starts CUDA before it is asked to.

Two views of one library: calls that may take long let other threads run (CDLL); the launch does not (PyDLL), because
handing over the interpreter twice costs more than the launch itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import cache
from typing import Any

from ...device import Capability
from ...errors import LaunchFailed, MissingPackage
from ...registry.value import Value

LIBRARY = "libcuda.so.1"

# Numbers of cuda.h.
MAX_THREADS, SHARED_BYTES, LOCAL_BYTES, REGISTERS, MAX_DYNAMIC_SHARED = 0, 1, 3, 4, 8  # CUfunction_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: which, and a union of 64 bytes."""

    _fields_ = [("id", c_uint), ("pad", c_uint), ("value", c_int), ("rest", c_int * 15)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", c_void_p),
        ("attribute_count", c_uint),
    ]


# The kernel may start before the one ahead of it has finished; it waits for its data itself (pdl_wait() of common.cuh).
MAY_OVERLAP = LaunchAttribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)


class Function(Value):
    """A kernel in the memory of one GPU. ``spills``: bytes of local memory a thread has."""

    name: str
    handle: int
    device_index: int
    capability: Capability
    registers: int
    spills: int
    shared_bytes: int
    max_threads: int

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@cache
def _cuda() -> Any:
    """libcuda, initialized. Raises MissingPackage where there is no driver."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise MissingPackage(
            "the NVIDIA driver", "running a CUDA kernel", "your system's package manager, as nvidia.com/drivers says"
        ) from None
    _check(library, library.cuInit(0), "start the CUDA driver")
    return library


@cache
def launcher() -> Any:
    """cuLaunchKernelEx(byref(LaunchConfig), byref at the function's handle, byref(parameter pointers), 0) -> status.

    Takes no argument types, so that each argument must be what goes over as it is: ``byref(...)`` or a small int.
    """
    _cuda()
    return ctypes.PyDLL(LIBRARY).cuLaunchKernelEx


def capability(device_index: int) -> Capability:
    """Raises LaunchFailed for a device that is not there."""
    cuda, device = _cuda(), _device(device_index)
    values = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = c_int()
        _check(cuda, cuda.cuDeviceGetAttribute(byref(value), attribute, device), "ask the GPU for its capability")
        values.append(value.value)
    return Capability(values[0], values[1])


def load(code: bytes, name: str, device_index: int) -> Function:
    """Load machine code into the primary context of a GPU, the one torch uses, where it stays."""
    cuda = _cuda()
    with in_context(device_index):
        module, handle = c_void_p(), c_void_p()
        _check(cuda, cuda.cuModuleLoadData(byref(module), c_char_p(code)), f"load {name} onto GPU {device_index}")
        _check(cuda, cuda.cuModuleGetFunction(byref(handle), module, name.encode()), f"find {name} in its code")
        # Asking also makes a lazily loaded function be there before a capture.
        facts = {what: _attribute(cuda, handle, what) for what in (REGISTERS, LOCAL_BYTES, SHARED_BYTES, MAX_THREADS)}
    return Function(
        name=name,
        handle=handle.value or 0,
        device_index=device_index,
        capability=capability(device_index),
        registers=facts[REGISTERS],
        spills=facts[LOCAL_BYTES],
        shared_bytes=facts[SHARED_BYTES],
        max_threads=facts[MAX_THREADS],
    )


def allow_shared(function: Function, dynamic_bytes: int) -> None:
    """Let it be launched with that much dynamic shared memory; more than 48 KB must be asked for."""
    cuda = _cuda()
    doing = f"give {function.name} {dynamic_bytes} B of shared memory"
    with in_context(function.device_index):
        status = cuda.cuFuncSetAttribute(c_void_p(function.handle), MAX_DYNAMIC_SHARED, c_int(dynamic_bytes))
        _check(cuda, status, doing)


@contextmanager
def in_context(device_index: int) -> Iterator[None]:
    """Make the GPU's primary context the current one of this thread, meanwhile."""
    cuda = _cuda()
    _check(cuda, cuda.cuCtxPushCurrent_v2(_primary(device_index)), f"enter the context of GPU {device_index}")
    try:
        yield
    finally:
        cuda.cuCtxPopCurrent_v2(byref(c_void_p()))


def is_current(device_index: int) -> bool:
    """Whether this thread's context is the GPU's primary one: a launch into another one is refused."""
    cuda, current = _cuda(), c_void_p()
    return cuda.cuCtxGetCurrent(byref(current)) == 0 and current.value == _primary(device_index).value


def words(status: int) -> str:
    """What the driver calls a status."""
    return _words(_cuda(), status)


@cache
def _primary(device_index: int) -> c_void_p:
    cuda, context = _cuda(), c_void_p()
    status = cuda.cuDevicePrimaryCtxRetain(byref(context), _device(device_index))
    _check(cuda, status, f"open the context of GPU {device_index}")
    return context


def _device(device_index: int) -> c_int:
    cuda, device = _cuda(), c_int()
    _check(cuda, cuda.cuDeviceGet(byref(device), device_index), f"find GPU {device_index}")
    return device


def _attribute(cuda: Any, handle: c_void_p, what: int) -> int:
    value = c_int()
    _check(cuda, cuda.cuFuncGetAttribute(byref(value), what, handle), "look at a kernel")
    return value.value


def _check(cuda: Any, status: int, doing: str) -> None:
    if status:
        raise LaunchFailed(doing, _words(cuda, status))


def _words(cuda: Any, status: int) -> str:
    name, sentence = c_char_p(), c_char_p()
    if cuda.cuGetErrorName(status, byref(name)) or cuda.cuGetErrorString(status, byref(sentence)):
        return f"status {status}"
    return f"{(name.value or b'').decode()}: {(sentence.value or b'').decode()}"


def parameter_block_sizes() -> tuple[int, int]:
    """Bytes of a LaunchConfig, and where its stream stands in it."""
    return ctypes.sizeof(LaunchConfig), LaunchConfig.stream.offset


assert ctypes.sizeof(LaunchAttribute) == 72
assert parameter_block_sizes() == (56, 32)
assert ctypes.sizeof(c_size_t) == 8
