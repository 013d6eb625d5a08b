"""Registry: every op and every kernel, by name. Checks a declaration when it comes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kernelmux.errors import UnknownOp, UsageError
from kernelmux.registry import epoch
from kernelmux.registry.kernel import Kernel
from kernelmux.registry.op import Op


class Registry:
    """Ops and their kernels. ``faults`` lists out-of-tree declarations that could not be taken, with the reason."""

    def __init__(self, items: Iterable[Op | Kernel] = ()):
        self._ops: dict[str, Op] = {}
        self._kernels: dict[str, Kernel] = {}
        self._sorted: dict[str, tuple[Kernel, ...]] = {}
        self.faults: list[str] = []
        self.add(*items)

    def add(self, *items: Op | Kernel) -> None:
        """Register ops and kernels, all or none of them. Raises UsageError naming what is wrong with which one."""
        self._take(items)
        epoch.bump()

    def _take(self, items: Iterable[Op | Kernel]) -> None:
        """``add`` for what was there already and only now is read: no selection depends on it."""
        items = tuple(items)
        ops = {item.name: item for item in items if isinstance(item, Op)}
        kernels: dict[str, Kernel] = {}
        for item in items:
            if isinstance(item, Op):
                if self._ops.get(item.name, item) is not item or ops[item.name] is not item:
                    raise UsageError(f"op {item.name} is registered already. An op has one contract: use another name.")
            elif isinstance(item, Kernel):
                faults = item.faults()
                if item.op not in self._ops and item.op not in ops:
                    faults.append(f"its op {item.op!r} is not registered")
                if self._kernels.get(item.name, item) is not item or kernels.get(item.name, item) is not item:
                    faults.append("another kernel has this name")
                if faults:
                    raise UsageError(f"kernel {item.name} cannot be registered: {'; '.join(faults)}.")
                kernels[item.name] = item
            else:
                raise UsageError(f"only an Op or a Kernel can be registered, not {type(item).__name__}.")
        self._ops.update(ops)
        self._kernels.update(kernels)
        self._sorted.clear()

    def names(self) -> tuple[str, ...]:
        """The name of every op, sorted."""
        return tuple(sorted(self._ops))

    def ops(self) -> tuple[Op, ...]:
        """Every op, sorted by name."""
        return tuple(self._ops[name] for name in sorted(self._ops))

    def op(self, name: str) -> Op:
        """The op of this name. Raises UnknownOp with near matches."""
        try:
            return self._ops[name]
        except KeyError:
            raise UnknownOp(name, self.names()) from None

    def kernels(self, op: str) -> tuple[Kernel, ...]:
        """Every kernel of the op, sorted by name, so that the order of registration decides nothing."""
        found = self._sorted.get(op)
        if found is None:
            found = tuple(sorted((k for k in self._kernels.values() if k.op == op), key=lambda kernel: kernel.name))
            self._sorted[op] = found
        return found

    def kernel(self, name: str) -> Kernel | None:
        """The kernel of this name, if there is one."""
        return self._kernels.get(name)

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._kernels.values())
