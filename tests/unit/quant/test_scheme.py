from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kernelmux
from kernelmux.errors import UnknownScheme, UsageError
from kernelmux.quant import SCHEMES, Scheme


def tensors(kind: str, bits: int, strategy: str, inputs: bool = True, **more: Any) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": strategy, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": bits} if inputs else None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


CONFIGS: list[tuple[Any, str]] = [
    (None, "none"),
    ({}, "none"),
    ({"model_type": "llama"}, "none"),
    ({"model_type": "llama", "quantization_config": None}, "none"),
    ({"model_type": "qwen3_moe", "quantization_config": {"quant_method": "fp8"}}, "fp8_tensor"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, "int4_w4a16"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "int4_w4a16"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8_w8a16"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8_tensor"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "nvfp4"),
    ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
    ({"quantization": {"quant_algo": "W4A16_NVFP4"}}, "nvfp4_w4a16"),
    ({"quantization": {"quant_algo": None}}, "none"),
    (tensors("float", 8, "tensor"), "fp8_tensor"),
    (tensors("float", 8, "channel"), "fp8_channel"),
    (tensors("float", 8, "block", block_structure=[128, 128]), "fp8_block"),
    (tensors("int", 8, "channel"), "int8_w8a8"),
    (tensors("int", 8, "channel", inputs=False), "int8_w8a16"),
    (tensors("int", 4, "group", inputs=False, group_size=32), "int4_w4a16"),
    (tensors("float", 4, "tensor_group", group_size=16), "nvfp4"),
    (tensors("float", 4, "tensor_group", inputs=False, group_size=16), "nvfp4_w4a16"),
    (tensors("float", 4, "group", inputs=False, group_size=32), "mxfp4"),
]


@pytest.mark.parametrize(("config", "name"), CONFIGS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_quantization_config_is_read(config: Any, name: str) -> None:
    assert Scheme.of(config).name == name


def test_groups_blocks_and_packing_are_kept() -> None:
    assert Scheme.of(CONFIGS[5][0]).block == (128, 128)
    awq = Scheme.of(CONFIGS[6][0])
    assert (awq.group, awq.zero_point, awq.packing) == (64, True, "awq")
    assert Scheme.of(CONFIGS[8][0]).group is None
    assert Scheme.of(tensors("int", 4, "group", inputs=False, group_size=32)).group == 32


def test_a_config_object_of_transformers_is_read() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": "fp8"}

    assert Scheme.of(Config()).name == "fp8_tensor"


@pytest.mark.parametrize("name", SCHEMES)
def test_every_name_gives_one_and_the_same_scheme(name: str) -> None:
    assert Scheme.of(name) is Scheme.of(name)
    assert Scheme.of(Scheme.of(name)) is Scheme.of(name)
    assert str(Scheme.of(name)) == name


@pytest.mark.parametrize(
    ("quant", "error", "words"),
    [
        ("fp9", UnknownScheme, "unknown quant 'fp9'"),
        ("nvfp", UnknownScheme, "Did you mean nvfp4"),
        ({"quant_method": "quark"}, UnknownScheme, "unknown quant 'quark'"),
        ({"quant_method": "gptq", "bits": 3}, UnknownScheme, "gptq with 3 bits"),
        ({"quantization": {"quant_algo": "MIXED_PRECISION"}}, UsageError, "layers differ"),
        ({"quantization": {"quant_algo": "INT3"}}, UnknownScheme, "INT3"),
        ({"bits": 4}, UsageError, "no quant_method"),
        ({"quantization_config": [1]}, UsageError, "must be an object"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, UsageError, "weight_block_size"),
        (tensors("float", 6, "channel"), UnknownScheme, "float6"),
        (tensors("float", 8, "channel", inputs=False), UnknownScheme, "activations not quantized"),
        (4, UsageError, "not int"),
    ],
)
def test_what_cannot_be_read_is_named(quant: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Scheme.of(quant)


def test_groups_that_differ_are_refused() -> None:
    config = tensors("float", 8, "tensor")
    config["config_groups"]["group_1"] = tensors("int", 4, "group", inputs=False)["config_groups"]["group_0"]
    with pytest.raises(UsageError, match="fp8_tensor and int4_w4a16"):
        Scheme.of(config)


def test_equal_schemes_hash_alike_also_after_a_copy() -> None:
    one = Scheme.of({"quant_method": "awq", "bits": 4, "group_size": 64})
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one
        assert hash(other) == hash(one)


def test_a_scheme_sent_to_another_process_is_found_in_its_dictionaries() -> None:
    data = pickle.dumps(Scheme.of("nvfp4"))
    code = f"import pickle\nfrom kernelmux import Scheme\nprint(pickle.loads({data!r}) in {{Scheme.of('nvfp4'): 1}})"
    root = str(Path(kernelmux.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "True"
