"""The plain MoE kernels on a live GPU: numbers of every scheme, compilation ahead, the live bench.

``KERNELMUX_VLLM_PATH`` and ``KERNELMUX_SGLANG_PATH`` name unpacked packages: then the engines' own kernels run too.
"""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from kernelmux.backends.triton.moe_variant import MoeVariant  # noqa: E402
from kernelmux.contracts.fused_moe_math import routing  # noqa: E402
from kernelmux.contracts.moe_quant import SCHEMES, MoeQuant  # noqa: E402
from kernelmux.contracts.moe_quant_math import (  # noqa: E402
    dequantize_activations,
    quantize_activations,
    storage,
)
from kernelmux.contracts.moe_shape import MoeShape  # noqa: E402
from kernelmux.device import detect  # noqa: E402
from kernelmux.measure.live import LiveBench  # noqa: E402
from kernelmux.measure.plain_subject import PlainSubject  # noqa: E402
from kernelmux.tuning_configs.tile import Tile  # noqa: E402

pytestmark = pytest.mark.gpu

PATHS = {"vllm": os.environ.get("KERNELMUX_VLLM_PATH"), "sglang": os.environ.get("KERNELMUX_SGLANG_PATH")}
TILES = [
    Tile(16, 64, 128, 1, 4, 3),
    Tile(32, 32, 64, 1, 4, 4),
    Tile(64, 128, 64, 8, 4, 3),
    Tile(128, 128, 128, 16, 8, 3),
]


def variants():
    for structure, path in PATHS.items():
        for name in SCHEMES:
            yield MoeVariant(structure, MoeQuant.of(name))
            if path:
                yield MoeVariant(structure, MoeQuant.of(name), path)


def subject_of(variant, shape):
    device = detect(0)
    if variant.quant.fp8 and device.capability < (8, 9):
        pytest.skip("no e4m3 on this GPU")
    return PlainSubject(shape, variant, device, torch.device("cuda", 0))


@pytest.mark.parametrize("tokens", [1, 7, 33, 600, 3000])
@pytest.mark.parametrize("variant", list(variants()), ids=MoeVariant.brief)
def test_every_scheme_is_right_at_every_tile(variant, tokens):
    shape = MoeShape(24, 256, 384, 3) if variant.quant.block_shape else MoeShape(24, 200, 336, 3)
    subject = subject_of(variant, shape)
    route = routing(tokens, shape.E, shape.topk, seed=tokens, device="cuda", skew=1.0, idle=True)
    limit = variant.quant.tolerance("bfloat16").rtol
    errors = {}
    for tile in TILES:
        pairs = [(tile, tile)]
        down = Tile(tile.block_m, 64, 64, 1, 4, 3, True)
        if variant.structure == "sglang" and variant.refusal(shape, "down", down, subject.capability) is None:
            pairs.append((tile, down))
        for up, down in pairs:
            errors[f"{up.short()} / {down.short()}"] = subject.error(tokens, route, up, down)
    print(f"\n{variant.brief()} M={tokens}: worst {max(errors.values()):.2e}, allowed {limit:g}")
    assert max(errors.values()) <= limit, errors


def test_few_pairs_unsorted_keep_their_block():
    variant, shape = MoeVariant("vllm", MoeQuant.of("int8_w8a16")), MoeShape(64, 128, 256, 4)
    assert variant.direct(shape, 3)
    subject = subject_of(variant, shape)
    for tile in TILES:
        assert subject.error(3, routing(3, 64, 4, seed=1, device="cuda"), tile, tile) <= 1e-2


@pytest.mark.parametrize("name", ["fp8_tensor", "fp8_channel", "fp8_block", "int8_w8a8"])
def test_rows_are_quantized_as_the_reference_says(name):
    from kernelmux.backends.triton import plain_launch

    quant = MoeQuant.of(name)
    if quant.fp8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no e4m3 on this GPU")
    x = torch.randn(300, 1024, device="cuda").bfloat16() * torch.rand(300, 1, device="cuda").bfloat16()
    stored, scale = plain_launch.quantize(x, quant)
    want, want_scale = quantize_activations(x, quant)
    assert stored.dtype == storage(quant)
    torch.testing.assert_close(scale, want_scale, rtol=1e-6, atol=0)
    assert (stored.float() == want.float()).float().mean() > 0.999  # divisions by a scale differ in the last bit
    torch.testing.assert_close(
        dequantize_activations(stored, scale, quant),
        dequantize_activations(want, want_scale, quant),
        rtol=0.13,
        atol=0.05,
    )


