"""Every op's torch kernels on every example of its contract, as torch ops, traced, at every dtype; on any device."""

import re

import pytest

torch = pytest.importorskip("torch", reason="torch runs the kernels")

import kernelmux as km  # noqa: E402
from kernelmux.device import catalog  # noqa: E402
from kernelmux.quant import Scheme  # noqa: E402
from kernelmux.registry import Packages, Problem, Rejected  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402
from kernelmux.registry.lazy import is_spec, load  # noqa: E402

OPS = {op.name: op for op in registry().ops() if any(k.backend == "torch" for k in registry().kernels(op.name))}
PLAIN = [name for name in OPS if name != "fused_moe"]  # fused_moe has its own tests
KERNELS = [kernel for name in PLAIN for kernel in registry().kernels(name) if kernel.backend == "torch"]
EXPECTED = {
    "fused_moe", "nvfp4_gemm", "fp8_gemm", "nvfp4_quantize", "rms_norm", "fused_add_rms_norm", "gated_rms_norm",
    "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "relu2", "router_gemm", "topk", "rms_norm_fp8",
    "silu_and_mul_fp8", "nvfp4_dequantize", "nvfp4_mm", "silu_and_mul_nvfp4", "rms_norm_nvfp4",
}  # fmt: skip


def calls(op, dtype, device="cpu"):
    return load(op.examples)(device, getattr(torch, dtype))


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def assert_within(op, dtype, got, want):
    """The meaning of Tolerance, word for word."""
    tolerance = op.tolerance[dtype]
    assert len(outputs(got)) == len(outputs(want))
    for mine, ideal in zip(outputs(got), outputs(want), strict=True):
        assert mine.shape == ideal.shape
        if ideal.dtype != torch.float32:
            assert mine.dtype == ideal.dtype and torch.equal(mine.view(torch.int8), ideal.view(torch.int8))
        elif ideal.numel():
            size = ideal.shape[-1] if ideal.dim() else 1
            error = (mine.float() - ideal).view(-1, size).norm(dim=1)
            assert (error <= tolerance.rtol * ideal.view(-1, size).norm(dim=1) + tolerance.atol * size**0.5).all()


def split(op, call):
    """(x, weights tensors, the rest) of a call by the names of the schema."""
    call = dict(call)
    x = call.pop(next(iter(call)))
    return x, {name: call.pop(name) for name in (*op.weights, *op.optional_weights) if name in call}, call


def test_every_op_has_a_torch_kernel():
    assert set(OPS) >= EXPECTED


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_torch_kernel_stays_inside_the_tolerance_on_every_example(kernel):
    op = OPS[kernel.op]
    for dtype in op.dtypes:
        for call in calls(op, dtype):
            x, tensors, options = split(op, call)
            scheme = load(op.scheme_of)(**call) if op.scheme_of else None
            chosen = km.select_backend(op.name, device="cpu", quant=scheme, dtype=dtype, backend=kernel.name)
            got = chosen(x, chosen.prepare(**tensors) if tensors else None, **options)
            assert_within(op, dtype, got, load(op.reference)(**call))


@pytest.mark.parametrize("name", PLAIN)
def test_the_op_and_its_meta_function_agree_on_every_example(name):
    op = OPS[name]
    for dtype in op.dtypes:
        for call in calls(op, dtype):
            got = getattr(km.ops, name)(**call)
            assert_within(op, dtype, got, load(op.reference)(**call))
            shapes = load(op.meta)(**{k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in call.items()})
            for mine, shape in zip(outputs(got), outputs(shapes), strict=True):
                assert (mine.shape, mine.dtype) == (shape.shape, shape.dtype)
                assert mine.is_contiguous() and (mine.stride() == shape.stride() or not mine.numel())


def as_call(op, call):
    """(positional, keyword) arguments, as the schema has them."""
    arguments = getattr(torch.ops.kernelmux, op.name).default._schema.arguments
    positional = [argument.name for argument in arguments if not argument.kwarg_only and argument.name in call]
    return tuple(call[name] for name in positional), {k: v for k, v in call.items() if k not in positional}


