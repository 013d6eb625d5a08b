"""What a stand times and checks, interpreted on the CPU: buffers, routings and pipeline fit together."""

import pytest
import torch

from kernelmux.backends.triton import plain_launch
from kernelmux.backends.triton.moe_variant import FUSED, MoeVariant
from kernelmux.contracts.fused_moe_math import routing
from kernelmux.contracts.moe_quant import SCHEMES, MoeQuant
from kernelmux.contracts.moe_quant_math import quantize_activations
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import catalog
from kernelmux.errors import UsageError
from kernelmux.measure.fused_subject import FusedSubject
from kernelmux.measure.plain_subject import PlainSubject
from kernelmux.tuning_configs.tile import Tile

SHAPE = MoeShape(6, 32, 64, 2, dtype="float16")
TILE, TMA = Tile(16, 32, 32, 1, 4, 2), Tile(16, 32, 32, 1, 4, 2, True)
CPU, H100 = torch.device("cpu"), catalog()["h100-sxm"]


@pytest.fixture(autouse=True)
def fp8_quantized_by_torch(monkeypatch):
    """As in test_plain_moe_kernels: the interpreter's conversion to e4m3 is wrong."""
    ours = plain_launch.quantize
    monkeypatch.setattr(
        plain_launch, "quantize", lambda x, q, given=None: (quantize_activations if q.fp8 else ours)(x, q, given)
    )


def subject_of(variant, shape=SHAPE):
    return FusedSubject(shape, CPU) if variant == FUSED else PlainSubject(shape, variant, H100, CPU)


def routes(m, shape=SHAPE, count=2):
    return [routing(m, shape.E, shape.topk, seed=r, device="cpu", skew=1.0) for r in range(count)]


VARIANTS = [FUSED, *(MoeVariant(s, MoeQuant.of(name, (32, 32))) for s in ("vllm", "sglang") for name in SCHEMES)]


@pytest.mark.parametrize("variant", VARIANTS, ids=MoeVariant.brief)
def test_a_subject_runs_both_sides_and_its_pipeline_is_right(variant):
    subject = subject_of(variant)
    for copies in subject.weights:
        copies.append(copies[0].clone())
    subject.begin(9, routes(9))
    tiles = {"up": TILE, "down": TILE}
    if variant.structure == "sglang" and variant.refusal(SHAPE, "down", TMA, H100.capability) is None:
        tiles["down"] = TMA
    for side, tile in tiles.items():
        call = subject.runner(side, tile)
        call(0)
        call(1)
    subject.sorter(16)(1)
    limit = variant.quant.tolerance("float16").rtol
    assert subject.error(9, routes(9)[0], tiles["up"], tiles["down"]) <= limit


@pytest.mark.parametrize("structure", ["vllm", "sglang"])
def test_few_pairs_go_unsorted_in_vllm_only(structure):
    shape = MoeShape(32, 32, 64, 2, dtype="float16")
    subject = subject_of(MoeVariant(structure), shape)
    subject.begin(2, routes(2, shape))
    assert (subject.sorter(16) is None) == (structure == "vllm")
    subject.runner("up", TILE)(0)
    assert subject.error(2, routes(2, shape)[0], TILE, TILE) <= 1.5e-3


def test_a_wrong_scale_shows():
    subject = subject_of(MoeVariant("vllm", MoeQuant.of("fp8_block", (32, 32))))
    subject.begin(9, routes(9))
    assert subject.error(9, routes(9)[0], TILE, TILE) <= 4e-2
    subject.w1_scale = subject.w1_scale.flip(2)
    assert subject.error(9, routes(9)[0], TILE, TILE) > 0.2


def test_tiles_and_shapes_that_cannot_run_are_named():
    fp8 = MoeQuant.of("fp8_block")
    with pytest.raises(UsageError, match="multiples of the scale block"):
        subject_of(MoeVariant("sglang", fp8))
    subject = subject_of(MoeVariant("sglang", fp8), MoeShape(6, 128, 128, 2, dtype="float16"))
    subject.begin(9, routes(9))
    with pytest.raises(UsageError, match="does not clamp"):
        subject.runner("up", Tile(16, 32, 256))
