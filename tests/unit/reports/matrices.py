"""Matrices made up for tests: a large one for the page, one whose every text is hostile, one with all three kinds."""

from __future__ import annotations

import math

from kernelmux.device import catalog
from kernelmux.reports.matrix import (
    Case,
    Cell,
    DeviceFacts,
    Header,
    Matrix,
    OpFacts,
    Other,
    Outcome,
    PackageFacts,
    Rejection,
    Result,
    TimeUs,
)

EVIL = "<img src=x onerror=\"document.title='owned'\">|`*'&</script><script>document.title='owned'</script>"
BACKENDS = ("jit_cuda", "triton", "cutlass", "cublas", "torch", "marlin", "deepgemm", "cutedsl")
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
SCHEMES = ("none", "fp8_tensor", "fp8_block", "nvfp4", "int4_w4a16", "mxfp4")


def devices() -> tuple[DeviceFacts, ...]:
    """Those of the catalog."""
    return tuple(
        DeviceFacts(
            device.name, device.torch_name, device.vendor, str(device.capability) if device.capability else None,
            "", device.sm_count, 0, 0, float(device.bandwidth_gbs), 80.0, {"bf16": 989.0, "fp8": 1979.0},
        )
        for device in catalog().values()
    )  # fmt: skip


def header(found: tuple[DeviceFacts, ...], ops: int = 3, kinds: tuple[str, ...] = ("chosen",)) -> Header:
    facts = tuple(OpFacts(f"op_{i:02}", f"what op {i} means", SCHEMES, ("bfloat16",)) for i in range(ops))
    packages = PackageFacts("every optional package assumed", True)
    return Header("1.2.3", "2026-11-22T12:00:00Z", packages, found, facts, kinds, TOKENS)


def outcome(i: int, name: str, capability: str, reasons: int = 6) -> Outcome:
    """Varies with ``i``; the reasons name the GPU, as real ones do."""
    backend = BACKENDS[i % len(BACKENDS)]
    others = tuple(
        Other(BACKENDS[(i + k) % len(BACKENDS)], f"kernelmux.op[{BACKENDS[(i + k) % len(BACKENDS)]}]", f"rule-{i % 40}")
        for k in range(1, 4)
    )
    rejected = tuple(
        Rejection(
            BACKENDS[(i + k) % len(BACKENDS)], f"library.kernel_{k}[{BACKENDS[(i + k) % len(BACKENDS)]}]", "capability",
            f"it is for capability 10.0, 10.3 (variant {i % 11}); {name} has capability {capability}",
            "choose a backend made for this GPU, or run on one of those", f"https://github.com/owner/library/pull/{k}",
        )
        for k in range(reasons)
    )  # fmt: skip
    if i % 23 == 0:
        why = f"no kernel of op can run on {name}: every one was rejected"
        return Outcome(None, None, None, None, None, None, why, None, rejected=rejected)
    return Outcome(
        backend, f"kernelmux.op[{backend}]", "none", "policy", f"rule-{i % 40}",
        "https://github.com/owner/library/pull/1", f"it was the fastest at this size where it was measured ({i % 40})",
        ("measured", "compiled", "declared")[i % 3], None, None,
        ("the dtype was not given: bfloat16 is assumed",) if i % 5 == 0 else (), others, rejected,
    )  # fmt: skip


