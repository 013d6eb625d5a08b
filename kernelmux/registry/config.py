"""ConfigChoice: the launch configurations a kernel will use for one problem, and where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

CONFIG_SOURCES = ("measured", "predicted", "imported", "heuristic")


@runtime_checkable
class ConfigChoice(Protocol):
    """Answer of ``Kernel.configs``: ``provider(device, packages, problem) -> ConfigChoice | None``.

    ``source`` is one of CONFIG_SOURCES; ``grade`` says how exact the look-up was (``exact``, ``family``,
    ``triton-version``, ``family, triton-version``, ``heuristic``); ``why`` says both in a sentence. Two attributes may
    be there: ``notes``, sentences that become conditions of the Selection, and ``tuned_on``, the ``Kernel.source`` of
    the kernel that the configurations were found with.
    """

    @property
    def source(self) -> str: ...
    @property
    def grade(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def path(self) -> Path | None: ...

    def at(self, m: int) -> Any:
        """The configuration for this token count, in the kernel's own type."""
        ...

    def to_json(self, m: int | None) -> dict[str, Any] | None:
        """The configuration at ``m`` tokens as plain data; all of them when ``m`` is None."""
        ...
