"""Read the fused MoE shape of a model from its Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelmux.contracts.moe_shape import ACTIVATIONS, ELEMENT_BYTES, MoeShape
from kernelmux.errors import ConfigFileError, UsageError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
INTERMEDIATE = ("moe_intermediate_size", "intermediate_size")
HIDDEN = ("hidden_size",)
TOPK = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
ACTIVATION = ("mlp_hidden_act", "hidden_act", "hidden_activation")
DTYPE = ("torch_dtype", "dtype")
# Where multimodal configs keep their language model.
NESTED = ("text_config", "llm_config", "language_config")

ACTIVATION_WORDS: Mapping[str, str] = {
    **{name: name for name in ACTIVATIONS},
    "swish": "silu", "swiglu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu_squared": "relu2", "squared_relu": "relu2",
}  # fmt: skip
DTYPE_WORDS: Mapping[str, str] = {
    **{name: name for name in ELEMENT_BYTES}, "bf16": "bfloat16", "fp16": "float16", "half": "float16",
    "fp32": "float32",
}  # fmt: skip


def moe_shape_of(
    path: Path, *, tp: int = 1, activation: str | None = None, dtype: str | None = None, quant: str | None = None
) -> MoeShape:
    """The shape of one rank's experts under tensor parallelism ``tp`` (N is divided).

    ``activation`` and ``dtype`` override the file. Raises ConfigFileError naming the key that is missing or off,
    UsageError for a file that is not there, a ``tp`` that does not divide N, or a quantized model without ``quant``.
    """
    raw = _language(_read(path))
    experts = _number(raw, EXPERTS, path, "the number of experts")
    width = _number(raw, INTERMEDIATE, path, "the experts' intermediate size")
    hidden = _number(raw, HIDDEN, path, "the hidden size")
    topk = _number(raw, TOPK, path, "the experts a token visits")
    if tp < 1 or width % tp:
        raise UsageError(f"--tp {tp} does not divide the intermediate size {width} of {path}. Choose a divisor.")
    quantized = raw.get("quantization_config") or raw.get("compression_config")
    if quantized and quant is None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise UsageError(
            f"{path} is a quantized model (quant_method {method!r}), and only unquantized tables can be tuned. "
            "Add `--quant none` to tune its bf16 form."
        )
    return MoeShape(
        experts, width // tp, hidden, topk,
        activation or _word(raw, ACTIVATION, ACTIVATION_WORDS, path, "silu"),
        dtype or _word(raw, DTYPE, DTYPE_WORDS, path, "bfloat16"),
    )  # fmt: skip


def dtype_word(text: str) -> str:
    """``bf16`` -> ``bfloat16``; raises UsageError for a dtype fused MoE has no tables for."""
    found = DTYPE_WORDS.get(text.removeprefix("torch.").lower())
    if found is None:
        raise UsageError(f"unknown dtype {text!r} for fused MoE. Use one of {', '.join(ELEMENT_BYTES)}.")
    return found


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}. Name a model's config.json, or give --shape.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Name a model's config.json.") from error
    except ValueError as error:
        raise ConfigFileError(path, "", f"not JSON ({error}).", "Download the model's config.json again.") from error
    if not isinstance(raw, dict):
        raise ConfigFileError(path, "", "not a JSON object.", "Name a model's config.json.")
    return raw


def _language(raw: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the experts: the file itself, or the language model nested in it."""
    if any(key in raw for key in EXPERTS):
        return raw
    for key in NESTED:
        inner = raw.get(key)
        if isinstance(inner, dict):
            merged = {k: raw[k] for k in (*DTYPE, "quantization_config") if k in raw}
            return _language({**merged, **inner})
    return raw


def _number(raw: Mapping[str, Any], keys: Sequence[str], path: Path, what: str) -> int:
    for key in keys:
        value = raw.get(key)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise ConfigFileError(path, key, f"{value!r} is no whole number above 0.", "Correct it, or give --shape.")
    names = keys[0] if len(keys) == 1 else f"one of {', '.join(keys)}"
    raise ConfigFileError(path, "", f"no {names}, {what}.", "Is it a mixture-of-experts model? Else give --shape.")


def _word(raw: Mapping[str, Any], keys: Sequence[str], words: Mapping[str, str], path: Path, default: str) -> str:
    for key in keys:
        value = raw.get(key)
        if value is None:
            continue
        if isinstance(value, str) and value.removeprefix("torch.").lower() in words:
            return words[value.removeprefix("torch.").lower()]
        known = ", ".join(sorted(set(words.values())))
        raise ConfigFileError(path, key, f"{value!r} is none of {known}.", "Override it on the command line.")
    return default
