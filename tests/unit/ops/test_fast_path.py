"""An eager call: bound once, then looked up; whatever a launch depends on makes another call of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch registers the ops")

import kernelmux as km  # noqa: E402
from kernelmux.errors import BadShape, FrozenError, NoKernel, UsageError  # noqa: E402
from kernelmux.ops import guards  # noqa: E402
from kernelmux.registry import epoch, frozen  # noqa: E402
from tests.unit.ops.toy import counts, reference, world  # noqa: E402

X, SHIFT = torch.randn(6, 8), torch.randn(8)


def dispatched(*args: Any, **keywords: Any) -> Any:
    return torch.ops.kernelmux_toy.toy_scale(*args, **keywords)


def test_a_call_is_checked_and_bound_once_and_then_only_run(toy):
    out = torch.empty_like(X)
    for _ in range(3):
        assert toy(X, SHIFT, 2.0, out=out) is out
        torch.testing.assert_close(out, reference(X, SHIFT, 2.0))
    assert counts["call"] == 3 and counts["bind"] == 1
    checked = counts["check"]
    toy(X, SHIFT, 2.0, out=out)
    assert counts["check"] == checked


def test_new_tensors_are_made_where_no_out_is_given(toy):
    first, second = toy(X, by=3.0), toy(X, by=3.0)
    assert first is not second and first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(first, X * 3)
    assert counts["bind"] == 1 and counts["call"] == 2


@pytest.mark.parametrize(
    "other",
    [
        dict(x=X[:3]),
        dict(x=X.bfloat16()),
        dict(x=torch.randn(6, 9)[:, :8]),
        dict(x=X.view(2, 3, 8)),
        dict(shift=None),
        dict(by=2.5),
        dict(times=2),
        dict(mode="subtract"),
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("into", [True, False], ids=["out", "new"])
def test_another_shape_dtype_stride_or_scalar_is_another_launch(toy, other, into):
    base: dict[str, Any] = dict(x=X, shift=SHIFT, by=2.0, times=1, mode="add")
    for call in (base, base | other, base, base | other):
        options = {"out": torch.empty(call["x"].shape, dtype=call["x"].dtype)} if into else {}
        got = toy(**call, **options)
        torch.testing.assert_close(got, reference(**call).to(call["x"].dtype))
    assert counts["bind"] == 2


def test_calls_that_differ_in_strides_alone_are_remembered_side_by_side(toy):
    wide = torch.randn(6, 16)
    for _ in range(3):
        for x in (X, wide[:, :8], wide[:, 8:]):
            torch.testing.assert_close(toy(x, out=torch.empty(6, 8)), x)
    assert counts["bind"] == 2


def test_out_may_be_rows_of_a_larger_buffer(toy):
    buffer = torch.full((6, 20), 7.0)
    toy(X, by=2.0, out=buffer[:, 4:12])
    torch.testing.assert_close(buffer[:, 4:12], X * 2)
    assert (buffer[:, :4] == 7).all() and (buffer[:, 12:] == 7).all()


def test_out_may_be_the_input_where_the_op_says_so(toy):
    for _ in range(2):
        x = X.clone()
        assert toy(x, by=2.0, out=x) is x
        torch.testing.assert_close(x, X * 2)
    other = torch.empty_like(X)
    torch.testing.assert_close(toy(X, by=2.0, out=other), X * 2)
    assert counts["bind"] == 2, "in place and out of place are two calls"


def test_without_rows_nothing_runs_and_an_empty_result_comes_back(toy):
    for _ in range(2):
        assert toy(X[:0]).shape == (0, 8)
        out = torch.empty(0, 8)
        assert toy(X[:0], out=out) is out
    assert "bind" not in counts and "run" not in counts
    assert dispatched(X[:0]).shape == (0, 8)


def test_an_override_is_honoured_within_its_block_only(toy):
    toy(X)
    for _ in range(2):
        before = counts.get("run", 0)
        with km.override("toy_scale", backend="torch"):
            toy(X), toy(X)
            assert counts["run"] == before + 2
        toy(X)
        assert counts["run"] == before + 2
    with km.override("toy_scale", backend="torch"):
        dispatched(X)
    assert counts["run"] == 5


def test_a_call_under_an_override_is_remembered_too(toy):
    for _ in range(2):
        with km.override("toy_scale", backend="toy.scale[jit_cuda]"):
            out = torch.empty_like(X)
            toy(X, by=2.0, out=out), toy(X, by=2.0, out=out)
            torch.testing.assert_close(out, X * 2)
    assert counts["bind"] == 1 and counts["call"] == 4


def test_an_override_belongs_to_its_thread(toy):
    inside, seen = threading.Event(), []

    def other() -> None:
        inside.wait(5)
        toy(X)
        seen.append(counts.get("run", 0))

    thread = threading.Thread(target=other)
    thread.start()
    with km.override("toy_scale", backend="torch"):
        inside.set()
        thread.join()
    assert seen == [0]


def test_the_environment_is_looked_at_in_every_call(monkeypatch):
    x = torch.randn(3, 64)
    want = km.ops.relu2(x)
    monkeypatch.setenv("KERNELMUX_RELU2_BACKEND", "marlin")
    with pytest.raises(NoKernel, match="KERNELMUX_RELU2_BACKEND=marlin"):
        km.ops.relu2(x)
    monkeypatch.setenv("KERNELMUX_RELU2_BACKEND", "torch")
    assert torch.equal(km.ops.relu2(x), want)
    monkeypatch.setenv("KERNELMUX_BACKEND", "marlin")
    assert torch.equal(km.ops.relu2(x), want), "the op's own variable goes first"
    monkeypatch.delenv("KERNELMUX_RELU2_BACKEND")
    with pytest.raises(NoKernel, match="KERNELMUX_BACKEND=marlin"):
        torch.ops.kernelmux.relu2(x)


def test_what_changes_in_the_registry_is_bound_anew(toy):
    toy(X), toy(X)
    epoch.bump()
    toy(X)
    assert counts["bind"] == 2


def test_a_warmed_shape_runs_after_freeze_and_another_names_warmup(toy):
    km.warmup("toy_scale", device="cpu", dtype="float32", shape={"M": (1, 64), "H": 8}, backend="toy.scale[jit_cuda]")
    km.freeze()
    torch.testing.assert_close(toy(X, by=2.0, out=torch.empty_like(X)), X * 2)
    torch.testing.assert_close(dispatched(X[:2], by=2.0), X[:2] * 2)
    with pytest.raises(FrozenError, match=r"compile toy for H=4.*km\.warmup\(\)"):
        toy(X[:, :4])


def test_the_same_holds_while_a_graph_is_captured(toy, monkeypatch):
    km.warmup("toy_scale", device="cpu", dtype="float32", shape={"M": (1, 64), "H": 8}, backend="toy.scale[jit_cuda]")
    monkeypatch.setattr(frozen, "is_capturing", lambda: True)
    torch.testing.assert_close(toy(X, by=2.0), X * 2)
    with pytest.raises(FrozenError, match=r"CUDA graph is being captured.*km\.warmup\(\)"):
        toy(X[:, :4])


def test_an_op_that_was_not_warmed_is_not_made_after_freeze():
    from kernelmux.ops.torch_ops import register
    from tests.unit.ops.toy import OP

    km.freeze()
    try:
        with pytest.raises(FrozenError, match=r"register kernelmux::toy_scale.*km\.warmup\(\)"):
            register(OP)
    finally:
        frozen.set_frozen(False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(x=X, shift=SHIFT[:3]), r"shift must be \[8\]"),
        (dict(x=X.double()), "x must be float32 or bfloat16"),
        (dict(x=torch.tensor(1.0)), "takes x"),
        (dict(x=None), "x must be a tensor, not None"),
        (dict(x=X.t()), "contiguous"),
        (dict(x=X, mode="twice"), "unknown mode 'twice'"),
        (dict(x=X, out=torch.empty(6, 9)), r"out must be \[6, 8\]"),
        (dict(x=X, out=torch.empty(8).expand(6, 8)), "out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_raise_the_same_error_before_anything_runs_on_both_ways(toy, call, words):
    toy(X, SHIFT), toy(X, out=torch.empty_like(X))
    before = dict(counts)
    below = torch.ops.kernelmux_toy.toy_scale.out if "out" in call else dispatched
    for way in (toy, toy, below):
        with pytest.raises(BadShape, match=words):
            way(**call)
    assert {name: counts[name] for name in ("bind", "call")} == {name: before[name] for name in ("bind", "call")}


@pytest.mark.parametrize(
    "bad", [dict(x=[1.0]), dict(x=X, shift="no"), dict(x=X, by="two"), dict(x=X, by=None), dict(x=X, times=1.5)]
)
def test_what_is_no_such_argument_is_refused_as_torch_refuses_it(toy, bad):
    with pytest.raises((RuntimeError, TypeError)) as error:
        toy(**bad)
    with pytest.raises(type(error.value)):
        dispatched(**bad)


def test_a_whole_number_is_a_float_where_one_is_asked_for(toy):
    torch.testing.assert_close(toy(X, by=2), X * 2)


def test_a_gradient_is_refused_and_nothing_is_recorded_under_no_grad(toy):
    x = X.clone().requires_grad_()
    with torch.no_grad():
        want = toy(x, by=2.0)
    assert not want.requires_grad
    for way in (toy, dispatched):
        with pytest.raises(
            UsageError, match=r"toy_scale has no gradient.*x requires grad\. Call it under torch\.no_grad"
        ):
            way(x, by=2.0)
    with torch.inference_mode():
        torch.testing.assert_close(toy(x, by=2.0), want)


def test_parameters_are_tensors_and_subclasses_go_through_the_dispatcher(toy):
    class Own(torch.Tensor):
        pass

    frozen_weight = torch.nn.Parameter(SHIFT, requires_grad=False)
    torch.testing.assert_close(toy(X, frozen_weight), reference(X, SHIFT))
    assert isinstance(toy(X.as_subclass(Own), SHIFT), Own)


def test_a_scalar_tensor_is_left_to_the_dispatcher(toy):
    torch.testing.assert_close(toy(X, by=torch.tensor(2.0)), X * 2)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 4), width=st.sampled_from([1, 4, 8]), pad=st.integers(0, 3), with_shift=st.booleans(),
    by=st.sampled_from([1, 1.0, -0.5]), mode=st.sampled_from(["add", "subtract", "wrong"]), into=st.booleans(),
    half=st.booleans(), inference=st.booleans(),
)  # fmt: skip
def test_both_ways_give_the_same_result_or_the_same_error(
    rows, width, pad, with_shift, by, mode, into, half, inference
):
    dtype = torch.bfloat16 if half else torch.float32
    with world() as toy, torch.inference_mode(inference):
        x = torch.randn(rows, width + pad).to(dtype)[:, :width]
        shift = torch.randn(width) if with_shift else None
        answers = []
        for way in (toy, torch.ops.kernelmux_toy.toy_scale, toy):
            out = torch.full((rows, width), 9.0, dtype=dtype)
            options: dict[str, Any] = {"mode": mode, **({"out": out} if into else {})}
            target = way.out if into and way is not toy else way
            try:
                result = target(x, shift, by, **options)
                answers.append(out if into else result)
            except BadShape as error:
                answers.append(str(error))
        first, *others = answers
        for other in others:
            assert first == other if isinstance(first, str) else torch.equal(first, other)


def test_threads_share_the_launches(toy):
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(200):
                x = torch.full((1 + (seed + i) % 5, 8), float(i))
                assert torch.equal(toy(x, by=2.0, out=torch.empty_like(x)), x * 2)
                if i % 50 == seed:
                    epoch.bump()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.parametrize("make", [guards._native, guards._portable])
def test_both_guards_tell_apart_what_a_launch_depends_on(make):
    assert guards.works(make)


def test_calls_work_with_the_portable_guard(toy, monkeypatch):
    monkeypatch.setattr(guards, "_make", guards._portable)
    for _ in range(2):
        torch.testing.assert_close(toy(X, SHIFT, out=torch.empty_like(X)), reference(X, SHIFT))
    assert counts["bind"] == 1


def test_a_call_runs_on_the_gpu_of_its_tensors(monkeypatch):
    from kernelmux.ops import calls

    entered: list[int] = []

    class Device:
        def __init__(self, index: int):
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    here, there = (calls._on_device(lambda *t: t, torch.device("cuda", index)) for index in (0, 1))
    assert here(1) == (1,) and entered == []
    assert there(1) == (1,) and entered == [1]
    plain = lambda *t: t  # noqa: E731
    assert calls._on_device(plain, torch.device("cpu")) is plain
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert calls._on_device(plain, torch.device("cuda", 0)) is plain
