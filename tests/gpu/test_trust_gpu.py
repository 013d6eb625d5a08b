"""The gate on a real GPU: no false alarm for any kernel that can run here, and a broken one is seen."""

from __future__ import annotations

import pytest

import kernelmux as km
from kernelmux.device import detect
from kernelmux.errors import MissingPackage, NoKernel, UsageError
from kernelmux.policies import standing
from kernelmux.policies.select import select_backend
from kernelmux.registry import epoch
from kernelmux.registry.discovery import registry
from kernelmux.store import quarantine

torch = pytest.importorskip("torch", reason="kernels are checked with torch")
pytestmark = pytest.mark.gpu
KNOWN = registry()
SIZES = {
    "fused_moe": {"M": 64, "E": 32, "N": 256, "K": 1024, "topk": 4},
    "topk": {"M": 64, "E": 128, "topk": 8},
}
USUAL = {"M": 64, "N": 4096, "K": 4096, "H": 4096}
FORMS = [
    (kernel.name, scheme, dtype)
    for op in KNOWN.ops()
    for kernel in KNOWN.kernels(op.name)
    for scheme in sorted(op.schemes)
    # torch's own kernels are checked in every dtype on the CPU, where they compute the same
    for dtype in (op.dtypes[:1] if kernel.backend in ("torch", "torch_compile") else op.dtypes)
]
NOT_BUILT = ("MissingJITCacheError",)  # a library that may not compile here, and lacks what is compiled


def selected(name: str, scheme: str, dtype: str):
    kernel = next(kernel for kernel in KNOWN if kernel.name == name)
    op = KNOWN.op(kernel.op)
    shape = SIZES.get(op.name) or {axis: USUAL[axis] for axis in op.axes}
    activation = "silu" if op.activations else None
    return select_backend(
        op.name, device=detect(0), quant=scheme, dtype=dtype, shape=shape, activation=activation, backend=name
    )


@pytest.mark.parametrize("name, scheme, dtype", FORMS)
def test_no_kernel_that_is_right_is_accused(name, scheme, dtype, record_property) -> None:
    from kernelmux.trust.check import check

    try:
        report = check(selected(name, scheme, dtype))
    except (NoKernel, MissingPackage, UsageError) as error:
        pytest.skip(str(error).splitlines()[0])
    record_property("seconds", round(report.seconds, 3))
    print(f"{name} {scheme} {dtype}: {report.ok} {report.seconds:.2f} s, {len(report.cases)} calls {report.reason}")
    if report.ok is None:
        pytest.skip(f"unchecked: {report.reason}")
    if any(f"it raised {name}" in report.reason for name in NOT_BUILT):
        pytest.skip(f"the library has no such kernel built here: {report.reason}")
    assert report.ok, report.reason


def test_a_call_of_an_op_is_checked_once_and_the_outcome_kept(monkeypatch) -> None:
    monkeypatch.setenv("KERNELMUX_TRUST", "on")
    standing.forget()
    epoch.bump()
    x = torch.randn(8, 8192, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        km.ops.silu_and_mul(x)
    found = {verdict.status for verdict in quarantine.Book(quarantine.quarantine_path())}
    assert found <= {"trusted"}
    epoch.bump()


def test_a_graph_is_captured_after_warmup(monkeypatch) -> None:
    monkeypatch.setenv("KERNELMUX_TRUST", "on")
    standing.forget()
    epoch.bump()
    x = torch.randn(8, 8192, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(8, 4096, device="cuda", dtype=torch.bfloat16)
    km.warmup("silu_and_mul", device="cuda:0", dtype="bfloat16", shape={"M": 8, "H": 4096}, ms=[8])
    with torch.no_grad():
        km.ops.silu_and_mul(x, out=out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            km.ops.silu_and_mul(x, out=out)
        want = torch.nn.functional.silu(x[:, :4096].float()) * x[:, 4096:].float()
        out.zero_()
        graph.replay()
    torch.testing.assert_close(out.float(), want, rtol=2e-2, atol=2e-2)
    epoch.bump()
