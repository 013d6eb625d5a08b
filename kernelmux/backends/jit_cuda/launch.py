"""From a kernel's name to a call that costs almost nothing: memory, disk, compiler; then a block of parameters.

A launch writes grid, stream and arguments with one ``struct.pack_into`` into a block that already has everything else,
and hands it to cuLaunchKernelEx. A block belongs to one call at a time: it is taken from a list and put back, both of
which are atomic, so that threads (and a call that interrupts another) never share one.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from ctypes import addressof, byref, c_char
from typing import Any

from ...errors import LaunchFailed, UsageError
from ...registry import frozen
from . import cache, driver, fast_math
from .driver import Function

__all__ = ["Function", "Launcher", "forget", "function", "stream_getter"]

Defines = tuple[tuple[str, "str | int"], ...]

_functions: dict[tuple[str, str, Defines, int, bool | None], Function] = {}
_fetching = threading.Lock()


def function(
    source_name: str, kernel: str, defines: Defines, device_index: int, *, fast: bool | None = None
) -> Function:
    """The kernel on that GPU: from memory, else from the disk cache, else compiled.

    ``fast``: with fast math or without; None asks the policy (fast_math.yaml). Raises FrozenError where something would
    have to be loaded after ``freeze()`` or during a capture, CompileFailed, MissingPackage, LaunchFailed.
    """
    key = (source_name, kernel, defines, device_index, fast)
    found = _functions.get(key)
    return found if found is not None else _fetch(key)


def _fetch(key: tuple[str, str, Defines, int, bool | None]) -> Function:
    source_name, kernel, defines, device_index, fast = key
    given = ", ".join(f"{name}={value}" for name, value in defines)
    frozen.guard(
        f"load the CUDA kernel {kernel} ({given}) onto GPU {device_index}",
        "with km.warmup(selection, ms=[...]) or one call with such arguments",
    )
    with _fetching:
        found = _functions.get(key)
        if found is None:
            capability = driver.capability(device_index)
            if fast is None:
                fast = fast_math.wanted(source_name, kernel, dict(defines), capability)
            cubin = cache.fetch(source_name, kernel, dict(defines), capability.arch, fast=fast)
            found = _functions[key] = driver.load(cubin.code, cubin.kernel, device_index)
    return found


def forget() -> None:
    """Load anew at the next question; what is loaded stays in the GPU's memory."""
    _functions.clear()


def stream_getter() -> Callable[[int], int]:
    """The function of torch that answers, for a device index, with the handle of its current stream there."""
    from torch import _C

    getter: Callable[[int], int] = _C._cuda_getCurrentRawStream
    return getter


# A letter of a signature -> (how struct writes it, padded to the 8 bytes each argument has in the block).
_LETTERS = {"P": "Q", "q": "q", "i": "i4x", "f": "f4x"}
_CONFIG = "7I4xQQI4x"  # LaunchConfig: grid, block, shared bytes; stream, attributes, how many
_FROM_STREAM = "QQI4x"
_CONFIG_BYTES, _STREAM_OFFSET = driver.parameter_block_sizes()
_MAY_OVERLAP = driver.MAY_OVERLAP  # the driver reads it at every launch: it must live as long as this module


