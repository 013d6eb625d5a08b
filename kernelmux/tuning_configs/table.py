"""Token count M -> the pair of tiles that both GEMMs of a fused MoE run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kernelmux.tuning_configs.tile import Tile


@dataclass(frozen=True, slots=True, order=True)
class MoeConfig:
    """The tiles of the up (gate/up) and the down projection at one M.

    Both GEMMs walk the same sorted list of tokens, padded to BLOCK_SIZE_M per expert, so they share it.
    Raises ValueError when the two differ.
    """

    up: Tile
    down: Tile

    def __post_init__(self) -> None:
        if self.up.block_m != self.down.block_m:
            raise ValueError(
                f"up has BLOCK_SIZE_M={self.up.block_m} and down {self.down.block_m}; both GEMMs share one token order"
            )

    @property
    def block_m(self) -> int:
        """The BLOCK_SIZE_M of both GEMMs."""
        return self.up.block_m

    def to_json(self) -> dict[str, dict[str, int | bool]]:
        """``{"up": {...}, "down": {...}}`` with the keys of a table file."""
        return {"up": self.up.to_json(), "down": self.down.to_json()}


@dataclass(frozen=True, slots=True, eq=False, init=False, repr=False)
class MoeTable:
    """Tiles per M for both projections of one shape on one device.

    Invariant: ``up`` and ``down`` have the same keys (M >= 1, at least one) and the same block_m at each key;
    anything else raises ValueError. `reconcile.pair` makes such a table out of two that disagree.
    """

    up: Mapping[int, Tile]
    down: Mapping[int, Tile]
    keys: tuple[int, ...]
    _configs: tuple[MoeConfig, ...]

    def __init__(self, up: Mapping[int, Tile], down: Mapping[int, Tile]) -> None:
        if not up:
            raise ValueError("a table needs at least one M")
        if up.keys() != down.keys():
            odd = sorted(up.keys() ^ down.keys())
            raise ValueError(f"up and down have different keys: only one of them has M={', '.join(map(str, odd))}")
        keys = tuple(sorted(up))
        if keys[0] < 1:
            raise ValueError(f"M={keys[0]} is no token count")
        odd_m = [m for m in keys if up[m].block_m != down[m].block_m]
        if odd_m:
            m = odd_m[0]
            raise ValueError(f"at M={m} up has BLOCK_SIZE_M={up[m].block_m} and down {down[m].block_m}")
        object.__setattr__(self, "up", MappingProxyType({m: up[m] for m in keys}))
        object.__setattr__(self, "down", MappingProxyType({m: down[m] for m in keys}))
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "_configs", tuple(MoeConfig(up[m], down[m]) for m in keys))

    @classmethod
    def of(cls, configs: Mapping[int, MoeConfig]) -> MoeTable:
        """A table from one MoeConfig per M."""
        return cls({m: c.up for m, c in configs.items()}, {m: c.down for m, c in configs.items()})

    def key_for(self, m: int) -> int:
        """The tuned M that stands for ``m``: the nearest in log space, ties to the smaller; saturates at both ends."""
        return self.keys[self._index(m)]

    def at(self, m: int) -> MoeConfig:
        """The pair of tiles for ``m`` tokens; see `key_for`."""
        return self._configs[self._index(m)]

    def _index(self, m: int) -> int:
        after = bisect_right(self.keys, m)
        if after == 0:
            return 0
        if after == len(self.keys):
            return after - 1
        low, high = self.keys[after - 1], self.keys[after]
        return after - 1 if m * m <= low * high else after

    def configs(self) -> dict[int, MoeConfig]:
        """M -> MoeConfig, ascending."""
        return dict(zip(self.keys, self._configs, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MoeTable):
            return NotImplemented
        return self.keys == other.keys and self._configs == other._configs

    def __hash__(self) -> int:
        return hash((self.keys, self._configs))

    def __repr__(self) -> str:
        return f"MoeTable({len(self.keys)} keys, M={self.keys[0]}..{self.keys[-1]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (MoeTable, (dict(self.up), dict(self.down)))
