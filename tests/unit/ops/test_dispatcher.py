"""Every op as a torch op: opcheck, torch.compile, fake tensors, tracing, vmap, the profiler."""

from __future__ import annotations

import inspect
import os
import pydoc
import shutil
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch registers the ops")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import kernelmux as km  # noqa: E402
from kernelmux.errors import BadShape, UsageError  # noqa: E402
from kernelmux.ops.signature import Signature  # noqa: E402
from kernelmux.registry import Op  # noqa: E402
from kernelmux.registry.discovery import BUILTIN, registry  # noqa: E402
from kernelmux.registry.lazy import load  # noqa: E402

OPS = sorted(BUILTIN)
WITH_OUTS = [name for name in OPS if registry().op(name).outs]
INPLACE = [name for name in WITH_OUTS if Signature.of(registry().op(name)).inplace]


TOY = dict(
    name="toy", summary="", reference="", meta="", examples="", problem="", axes=(), token_axis=None,
    schemes=frozenset(), dtypes=(), outs=("out",),
)  # fmt: skip
# opcheck's test of the schema compares mutated arguments by arithmetic that e4m3 does not have on a CPU.
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(overload: Any, call: dict[str, Any]) -> None:
    e4m3 = any(torch.is_tensor(value) and value.dtype == torch.float8_e4m3fn for value in call.values())
    torch.library.opcheck(overload, (), call, **({"test_utils": WITHOUT_SCHEMA} if e4m3 else {}))


def packet(name: str) -> Any:
    getattr(km.ops, name)
    return getattr(torch.ops.kernelmux, name)


def call_of(name: str, dtype: Any = torch.bfloat16, nth: int = 0) -> dict[str, Any]:
    """One example call, every argument by name."""
    return list(load(registry().op(name).examples)("cpu", dtype))[nth]


