"""What every command keeps to: --json and --debug, exit codes, one sentence an error, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmux as km
from kernelmux.cli import app, main, output
from kernelmux.cli.params import parse_shape
from kernelmux.errors import BadShape, DeviceNotFound, StoreError
from kernelmux.policies.policy import Policy
from kernelmux.policies.rule import read_rule
from kernelmux.registry import discovery

Capture = pytest.CaptureFixture[str]


def every_command() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(app.kernelmux)

    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from walk(f"{path} {name}", child)
        else:
            yield path, command

    for name in app.kernelmux.list_commands(context):
        command = app.kernelmux.get_command(context, name)
        assert command is not None
        yield from walk(name, command)


COMMANDS = dict(every_command())


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a command named ``probe`` in the group whose body is the given function."""

    def add(body: Any) -> None:
        command = app.with_common_options(click.command(name="probe")(body))
        found = app.CommandFiles.get_command
        monkeypatch.setattr(
            app.CommandFiles,
            "get_command",
            lambda self, ctx, name: command if name == "probe" else found(self, ctx, name),
        )

    return add


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_and_debug_and_has_help(name: str) -> None:
    command = COMMANDS[name]
    options = {option for param in command.params for option in param.opts}
    assert {"--json", "--debug"} <= options
    assert command.help, f"{name} says nothing of itself"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_a_usage_error_of_one_line(name: str, capsys: Capture) -> None:
    assert main([*name.split(), "--no-such-option"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert "--no-such-option" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag: str, capsys: Capture) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert {"devices", "doctor"} <= set(out.split())
    assert all(name.split()[0] in out for name in COMMANDS)


def test_version_is_the_packages(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kernelmux {km.__version__}\n"


@pytest.mark.parametrize("words", [[], ["configs"]])
def test_no_command_shows_the_help_and_is_a_usage_error(words: list[str], capsys: Capture) -> None:
    assert main(words) == 2
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: kernelmux")
    assert "Commands:" in shown


def test_an_unknown_command_is_a_usage_error_that_lists_the_commands(capsys: Capture) -> None:
    assert main(["chooose"]) == 2
    err = capsys.readouterr().err
    assert "'chooose'" in err
    assert "devices" in err


@pytest.mark.parametrize("name", ["app", "output", "params", "__init__", "__main__", "../app"])
def test_plumbing_is_no_command(name: str, capsys: Capture) -> None:
    assert main([name]) == 2
    assert "no such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadShape("--shape is off. Write it right."), 2),
        (click.UsageError("--x and --y exclude each other."), 2),
        (DeviceNotFound("no GPU here. Name one."), 1),
        (StoreError("/x cannot be written. Give another folder."), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_an_error_is_one_sentence_on_stderr(
    add_command: Any, capsys: Capture, error: Exception, code: int, flags: Any
) -> None:
    def probe() -> None:
        raise error

    add_command(probe)
    assert main(["probe", *flags]) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Error: ")
    assert "Traceback" not in err
    assert str(error).split(".")[0] in err


def test_an_unexpected_exception_says_it_is_a_bug_and_debug_shows_where(add_command: Any, capsys: Capture) -> None:
    def probe() -> None:
        raise ZeroDivisionError("by zero")

    add_command(probe)
    assert main(["probe"]) == 1
    err = capsys.readouterr().err
    assert "bug in kernelmux" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert main(["probe", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_warning_is_a_sentence_and_debug_shows_where(add_command: Any, capsys: Capture) -> None:
    def probe() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda *given: print(warnings.formatwarning(*given[:4]), file=sys.stderr)
            warnings.warn("table.json is passed over.", UserWarning, stacklevel=1)

    add_command(probe)
    assert main(["probe"]) == 0
    assert capsys.readouterr().err.strip() == "Warning: table.json is passed over."
    assert main(["probe", "--debug"]) == 0
    assert "test_cli_contract.py" in capsys.readouterr().err


def test_an_interrupt_exits_130_with_a_sentence(add_command: Any, capsys: Capture) -> None:
    def probe() -> None:
        raise KeyboardInterrupt

    add_command(probe)
    assert main(["probe"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_is_not_called_a_bug() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m kernelmux.cli devices >/dev/full"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_a_reader_that_goes_away_is_met_with_silence() -> None:
    # More than a pipe holds (64 KiB), so that the second write meets a closed pipe.
    code = "import click; from kernelmux.cli import app, main; import sys\n"
    code += "app.CommandFiles.get_command = lambda *a: click.command()(lambda: click.echo('x' * 300000))\n"
    code += "sys.exit(main(['devices']))"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$CODE" | head -c 10'],
        capture_output=True,
        text=True,
        env={**os.environ, "CODE": code},
    )
    assert done.stdout == "x" * 10
    assert done.stderr == ""


def test_devices_json_holds_every_fact_and_its_source(capsys: Capture) -> None:
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["devices"]
    assert len(listed) >= 36
    h100 = next(d for d in listed if d["name"] == "h100-sxm")
    assert h100["capability"] == "9.0"
    assert h100["shared_bytes"] == 232448
    assert h100["table_name"] == "NVIDIA_H100_80GB_HBM3"
    for fact in ("sm_count", "shared_bytes", "l2_bytes", "bandwidth_gbs", "peak_tflops", "torch_name"):
        assert h100["sources"][fact]


def test_one_device_is_shown_by_any_of_its_names(capsys: Capture) -> None:
    assert main(["devices", "sm120", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "rtx-pro-6000-server"
    assert main(["devices", "no-such"]) == 2
    assert "unknown device 'no-such'" in capsys.readouterr().err


def test_devices_live_without_a_gpu_is_an_empty_answer(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("kernelmux.livegpu._probe", tuple)
    assert main(["devices", "--live", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"live": True, "devices": []}
    assert main(["devices", "--live"]) == 0
    assert "No GPU answers" in capsys.readouterr().out


def test_doctor_json_names_versions_devices_and_folders(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kernelmux"] == km.__version__
    assert {"triton", "torch"} <= set(said["packages"])
    assert [f["folder"] for f in said["folders"]] == ["cache", "config"]


def test_doctor_finds_the_shipped_policies_sound(capsys: Capture) -> None:
    assert main(["doctor", "--policies", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert said["faults"] == []
    assert "fused-moe-unquantized" in said["rules"]
    assert main(["doctor", "--policies"]) == 0
    assert "all sound" in capsys.readouterr().out


def test_doctor_names_rule_and_fault_of_a_policy_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    dead = read_rule(
        {"id": "dead", "when": {"op": "no_such_op"}, "prefer": ["triton"], "why": "w", "evidence": "https://x.org"}
    )
    monkeypatch.setattr(Policy, "builtin_all", classmethod(lambda cls: Policy((dead,))))
    assert main(["doctor", "--policies"]) == 1
    assert "rule dead: no_such_op is no op." in capsys.readouterr().out
    assert main(["doctor", "--policies", "--json"]) == 1
    assert [fault["code"] for fault in json.loads(capsys.readouterr().out)["faults"]] == ["unknown_op"]


def test_doctor_names_what_other_packages_declare_wrongly(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(discovery.registry(), "faults", ["other 1.0: entry point x = y:z: no module named y"])
    assert main(["doctor"]) == 0
    assert "left out: other 1.0" in capsys.readouterr().out


def test_text_that_is_no_terminal_has_no_colour_and_no_boxes(capsys: Capture) -> None:
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not set("│┃━─") & set(out)


def test_no_color_switches_rich_off_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.fancy(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.fancy(Terminal())


def test_shape_is_read_into_axes_and_ranges() -> None:
    assert parse_shape("E=128, N=384,K=2048,topk=8") == {"E": 128, "N": 384, "K": 2048, "topk": 8}
    assert parse_shape("M=1..512") == {"M": (1, 512)}
    assert parse_shape("M=0") == {"M": 0}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "a pair is empty"),
        ("E=128,,K=1", "a pair is empty"),
        ("E", "'E' is not axis=number"),
        ("E=", "'E='"),
        ("E=12a", "'E=12a'"),
        ("E=-1", "'E=-1'"),
        ("E=1.5", "'E=1.5'"),
        ("E=1,E=2", "E is given twice"),
        ("M=9..3", "runs backwards"),
        ("M=1..", "'M=1..'"),
        ("E=0", "E must be at least 1"),
        ("E=99999999999999", "E is above"),
        ("E:1", "'E:1'"),
    ],
)
def test_a_malformed_shape_names_the_pair_and_the_form(text: str, named: str) -> None:
    with pytest.raises(BadShape) as error:
        parse_shape(text)
    assert named in str(error.value)
    assert error.value.exit_code == 2


extents = st.integers(1, 2**31 - 1)
axes = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)


@given(st.dictionaries(axes, extents | st.tuples(extents, extents).map(lambda p: tuple(sorted(p))), min_size=1))
def test_a_written_shape_reads_back(shape: dict[str, Any]) -> None:
    text = ",".join(f"{a}={e[0]}..{e[1]}" if isinstance(e, tuple) else f"{a}={e}" for a, e in shape.items())
    assert parse_shape(text) == shape


@given(st.text(max_size=40))
def test_any_text_is_a_shape_or_a_usage_error(text: str) -> None:
    try:
        shape = parse_shape(text)
    except BadShape:
        return
    assert shape


def test_a_table_that_is_not_there_is_told_as_such(capsys: Capture) -> None:
    assert main(["configs", "show", "/no/such/E=1.json"]) == 1
    assert capsys.readouterr().err.strip() == (
        "Error: /no/such/E=1.json: this file does not exist. Give the path of one table file."
    )
