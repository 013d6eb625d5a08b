"""Launches of the plain MoE kernels. Arguments are built in one place, for launching and for compiling ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...contracts.moe_quant import MoeQuant
from ...contracts.moe_shape import MoeShape
from ...device import Capability
from ...tuning_configs.tile import Tile
from . import plain_rules
from .moe_rules import next_power_of_2
from .moe_variant import MoeVariant

if TYPE_CHECKING:
    from torch import Tensor

    from .moe_launch import Sorted


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: ``kernel[grid](*args, **kwargs)``."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: tuple[int]

    def __call__(self) -> None:
        self.kernel[self.grid](*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True)
class Gemm:
    """Operands of one plain GEMM: tensors, or a compiler's stand-ins for them. All are contiguous.

    ``sorted_pairs``, ``block_words`` and ``num_blocks`` are those of `moe_launch.Sorted` for our kernel (after `pad`),
    and for an engine's own kernel its sorted_token_ids, expert_ids and num_tokens_post_padded.
    """

    a: Any  # up: [M, K]; down: [pairs, N], or [a_rows, N] in sorted order
    b: Any  # up: w1 [E, up_n, K]; down: w2 [E, K, N]
    c: Any  # up: [pairs, up_n], or in sorted order; down: [pairs, K]
    a_scale: Any  # None; tensor [1]; channel [rows, 1]; block [rows, depth / k]
    b_scale: Any  # None, or of `MoeQuant.scale_shape`
    pair_weights: Any  # [pairs] fp32
    topk_ids: Any  # [M, topk]
    sorted_pairs: Any
    block_words: Any
    num_blocks: Any
    m: int
    a_rows: int
    weighted: bool
    direct: bool
    sorted_inner: bool = False  # the rows between the GEMMs lie in sorted order


def launch_of(
    variant: MoeVariant, shape: MoeShape, side: str, tile: Tile, capability: Capability | None, gemm: Gemm
) -> Launch:
    """The launch of one GEMM of ``variant``, in our kernel or the engine's own."""
    if variant.engine_path is not None:
        from . import engine_kernels

        return engine_kernels.launch_of(variant, shape, side, tile, capability, gemm)
    return _plain(variant, shape, side, tile, capability, gemm)


