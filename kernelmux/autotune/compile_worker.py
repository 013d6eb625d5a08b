"""The child of the compile pool: compiles what it is told, one line in, one line out.

Run as ``python -m kernelmux.autotune.compile_worker module:function PARENT_PID``. It sees no GPU and dies with its
parent. Whatever the compiler prints goes to stderr; answers leave through the original stdout alone.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; elsewhere the closed pipe ends the loop."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before the request
        os._exit(1)


def load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def answer(compile_one: Callable[..., Any], task: dict[str, Any]) -> dict[str, Any]:
    """What compiling gave, or the class and first lines of what it raised."""
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Capability
    from kernelmux.tuning_configs.tile import Tile

    extra: dict[str, Any] = {}
    if "variant" in task:
        from kernelmux.backends.triton.moe_variant import MoeVariant

        extra["variant"] = MoeVariant.from_json(task["variant"])
    try:
        got = compile_one(
            MoeShape(**task["shape"]),
            task["side"],
            Tile(*task["tile"]),
            Capability(*task["capability"]),
            direct=task["direct"],
            **extra,
        )
    except Exception as error:  # any class: Triton raises RuntimeError, AssertionError, its own, LLVM's
        said = " ".join(str(error).split()) or "no message"
        return {"status": "error", "reason": f"{type(error).__name__}: {said[:300]}"}
    return {
        "status": "ok", "shared_bytes": got.shared_bytes, "registers": got.registers,
        "stack_bytes": got.stack_bytes, "sha256": got.sha256, "seconds": got.seconds,
    }  # fmt: skip


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    die_with_parent(int(sys.argv[2]))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        compile_one = load(sys.argv[1])
        if sys.argv[1].startswith("kernelmux."):
            importlib.import_module("triton")
    except ImportError as error:
        print(json.dumps({"fatal": f"{type(error).__name__}: {error}"}), file=out)
        return
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps({"id": task["id"], **answer(compile_one, task)}), file=out)


if __name__ == "__main__":
    main()
