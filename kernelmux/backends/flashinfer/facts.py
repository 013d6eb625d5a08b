"""What several declarations of FlashInfer's kernels share: versions, capability sets, known issues with their links.

Capabilities are those FlashInfer 0.7.2 lists, without 8.7 and 10.7 (no GPU of the catalog has them); where a set is
smaller still, ``tests/data/flashinfer_differences.json`` says why.
"""

from __future__ import annotations

from ...device import capabilities
from ...registry import KnownIssue, NeedsPackage, VendorIn
from ..libraries import needs_cuda, needs_cudnn

ISSUES = "https://github.com/flashinfer-ai/flashinfer/issues"
PULLS = "https://github.com/flashinfer-ai/flashinfer/pull"

DATACENTER = capabilities("10.0", "10.3")  # trtllm-gen, tcgen05
CONSUMER = capabilities("12.0", "12.1")
FP4 = DATACENTER | capabilities("11.0") | CONSUMER  # GPUs with FP4 tensor cores
FP8 = capabilities("8.9", "9.0") | FP4
EVERY = capabilities("7.5", "8.0", "8.6") | FP8

NVIDIA = VendorIn(frozenset({"nvidia"}), why="FlashInfer is written in CUDA")
FLASHINFER = NeedsPackage(
    "flashinfer-python",
    ">=0.7,<0.8",
    why="its calls were bound against 0.7.2; minor releases change signatures",
)
CUBINS = NeedsPackage(
    "flashinfer-cubin",
    "",
    to_run=True,
    why="trtllm-gen kernels are binaries, else downloaded on first use",
)
CUTLASS_DSL = NeedsPackage(
    "nvidia-cutlass-dsl",
    ">=4.6.2",
    why="CuTe DSL kernels are compiled by it",
    install="pip install 'flashinfer-python[cu13]'",
)
CUDNN_FRONTEND = NeedsPackage("nvidia-cudnn-frontend", ">=1.31", why="FlashInfer 0.7 calls cuDNN through it")
CUDA_FP4 = needs_cuda(">=12.8", "the first CUDA that compiles for 10.x and 12.x")
CUDNN_FP4 = needs_cudnn(">=9.10.2", "the first cuDNN with FP4 block scales")

NAN_CUDNN_SM12X = KnownIssue(
    CONSUMER,
    {"flashinfer-python": ">=0.6.8,<0.6.11"},
    "mm_fp4 of cuDNN gave NaN on 12.x: a plan tuned for one bucket of M ran in the graph of another (begun by PR 2910)",
    "`pip install 'flashinfer-python>=0.7,<0.8'`, or use cutlass",
    f"{PULLS}/3192",
)
# Issue 3398 (zeros at some M from 0.6.12's cutlass and b12x on 12.0) is no fault of a GEMM: fp4_quantize read a bf16
# global scale as fp32 until PR 3497 (0.6.13). The adapters here give it fp32.
NAN_CUTLASS = KnownIssue(
    FP4,
    {"flashinfer-python": "<0.6.7"},
    "CUTLASS GEMMs gave NaN under load: built without the flags that make programmatic dependent launch wait",
    "`pip install 'flashinfer-python>=0.7,<0.8'`",
    f"{PULLS}/2716",
)
TRTLLM_NVFP4_MOE_NAN = KnownIssue(
    DATACENTER,
    {"flashinfer-python": ">=0.6.16rc5,<0.6.18"},
    "NVFP4 MoE of trtllm-gen gave NaN with tiles of 192 tokens",
    "`pip install 'flashinfer-python>=0.7,<0.8'`",
    f"{ISSUES}/4486",
)
SM110_CUTLASS_MOE = KnownIssue(
    capabilities("11.0"),
    {},  # no release holds the fix (PR 4670): 0.7.2 still makes clusters of two columns for 11.0
    "CUTLASS MoE offers cluster shapes on 11.0 that its 10.0 binary lacks, and aborts in the call",
    "use triton on 11.0 until FlashInfer has fixed it",
    f"{ISSUES}/3134",
)