def _plain(
    variant: MoeVariant, shape: MoeShape, side: str, tile: Tile, capability: Capability | None, gemm: Gemm
) -> Launch:
    from . import moe_plain_kernels

    structure, quant = variant.structure, variant.quant
    tile = plain_rules.as_run(structure, quant, tile)
    columns, depth = shape.gemm(side)
    up = side == "up"
    a_desc, b_desc = descriptors(shape, side, tile, gemm) if tile.use_tma else (None, None)
    group_n, group_k = quant.block_shape or (1, 1)
    blocks = plain_rules.row_blocks(structure, shape, gemm.m, tile.block_m, direct=gemm.direct)
    # A launch reads either the ids or the sorted arrays; one int32 pointer stands in for the others.
    ids = gemm.topk_ids if gemm.direct else gemm.sorted_pairs
    args = (
        gemm.a, a_desc, gemm.b, b_desc, gemm.c, gemm.a_scale, gemm.b_scale, gemm.pair_weights,
        ids, ids if gemm.direct else gemm.sorted_pairs, ids if gemm.direct else gemm.block_words,
        ids if gemm.direct else gemm.num_blocks,
        blocks, gemm.m * shape.topk, shape.E, columns, depth,
        depth, columns * depth, depth, columns, *scale_strides(quant, columns, depth),
    )  # fmt: skip
    swap = "no"
    if plain_rules.swaps(quant, tile, capability):
        swap = "load" if structure == "vllm" else "trans"
    kwargs = dict(
        TOPK=shape.topk, A_ROWS="token" if up else "sorted" if gemm.sorted_inner else "pair",
        C_SORTED=up and gemm.sorted_inner, SCALES=scales_word(quant), GROUP_N=group_n, GROUP_K=group_k,
        ONE_B_SCALE=structure == "sglang" and quant.block_shape is not None and tile.block_n <= group_n,
        WEIGHTED=gemm.weighted, DIRECT=gemm.direct, SWAP=swap,
        EVEN_DEPTH=structure == "sglang" and depth % tile.block_k == 0,
        BLOCK_SIZE_M=tile.block_m, BLOCK_SIZE_N=tile.block_n, BLOCK_SIZE_K=tile.block_k, GROUP_SIZE_M=tile.group_m,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return Launch(moe_plain_kernels.plain_gemm, args, kwargs, (blocks * -(-columns // tile.block_n),))


def descriptors(shape: MoeShape, side: str, tile: Tile, gemm: Gemm) -> tuple[Any, Any]:
    """(of A, None on the up side; of B), as SGLang makes them."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    columns, depth = shape.gemm(side)
    b = TensorDescriptor(
        gemm.b, [shape.E, columns, depth], [columns * depth, depth, 1], [1, tile.block_n, tile.block_k]
    )
    if side == "up":
        return None, b
    return TensorDescriptor(gemm.a, [gemm.a_rows, depth], [depth, 1], [tile.block_m, tile.block_k]), b


def scales_word(quant: MoeQuant) -> str:
    if quant.dtype is None:
        return "none"
    if not quant.quantizes_activations:
        return "weight"
    return "block" if quant.block_shape is not None else "channel" if quant.per_channel else "tensor"


def scale_strides(quant: MoeQuant, columns: int, depth: int) -> tuple[int, int, int]:
    """Elements between two rows of a_scale, two experts of b_scale, two rows of b_scale."""
    if quant.block_shape is not None:
        n, k = quant.block_shape
        steps = -(-depth // k)
        return steps, -(-columns // n) * steps, steps
    return (1, columns, 1) if quant.per_channel else (0, 1, 0)


def pad(blocks: Sorted, pairs: int) -> None:
    """Mark the rows of sorted blocks that hold no pair, as the plain GEMM expects them."""
    from . import moe_plain_kernels as kernels

    kernels.plain_pad[(blocks.most_blocks,)](
        blocks.sorted_pairs, blocks.block_info, blocks.num_blocks, pairs, BLOCK_M=blocks.block_m, num_warps=1
    )


def quantize(x: Tensor, quant: MoeQuant, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(stored rows, fp32 scales) of ``x`` [rows, depth], as the scheme quantizes activations.

    Scales: [1] per tensor (``given`` where it is static), [rows, 1] per channel, [rows, depth / k] per block.
    """
    import torch

    from . import moe_plain_kernels as kernels

    rows, depth = x.shape
    dtype, most = (torch.float8_e4m3fn, 448.0) if quant.fp8 else (torch.int8, 127.0)
    stored = torch.empty((rows, depth), dtype=dtype, device=x.device)
    group = quant.block_shape[1] if quant.block_shape is not None else 0
    per_tensor = quant.block_shape is None and not quant.per_channel
    if per_tensor:
        scale = given if given is not None else (x.abs().amax().float().clamp_min(1e-10) / most).view(1)
    else:
        scale = torch.empty((rows, depth // group if group else 1), dtype=torch.float32, device=x.device)
    block = next_power_of_2(group or depth)
    kernels.quantize_groups[(rows, depth // group if group else 1)](
        x, stored, scale, depth, x.stride(0),
        LEAST=1e-10, MOST=most, GIVEN=per_tensor, GROUP=group, BLOCK=block, num_warps=min(8, max(1, block // 512)),
    )  # fmt: skip
    return stored, scale


def activate(
    shape: MoeShape, hidden: Tensor, out: Tensor, topk_ids: Tensor, expert_map: Tensor | None, blocks: Sorted | None
) -> None:
    """out [rows, N] from hidden [rows, up_n]; ``blocks``: rows lie in that sorted order, else one a pair."""
    from . import moe_plain_kernels as kernels

    block = min(1024, next_power_of_2(shape.N))
    kernels.plain_activate[(hidden.shape[0], -(-shape.N // block))](
        hidden, out, topk_ids, topk_ids if expert_map is None else expert_map,
        topk_ids if blocks is None else blocks.block_info, topk_ids if blocks is None else blocks.num_blocks,
        shape.E, shape.N,
        ACTIVATION=shape.activation, GATED=shape.gated, HAS_MAP=expert_map is not None,
        SORTED_BLOCK_M=0 if blocks is None else blocks.block_m, BLOCK=block, num_warps=max(1, block // 256),
    )  # fmt: skip
