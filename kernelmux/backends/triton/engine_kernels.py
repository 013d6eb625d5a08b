"""vLLM's and SGLang's own Triton MoE kernel, taken out of an unpacked or installed package when it is asked for.

Nothing of theirs is kept here: the kernel's functions are cut out of the package's source file (importing the package
would pull in all of it) and written to a file of the cache folder, whose name holds their hash. One thing is changed:
``EM`` and ``num_valid_tokens``, which vary with the token count, are not specialised on, so that a tile is one
binary at every M. Launch arguments are passed by name, in the meaning of vLLM 0.33 and SGLang 0.5.23.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contracts.moe_shape import MoeShape
from ...device import Capability
from ...errors import UsageError
from ...store.files import write_whole
from ...store.paths import cache_dir
from ...tuning_configs.tile import Tile
from . import plain_rules
from .moe_variant import MoeVariant
from .plain_launch import Gemm, Launch, descriptors, scale_strides

if TYPE_CHECKING:
    from torch import Tensor

    from .moe_launch import Sorted

FILES = {
    "vllm": ("model_executor/layers/fused_moe/fused_moe.py",),
    "sglang": (
        "kernels/ops/moe/fused_moe_triton_kernels.py",
        "srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_kernels.py",
        "srt/layers/moe/fused_moe_triton/fused_moe_triton_kernels.py",
    ),
}
"""Where the kernel stands inside the package, newest release first."""

KERNEL = "fused_moe_kernel"
_OPTIONAL = ("SWAP_AB", "swap_ab", "SPLIT_K", "ROUTER_TOPK", "stride_ak", "stride_bk", "stride_cn")
"""What an older release does not do, or takes for granted. What else it lacks may be left out only where it is off."""
_FUNCTIONS = ("write_zeros_to_output", KERNEL)
_JIT = "@triton.jit"
_DECORATOR = '@triton.jit(do_not_specialize=["EM", "num_valid_tokens"])'


def installed(structure: str) -> str | None:
    """The folder of the installed package, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(structure)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent)


def source_file(structure: str, path: str | Path) -> Path:
    """The file that holds the kernel. ``path``: the package's folder, or the one that holds it.

    Raises UsageError naming what was looked for.
    """
    root = Path(path).expanduser()
    for folder in (root, root / structure):
        for name in FILES[structure]:
            if (folder / name).is_file():
                return folder / name
    raise UsageError(
        f"{root} holds no {structure} package with {FILES[structure][0]}: give the folder of an unpacked wheel "
        f"(pip download --no-deps {structure}; unzip it) or of the installed package."
    )


def release(structure: str, path: str | Path) -> str:
    """The engine's version by the metadata beside the package, "unknown" without them."""
    package = source_file(structure, path)
    while package.name != structure and package.parent != package:
        package = package.parent
    for folder in sorted(package.parent.glob(f"{structure}-*.dist-info")):
        return folder.name.removesuffix(".dist-info").partition("-")[2]
    return "unknown"


@functools.lru_cache(maxsize=8)
def source(structure: str, path: str, as_is: bool = False) -> str:
    """The kernel's functions as a module of their own. Raises UsageError when the file lacks them.

    ``as_is`` leaves the decorator untouched too.
    """
    file = source_file(structure, path)
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}. Give another copy of the {structure} package.") from error
    lines, parts, found = text.splitlines(), ["import triton", "import triton.language as tl", ""], set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in _FUNCTIONS:
            found.add(node.name)
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            decorators = [line.strip() for line in lines[first - 1 : node.lineno - 1] if line.strip()]
            if node.name == KERNEL and decorators != [_JIT]:
                raise UsageError(f"{file}: {KERNEL} is decorated with {decorators}, not with {_JIT} alone.")
            ours = node.name == KERNEL and not as_is
            parts += [_DECORATOR if ours else _JIT, *lines[node.lineno - 1 : node.end_lineno], ""]
    if found != set(_FUNCTIONS):
        raise UsageError(f"{file} has no {', '.join(sorted(set(_FUNCTIONS) - found))}: this release is not known here.")
    return "\n".join(parts)


@functools.lru_cache(maxsize=8)
def load(structure: str, path: str, as_is: bool = False) -> Any:
    """The engine's kernel as a Triton JITFunction. Imports triton."""
    text = source(structure, path, as_is)
    name = f"kernelmux_{structure}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    file = cache_dir() / "engine-kernels" / f"{name}.py"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, KERNEL)