def large(least: int = 50_000) -> Matrix:
    """Ops by schemes by the catalog's GPUs by token counts: at least so many cells."""
    found, cells = devices(), []
    ops = math.ceil(least / (len(found) * len(TOKENS) * len(SCHEMES)))
    made: dict[tuple[int, int], Outcome] = {}
    for op in range(ops):
        for s, scheme in enumerate(SCHEMES):
            case = Case(f"op_{op:02}", scheme, "", "bfloat16", (("H", 4096),))
            for d, device in enumerate(found):
                for t, m in enumerate(TOKENS):
                    i = op * 7 + s * 3 + (int(device.sm_count) // 40) + (t > 4) * (op % 3)
                    one = made.setdefault((i, d), outcome(i, device.name, device.capability or "none"))
                    cells.append(Cell(case, device.name, m, one))
    return Matrix(header(found, ops), tuple(cells))


def small() -> Matrix:
    """Three ops on three GPUs: choices that change at M 1024, one GPU without a kernel, live and compiled cells."""
    names = ("h100-sxm", "b200", "t4")
    found = tuple(device for device in devices() if device.name in names)
    cells = []
    for op in range(3):
        scheme, variant = (("none", ""), ("fp8_block", "silu"), ("nvfp4", ""))[op]
        case = Case(f"op_{op:02}", scheme, variant, "bfloat16", (("H", 4096),))
        for device in found:
            for m in TOKENS:
                i = 0 if (device.name == "t4" and op == 2) else 1 + op + (m > 256)
                cells.append(Cell(case, device.name, m, outcome(i, device.name, device.capability or "none", 2)))
            for backend in ("triton", "jit_cuda"):
                kernel = f"kernelmux.op[{backend}]"
                stands = Outcome(backend, kernel, "none", "accepted", None, None, "it can run here", "compiled")
                spills = 8 if op else 0
                made = Result("ok", registers=40, spills=spills, shared_bytes=4096, jobs=3, failed=0, arch="sm_90a")
                cells.append(Cell(case, device.name, 0, stands, "compiled", made))
        for k, backend in enumerate(("triton", "jit_cuda", "torch")):
            kernel, source = f"kernelmux.op[{backend}]", "accepted" if k else "policy"
            stands = Outcome(backend, kernel, "none", source, None, None, "it can run here", "measured")
            for m in TOKENS:
                cells.append(Cell(case, "h100-sxm", m, stands, "live", _timed(op, k, m)))
    return Matrix(header(found, kinds=("chosen", "live", "compiled")), tuple(cells))


def _timed(op: int, k: int, m: int) -> Result:
    if (op, k, m) == (1, 0, 4096):
        return Result("crash", "the process died of signal 11 in the third call")
    floor = 1.8 + m * 0.006
    us = floor * (1.15 + 0.35 * k) + 1.2 * k
    return Result(
        "ok", correct=True, checked=24, error=0.31, time_us=TimeUs(us, us * 0.98, us * 1.03, 40), floor_us=floor,
        roofline_percent=100 * floor / us, bound="memory", flops=m * 4096 * 6.0, bytes=m * 4096 * 4.0,
        peak_bytes=m * 8192, capture=True, deterministic=k != 2, first_call_ms=120.0 + k,
        notes=("what else is worth saying",),
    )  # fmt: skip


def evil() -> Matrix:
    """Hostile text wherever a text can come from outside."""
    device = DeviceFacts(EVIL, EVIL, EVIL, EVIL, EVIL, 1, 0, 0, 1.0, 1.0, {}, note=EVIL)
    rejected = (Rejection(EVIL, EVIL, EVIL, EVIL, EVIL, "javascript:document.title='owned'"),)
    others = (Other("triton", EVIL, EVIL),)
    found = Outcome(
        EVIL, EVIL, EVIL, "policy", EVIL, "javascript:document.title='owned'", EVIL, "measured", EVIL, EVIL, (EVIL,),
        others, rejected,
    )  # fmt: skip
    case = Case(EVIL, EVIL, EVIL, EVIL, ((EVIL, 1),), EVIL, (EVIL,))
    bad = Result("crash", EVIL, notes=(EVIL,), arch=EVIL)
    live, compiled = Cell(case, EVIL, 1, found, "live", bad), Cell(case, EVIL, 0, found, "compiled", bad)
    head = Header(
        EVIL, EVIL, PackageFacts(EVIL), (device,), (OpFacts(EVIL, EVIL, (), ()),), ("chosen", "live", "compiled"), (1,),
        (EVIL,), {EVIL: EVIL},
    )  # fmt: skip
    return Matrix(head, (Cell(case, EVIL, 1, found), live, compiled))
