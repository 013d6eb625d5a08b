"""The engines' launch rules, variants, and loading an engine's kernel from its package."""

import pytest

from kernelmux.backends.triton import engine_kernels, plain_rules
from kernelmux.backends.triton.moe_variant import FUSED, MoeVariant
from kernelmux.contracts.moe_quant import SCHEMES, MoeQuant
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.device import Capability
from kernelmux.errors import UsageError
from kernelmux.tuning_configs.tile import Tile

QWEN = MoeShape(128, 384, 2048, 8)
HOPPER = Capability(9, 0)
BLOCK = MoeQuant.of("fp8_block")


@pytest.mark.parametrize("block_m", [16, 64, 256])
@pytest.mark.parametrize("m", [1, 3, 16, 17, 500])
def test_the_grid_covers_every_routing_and_is_the_engines(m, block_m):
    from kernelmux.backends.triton.moe_rules import most_blocks

    pairs = m * QWEN.topk
    for structure in plain_rules.STRUCTURES:
        assert plain_rules.row_blocks(structure, QWEN, m, block_m) >= most_blocks(pairs, QWEN.E, block_m)
    # vLLM: numel + E * (block - 1), with fewer pairs than experts at most numel * block.
    most = pairs + 128 * (block_m - 1)
    assert plain_rules.padded_rows("vllm", 128, pairs, block_m) == (
        most if pairs >= 128 else min(most, pairs * block_m)
    )
    assert plain_rules.row_blocks("vllm", QWEN, m, block_m, direct=True) == pairs


def test_only_vllm_goes_unsorted():
    assert plain_rules.direct("vllm", QWEN, 4) and not plain_rules.direct("vllm", QWEN, 5)
    assert not plain_rules.direct("sglang", QWEN, 1)


def test_operands_swap_for_fp8_on_hopper_with_few_rows_only():
    small = Tile(16, 64, 128)
    assert plain_rules.swaps(BLOCK, small, HOPPER)
    assert not plain_rules.swaps(BLOCK, Tile(64, 64, 128), HOPPER)
    assert not plain_rules.swaps(BLOCK, Tile(16, 32, 128), HOPPER)
    assert not plain_rules.swaps(BLOCK, small, Capability(12, 0))
    assert not plain_rules.swaps(MoeQuant.of("int8_w8a8"), small, HOPPER)


def test_vllm_runs_a_clamped_tile_without_descriptors_and_sglang_the_tile_itself():
    tile = Tile(64, 128, 256, 8, 4, 3, True)
    assert plain_rules.as_run("vllm", BLOCK, tile) == Tile(64, 128, 128, 8, 4, 3)
    assert plain_rules.as_run("sglang", BLOCK, tile) == tile
    assert plain_rules.refusal("vllm", QWEN, BLOCK, "up", Tile(64, 128, 256), HOPPER) is None
    assert "clamp" in plain_rules.refusal("sglang", QWEN, BLOCK, "up", Tile(64, 128, 256), HOPPER)
    assert "e4m3" in plain_rules.refusal("vllm", QWEN, BLOCK, "up", Tile(64, 128, 128), Capability(8, 0))


def test_variants_travel_as_json_and_have_an_identity_each():
    variants = [FUSED, *(MoeVariant(s, MoeQuant.of(name)) for s in plain_rules.STRUCTURES for name in SCHEMES)]
    assert [MoeVariant.from_json(v.to_json()) for v in variants] == variants
    assert len({v.source_hash() for v in variants}) == len(variants)
    assert MoeVariant("vllm").identity() == {
        "variant": "plain", "kernel_name": "kernelmux.plain_moe[triton,vllm]", "quant": "none"
    }  # fmt: skip
    with pytest.raises(UsageError):
        MoeVariant("fused", BLOCK)
    with pytest.raises(UsageError):
        MoeVariant("trtllm")


def package(folder, text, structure="vllm"):
    file = folder / structure / engine_kernels.FILES[structure][0]
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return folder / structure