def launch_of(
    variant: MoeVariant, shape: MoeShape, side: str, tile: Tile, capability: Capability | None, gemm: Gemm,
    *, early: bool | None = None,
) -> Launch:  # fmt: skip
    """The launch of one GEMM, as the engine's own Python makes it for contiguous operands.

    ``early`` (SGLang on 9.0 and later) launches with programmatic dependent launch, as the engine does: True where A
    has at most 512 rows. None leaves that off: between GEMMs timed alone it has nothing to overlap with.
    """
    structure, quant = variant.structure, variant.quant
    assert variant.engine_path is not None
    import triton.language as tl

    kernel = load(structure, variant.engine_path)
    run = plain_rules.as_run(structure, quant, tile)
    columns, depth = shape.gemm(side)
    up, pairs = side == "up", gemm.m * shape.topk
    if gemm.direct:
        padded = pairs * run.block_m
    else:
        padded = plain_rules.padded_rows(structure, shape.E, pairs, run.block_m)
    stride_as, stride_bse, stride_bsn = scale_strides(quant, columns, depth)
    group_n, group_k = quant.block_shape or (0, 0)
    swap = plain_rules.swaps(quant, run, capability)
    a_scaled = quant.quantizes_activations
    values: dict[str, Any] = dict(
        a_ptr=gemm.a, b_ptr=gemm.b, c_ptr=gemm.c,
        a_scale_ptr=gemm.a_scale if a_scaled else None, b_scale_ptr=gemm.b_scale if quant.dtype is not None else None,
        topk_weights_ptr=gemm.pair_weights, sorted_token_ids_ptr=None if gemm.direct else gemm.sorted_pairs,
        expert_ids_ptr=gemm.block_words, num_tokens_post_padded_ptr=gemm.num_blocks,
        N=columns, K=depth, EM=padded, num_valid_tokens=pairs,
        stride_am=depth, stride_ak=1, stride_be=columns * depth, stride_bk=1, stride_bn=depth,
        stride_cm=columns, stride_cn=1,
        stride_asm=stride_as if a_scaled else 0, stride_ask=1 if a_scaled and stride_as else 0,
        stride_bse=0 if quant.dtype is None else stride_bse, stride_bsk=1 if group_k else 0,
        stride_bsn=0 if quant.dtype is None else stride_bsn,
        group_n=group_n, group_k=group_k,
        MUL_ROUTED_WEIGHT=gemm.weighted, top_k=shape.topk if up else 1,
        compute_type=tl.bfloat16 if shape.dtype == "bfloat16" else tl.float16,
        use_fp8_w8a8=quant.dtype == "fp8_w8a8", use_int8_w8a8=quant.dtype == "int8_w8a8",
        use_int8_w8a16=quant.dtype == "int8_w8a16", per_channel_quant=quant.per_channel,
        BLOCK_SIZE_M=run.block_m, BLOCK_SIZE_N=run.block_n, BLOCK_SIZE_K=run.block_k, GROUP_SIZE_M=run.group_m,
    )  # fmt: skip
    if structure == "vllm":
        values |= dict(
            b_bias_ptr=None, stride_bbe=0, stride_bbn=0, naive_block_assignment=gemm.direct, SPLIT_K=1,
            HAS_BIAS=False, SWAP_AB=swap, USE_TD=False,
        )  # fmt: skip
    else:
        a_desc, b_desc = descriptors(shape, side, run, gemm) if run.use_tma else (None, None)
        values |= dict(
            a_desc=a_desc, b_desc=b_desc, bias_ptr=None, add_mask_ptr=None, stride_bias_e=0, stride_bias_n=0,
            even_Ks=depth % run.block_k == 0, c_sorted=up and gemm.sorted_inner, swap_ab=swap,
            FUSE_ADD_TO_OUTPUT=False, MASK_OUTPUT=False, FUSE_SUM_ALL_REDUCE=False, ROUTER_TOPK=1 if up else shape.topk,
        )  # fmt: skip
        if early is not None:
            values |= dict(USE_GDC=True, GDC_EARLY=early)
    options: dict[str, Any] = dict(num_warps=run.warps, num_stages=run.stages)
    if structure == "sglang" and early is not None:
        options["launch_pdl"] = True
    fitted = _fitted(kernel, values, variant)
    return Launch(kernel, (), fitted | options, (-(-padded // run.block_m) * -(-columns // run.block_n),))


def _fitted(kernel: Any, values: dict[str, Any], variant: MoeVariant) -> dict[str, Any]:
    """``values`` for this release's parameters; raises UsageError when it has others that matter."""
    known = inspect.signature(kernel.fn).parameters
    lacking = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in values]
    lost = [name for name, value in values.items() if name not in known and name not in _OPTIONAL and _on(value)]
    if lacking or lost:
        what = f"asks for {', '.join(lacking)}" if lacking else f"lacks {', '.join(lost)}"
        raise UsageError(
            f"{variant.kernel_name} in {variant.engine_path} {what}: this release is not known here. "
            "Leave --engine-path out to tune on kernelmux's kernels of the same structure."
        )
    return {name: value for name, value in values.items() if name in known}


def align(structure: str, topk_ids: Tensor, experts: int, block_m: int) -> Sorted:
    """The engine's sorted_token_ids, expert_ids and num_tokens_post_padded (in `Sorted`'s fields, in this order).

    Pairs by expert, each expert padded with ``pairs`` to whole blocks. By torch, for set-up: not what is timed.
    """
    import torch

    from .moe_launch import Sorted

    flat, device = topk_ids.flatten().long(), topk_ids.device
    pairs = flat.numel()
    length = plain_rules.padded_rows(structure, experts, pairs, block_m)
    blocks = -(-length // block_m)
    counts = torch.zeros(experts, dtype=torch.long, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    ends = ((counts + block_m - 1) // block_m * block_m).cumsum(0)
    order = flat.argsort(stable=True)
    of_expert = flat[order]
    first = counts.cumsum(0) - counts
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    place = begins[of_expert] + torch.arange(pairs, device=device) - first[of_expert]
    sorted_ids = torch.full((max(length, blocks * block_m),), pairs, dtype=torch.int32, device=device)
    sorted_ids[place] = order.to(torch.int32)
    expert_ids = torch.searchsorted(ends, torch.arange(blocks, device=device) * block_m, right=True)
    return Sorted(
        sorted_ids, expert_ids.clamp_max(experts - 1).to(torch.int32), ends[-1:].to(torch.int32), block_m, blocks
    )


def _on(value: Any) -> bool:
    """Whether an argument asks for something; a tensor does, and has no truth value of its own."""
    return value is not None and not (isinstance(value, (bool, int)) and not value)