def results(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def outs_of(name: str, call: dict[str, Any]) -> dict[str, Any]:
    """Tensors to write, like what the op returns, filled with NaN or the largest byte."""
    made = {}
    for out, like in zip(registry().op(name).outs, results(getattr(km.ops, name)(**call)), strict=True):
        unwritten = float("nan") if like.is_floating_point() else 255
        made[out] = torch.full_like(like, unwritten, memory_format=torch.contiguous_format)
    return made


def same(a: Any, b: Any) -> bool:
    return all(
        x.dtype == y.dtype and torch.equal(x.flatten().view(torch.uint8), y.flatten().view(torch.uint8))
        for x, y in zip(results(a), results(b), strict=True)
        if x.numel()
    )


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("nth", [0, -1])
def test_opcheck_accepts_the_functional_overload(name, nth):
    opcheck(packet(name).default, call_of(name, nth=nth))


@pytest.mark.parametrize("name", WITH_OUTS)
def test_opcheck_accepts_the_out_overload(name):
    call = call_of(name, torch.float32, nth=1)
    opcheck(packet(name).out, {**call, **outs_of(name, call)})


@pytest.mark.parametrize("name", INPLACE)
def test_opcheck_accepts_the_inplace_overload(name):
    opcheck(packet(name).inplace, call_of(name, torch.float32, nth=1))


@pytest.mark.parametrize("name", WITH_OUTS)
@pytest.mark.parametrize("nth", [0, 1, -1])
def test_every_way_to_call_gives_the_same_bits(name, nth):
    call, function = call_of(name, nth=nth), getattr(km.ops, name)
    want = function(**call)
    assert same(packet(name).default(**call), want)
    for _ in range(2):
        outs = outs_of(name, call)
        got = function(**call, **outs)
        assert same(got, want) and all(a is b for a, b in zip(results(got), outs.values(), strict=True))
    outs = outs_of(name, call)
    assert packet(name).out(**call, **outs) is None
    assert same(tuple(outs.values()), want)


@pytest.mark.parametrize("name", INPLACE)
def test_in_place_by_either_way_gives_the_same_bits(name):
    op, call = registry().op(name), call_of(name)
    want = getattr(km.ops, name)(**call)
    pairs = dict(op.inplace)
    for way in ("face", "overload", "out"):
        own = {**call, **{argument: call[argument].clone() for argument in pairs.values()}}
        outs = {out: own[argument] for out, argument in pairs.items()}
        if way == "face":
            getattr(km.ops, name)(**own, **outs)
        else:
            packet(name).inplace(**own) if way == "overload" else packet(name).out(**own, **outs)
        assert same(tuple(outs[out] for out in op.outs), want)


@pytest.mark.parametrize("name", WITH_OUTS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_keeps_one_graph_and_the_same_bits(name, backend):
    function, op, call = getattr(km.ops, name), registry().op(name), call_of(name)
    want, outs = function(**call), outs_of(name, call)
    pairs = dict(op.inplace) if name in INPLACE else {}

    def every_way(call, outs):
        new = results(function(**call))
        written = results(function(**call, **outs))
        if not pairs:
            return *new, *written
        own = {**call, **{argument: call[argument].clone() for argument in pairs.values()}}
        return *new, *written, *results(function(**own, **{out: own[argument] for out, argument in pairs.items()}))

    torch._dynamo.reset()
    got = torch.compile(every_way, backend=backend, fullgraph=True)(call, outs)
    n = len(op.outs)
    for i in range(0, len(got), n):
        assert same(got[i : i + n], want)
    assert same(tuple(outs.values()), want), "the outs themselves are written"


@pytest.mark.parametrize("name", ["fused_add_rms_norm", "silu_and_mul"])
def test_one_graph_serves_any_number_of_rows(name):
    function, call = getattr(km.ops, name), call_of(name)
    torch._dynamo.reset()
    seen = []

    def backend(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph

    compiled = torch.compile(lambda call: results(function(**call)), backend=backend, fullgraph=True, dynamic=True)
    for rows in (5, 3, 4):
        # no views: their base is guarded too
        part = {key: value[:rows].clone() if key in ("x", "residual") else value for key, value in call.items()}
        assert same(compiled(part), function(**part))
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and "CXX" not in os.environ, reason="inductor needs a C++ compiler")
def test_inductor_runs_it_in_place_in_a_module():
    def layer(x, residual, weight):
        x, residual = km.ops.fused_add_rms_norm(x, residual, weight, out=x, residual_out=residual)
        return km.ops.relu2(x * 2) + residual

    call = [torch.randn(5, 64), torch.randn(5, 64), torch.rand(64)]
    want = layer(*(tensor.clone() for tensor in call))
    torch._dynamo.reset()
    given = [tensor.clone() for tensor in call]
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(*given), want)
    assert not torch.equal(given[1], call[1]), "the residual is replaced"


def test_an_op_first_used_inside_a_compiled_function_is_registered_there():
    code = (
        "import torch, kernelmux as km\n"
        "f = torch.compile(lambda x: km.ops.relu2(x) + 1, backend='eager', fullgraph=True)\n"
        "x = torch.randn(3, 8)\n"
        "assert torch.equal(f(x), x.relu().square() + 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_fake_tensors_give_shapes_and_the_errors_of_a_call():
    with FakeTensorMode():
        x, weight = torch.empty(3, 64, dtype=torch.bfloat16), torch.empty(64, dtype=torch.bfloat16)
        out, residual = km.ops.fused_add_rms_norm(x, x, weight)
        assert out.shape == residual.shape == (3, 64) and type(out) is type(x)
        assert km.ops.rms_norm(x, weight, out=out) is out
        with pytest.raises(BadShape, match=r"weight must be \[64\]"):
            km.ops.rms_norm(x, weight[:32])
        with pytest.raises(BadShape, match=r"out must be \[3, 64\]"):
            km.ops.rms_norm(x, weight, out=torch.empty(3, 32))


def test_meta_tensors_give_shapes():
    x = torch.empty(3, 64, device="meta")
    assert km.ops.silu_and_mul(x).shape == (3, 32) and km.ops.silu_and_mul(x).device.type == "meta"


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_make_fx_records_the_op_not_what_it_runs(mode):
    x, weight = torch.randn(3, 64), torch.rand(64)
    km.ops.rms_norm(x, weight)  # bound: a trace must not find it
    graph = make_fx(lambda x, w: km.ops.rms_norm(x, w, 1e-5), tracing_mode=mode)(x, weight)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.kernelmux.rms_norm.default]
    assert torch.equal(graph(x, weight), km.ops.rms_norm(x, weight, 1e-5))


def test_export_keeps_the_op():
    class Layer(torch.nn.Module):
        def forward(self, x):
            return km.ops.relu2(x)

    exported = torch.export.export(Layer(), (torch.randn(2, 8),))
    assert torch.ops.kernelmux.relu2.default in {node.target for node in exported.graph.nodes}


def test_a_dispatch_mode_sees_every_call():
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    x = torch.randn(3, 64)
    km.ops.silu_and_mul(x), km.ops.silu_and_mul(x)
    with Record():
        km.ops.silu_and_mul(x)
    assert "kernelmux.silu_and_mul.default" in seen


def test_a_function_mode_sees_every_call():
    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    x = torch.randn(3, 64)
    km.ops.silu_and_mul(x), km.ops.silu_and_mul(x)
    with Record():
        km.ops.silu_and_mul(x)
    assert "kernelmux.silu_and_mul.default" in seen


def test_the_profiler_sees_the_op():
    x, out = torch.randn(3, 64), torch.empty(3, 32)
    km.ops.silu_and_mul(x, out=out)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        km.ops.silu_and_mul(x, out=out)
    assert "kernelmux::silu_and_mul" in {event.key for event in seen.key_averages()}


def test_vmap_runs_row_by_row_or_says_that_it_cannot():
    x = torch.randn(4, 3, 64)
    want = km.ops.silu_and_mul(x)
    assert torch.equal(torch.vmap(km.ops.silu_and_mul)(x), want)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for kernelmux::silu_and_mul.out"):
        torch.vmap(lambda row: km.ops.silu_and_mul(row, out=torch.empty(3, 32)))(x)


def test_no_transform_takes_a_gradient_in_silence():
    x, weight = torch.randn(3, 64), torch.nn.Parameter(torch.ones(64))
    with pytest.raises(UsageError, match="rms_norm has no gradient: .*weight requires grad"):
        km.ops.rms_norm(x, weight)
    with pytest.raises(UsageError, match="has no gradient"):
        torch.ops.kernelmux.rms_norm.out(x, weight, out=torch.empty_like(x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="has no gradient"):
        torch.compile(km.ops.rms_norm, backend="aot_eager", fullgraph=True)(x, weight)
    with torch.no_grad():
        want = km.ops.rms_norm(x, weight)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(km.ops.rms_norm, backend="aot_eager", fullgraph=True)(x, weight), want)
    with pytest.raises(UsageError, match="relu2 has no gradient"):
        torch.func.grad(lambda x: km.ops.relu2(x).sum())(x)


def test_some_outs_without_the_others_are_refused():
    x, weight = torch.randn(3, 64), torch.ones(64)
    with pytest.raises(UsageError, match="writes out and residual_out: give all of them or none"):
        km.ops.fused_add_rms_norm(x, x, weight, out=torch.empty_like(x))


@pytest.mark.parametrize("name", OPS)
def test_the_function_has_the_signature_of_the_schema_and_says_what_it_is(name):
    function, op = getattr(km.ops, name), registry().op(name)
    signature = inspect.signature(function)
    schema = torch._C.parse_schema(op.schema)
    assert inspect.isfunction(function) and function.__module__ == "kernelmux.ops" and function.__name__ == name
    assert list(signature.parameters) == [*(argument.name for argument in schema.arguments), *op.outs]
    for argument in schema.arguments:
        parameter = signature.parameters[argument.name]
        assert (parameter.kind is parameter.KEYWORD_ONLY) == argument.kwarg_only
        assert (parameter.default is parameter.empty) == (not argument.has_default_value())
        assert parameter.default is parameter.empty or parameter.default == argument.default_value
    for out in op.outs:
        assert signature.parameters[out].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters[out].default is None
    assert f"torch.ops.kernelmux.{name}" in function.__doc__
    said = pydoc.plain(pydoc.render_doc(function))
    assert op.schema in said and "FrozenError" in said


def test_the_overloads_are_derived_from_the_one_schema():
    signature = Signature.of(registry().op("fused_add_rms_norm"))
    assert signature.out_schema == (
        "fused_add_rms_norm.out(Tensor x, Tensor residual, Tensor weight, float eps=1e-06, float weight_bias=0.0, *, "
        "Tensor(a!) out, Tensor(b!) residual_out) -> ()"
    )
    assert signature.inplace_schema == (
        "fused_add_rms_norm.inplace(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps=1e-06, "
        "float weight_bias=0.0) -> ()"
    )
    schema = "toy(Tensor x, Tensor? y=None, *, ScalarType? out_dtype=None, str mode='a') -> Tensor"
    toy = Signature.of(Op(**{**TOY, "schema": schema}))
    assert toy.out_schema == (
        "toy.out(Tensor x, Tensor? y=None, *, ScalarType? out_dtype=None, str mode='a', Tensor(a!) out) -> ()"
    )
    assert toy.inplace == ()
