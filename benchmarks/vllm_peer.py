"""vLLM's Triton path of an unquantized fused MoE, run from an unpacked vllm package that the user names.

Nothing of vLLM is copied here: ``fused_moe_kernel`` is taken out of the package's own source file at run time, its
tables are read from the package, and sorting and summing are its own compiled operators
(``_moe_C_stable_libtorch.abi3.so``). The activation is a stand-in at copy speed, because its operator lies in a
library of 93 MB; for relu2 the stand-in is one kernel where vLLM's layer launches two. The order of calls follows
``fused_experts_impl`` of vLLM 0.33.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from kernelmux.backends.triton import engine_kernels

_MOE = Path("model_executor/layers/fused_moe")


@triton.jit
def _activation(out, hidden, N, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    if GATED:
        gate = tl.load(hidden + row * 2 * N + column, mask=inside).to(tl.float32)
        up = tl.load(hidden + row * 2 * N + N + column, mask=inside).to(tl.float32)
        value = gate / (1.0 + tl.exp(-gate)) * up
    else:
        value = tl.maximum(tl.load(hidden + row * N + column, mask=inside).to(tl.float32), 0.0)
        value = value * value
    tl.store(out + row * N + column, value.to(out.dtype.element_ty), mask=inside)


def load_kernel(package: Path) -> Any:
    """The package's ``fused_moe_kernel``, as it stands there: importing vllm would pull in all of it."""
    return engine_kernels.load("vllm", str(package), as_is=True)


def load_operators(package: Path) -> None:
    """Register torch.ops._moe_C."""
    torch.ops.load_library(str(package / "_moe_C_stable_libtorch.abi3.so"))


def table(package: Path, experts: int, inner: int, device_name: str) -> dict[int, dict[str, int]]:
    """The shipped bf16 table of one shape; FileNotFoundError where vLLM ships none."""
    file = package / _MOE / "configs" / f"E={experts},N={inner},device_name={device_name}.json"
    return {int(key): value for key, value in json.loads(file.read_text()).items() if key.isdigit()}


def pick(entries: dict[int, dict[str, int]], m: int) -> dict[str, int]:
    """The entry vLLM uses: the nearest key on a linear scale."""
    return entries[min(entries, key=lambda key: abs(key - m))]


def default(m: int, experts: int) -> dict[str, int]:
    """vLLM's ``get_default_config`` for an unquantized layer on CUDA."""
    return {
        "BLOCK_SIZE_M": 16 if m <= 32 else 32 if m <= 96 else 64 if m <= 512 else 128,
        "BLOCK_SIZE_N": 64 if m <= 64 else 128,
        "BLOCK_SIZE_K": 128 if m <= 64 else 64,
        "GROUP_SIZE_M": 16 if m // experts > 128 else 1,
        "num_warps": 4 if m <= 128 else 8,
        "num_stages": 4 if m <= 32 else 3,
    }


def gemm_arguments(
    a: Any, b: Any, c: Any, weights: Any, sorted_ids: Any, expert_ids: Any, padded: Any, *,
    rows: int, columns: int, depth: int, em: int, pairs: int, a_stride: int, weighted: bool, topk: int,
    config: dict[str, int],
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int]]:  # fmt: skip
    """Arguments of one launch, as ``invoke_fused_moe_triton_kernel`` passes them for contiguous bf16 operands."""
    knobs = {key: value for key, value in config.items() if key != "triton_version"} | {"SPLIT_K": 1}
    args = (
        a, b, c, None, None, None, weights, sorted_ids, expert_ids, padded, columns, depth, em, pairs,
        a_stride, 1, columns * depth, 1, depth, columns, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    kwargs = dict(
        MUL_ROUTED_WEIGHT=weighted, top_k=topk, compute_type=tl.bfloat16, use_fp8_w8a8=False, use_int8_w8a8=False,
        use_int8_w8a16=False, per_channel_quant=False, naive_block_assignment=sorted_ids is None, HAS_BIAS=False,
        SWAP_AB=False, USE_TD=False, **knobs,
    )  # fmt: skip
    block_m, block_n = config["BLOCK_SIZE_M"], config["BLOCK_SIZE_N"]
    return args, kwargs, (triton.cdiv(em, block_m) * triton.cdiv(columns, block_n),)


class VllmMoe:
    """The pipeline of one shape with buffers allocated once, so that a graph holds launches only."""

    def __init__(self, kernel: Any, experts: int, inner: int, hidden: int, topk: int, gated: bool, most_m: int):
        self.kernel, self.E, self.N, self.K, self.topk, self.gated = kernel, experts, inner, hidden, topk, gated
        up = 2 * inner if gated else inner
        bf16 = dict(dtype=torch.bfloat16, device="cuda")
        self.up = up
        self.cache13 = torch.empty(most_m * topk * max(up, hidden), **bf16)
        self.cache2 = torch.empty(most_m * topk * inner, **bf16)

    def run(
        self, x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor,
        out: torch.Tensor, config: dict[str, int],
    ) -> None:  # fmt: skip
        m, pairs, block = x.shape[0], ids.numel(), config["BLOCK_SIZE_M"]
        if pairs * 4 <= self.E:
            sorted_ids, expert_ids = None, ids.view(-1)
            padded = torch.full((1,), pairs * block, dtype=torch.int32, device=ids.device)
            em = pairs * block
        else:
            most = pairs + self.E * (block - 1) if pairs >= self.E else pairs * block
            sorted_ids = torch.empty(most, dtype=torch.int32, device=ids.device)
            expert_ids = torch.empty(triton.cdiv(most, block), dtype=torch.int32, device=ids.device)
            padded = torch.empty(1, dtype=torch.int32, device=ids.device)
            torch.ops._moe_C.moe_align_block_size(ids, self.E, block, sorted_ids, expert_ids, padded, None, None)
            em = most if m >= block else min(most, pairs * block)
        hidden1 = self.cache13[: pairs * self.up].view(pairs, self.up)
        hidden2 = self.cache2[: pairs * self.N].view(pairs, self.N)
        hidden3 = self.cache13[: pairs * self.K].view(m, self.topk, self.K)
        common = dict(rows=m, em=em, pairs=pairs, config=config)
        args, kwargs, grid = gemm_arguments(
            x, w1, hidden1, weights, sorted_ids, expert_ids, padded, columns=self.up, depth=self.K,
            a_stride=self.K, weighted=False, topk=self.topk, **common,
        )  # fmt: skip
        self.kernel[grid](*args, **kwargs)
        width = min(1024, triton.next_power_of_2(self.N))
        _activation[(pairs, triton.cdiv(self.N, width))](hidden2, hidden1, self.N, GATED=self.gated, BLOCK=width)
        # The second launch reads its rows pair by pair, so num_valid_tokens stays M * topk and top_k is 1.
        if m * self.topk < block and sorted_ids is not None:
            common["em"] = min(sorted_ids.shape[0], pairs * block)
        elif sorted_ids is not None:
            common["em"] = sorted_ids.shape[0]
        args, kwargs, grid = gemm_arguments(
            hidden2, w2, hidden3, weights, sorted_ids, expert_ids, padded, columns=self.K, depth=self.N,
            a_stride=self.N, weighted=True, topk=1, **common,
        )  # fmt: skip
        self.kernel[grid](*args, **kwargs)
        torch.ops._moe_C.moe_sum(hidden3, out, None, None)