@pytest.mark.parametrize("nth", [0, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_opcheck_accepts_the_op(name, nth):
    op = OPS[name]
    getattr(km.ops, name)  # registers it
    packet = getattr(torch.ops.kernelmux, name)
    args, keywords = as_call(op, list(calls(op, op.dtypes[0]))[nth])
    tests = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(isinstance(a, torch.Tensor) and a.dtype == torch.float8_e4m3fn for a in args):
        assert_changes_nothing(packet, args, keywords)  # test_schema multiplies e4m3 on the CPU, which torch cannot
    else:
        tests.append("test_schema")
    torch.library.opcheck(packet.default, args, keywords, test_utils=tests)


def assert_changes_nothing(packet, args, keywords):
    """What test_schema asserts of a functional schema: arguments stay as they are and no output lies in one."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    results = outputs(packet(*args, **keywords))
    assert all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(tensors, before, strict=True) if a.dim()
    )
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert not places & {result.untyped_storage().data_ptr() for result in results}


@pytest.mark.parametrize("name", PLAIN)
def test_the_op_traces_without_breaking_the_graph(name):
    op = OPS[name]
    args, keywords = as_call(op, next(iter(calls(op, op.dtypes[0]))))
    packet = getattr(km.ops, name)
    torch.compiler.reset()
    compiled = torch.compile(lambda *a: packet(*a, **keywords), backend="eager", fullgraph=True)
    for mine, eager in zip(outputs(compiled(*args)), outputs(packet(*args, **keywords)), strict=True):
        assert torch.equal(mine.view(torch.uint8), eager.view(torch.uint8))


@pytest.mark.parametrize("name", [name for name in PLAIN if OPS[name].token_axis == "M"])
def test_no_row_gives_no_row(name):
    op = OPS[name]
    empty = [call for call in calls(op, op.dtypes[0]) if next(iter(call.values())).numel() == 0]
    assert empty, "an example without rows belongs to the contract"
    for call in empty:
        assert all(0 in result.shape for result in outputs(getattr(km.ops, name)(**call)))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_contract_is_whole(name):
    op = OPS[name]
    for field in ("reference", "meta", "examples", "problem", "work", "check"):
        assert is_spec(getattr(op, field)) and callable(load(getattr(op, field)))
    assert set(op.tolerance) == set(op.dtypes) and all(t.why for t in op.tolerance.values())
    assert re.fullmatch(rf"{name}\(.+\) -> .+", op.schema)
    shape = dict.fromkeys(op.axes, 128)
    work = load(op.work)(Problem(name, Scheme.of(min(op.schemes)), op.dtypes[0], shape))
    assert work.flops > 0 and work.bytes > 0
    if name in PLAIN:
        for call in calls(op, op.dtypes[0]):
            x, tensors, options = split(op, call)
            weights = tuple(tensors[key] for key in op.weights)
            sizes = load(op.problem)(x, weights if len(weights) > 1 else next(iter(weights), None), **options)
            assert set(sizes) == set(op.axes)
            assert op.token_axis in load(op.problem)(x, object(), **options)  # a kernel's own layout


@pytest.mark.parametrize("name", sorted(EXPECTED - {"fused_moe"}))
def test_a_selection_always_has_torch_on_every_listed_device(name):
    op = OPS[name]
    everything = Packages.assume_all()
    for device in catalog().values():
        for scheme in op.schemes:
            for dtype in op.dtypes:
                problem = Problem(name, Scheme.of(scheme), dtype, {})
                answers = [
                    k.judge(op, device, everything, problem) for k in registry().kernels(name) if k.backend == "torch"
                ]
                assert not all(isinstance(answer, Rejected) for answer in answers), (device.name, scheme, dtype)


@pytest.mark.parametrize("scheme", sorted(OPS["fused_moe"].schemes - {"none"}))
def test_torch_says_why_it_runs_no_quantized_experts(scheme):
    kernel = registry().kernel("kernelmux.fused_moe[torch]")
    problem = Problem("fused_moe", Scheme.of(scheme), "bfloat16", {})
    answer = kernel.judge(OPS["fused_moe"], catalog()["h100-sxm"], Packages.assume_all(), problem)
    assert isinstance(answer, Rejected) and answer.code == "scheme"
    assert f"it takes quant none (it multiplies weights of x's dtype), not {scheme}" in answer.reason
