"""Calls of small ops for the GPU tests: every way a tensor may lie, and what must be left alone around a result."""

import pytest
import torch

from kernelmux.device import detect
from kernelmux.errors import BadShape
from kernelmux.measure import small_check
from kernelmux.measure.small_contestants import run_arguments
from kernelmux.measure.small_point import GLOBAL_SCALE, Inputs, _scalar, arguments, small_ops, widening
from kernelmux.quant import Scheme
from kernelmux.registry import Problem, Rejected
from kernelmux.registry.discovery import registry
from kernelmux.registry.lazy import load
from kernelmux.registry.packages import Packages

KNOWN = registry()
OPS = small_ops(KNOWN.ops())
KERNELS = [kernel for op in OPS for kernel in KNOWN.kernels(op.name)]
OURS = [k for k in KERNELS if k.name.startswith("kernelmux.") and k.backend in ("jit_cuda", "triton")]
DTYPES = ("bfloat16", "float16", "float32")
SENTINEL = 0x5A
DEVICE = "cuda"


def refusal(kernel, dtype, m, h):
    """Why the kernel cannot run this problem here; None where it can."""
    op = KNOWN.op(kernel.op)
    problem = Problem(op.name, Scheme.of(None), dtype, {"M": m, "H": h})
    decision = kernel.judge(op, detect(0), Packages.installed(), problem)
    return decision.reason if isinstance(decision, Rejected) else None


def rows_like(m, width, dtype, lies="packed"):
    """[m, width] on the GPU: packed, strided (wider rows), odd (rows one element further apart), misaligned (one
    element into its memory), or both of the last two.
    """
    extra = {"packed": 0, "misaligned": 0, "strided": 64, "odd": 1, "odd misaligned": 1}[lies]
    start = 1 if "misaligned" in lies else 0
    base = torch.empty(start + max(m, 1) * (width + extra), device=DEVICE, dtype=dtype)
    base.view(torch.uint8).fill_(SENTINEL)
    return base.as_strided((m, width), (width + extra, 1), start), base


def fill(rows, scale=1.0, mean=0.0, seed=0):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    values = torch.empty(rows.shape, device=DEVICE, dtype=torch.float32).normal_(mean, scale, generator=generator)
    return rows.copy_(values)


def inputs(op, m, h, dtype, lies="packed", out_lies="packed", seed=0, **options):
    """(Inputs, what is around each result: a list of (base, out)). Raises BadShape for what the op does not define."""
    kind = getattr(torch, dtype)
    given = {}
    for what, name, default in arguments(op):
        if what == "Tensor?":
            given[name] = options.get(name)
        elif what != "Tensor":
            given[name] = options.get(name, _scalar(what, default))
        elif name == "global_scale":  # of what is about 1 in size
            given[name] = torch.tensor([options.get(name, GLOBAL_SCALE)], device=DEVICE)
        elif name in op.weights:
            weight, _ = rows_like(1, h, kind, "misaligned" if "misaligned" in lies else "packed")
            given[name] = fill(weight, 0.3, 1.0, seed + 11)[0]
        else:
            scale = 3.0 if name == "residual" else 1.0
            given[name] = fill(rows_like(m, h * widening(op), kind, lies)[0], scale, seed=seed + len(given))
    made = load(op.meta)(**given)
    outs, around = [], []
    for like in made if isinstance(made, tuple) else (made,):
        if like.dim() < 2:
            outs.append(torch.empty_like(like, device=DEVICE))
            continue
        out, base = rows_like(like.shape[0], like.shape[1], like.dtype, out_lies)
        outs.append(out)
        around.append((base, out))
    return Inputs(given, tuple(outs)), around


def run(kernel, call, with_outs=True):
    """The results of a kernel, into the call's outs or new ones."""
    op = KNOWN.op(kernel.op)
    x, weights, rest = run_arguments(op, call)
    if not with_outs:
        rest = {name: value for name, value in rest.items() if name not in op.outs}
    result = load(kernel.load)(x, weights, config=None, **rest)
    return result if isinstance(result, tuple) else (result,)


def bind(kernel, call):
    """``call(*tensors)`` for tensors like these, and these."""
    tensors = (*call.tensors, *call.outs)
    return load(kernel.bind)(call.scalars, *tensors), tensors


def wrong(kernel, dtype, call, results=None):
    """What is wrong with the results, or None."""
    op = KNOWN.op(kernel.op)
    verdict = small_check.judge(op, dtype, results or call.outs, small_check.reference(op, call.given))
    return None if verdict.ok else verdict.reason


def untouched(around):
    """Whether everything outside of the results still is what it was."""
    for base, out in around:
        mask = torch.ones(base.shape, device=DEVICE, dtype=torch.bool)
        mask.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(False)
        outside = base.view(torch.uint8).view(len(base), -1)[mask]
        if not bool((outside == SENTINEL).all()):
            return False
    return True


def sweep(kernel, dtype, shapes, check):
    """Run ``check(m, h)`` at each (M, H) that the kernel takes and the op defines; what failed is said together."""
    faults, ran, refused = [], 0, ""
    for m, h in shapes:
        refused = refusal(kernel, dtype, m, h) or refused
        if refusal(kernel, dtype, m, h):
            continue
        try:
            fault = check(m, h)
        except BadShape as error:
            refused = str(error)
            continue
        ran += 1
        if fault:
            faults.append(f"M={m} H={h}: {fault}")
    assert not faults, f"{kernel.name} {dtype}: " + "; ".join(faults[:8]) + f" ({len(faults)} of {ran})"
    if not ran:
        pytest.skip(refused or "no shape fits")