AHEAD = """
import json, sys
from kernelmux.backends.triton.moe_compile import compile_tile
from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.tuning_configs.tile import Tile
shape, tile = MoeShape(64, 128, 256, 4), Tile(32, 64, 64, 1, 4, 3)
for entry in json.loads(sys.argv[1]):
    variant = MoeVariant.from_json(entry)
    for side in ("up", "down"):
        compile_tile(shape, side, tile, Capability(*json.loads(sys.argv[2])), variant=variant)
        if variant.direct(shape, 3):
            compile_tile(shape, side, tile, Capability(*json.loads(sys.argv[2])), True, variant)
"""
THEN = """
import json, sys, torch, triton
from kernelmux.backends.triton.moe_variant import MoeVariant
from kernelmux.contracts.fused_moe_math import routing
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import detect
from kernelmux.measure.plain_subject import PlainSubject
from kernelmux.tuning_configs.tile import Tile
missed = []
triton.knobs.compilation.listener = lambda *, src, cache_hit, **rest: cache_hit or missed.append(src.name)
shape, tile = MoeShape(64, 128, 256, 4), Tile(32, 64, 64, 1, 4, 3)
for entry in json.loads(sys.argv[1]):
    subject = PlainSubject(shape, MoeVariant.from_json(entry), detect(0), torch.device("cuda", 0))
    for m in (3, 17, 40, 64):
        subject.begin(m, [routing(m, 64, 4, seed=m, device="cuda")])
        for side in ("up", "down"):
            subject.runner(side, tile)(0)
torch.cuda.synchronize()
print(json.dumps(sorted(set(missed))))
"""


def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    capability = torch.cuda.get_device_capability()
    entries = [v.to_json() for v in variants() if not v.quant.fp8 or capability >= (8, 9)]
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton"), "KERNELMUX_CACHE_DIR": str(tmp_path / "km")}
    asked = [json.dumps(entries), json.dumps(list(capability))]
    subprocess.run([sys.executable, "-c", AHEAD, *asked], check=True, env=env)
    done = subprocess.run([sys.executable, "-c", THEN, *asked], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    missed = json.loads(done.stdout.strip().splitlines()[-1])
    assert not {"plain_gemm", "fused_moe_kernel"} & set(missed)
    assert missed  # the sort was compiled there: the listener does listen


@pytest.mark.parametrize(
    "variant", [v for v in variants() if v.quant.scheme in ("none", "fp8_block")], ids=MoeVariant.brief
)
def test_the_live_bench_times_and_checks_a_variant(variant):
    device = detect(0)
    if variant.quant.fp8 and device.capability < (8, 9):
        pytest.skip("no e4m3 on this GPU")
    bench = LiveBench(MoeShape(16, 128, 256, 2), device, variant=variant)
    try:
        assert bench.fingerprint()["kernel"] == variant.source_hash()
        assert bench.fingerprint()["kernel_name"] == variant.kernel_name
        tiles = TILES[:2]
        for m in (1, 40):
            for side in ("up", "down"):
                found = bench.time(m, side, tiles, 5)
                assert all(t.ok and len(t.samples_us) == 5 and min(t.samples_us) > 0.5 for t in found)
            assert all(check.ok for check in bench.check(m, [(tile, tile) for tile in tiles]))
        assert bench.align(40, [16, 64]).keys() == {16, 64}
        if variant.structure == "sglang" and variant.quant.block_shape:
            wide = bench.time(40, "up", [Tile(16, 64, 256)], 2)[0]
            assert wide.status == "error" and "clamp" in wide.reason
        assert bench.restarts == 0
    finally:
        bench.close()
