"""The torch_compile kernels on a CPU: what they really round, one compilation for any number of rows, freeze."""

import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch compiles the kernels")

import kernelmux as km  # noqa: E402
from kernelmux.backends.torch_compile import small  # noqa: E402
from kernelmux.contracts import sides  # noqa: E402
from kernelmux.errors import BadShape, FrozenError  # noqa: E402
from kernelmux.registry import frozen  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
X = torch.randn(32, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
WEIGHT = (1 + 0.5 * torch.randn(512, generator=torch.Generator().manual_seed(2))).bfloat16()


def is_ours(kernel):
    return kernel.backend == "torch_compile"


def chosen(op, **shape):
    return km.select_backend(op, device="cpu", dtype="bfloat16", backend="torch_compile", shape=shape)


@needs_compiler
def test_rms_norm_rounds_once_and_compiles_once_for_any_number_of_rows():
    select = chosen("rms_norm", H=512)
    km.warmup(select, ms=[2])
    before = len(small._compiled)
    got = select(X, WEIGHT, eps=1e-6)
    exact = X.double() / (X.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    once = (exact * WEIGHT.double()).bfloat16()
    twice = (exact.bfloat16().double() * WEIGHT.double()).bfloat16()
    assert (got == once).double().mean() >= 0.999 > (got == twice).double().mean()
    km.freeze()
    try:
        assert torch.equal(select(X[:7], WEIGHT), got[:7])
        assert torch.equal(select(X[:6].view(2, 3, 512), WEIGHT), got[:6].view(2, 3, 512))
        with pytest.raises(FrozenError, match="compile rms_norm for rows of 256"):
            select(X[:, :256].contiguous(), WEIGHT[:256])
    finally:
        frozen.set_frozen(False)
    assert len(small._compiled) == before


KERNELS = [kernel for op in registry().ops() for kernel in registry().kernels(op.name) if is_ours(kernel)]


@needs_compiler
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(kernel, torch.bfloat16) for kernel in KERNELS]
    + [(kernel, torch.float16) for kernel in KERNELS if kernel.op in ("fused_add_rms_norm", "gelu_and_mul")],
    ids=lambda value: getattr(value, "name", None) or str(value).removeprefix("torch."),
)
def test_what_the_compiled_code_rounds_is_what_is_declared(kernel, dtype):
    """Found out from its results, on inputs where the orders differ."""
    call = sides.telling(kernel.op, dtype, rows=12, hidden=1024)
    select = km.select_backend(kernel.op, device="cpu", dtype=dtype, backend="torch_compile")
    given = dict(call)
    got = select(given.pop("x"), given.pop("weight", None), **given)
    got = got if isinstance(got, tuple) else (got,)
    assert sides.fault(kernel.op, call, kernel.numerics.promises, got) is None


@needs_compiler
def test_outs_are_written_in_place_and_into_slices_and_nothing_compiles_twice():
    select = chosen("fused_add_rms_norm")
    residual = 4 * X.flip(0).contiguous()
    want = select(X, WEIGHT, residual=residual)
    buffers = torch.zeros(32, 1024).bfloat16(), torch.zeros(32, 520).bfloat16()
    outs = {"out": buffers[0][:, 512:], "residual_out": buffers[1][:, :512]}
    got = select(X, WEIGHT, residual=residual, **outs)
    assert got[0] is outs["out"] and got[1] is outs["residual_out"]
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
    assert not buffers[0][:, :512].any() and not buffers[1][:, 512:].any()
    x, kept = X.clone(), residual.clone()
    select(x, WEIGHT, residual=kept, out=x, residual_out=kept)
    assert torch.equal(x, want[0]) and torch.equal(kept, want[1])
    before = len(small._compiled)
    x, kept = X[:9].clone(), residual[:9].clone()
    select(x, WEIGHT, residual=kept, out=x, residual_out=kept)
    assert torch.equal(x, want[0][:9]) and torch.equal(kept, want[1][:9]) and len(small._compiled) == before


@needs_compiler
def test_gemmas_weight_is_a_kernel_of_its_own():
    got = chosen("rms_norm")(X, WEIGHT, weight_bias=1.0)
    call = {"x": X, "weight": WEIGHT, "weight_bias": 1.0}
    assert sides.fault("rms_norm", call, {"fp32_mul"}, (got,)) is None


@pytest.mark.parametrize("op", ["silu_and_mul", "relu2"])
def test_no_row_compiles_nothing(op):
    before = len(small._compiled)
    assert chosen(op)(X[:0]).shape[0] == 0 and len(small._compiled) == before


def test_an_argument_that_does_not_fit_is_named_before_anything_compiles():
    before = len(small._compiled)
    with pytest.raises(BadShape, match=r"weight must be \[512\]"):
        chosen("rms_norm")(X, WEIGHT[:3])
    assert len(small._compiled) == before


def test_nothing_takes_it_by_itself():
    for op in ("rms_norm", "silu_and_mul", "relu2"):
        for device in ("cpu", "h100-sxm", "mi300x"):
            assert km.select_backend(op, device=device).backend != "torch_compile"
