"""The matrix as its page embeds it: packed JSON whose cells are columns, and whose lists stand once as well.

50,000 cells are then about a megabyte, and a browser has them as typed arrays in a few milliseconds. Beside the tables
of packed JSON (see ``kernelmux.reports.matrix``) there are::

    "length": 50000,
    "columns": {"case": {"runs": [value, count, ...]}, "m": {"values": [...]}, ...}    whichever of the two is shorter
    "others": [[backend, kernel, by], ...]          indices into texts
    "lists": [[...], ...]                           an outcome's conditions, outranked and rejected are indices of these
    "backends": [[name, letters, look], ...]        how a tile shows each

The figures of results have six digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kernelmux.reports.matrix import KINDS, Matrix
from kernelmux.reports.matrix_packed import CELL_FIELDS, OUTCOME_FIELDS, pack

LETTERS = {
    "torch": "To", "torch_compile": "Tc", "triton": "Tr", "jit_cuda": "Jc", "cutlass": "Cl", "cudnn": "Cd",
    "cublas": "Cb", "trtllm": "Rt", "cutedsl": "Ds", "cutile": "Ct", "b12x": "12", "deepgemm": "Dg", "marlin": "Ma",
    "humming": "Hu", "aiter": "Ai",
}  # fmt: skip
"""The letters of a backend's tiles, so that none is told by its colour alone; the order is that of matrix.css."""

LOOKS = 20  # --b0 to --b19 in matrix.css


def columns(matrix: Matrix) -> dict[str, Any]:
    """What the page embeds."""
    packed = pack(matrix)
    others, lists = _Table(), _Table()
    outcomes = []
    for row in packed["outcomes"]:
        *words, conditions, outranked, rejected = row
        outranked = [others.at(tuple(other)) for other in outranked]
        outcomes.append([*words, *(lists.at(tuple(each)) for each in (conditions, outranked, rejected))])
    cells = packed.pop("cells")
    return {
        **packed,
        "results": [_brief(result) for result in packed["results"]],
        "form": "columns",
        "kinds": list(KINDS),
        "outcome_fields": list(OUTCOME_FIELDS),
        "outcomes": outcomes,
        "others": [list(other) for other in others.rows],
        "lists": [list(each) for each in lists.rows],
        "backends": backends(_backends(packed)),
        "length": len(cells),
        "columns": {name: column([cell[i] for cell in cells]) for i, name in enumerate(CELL_FIELDS)},
    }


def _brief(value: Any) -> Any:
    """Measured figures with six digits: more tells nothing, and takes a third of a live matrix."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return {key: _brief(one) for key, one in value.items()} if isinstance(value, dict) else value


def column(values: Sequence[int]) -> dict[str, list[int]]:
    """The values, or the lengths of their runs where that is shorter."""
    runs: list[int] = []
    for value in values:
        if runs and runs[-2] == value:
            runs[-1] += 1
        else:
            runs += [value, 1]
    return {"runs": runs} if len(runs) < len(values) else {"values": list(values)}


def backends(names: Iterable[str]) -> list[list[str]]:
    """Name, two letters that no other has, and the look of each. One that nobody listed gets what is free."""
    ordered = sorted(set(names), key=lambda name: (name not in LETTERS, name))
    taken = {LETTERS[name] for name in ordered if name in LETTERS}
    looks = {name: i for i, name in enumerate(LETTERS)}
    found = []
    for name in ordered:
        letters = LETTERS.get(name) or _free(name, taken)
        taken.add(letters)
        look = looks.setdefault(name, len(LETTERS) + (len(looks) - len(LETTERS)) % (LOOKS - len(LETTERS)))
        found.append([name, letters, f"b{look}"])
    return found


def _free(name: str, taken: set[str]) -> str:
    letters = [character for character in name if character.isalnum()] or ["?"]
    pairs = [letters[0].upper() + other.lower() for other in letters[1:]]
    numbers = (f"{letters[0].upper()}{i}" for i in range(2, 1000))
    return next(pair for pair in (*pairs, *numbers) if pair not in taken)


def _backends(packed: dict[str, Any]) -> set[str]:
    """Every backend that is named: chosen, outranked or rejected."""
    found = {row[0] for row in packed["outcomes"]} | {reason[0] for reason in packed["reasons"]}
    found |= {other[0] for row in packed["outcomes"] for other in row[-2]}
    return {packed["texts"][i] for i in found if i >= 0}


class _Table:
    """Values in the order first seen, each once."""

    def __init__(self) -> None:
        self.rows: dict[Any, int] = {}

    def at(self, value: Any) -> int:
        return self.rows.setdefault(value, len(self.rows))
