"""Inputs, contestants and the check of small ops, on the CPU with torch's kernels."""

import pytest

torch = pytest.importorskip("torch")

from kernelmux.device import resolve_device  # noqa: E402
from kernelmux.errors import UsageError  # noqa: E402
from kernelmux.measure import small_check, small_contestants, small_point  # noqa: E402
from kernelmux.registry.discovery import registry  # noqa: E402

KNOWN, CPU = registry(), resolve_device("cpu")
OPS = small_point.small_ops(KNOWN.ops())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_torch_is_right_and_what_was_not_written_is_wrong(op, dtype):
    point = small_point.Point(op.name, 5, 256, dtype)
    sets = small_point.draw(op, point, 2, "cpu")
    assert all(out.shape[:-1] == (5,) for out in sets[0].outs) and sum(small_point.bytes_moved(sets[0])) > 0
    want = small_check.reference(op, sets[0].given)
    contestants, refused = small_contestants.kernels(op, point, CPU, KNOWN.kernels(op.name))
    assert contestants and not {c.name for c in contestants} & refused.keys()
    for contestant in contestants:
        if contestant.backend != "torch":
            continue
        sets[0].poison()
        assert not small_check.judge(op, dtype, sets[0].outs, want).ok
        result = contestant.build(sets)(0)
        got = result if isinstance(result, tuple) else (result,)
        verdict = small_check.judge(op, dtype, got, want)
        assert verdict.ok and verdict.worst < 1, verdict
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(got, sets[0].outs, strict=True))


def test_a_given_scale_becomes_a_tensor_and_scales_the_values():
    op = KNOWN.op("rms_norm_fp8")
    inputs = small_point.draw(op, small_point.Point(op.name, 3, 64, options={"scale": 0.02}), 1, "cpu")[0]
    assert inputs.given["scale"].shape == (1,) and inputs.outs[1].shape == (1,)


def test_wrong_values_and_wrong_shapes_are_said():
    op = KNOWN.op("rms_norm")
    point = small_point.Point(op.name, 4, 64)
    inputs = small_point.draw(op, point, 1, "cpu")[0]
    want = small_check.reference(op, inputs.given)
    assert small_check.judge(op, "bfloat16", (want[0].bfloat16(),), want).ok
    assert "times the error allowed" in small_check.judge(op, "bfloat16", (want[0].bfloat16() * 1.1,), want).reason
    assert "not [4, 64]" in small_check.judge(op, "bfloat16", (want[0][:2].bfloat16(),), want).reason


def test_ops_of_other_axes_are_refused_by_name():
    with pytest.raises(UsageError, match="only ops of M and H"):
        small_point.check_op(KNOWN.op("fused_moe"), KNOWN.ops())
    assert {"rms_norm", "silu_and_mul", "relu2"} <= {op.name for op in OPS}


@pytest.mark.parametrize("reads", [1, 2])
def test_the_ceiling_in_triton_compiles_and_moves_16_bytes_at_a_time(reads):
    pytest.importorskip("triton", reason="Triton compiles")
    from kernelmux.backends.triton.small_compile import compile_launch
    from kernelmux.backends.triton.small_launch import Launch
    from kernelmux.device import Capability
    from kernelmux.measure.small_copy_kernels import stream_kernel

    launch = Launch(stream_kernel, (0, 1), (), (1 << 20,), {"READS": reads, "BLOCK": 2048}, 512, 8, 3, False)
    code = compile_launch(launch, ["int32", "int32"], Capability.parse("9.0")).asm["ptx"]
    assert code.count("ld.global.v4") == 2 * reads
    assert code.count("st.global.v4") == 2
