"""The declarations of an op are read when it is asked for, and none is forgotten."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import kernelmux
from kernelmux.registry import Kernel, discovery

PACKAGE = Path(kernelmux.__file__).parent


def test_every_declaration_module_is_listed_under_each_op_it_declares_for() -> None:
    """A kernel of a module that its op does not list would never be a candidate."""
    forgotten = []
    for path in sorted((PACKAGE / "backends").glob("*/declare*.py")):
        name = ".".join(("kernelmux", *path.relative_to(PACKAGE).with_suffix("").parts))
        forgotten += [
            f"{kernel.name}: add {name} to BUILTIN[{kernel.op!r}]"
            for kernel in getattr(import_module(name), "KERNELS", ())
            if name not in discovery.BUILTIN[kernel.op]
        ]
    assert not forgotten


def test_every_contract_is_listed() -> None:
    for op, (contract, *_) in discovery.BUILTIN.items():
        module = import_module(contract)
        assert op in {
            item.name for item in (*getattr(module, "OPS", ()), *([module.OP] if hasattr(module, "OP") else []))
        }


def test_asking_for_one_op_reads_no_declaration_of_another() -> None:
    code = (
        "import sys, kernelmux as km; km.select_backend('relu2', device='cpu');"
        "print(*sorted(n for n in sys.modules if n.startswith(('kernelmux.contracts.', 'kernelmux.backends.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    read = set(done.stdout.split())
    others = {module for op, modules in discovery.BUILTIN.items() if op != "relu2" for module in modules}
    assert not read & (others - set(discovery.BUILTIN["relu2"]))


def test_the_whole_registry_is_the_sum_of_its_ops() -> None:
    registry = discovery.discover()
    assert registry.names() == tuple(op.name for op in registry.ops())
    assert {kernel.op for kernel in registry} == set(registry.names())
    assert all(isinstance(kernel, Kernel) and registry.kernel(kernel.name) is kernel for kernel in registry)
