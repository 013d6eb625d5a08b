"""The torch_compile kernels on a CPU: what they really round, one compilation for any number of rows, freeze."""

import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch compiles the kernels")

import kernelmux as km  # noqa: E402
from kernelmux.backends.torch_compile import small  # noqa: E402
from kernelmux.contracts import norms_math  # noqa: E402
from kernelmux.errors import BadShape, FrozenError  # noqa: E402
from kernelmux.registry import frozen  # noqa: E402

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
X = torch.randn(32, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
WEIGHT = (1 + 0.5 * torch.randn(512, generator=torch.Generator().manual_seed(2))).bfloat16()


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


@needs_compiler
def test_fused_add_normalises_the_unrounded_sum():
    residual = 4 * X.flip(0).contiguous()
    got, total = chosen("fused_add_rms_norm")(X, WEIGHT, residual=residual, eps=1e-6)
    assert torch.equal(total, (X.float() + residual.float()).bfloat16())
    want, _ = norms_math.fused_add_rms_norm_reference(X, residual, WEIGHT)
    assert (got == want.bfloat16()).double().mean() >= 0.999


@needs_compiler
def test_a_gated_activation_rounds_once():
    got = chosen("silu_and_mul")(X)
    gate, up = X.double().chunk(2, dim=-1)
    assert (got == (gate * gate.sigmoid() * up).bfloat16()).double().mean() >= 0.999


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
