"""For whom a table is tuned: which kernels run, what one entry may hold, what stands as the default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kernelmux.autotune import priors
from kernelmux.backends.triton import moe_rules
from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.moe_quant import UNQUANTIZED, MoeQuant
from kernelmux.measure.bench import Side
from kernelmux.tuning_configs.engines import sglang, vllm
from kernelmux.tuning_configs.engines.entry import tile_of
from kernelmux.tuning_configs.engines.question import Question
from kernelmux.tuning_configs.heuristic import default_config
from kernelmux.tuning_configs.shared_law import shrunk
from kernelmux.tuning_configs.tile import Tile

if TYPE_CHECKING:
    from kernelmux.contracts.moe_shape import MoeShape
    from kernelmux.device import Device

Format = Literal["kernelmux", "vllm", "sglang"]
FORMATS: tuple[Format, ...] = ("kernelmux", "vllm", "sglang")


@dataclass(frozen=True, slots=True)
class Target:
    """The reader of a table.

    kernelmux reads a pair of tiles that share BLOCK_SIZE_M, for its fused kernels. vLLM reads one tile for both GEMMs.
    SGLang reads a pair that shares BLOCK_SIZE_M, and loads by tensor descriptor on the down side only. The engines'
    tables are tuned on plain kernels: two GEMMs, the activation apart.
    """

    format: Format = "kernelmux"
    quant: MoeQuant = UNQUANTIZED
    engine_path: str | None = None  # the engine's unpacked package: its own kernel is run in place of ours

    @property
    def variant(self) -> MoeVariant:
        """The kernels that are compiled and timed."""
        return MoeVariant("fused" if self.format == "kernelmux" else self.format, self.quant, self.engine_path)

    @property
    def plain(self) -> bool:
        """Whether the GEMMs have the engines' structure rather than our fused one."""
        return self.format != "kernelmux"

    @property
    def one_tile(self) -> bool:
        """Whether up and down must run the same tile."""
        return self.format == "vllm"

    @property
    def kind(self) -> str:
        """What its operands count as among the public winners."""
        return priors.kind(self.quant.dtype, self.quant.block_shape is not None)

    def element_bytes(self, shape: MoeShape) -> tuple[int, int]:
        """Bytes of one element of A and of B as the GEMM loads them."""
        if self.quant.dtype is None:
            return shape.element_bytes, shape.element_bytes
        return self.quant.element_bytes_a, self.quant.element_bytes_b

    def peak_tflops(self, shape: MoeShape, device: Device) -> float:
        """Dense rate of the MMA its GEMMs run."""
        return device.peak(self.quant.peak_dtype or shape.dtype)

    @property
    def may_use_tma(self) -> bool:
        """Whether its kernel has tensor descriptors: SGLang reads USE_TMA in both of its tables, vLLM in none."""
        return self.format != "vllm"

    @property
    def tma_from_m(self) -> int:
        """The least token count at which descriptors are tried.

        Below 64 tokens a block of the fused kernel reads too few rows of A for them to save anything; SGLang's own
        winners use them from one token on (down projection, block FP8, H200).
        """
        return 1 if self.format == "sglang" else 64

    def direct(self, shape: MoeShape, m: int) -> bool:
        """Whether a call of ``m`` tokens skips the sort: one pair a block. SGLang always sorts."""
        return self.variant.direct(shape, m)

    def default(self, shape: MoeShape, m: int, device: Device) -> dict[Side, Tile]:
        """The tiles this reader takes when it has no table, made to fit the device."""
        if self.format == "kernelmux":
            found = default_config(shape, m, device)
            sides: dict[Side, Tile] = {"up": found.up, "down": found.down}
            if self.direct(shape, m):
                return {side: replace(tile, block_m=moe_rules.DIRECT_BLOCK_M) for side, tile in sides.items()}
            return sides
        engine = vllm if self.format == "vllm" else sglang
        tile = shrunk(tile_of(engine.default(self.question(shape, device), m)), device, *self.element_bytes(shape))
        return {"up": tile, "down": tile}

    def question(self, shape: MoeShape, device: Device) -> Question:
        """The layer in the engines' words."""
        quant = self.quant
        return Question(
            shape.E, shape.N, device.torch_name, quant.dtype, quant.block_shape, quant.per_channel, shape.topk,
            device.vendor, device.shared_bytes,
        )  # fmt: skip


KERNELMUX = Target()
