"""The command line: thin, the same data as ``--json``. One file a command, imported when that command is called."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 a usage error, 1 anything else."""
    from kernelmux.cli.app import run

    return run(argv)