class Launcher:
    """Launches one kernel. Thread-safe.

    ``signature``: one letter an argument: P pointer, i int32, q int64, f float. ``pdl`` asks for programmatic dependent
    launch, which 9.0 and later have. The kernel's GPU should be the current one: where it is not, a launch costs more.
    """

    def __init__(self, function: Function, signature: str, *, block: int, shared: int = 0, pdl: bool = True):
        unknown = sorted(set(signature) - set(_LETTERS))
        if unknown:
            raise UsageError(f"unknown letter {', '.join(unknown)} in the signature {signature!r} of {function.name}.")
        if not 0 < block <= function.max_threads:
            raise UsageError(f"{function.name} runs with 1 to {function.max_threads} threads a block, not {block}.")
        self.function, self.signature, self.block, self.shared = function, signature, block, shared
        self.pdl = pdl and function.capability >= (9, 0)
        if shared + function.shared_bytes > 48 * 1024:
            driver.allow_shared(function, shared)
        self.call: Callable[..., None] = self._make((...,) * len(signature), None)
        """``call(grid, stream, *values)``, as calling the launcher itself, without its own cost."""

    def __call__(self, grid: int, stream: int, *values: int | float) -> None:
        """Launch ``grid`` blocks on a stream (a handle; 0 is the default stream). A grid of 0 launches nothing."""
        if grid:
            self.call(grid, stream, *values)

    def bind(self, grid: int, *values: Any) -> Callable[..., None]:
        """``call(stream, *varying)`` with everything else fixed; ``...`` stands for a value that varies.

        The cheapest launch there is: what does not change is not written again.
        """
        if len(values) != len(self.signature):
            raise UsageError(f"{self.function.name} takes {len(self.signature)} arguments, not {len(values)}.")
        if grid < 1:
            raise UsageError(f"{self.function.name} cannot be launched with {grid} blocks.")
        return self._make(values, grid)

    def _make(self, values: tuple[Any, ...], grid: int | None) -> Callable[..., None]:
        """Write the function of such a launch: as source, since a loop over the arguments would cost as much again.

        A block holds the LaunchConfig, the values that vary, those that do not, and the array of pointers to them.
        """
        varying = [i for i, value in enumerate(values) if value is ...]
        fixed = [i for i, value in enumerate(values) if value is not ...]
        fixed_at = _CONFIG_BYTES + 8 * len(varying)
        pointers_at = fixed_at + 8 * len(fixed)
        attributes, count = (addressof(_MAY_OVERLAP), 1) if self.pdl else (0, 0)
        config = (grid or 1, 1, 1, self.block, 1, 1, self.shared, 0, attributes, count)

        def new() -> tuple[bytearray, Any, Any]:
            block = bytearray(pointers_at + 8 * max(len(values), 1))
            struct.pack_into("=" + _CONFIG, block, 0, *config)
            struct.pack_into("=" + self._letters(fixed), block, fixed_at, *(values[i] for i in fixed))
            view = (c_char * len(block)).from_buffer(block)
            for slot, argument in enumerate((*varying, *fixed)):
                address = addressof(view) + _CONFIG_BYTES + 8 * slot
                struct.pack_into("=Q", block, pointers_at + 8 * argument, address)
            return block, byref(view), byref(view, pointers_at)

        index, name = self.function.device_index, self.function.name
        launch = driver.launcher()
        # Nobody looks at what is there: byref() is the cheapest way to hand over an address.
        kernel = byref(c_char.from_address(self.function.handle))

        def failed(status: int, config: Any, parameters: Any) -> None:
            """Launch again in the right context, if that was it; raises LaunchFailed."""
            if not driver.is_current(index):
                with driver.in_context(index):
                    status = launch(config, kernel, parameters, 0)
            if status:
                raise LaunchFailed(f"launch {name} on GPU {index} ({self.block} threads a block)", driver.words(status))

        names = "".join(f", v{i}" for i in varying)
        if grid is None:
            head, written, offset = "grid, stream", f"grid, 1, 1, {self.block}, 1, 1, {self.shared}, stream", 0
        else:
            head, written, offset = "stream", "stream", _STREAM_OFFSET
        source = f"""def call({head}{names}):
    try:
        mine = take()
    except IndexError:
        mine = new()
    block, config, parameters = mine
    pack(block, {offset}, {written}, {attributes}, {count}{names})
    status = launch(config, kernel, parameters, 0)
    if status:
        failed(status, config, parameters)
    give(mine)
"""
        pack = struct.Struct("=" + (_CONFIG if grid is None else _FROM_STREAM) + self._letters(varying)).pack_into
        blocks = [new()]
        scope: dict[str, Any] = {
            "take": blocks.pop, "give": blocks.append, "new": new,
            "pack": pack, "launch": launch, "kernel": kernel, "failed": failed,
        }  # fmt: skip
        exec(compile(source, f"<launch of {name}>", "exec"), scope)
        call: Callable[..., None] = scope["call"]
        return call

    def _letters(self, arguments: list[int]) -> str:
        return "".join(_LETTERS[self.signature[i]] for i in arguments)