KERNEL = """
import nothing_that_exists
SIDE_EFFECT = nothing_that_exists.x

@triton.jit
def write_zeros_to_output(c_ptr):
    pass


@triton.jit
def fused_moe_kernel(a_ptr, EM, num_valid_tokens, N{more}):
    write_zeros_to_output(a_ptr)
"""


def test_a_kernel_is_cut_out_of_its_package_without_importing_it(tmp_path):
    path = package(tmp_path, KERNEL.format(more=""))
    (tmp_path / "vllm-0.33.0.dist-info").mkdir()
    text = engine_kernels.source("vllm", str(path))
    assert "nothing_that_exists" not in text and 'do_not_specialize=["EM", "num_valid_tokens"]' in text
    assert engine_kernels.source("vllm", str(tmp_path)) == text  # the folder around it will do
    variant = MoeVariant("vllm", BLOCK, str(path))
    assert variant.kernel_name == "vllm.fused_moe_kernel" and variant.identity()["engine"] == "vllm 0.33.0"
    before = variant.source_hash()
    engine_kernels.source.cache_clear()
    path.joinpath(engine_kernels.FILES["vllm"][0]).write_text(KERNEL.format(more=", extra"))
    assert variant.source_hash() != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def other(): pass", "has no fused_moe_kernel"),
        ("def broken(:", "cannot read"),
        (
            KERNEL.format(more="").replace("@triton.jit\ndef fused", "@triton.autotune([])\n@triton.jit\ndef fused"),
            "decor",
        ),
    ],
)
def test_a_package_without_a_known_kernel_is_named(tmp_path, text, words):
    path = package(tmp_path, text)
    engine_kernels.source.cache_clear()
    with pytest.raises(UsageError, match=words):
        engine_kernels.source("vllm", str(path))


def test_a_folder_without_the_package_says_what_was_looked_for(tmp_path):
    with pytest.raises(UsageError, match=r"holds no sglang package with kernels/ops/moe.*pip download"):
        engine_kernels.source_file("sglang", tmp_path)


def test_a_release_whose_kernel_asks_for_more_is_named(tmp_path):
    pytest.importorskip("triton", reason="the kernel is loaded")
    variant = MoeVariant("vllm", MoeQuant(), str(package(tmp_path, KERNEL.format(more=", novelty"))))
    engine_kernels.source.cache_clear()
    kernel = engine_kernels.load("vllm", variant.engine_path)
    with pytest.raises(UsageError, match="asks for novelty"):
        engine_kernels._fitted(kernel, {"a_ptr": 1, "EM": 1, "num_valid_tokens": 1, "N": 1}, variant)
    values = {"a_ptr": 1, "EM": 1, "num_valid_tokens": 1, "N": 1, "novelty": 1}
    with pytest.raises(UsageError, match="lacks use_fp8_w8a8"):
        engine_kernels._fitted(kernel, values | {"use_fp8_w8a8": True}, variant)
    off = {"use_fp8_w8a8": False, "SWAP_AB": True, "b_bias_ptr": None}  # off, or not done by that release
    assert engine_kernels._fitted(kernel, values | off, variant) == values


def test_arguments_that_are_tensors_are_passed_on_whole(tmp_path):
    torch = pytest.importorskip("torch", reason="tensors have no truth value; stand-ins do")
    pytest.importorskip("triton", reason="the kernel is loaded")
    variant = MoeVariant("vllm", MoeQuant(), str(package(tmp_path, KERNEL.format(more=""))))
    engine_kernels.source.cache_clear()
    kernel = engine_kernels.load("vllm", variant.engine_path)
    values = {"a_ptr": torch.ones(3), "EM": torch.zeros(2), "num_valid_tokens": 1, "N": 1}
    fitted = engine_kernels._fitted(kernel, values, variant)
    assert all(fitted[name] is value for name, value in values.items())
    with pytest.raises(UsageError, match="lacks b_scale_ptr"):
        engine_kernels._fitted(kernel, values | {"b_scale_ptr": torch.zeros(2)}, variant)
