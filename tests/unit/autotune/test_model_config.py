from __future__ import annotations

import json

import pytest

from kernelmux.autotune.model_config import moe_shape_of
from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import ConfigFileError, UsageError

QWEN = {"num_experts": 128, "moe_intermediate_size": 768, "intermediate_size": 6144, "hidden_size": 2048,
        "num_experts_per_tok": 8, "hidden_act": "silu", "torch_dtype": "bfloat16"}  # fmt: skip
MIXTRAL = {"num_local_experts": 8, "intermediate_size": 14336, "hidden_size": 4096, "num_experts_per_tok": 2,
           "hidden_act": "silu", "torch_dtype": "bfloat16"}  # fmt: skip
NEMOTRON = {"n_routed_experts": 128, "moe_intermediate_size": 1856, "hidden_size": 2688, "num_experts_per_tok": 6,
            "mlp_hidden_act": "relu2", "dtype": "float16"}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


@pytest.mark.parametrize(
    "config, tp, shape",
    [
        (QWEN, 2, MoeShape(128, 384, 2048, 8)),
        (MIXTRAL, 2, MoeShape(8, 7168, 4096, 2)),
        (NEMOTRON, 1, MoeShape(128, 1856, 2688, 6, "relu2", "float16")),
        ({"text_config": QWEN, "torch_dtype": "float16"}, 1, MoeShape(128, 768, 2048, 8)),
        ({"text_config": {k: v for k, v in QWEN.items() if k != "torch_dtype"}, "torch_dtype": "float16"}, 1,
         MoeShape(128, 768, 2048, 8, dtype="float16")),
        ({**QWEN, "hidden_act": "gelu_pytorch_tanh"}, 1, MoeShape(128, 768, 2048, 8, "gelu_tanh")),
    ],
)  # fmt: skip
def test_the_shape_of_known_models_is_read(write, config, tp, shape):
    assert moe_shape_of(write(config), tp=tp) == shape


@pytest.mark.parametrize(
    "config, words",
    [
        ({k: v for k, v in QWEN.items() if k != "num_experts"}, "num_experts, num_local_experts, n_routed_experts"),
        ({k: v for k, v in QWEN.items() if k != "num_experts_per_tok"}, "num_experts_per_tok"),
        ({k: v for k, v in QWEN.items() if k != "hidden_size"}, "no hidden_size"),
        ({**QWEN, "hidden_size": "2048"}, "hidden_size: '2048'"),
        ({**QWEN, "hidden_act": "mish"}, "hidden_act: 'mish'"),
        ([], "not a JSON object"),
        ('{"num_experts": ', "not JSON"),
    ],
)
def test_what_is_missing_or_off_is_named(write, config, words):
    with pytest.raises(ConfigFileError, match=words):
        moe_shape_of(write(config))


def test_a_tp_that_does_not_divide_is_a_usage_error(write):
    with pytest.raises(UsageError, match="--tp 5"):
        moe_shape_of(write(QWEN), tp=5)


def test_a_quantized_model_needs_the_users_word(write):
    path = write({**QWEN, "quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UsageError, match="fp8"):
        moe_shape_of(path)
    assert moe_shape_of(path, quant="none").E == 128


def test_no_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        moe_shape_of(tmp_path / "none.json")
