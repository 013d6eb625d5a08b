"""The ``kernelmux`` group: finds a command's file by its name, turns every error into one sentence and a code.

``kernelmux/cli/<name>.py`` holds a click command of the same name. Nothing else is registered anywhere: a new command
is a new file.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from kernelmux import __version__
from kernelmux.errors import KernelmuxError

_PLUMBING = {"app", "output", "params"}
INTERRUPTED = 130
BUG_TRACKER_HINT = "This is a bug in kernelmux: please report it with the output of the same command and --debug."


class CommandFiles(click.Group):
    """Commands by file name; ``--help`` reads every file, a call only its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        names = {p.stem for p in here.glob("*.py") if not p.stem.startswith("_")}
        names |= {p.parent.name for p in here.glob("*/__init__.py")}
        return sorted(names - _PLUMBING)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _PLUMBING or not cmd_name.isidentifier() or cmd_name.startswith("_"):
            return None
        module_name = f"kernelmux.cli.{cmd_name}"
        if find_spec(module_name) is None:
            return None
        command = getattr(importlib.import_module(module_name), cmd_name)
        assert isinstance(command, click.Command), f"{module_name}.{cmd_name} is not a click command"
        return with_common_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"no such command {name!r}. The commands are {', '.join(self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)


def with_common_options(command: click.Command) -> click.Command:
    """Give a command, and every command below a group, ``--json`` and ``--debug`` where its file did not declare them.

    The ones added here are not passed to the function: ``output.emit`` and ``run`` read them from the context.
    """
    if isinstance(command, click.Group):
        for child in command.commands.values():
            with_common_options(child)
        return command
    declared = {option for param in command.params for option in param.opts}
    if "--json" not in declared:
        command.params.append(_flag("--json", "as_json", "Print one JSON object instead of text."))
    if "--debug" not in declared:
        command.params.append(_flag("--debug", "debug", "Print the traceback of an error."))
    return command


def _flag(option: str, name: str, help_text: str) -> click.Option:
    return click.Option([option, name], is_flag=True, expose_value=False, callback=_remember, help=help_text)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    ctx.meta[f"kernelmux.{param.name}"] = value
    return value


@click.group(cls=CommandFiles, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="kernelmux")
def kernelmux() -> None:
    """Decide which GPU kernel an op of an LLM should run, tune it, and say why."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line; never raises. The sentence of an error goes to stderr, also with ``--json``."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    before = warnings.formatwarning
    if not debug:
        warnings.formatwarning = _sentence
    try:
        return _run(args, debug)
    finally:
        warnings.formatwarning = before


def _sentence(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: object = None) -> str:
    """A warning as people read it; file and line of the code that gave it are for --debug."""
    return f"Warning: {message}\n"


def _run(args: list[str], debug: bool) -> int:
    try:
        code = kernelmux.main(args=args, prog_name="kernelmux", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        _trace(debug)
        return _usage(error)
    except KernelmuxError as error:
        _trace(debug)
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _trace(debug)
        return _say("interrupted; what was measured or written before is kept.", INTERRUPTED)
    except SystemExit as done:  # click's own answer to a reader that went away (`| head`)
        _abandon_stdout()
        return done.code if isinstance(done.code, int) else 1
    except BrokenPipeError:
        _abandon_stdout()
        return 1
    except OSError as error:
        _trace(debug)
        _abandon_stdout()
        where = f" {error.filename}" if error.filename else ""
        return _say(
            f"the system refused{where}: {error.strerror or error}. Make room or give access, then run again.", 1
        )
    except click.ClickException as error:
        _trace(debug)
        return _say(error.format_message(), 1)
    except Exception as error:  # the last line of defence: a user sees a sentence, never a traceback
        _trace(debug)
        what = " ".join(str(error).split()) or "no message"
        return _say(f"{type(error).__name__}: {what}. {BUG_TRACKER_HINT}", 1)


# What a group without a command raises; click before 8.2 printed the help itself.
_NO_COMMAND: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def _usage(error: click.UsageError) -> int:
    if isinstance(error, _NO_COMMAND):
        _quietly(lambda: click.echo(error.format_message(), err=True))
        return 2
    hint = f" Try `{error.ctx.command_path} --help`." if error.ctx is not None else ""
    return _say(f"{error.format_message()}{hint}", 2)


def _say(sentence: str, code: int) -> int:
    _quietly(lambda: click.echo(f"Error: {sentence}", err=True))
    return code


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's flush at exit cannot fail a second time."""
    _quietly(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()))


def _trace(debug: bool) -> None:
    if debug:
        _quietly(traceback.print_exc)


def _quietly(write: Callable[[], object]) -> None:
    try:
        write()
    except OSError:
        return  # stderr is closed: nobody is left to tell
