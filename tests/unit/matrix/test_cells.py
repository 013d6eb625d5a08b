"""Cells of the matrix written by hand, each from evidence. They are never regenerated: a rule that changes one of them
must first change what is known, here, with a link.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kernelmux.device import resolve_device
from kernelmux.errors import NoKernel
from kernelmux.policies.policy import Policy
from kernelmux.policies.resolve import resolve
from kernelmux.quant import Scheme
from kernelmux.registry import Packages, Problem, discovery

from .cells import _HIDDEN, _SHAPES

SGLANG = "https://github.com/sgl-project/sglang"
VLLM = "https://github.com/vllm-project/vllm"
FLASHINFER = "https://github.com/flashinfer-ai/flashinfer"
ORACLE = f"{VLLM}/blob/v0.33.0/vllm/model_executor/layers/fused_moe/oracle"
LINEAR = f"{VLLM}/blob/v0.33.0/vllm/model_executor/kernels/linear/__init__.py"
SRT = f"{SGLANG}/blob/v0.5.23/python/sglang/srt"
NEMOTRON = f"{SRT}/arg_groups/model_overrides/nemotron_h.py"
QWEN3 = f"{SRT}/arg_groups/model_overrides/qwen3_moe.py"
FP8_UTILS = f"{SRT}/layers/quantization/fp8_utils.py"
FP4_UTILS = f"{SRT}/layers/quantization/fp4_utils.py"
STUBS = f"{FLASHINFER}/blob/main/csrc/nv_internal/tensorrt_llm/kernels/quantization.cuh"
ACTIVATION = f"{SRT}/layers/activation.py"
W4A16 = "nvfp4_w4a16"
NOTHING = "nothing"  # no kernel of any backend: the refusal names each with its reason
LAYERNORM = f"{SRT}/layers/layernorm.py"


@dataclass(frozen=True)
class Cell:
    """What one op gets on one device at M tokens: ``backend``, and where that is known from."""

    op: str
    scheme: str
    device: str
    m: int
    backend: str
    evidence: str
    activation: str | None = None
    demands: tuple[str, ...] = ()
    run_as: str = ""  # the scheme that runs, where it is another
    not_a_candidate: str = ""  # a backend that must be rejected here
    shape: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        words = (self.op, self.scheme, self.activation or "", *self.demands, self.device, f"M{self.m}")
        return "-".join(word for word in words if word)


def moe(scheme: str, device: str, m: int, backend: str, evidence: str, act: str = "silu", **more: Any) -> Cell:
    return Cell("fused_moe", scheme, device, m, backend, evidence, act, **more)


CELLS = (
    # NVFP4 GEMM. 10.x: both engines take CuTe DSL.
    Cell("nvfp4_gemm", "nvfp4", "b200", 1, "cutedsl", FP4_UTILS),
    Cell("nvfp4_gemm", "nvfp4", "gb300", 4096, "cutedsl", FP4_UTILS),
    # 12.x: cutlass again, after cudnn's NaN; trtllm exists for 10.x alone; b12x never on 12.1.
    Cell("nvfp4_gemm", "nvfp4", "rtx-5090", 1, "cutlass", f"{SGLANG}/pull/26496", not_a_candidate="trtllm"),
    Cell("nvfp4_gemm", "nvfp4", "rtx-pro-6000-server", 4096, "cutlass", f"{SGLANG}/pull/26496"),
    Cell("nvfp4_gemm", "nvfp4", "gb10", 64, "cutlass", f"{FLASHINFER}/pull/3140", not_a_candidate="b12x"),
    Cell("nvfp4_gemm", "nvfp4", "jetson-thor", 64, "cutlass", f"{SGLANG}/issues/18071", not_a_candidate="cutedsl"),
    # 8.0 to 9.0 has no FP4 units: weight-only as in the engines, by our own kernels, and the Selection says so.
    Cell("nvfp4_gemm", "nvfp4", "h100-sxm", 64, "jit_cuda", f"{SGLANG}/issues/19652", run_as=W4A16),
    Cell("nvfp4_gemm", "nvfp4", "a100-sxm-80gb", 1, "jit_cuda", f"{VLLM}/issues/30720", run_as=W4A16),
    Cell("nvfp4_gemm", "nvfp4", "l40s", 4096, "jit_cuda", f"{SGLANG}/issues/19491", run_as=W4A16),
    Cell("nvfp4_gemm", "nvfp4", "cpu", 1, "torch", "https://pytorch.org/docs/stable/"),
    Cell("nvfp4_gemm", "nvfp4", "mi300x", 64, "torch", LINEAR),
    # W4A16 checkpoints: our own, then CuTe DSL on 10.x, Marlin elsewhere (on GB10 the other way cost 31% of prefill).
    Cell("nvfp4_gemm", "nvfp4_w4a16", "b200", 64, "jit_cuda", FP4_UTILS, not_a_candidate="cutlass"),
    Cell("nvfp4_gemm", "nvfp4_w4a16", "gb10", 4096, "jit_cuda", f"{VLLM}/issues/55397"),
    Cell("nvfp4_gemm", "nvfp4_w4a16", "jetson-thor", 64, "cutedsl", FP4_UTILS, not_a_candidate="marlin"),
    # NVFP4 quantization: FlashInfer's are stubs below 10.0 that leave memory unwritten.
    Cell("nvfp4_quantize", "none", "h100-sxm", 64, "triton", STUBS, not_a_candidate="jit_cuda"),
    Cell("nvfp4_quantize", "none", "b200", 64, "triton", STUBS, demands=("bit_exact",), not_a_candidate="cutedsl"),
    Cell("nvfp4_quantize", "none", "b200", 64, "cutedsl", FP4_UTILS),
    Cell("nvfp4_quantize", "none", "rtx-5090", 64, "jit_cuda", FP4_UTILS),
    # NVFP4 MoE (modelopt_fp4).
    moe("nvfp4", "b200", 64, "trtllm", f"{ORACLE}/nvfp4.py"),
    moe("nvfp4", "b300", 4096, "trtllm", f"{FLASHINFER}/issues/4486"),
    moe("nvfp4", "rtx-5090", 64, "cutlass", f"{SGLANG}/issues/24633", not_a_candidate="trtllm"),
    moe("nvfp4", "gb10", 64, "cutlass", f"{SRT}/arg_groups/overrides.py", not_a_candidate="trtllm"),
    moe("nvfp4", "jetson-thor", 64, "torch", f"{FLASHINFER}/issues/3134", run_as=W4A16, not_a_candidate="cutlass"),
    moe("nvfp4", "h100-sxm", 64, "marlin", f"{SGLANG}/issues/19652", run_as=W4A16),
    moe("nvfp4", "a100-sxm-80gb", 64, "marlin", f"{VLLM}/issues/30720", run_as=W4A16),
    moe("nvfp4", "l40s", 1, "marlin", f"{SGLANG}/issues/19491", run_as=W4A16),
    # A W4A16 checkpoint: trtllm-gen and CUTLASS quantize activations, so Marlin, on 12.x too.
    moe("nvfp4_w4a16", "rtx-pro-6000-server", 64, "marlin", f"{VLLM}/issues/31085", not_a_candidate="cutlass"),
    moe("nvfp4_w4a16", "b200", 64, "marlin", QWEN3, not_a_candidate="trtllm"),
    # Routing done outside: every kernel left is one that is given the experts of each token.
    moe("nvfp4", "b200", 64, "trtllm", NEMOTRON, demands=("routing_outside",)),
    # Nemotron-style experts (relu2).
    moe("none", "b200", 64, "trtllm", NEMOTRON, "relu2"),
    moe("none", "h100-sxm", 64, "cutlass", NEMOTRON, "relu2"),
    moe("none", "a100-sxm-80gb", 64, "triton", f"{ORACLE}/unquantized.py", "relu2"),
    moe("none", "jetson-thor", 64, "triton", f"{VLLM}/pull/40808", "relu2", not_a_candidate="cutlass"),
    moe("nvfp4", "rtx-5090", 64, "cutlass", NEMOTRON, "relu2"),
    moe("nvfp4", "h200", 64, "marlin", NEMOTRON, "relu2", run_as=W4A16),
    # Unquantized experts.
    moe("none", "h200", 64, "triton", f"{VLLM}/issues/41306"),
    moe("none", "a100-sxm-80gb", 4096, "triton", f"{ORACLE}/unquantized.py"),
    moe("none", "b200", 64, "trtllm", f"{VLLM}/issues/53472"),
    moe("none", "rtx-pro-6000-server", 64, "cutlass", f"{ORACLE}/unquantized.py"),
    moe("none", "mi300x", 64, "triton", f"{ORACLE}/unquantized.py"),
    # int4 in groups: no kernel of this scheme is declared yet, and that is said.
    moe("int4_w4a16", "b200", 64, NOTHING, f"{ORACLE}/int_wna16.py"),
    # FP8 experts.
    moe("fp8_block", "b200", 64, "trtllm", f"{ORACLE}/fp8.py"),
    moe("fp8_tensor", "h100-sxm", 64, "cutlass", f"{ORACLE}/fp8.py"),
    # FP8 GEMM: DeepGEMM on 9.0 and 10.x only.
    Cell("fp8_gemm", "fp8_block", "h100-sxm", 64, "deepgemm", FP8_UTILS),
    Cell("fp8_gemm", "fp8_block", "b200", 4096, "deepgemm", FP8_UTILS),
    Cell("fp8_gemm", "fp8_block", "rtx-5090", 64, "cutlass", FP8_UTILS),
    Cell("fp8_gemm", "fp8_block", "gb10", 64, "cutlass", f"{SGLANG}/issues/39193"),
    Cell("fp8_gemm", "fp8_block", "jetson-thor", 64, "torch", FP8_UTILS, not_a_candidate="deepgemm"),
    Cell("fp8_gemm", "fp8_tensor", "h100-sxm", 64, "cublas", FP8_UTILS),
    # Norms: the order of rounding is a demand.
    Cell("rms_norm", "none", "h200", 64, "jit_cuda", LAYERNORM,
         demands=("cast_before_mul",), not_a_candidate="cutedsl"),
    Cell("rms_norm", "none", "h100-sxm", 64, "jit_cuda", LAYERNORM),
    Cell("rms_norm", "none", "mi300x", 64, "triton", LAYERNORM),
    Cell("fused_add_rms_norm", "none", "b200", 64, "jit_cuda", LAYERNORM, demands=("cast_before_mul",)),
    # Activations: fast math never on 10.x and later, nor on ROCm; ours take every width.
    Cell("silu_and_mul", "none", "b200", 64, "jit_cuda", ACTIVATION),
    Cell("silu_and_mul", "none", "mi300x", 64, "triton", ACTIVATION, not_a_candidate="jit_cuda"),
    Cell("silu_and_mul", "none", "h100-sxm", 64, "jit_cuda", ACTIVATION),
    Cell("silu_and_mul", "none", "h100-sxm", 64, "jit_cuda", ACTIVATION, shape=(("H", 1859),)),
    # Router: bf16 x bf16 -> fp32 by torch.mm.
    Cell("router_gemm", "none", "h100-sxm", 64, "torch", f"{SRT}/models/nemotron_h.py"),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_cell_is_what_its_evidence_says(cell: Cell) -> None:
    shape = {"M": cell.m, **_SHAPES.get(cell.op, _HIDDEN), **dict(cell.shape)}
    problem = Problem(cell.op, Scheme.of(cell.scheme), None, shape, cell.activation, frozenset(cell.demands))
    try:
        chosen = resolve(
            cell.op,
            resolve_device(cell.device),
            Packages.assume_all(),
            problem,
            policy=Policy.builtin(cell.op),
            registry=discovery.registry(),
        )
    except NoKernel as error:
        assert cell.backend == NOTHING, str(error)
        assert error.rejected
        return
    assert chosen.backend == cell.backend, chosen.explain()
    assert chosen.scheme.name == (cell.run_as or cell.scheme)
    if cell.run_as:
        assert any("weight-only" in condition for condition in chosen.conditions)
    if cell.not_a_candidate:
        assert cell.not_a_candidate in {other.backend for other in chosen.rejected}, chosen.explain()
        assert cell.not_a_candidate not in {other.backend for other in chosen.outranked}, chosen.explain()


def test_about_forty_cells_are_written_by_hand_and_each_has_evidence() -> None:
    assert len(CELLS) >= 40
    assert len(set(map(str, CELLS))) >= len(CELLS) - 1  # two differ in their width alone
    assert all(cell.evidence.startswith("https://") for cell in CELLS)
