"""Tensors as the kernels here see them: rows at one stride, in as many launches as that takes; where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from ...contracts.tensor_checks import row_stride
from ...errors import BadShape

if TYPE_CHECKING:
    from torch import Tensor

    from ...device import Capability


class Rows(NamedTuple):
    """``rows`` rows of a tensor that lie at one stride, from row ``first`` (counted over all) at element ``offset``."""

    first: int
    offset: int
    rows: int
    stride: int


def uniform_rows(x: Tensor) -> Iterator[Rows]:
    """The rows of x [..., width] in runs of one stride: a single run for all but some views of three dimensions."""
    lead = 0
    while (stride := row_stride(x[(0,) * lead] if lead else x)) is None:
        lead += 1
    rows = 1
    for size in x.shape[lead:-1]:
        rows *= size
    for i, index in enumerate(product(*(range(size) for size in x.shape[:lead]))):
        offset = sum(step * at for step, at in zip(x.stride(), index, strict=False))
        yield Rows(i * rows, offset, rows, stride)


def in_parts(rows: Rows, most: int) -> Iterator[Rows]:
    """The same rows in runs of at most ``most``."""
    for start in range(0, rows.rows, most):
        count = min(most, rows.rows - start)
        yield Rows(rows.first + start, rows.offset + start * rows.stride, count, rows.stride)


def require_gpu(op: str, x: Tensor) -> int:
    """The index of x's GPU. Raises BadShape for a tensor that is on none."""
    if x.device.type != "cuda":
        raise BadShape(
            f"{op}: x is on {x.device}, and this kernel runs on NVIDIA GPUs. Move x there, or choose the torch backend."
        )
    return x.device.index  # type: ignore[no-any-return]


@cache
def capability_of(device_index: int) -> Capability:
    from . import driver

    return driver.capability(device_index)


@cache
def sm_count(device_index: int) -> int:
    import torch

    return torch.cuda.get_device_properties(device_index).multi_processor_count  # type: ignore[no-any-return]


def signed(value: int) -> int:
    """32 bits as the signed number that an argument ``i`` takes."""
    return value - (1 << 32) if value >= 1 << 31 else value
