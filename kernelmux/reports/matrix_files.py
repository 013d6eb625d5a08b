"""Matrices in files: read with every fault named, merge shards, write whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kernelmux.errors import KernelmuxError, UsageError
from kernelmux.reports.matrix import KINDS, SCHEMA, STATUSES, Cell, Header, Matrix, PlainCell
from kernelmux.reports.matrix_cases import in_order
from kernelmux.reports.matrix_packed import Packed, unpack

if TYPE_CHECKING:
    from kernelmux.reports.matrix_allow import Verdict

_MAKE = "Make it with `kernelmux matrix --format json --out FILE`."


class MatrixFileError(KernelmuxError):
    """A file is no matrix that can be used here; says which file, where in it, and what to do."""

    def __init__(self, path: Path | str, problem: str, fix: str = _MAKE):
        super().__init__(f"{path}: {problem} {fix}")


class _Head(msgspec.Struct):
    schema: Any = None
    form: str = "plain"


class _Plain(msgspec.Struct):
    header: Header
    cells: tuple[PlainCell, ...]


def read(path: Path | str) -> Matrix:
    """The matrix of a plain or packed JSON file. Raises MatrixFileError."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MatrixFileError(path, f"cannot be read ({error.strerror or error}).") from error
    return parse(data, path)


