from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.errors import StoreError
from kernelmux.store import files
from kernelmux.store.files import locked, sweep, write_whole


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=60
    )


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".kernelmux-")]


@given(content=st.binary(max_size=4096))
def test_what_was_written_is_read_back(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("whole") / "new" / "file.json"
    write_whole(path, content)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file.json"]


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "h\u00e9 \u2192\n")
    assert (tmp_path / "a").read_bytes() == "h\u00e9 \u2192\n".encode()


def test_a_link_is_followed_and_a_mode_is_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(StoreError, match=r"table\.json: the disk is full\. Free some space"):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_real_write_failure_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    done = run_python(
        """
        import resource, signal, sys
        from kernelmux.errors import StoreError
        from kernelmux.store.files import write_whole
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            write_whole(sys.argv[1], b"x" * 50_000)
        except StoreError as error:
            print(error)
        """,
        str(path),
    )
    assert "larger than this process may write. Raise `ulimit -f`" in done.stdout, done.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]
    assert resource.RLIM_INFINITY


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == []


def test_a_kill_before_the_rename_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    done = run_python(
        """
        import os, signal, sys
        from kernelmux.store import files
        files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        files.write_whole(sys.argv[1], "new")
        """,
        str(path),
    )
    assert done.returncode == -9
    assert path.read_text() == "old"
    write_whole(path, "newer")
    assert path.read_text() == "newer"


def test_sweep_removes_what_a_killed_writer_left_and_nothing_newer(tmp_path: Path) -> None:
    old, new = tmp_path / ".kernelmux-1-aa.tmp", tmp_path / ".kernelmux-2-bb.tmp"
    for path in (old, new, tmp_path / "table.json"):
        path.write_text("")
    os.utime(old, (time.time() - 7200,) * 2)
    assert sweep(tmp_path) == 1
    assert not old.exists()
    assert new.exists()
    assert sweep(tmp_path / "absent") == 0


def test_a_path_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"a part of the path is a file|a file stands where a folder should be"):
        write_whole(tmp_path / "file" / "table.json", "x")


def test_writing_to_a_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is a folder"):
        write_whole(tmp_path, "x")


@pytest.mark.parametrize(("code", "said"), [(errno.EACCES, "no permission"), (errno.EROFS, "read-only")])
def test_no_permission_is_explained(code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "open", refused)
    with pytest.raises(StoreError, match=f"{said}.*Choose a folder that you may write to"):
        write_whole(tmp_path / "a", "x")


def test_a_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "a", wait_s=0.1):
            pass


def test_a_second_holder_waits_then_names_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom kernelmux.store.files import locked\n"
            "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(30)",
            str(tmp_path / "a"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"in use by process {holder.pid} on"), locked(tmp_path / "a", 0.2):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path / "a", wait_s=5):  # the killed holder blocks nobody
        pass


def test_a_lock_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot lock"), locked(tmp_path / "file" / "a"):
        pass
