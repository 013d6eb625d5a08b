"""Whole-file writes and locks: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from kernelmux.errors import StoreError

_TEMP_PREFIX, _TEMP_SUFFIX = ".kernelmux-", ".tmp"
# A temporary file lives for milliseconds; one this old was left by a killed writer.
_STALE_S = 3600.0

_REMEDIES = {
    errno.ENOSPC: ("the disk is full", "Free some space, or choose another folder."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or choose another folder."),
    errno.EFBIG: ("the file is larger than this process may write", "Raise `ulimit -f`, or choose another folder."),
    errno.EACCES: ("no permission", "Choose a folder that you may write to."),
    errno.EPERM: ("no permission", "Choose a folder that you may write to."),
    errno.EROFS: ("the file system is read-only", "Choose a folder that you may write to."),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another folder."),
    errno.EEXIST: ("a file stands where a folder should be", "Choose another folder."),
    errno.EISDIR: ("it is a folder", "Name a file."),
    errno.ENOENT: ("a part of the path does not exist", "Create it, or choose another folder."),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Choose a shorter name."),
    errno.ELOOP: ("its symbolic links go round in a circle", "Choose another path."),
    errno.EIO: ("the disk reports an error", "Check the disk, or choose another folder."),
}


def sha256(data: bytes) -> str:
    """The hash in hexadecimal, without hashlib: OpenSSL's takes 4 ms of a first selection to load."""
    for module in ("_sha2", "_sha256", "hashlib"):  # the interpreter's own; 3.12 renamed it
        try:
            return str(import_module(module).sha256(data).hexdigest())
        except ImportError:  # noqa: PERF203
            continue
    raise AssertionError("unreachable: hashlib is always there")


def store_error(error: OSError, doing: str, path: Path | str) -> StoreError:
    """The one sentence a user gets for an OSError: ``cannot {doing} {path}: why. Remedy.``"""
    why, remedy = _REMEDIES.get(error.errno or 0, (error.strerror or str(error), "Choose another folder."))
    return StoreError(f"cannot {doing} {path}: {why}. {remedy}")


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` (text as UTF-8) in one step, making its folder where needed.

    The bytes are on disk before the name points to them: a temporary file beside it, fsync, rename, fsync of the
    folder. A link is followed, a file's mode is kept. Raises StoreError with a remedy; then nothing is left behind
    and the old file, if any, is whole.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise store_error(error, "write", path) from error


def _replace(target: Path, data: bytes) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMP_PREFIX}{os.getpid()}-{os.urandom(6).hex()}{_TEMP_SUFFIX}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            with suppress(FileNotFoundError):
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable. Some network file systems refuse to sync a folder; the file is whole anyway."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> int:
    """Remove temporary files that a killed writer left in ``folder`` over an hour ago; returns how many."""
    removed = 0
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(_TEMP_PREFIX) and entry.name.endswith(_TEMP_SUFFIX):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                        os.unlink(entry.path)
                        removed += 1
    return removed


@contextmanager
def locked(path: Path | str, wait_s: float = 10.0) -> Iterator[None]:
    """Hold the lock of ``path`` (a file ``{path}.lock`` beside it, carrying the holder's process id).

    Waits up to ``wait_s`` seconds for another holder, then raises StoreError naming it. The lock goes with the
    process: a killed holder blocks nobody.
    """
    lock_path = Path(f"{os.fspath(path)}.lock")
    lock = _acquire(lock_path, path, wait_s)
    try:
        yield
    finally:
        with suppress(OSError):
            lock_path.write_text("", encoding="utf-8")
        lock.release()  # type: ignore[attr-defined]


def _acquire(lock_path: Path, path: Path | str, wait_s: float) -> object:
    import filelock

    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        holder = _holder(lock_path)  # read first: older filelock empties the file when it tries
        lock = filelock.FileLock(str(lock_path))
        try:
            lock.acquire(timeout=wait_s)
        except filelock.Timeout:
            holder = _holder(lock_path) or holder or "another process"
            raise StoreError(
                f"{path} is in use by {holder}; waited {wait_s:g} s. Let it finish, or stop it, and try again."
            ) from None
        lock_path.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", encoding="utf-8")
    except NotImplementedError as error:
        raise StoreError(f"cannot lock {path}: its file system has no locks. Choose a local folder.") from error
    except OSError as error:
        raise store_error(error, "lock", path) from error
    return lock


def _holder(lock_path: Path) -> str:
    try:
        return lock_path.read_text(encoding="utf-8", errors="replace").strip()[:200]
    except OSError:
        return ""