def parse(data: bytes, path: Path | str) -> Matrix:
    """As `read`, of the file's content."""
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MatrixFileError(path, f"is no matrix: {_one_line(error)}.") from error
    if head.schema is None:
        raise MatrixFileError(path, "is no matrix: it has no key schema.")
    if head.schema != SCHEMA or isinstance(head.schema, bool):
        newer = isinstance(head.schema, int) and head.schema > SCHEMA
        fix = "Read it with the kernelmux that wrote it, or a newer one." if newer else _MAKE
        raise MatrixFileError(path, f"has schema {head.schema!r}; this kernelmux reads schema {SCHEMA}.", fix)
    try:
        if head.form == "packed":
            found = unpack(msgspec.json.decode(data, type=Packed))
        elif head.form == "plain":
            plain = msgspec.json.decode(data, type=_Plain)
            found = Matrix(plain.header, tuple(cell.cell() for cell in plain.cells))
        else:
            raise ValueError(f"its form {head.form!r} is neither plain nor packed")
    except IndexError as error:
        raise MatrixFileError(path, "is damaged: an index leads nowhere.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise MatrixFileError(path, f"is damaged: {_one_line(error)}.") from error
    _check(found, path)
    return found


def _check(matrix: Matrix, path: Path | str) -> None:
    """What types cannot say."""
    devices = {device.name for device in matrix.header.devices}
    seen: set[str] = set()
    for number, cell in enumerate(matrix.cells):
        problem = _fault(cell, devices)
        if problem:
            raise MatrixFileError(path, f"is damaged: cells[{number}] {problem}.")
        if cell.key in seen:
            raise MatrixFileError(path, f"has a cell twice: {cell.title}.")
        seen.add(cell.key)
    shard = matrix.header.shard
    if shard is not None and not 1 <= shard.index <= shard.of:
        raise MatrixFileError(path, f"is damaged: shard {shard.index} of {shard.of}.")


def _fault(cell: Cell, devices: set[str]) -> str:
    if cell.kind not in KINDS:
        return f"has kind {cell.kind!r}; known: {', '.join(KINDS)}"
    if cell.device not in devices:
        return f"speaks of device {cell.device!r}, which the header does not list"
    if (cell.result is None) is not (cell.kind == "chosen"):
        return f"is {cell.kind} and has {'no' if cell.result is None else 'a'} result"
    if cell.result is not None and cell.result.status not in STATUSES:
        return f"has status {cell.result.status!r}; known: {', '.join(STATUSES)}"
    return ""


def merge(parts: Sequence[tuple[Path | str, Matrix]]) -> Matrix:
    """One matrix of all shards of a run; or of whole matrices of different kinds or cells.

    Raises UsageError where a shard is missing, given twice, or of another run, and where a cell is in two files.
    """
    if not parts:
        raise UsageError("there is nothing to merge.")
    shards = [(path, matrix) for path, matrix in parts if matrix.header.shard is not None]
    plans = {matrix.header.plan for _, matrix in shards}
    if shards and len(shards) < len(parts):
        whole = next(path for path, matrix in parts if matrix.header.shard is None)
        raise UsageError(f"{whole} is whole and {shards[0][0]} a shard. Merge the shards first.")
    if len(plans) > 1:
        other = next(path for path, matrix in shards if matrix.header.plan != shards[0][1].header.plan)
        raise UsageError(f"{shards[0][0]} and {other} are shards of different runs (options, packages, kernelmux).")
    if shards:
        _complete(shards)
    where: dict[str, Path | str] = {}
    for path, matrix in parts:
        for cell in matrix.cells:
            if cell.key in where:
                raise UsageError(f"{cell.title} is in {where[cell.key]} and in {path}: a cell can have one answer.")
            where[cell.key] = path
    return _joined([matrix for _, matrix in parts], whole=len(plans) == 1 and len(shards) == len(parts))


def _complete(shards: Sequence[tuple[Path | str, Matrix]]) -> None:
    first = shards[0][1].header.shard
    assert first is not None
    have: dict[int, Path | str] = {}
    for path, matrix in shards:
        shard = matrix.header.shard
        assert shard is not None
        if shard.of != first.of:
            raise UsageError(f"{path} is shard {shard.index}/{shard.of}, {shards[0][0]} one of {first.of}.")
        if shard.index in have:
            raise UsageError(f"shard {shard.index}/{shard.of} is given twice: {have[shard.index]} and {path}.")
        have[shard.index] = path
    missing = [index for index in range(1, first.of + 1) if index not in have]
    if missing:
        told = ", ".join(f"{index}/{first.of}" for index in missing)
        raise UsageError(
            f"shard {told} is missing (given: {', '.join(str(path) for path in have.values())}). Run it with --shard "
            f"{missing[0]}/{first.of}, or give its file."
        )


def _joined(parts: Sequence[Matrix], whole: bool) -> Matrix:
    heads = [matrix.header for matrix in parts]
    first = heads[0]
    devices = {device.name: device for head in heads for device in head.devices}
    ops = {op.name: op for head in heads for op in head.ops}
    packages = first.packages
    if any(head.packages != packages for head in heads):
        words = "; ".join(dict.fromkeys(head.packages.title for head in heads))
        packages = msgspec.structs.replace(
            packages, title=words, versions=_shared([h.packages.versions for h in heads])
        )
    head = msgspec.structs.replace(
        first,
        created=max(head.created for head in heads),
        packages=packages,
        devices=tuple(devices.values()),
        ops=tuple(ops[name] for name in sorted(ops)),
        kinds=tuple(kind for kind in KINDS if any(kind in head.kinds for head in heads)),
        tokens=tuple(sorted({m for head in heads for m in head.tokens})),
        filters=tuple(dict.fromkeys(text for head in heads for text in head.filters)),
        compilers={name: version for head in heads for name, version in head.compilers.items()},
        plan=first.plan if whole else "",
        shard=None,
        seconds=round(sum(head.seconds or 0.0 for head in heads), 2),
    )
    return Matrix(head, in_order((cell for matrix in parts for cell in matrix.cells), [*devices]))


def _shared(versions: Sequence[dict[str, str]]) -> dict[str, str]:
    """Those on which all agree."""
    return {name: version for name, version in versions[0].items() if all(v.get(name) == version for v in versions)}


def write(path: Path | str, text: str | bytes) -> None:
    """The whole file or none of it. Raises StoreError."""
    from kernelmux.store.files import write_whole

    write_whole(path, text)


def to_json(matrix: Matrix, packed: bool = False, verdict: Verdict | None = None) -> bytes:
    """JSON of either form, with a line a cell in the plain one, so that a diff of two files can be read.

    With a comparison it has the key changes: what counts, and what is allowed with its reason.
    """
    encode = msgspec.json.encode
    changes = b"" if verdict is None else b'"changes":%s,\n' % encode(_changes(verdict))
    if packed:
        return b"{" + changes + encode(matrix.packed())[1:] + b"\n"
    plain = matrix.plain()
    cells = b",\n".join(encode(cell) for cell in plain["cells"])
    head = encode(plain["header"])
    return b'{"schema":%d,"header":%s,\n%s"cells":[\n%s\n]}\n' % (SCHEMA, head, changes, cells)


def _changes(verdict: Verdict) -> dict[str, Any]:
    return {
        "against": [change.to_json() for change in verdict.against],
        "allowed": [{**change.to_json(), "reason": entry.reason} for change, entry in verdict.allowed],
        "better": [change.to_json() for change in verdict.better],
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
