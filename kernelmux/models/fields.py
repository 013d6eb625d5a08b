"""ModelConfig: the fields of a Hugging Face ``config.json``, under whatever name and however deep they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelmux.contracts.moe_shape import ACTIVATIONS, ELEMENT_BYTES
from kernelmux.errors import ConfigFileError, UsageError
from kernelmux.models.implied import IMPLIED

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
INTERMEDIATE = ("moe_intermediate_size", "intermediate_size")
HIDDEN = ("hidden_size",)
TOPK = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
ACTIVATION = ("mlp_hidden_act", "hidden_act", "hidden_activation")
DTYPE = ("torch_dtype", "dtype")
LATENT = ("moe_latent_size",)
QUANTIZATION = ("quantization_config", "compression_config")
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


class ModelConfig:
    """A config's language model. Fields of the class that the file leaves out come from ``IMPLIED`` by model_type."""

    def __init__(self, raw: Mapping[str, Any], path: Path | str = "config.json"):
        if not isinstance(raw, Mapping):
            raise ConfigFileError(path, "", "not a JSON object.", "Name a model's config.json.")
        self.path = path
        self.top = raw
        self.raw = _language(raw)
        self.family = str(self.raw.get("model_type") or "")
        self.implied = IMPLIED.get(self.family, {})

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """From a file, or the folder of a checkpoint; ModelOpt's ``hf_quant_config.json`` beside it is read too."""
        if path.is_dir():
            path = path / "config.json"
        raw = _json(path)
        beside = path.with_name("hf_quant_config.json")
        if isinstance(raw, dict) and not any(raw.get(key) for key in QUANTIZATION) and beside.is_file():
            raw = {**raw, "quantization_config": _json(beside)}
        return cls(raw, path)

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The quantization config, of the file or of the language model in it."""
        for place in (self.top, self.raw):
            for key in QUANTIZATION:
                if place.get(key):
                    return {"quantization_config": place[key]}
        return None

    def get(self, key: str, default: Any = None) -> Any:
        """A field as it stands, else what its class implies."""
        found = self.raw.get(key)
        return self.implied.get(key, default) if found is None else found

    def has(self, keys: Sequence[str]) -> bool:
        return any(self.get(key) is not None for key in keys)

    def number(self, keys: Sequence[str], what: str) -> int:
        """The first of these keys that is there; raises ConfigFileError where none is, or it is no whole number."""
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            raise ConfigFileError(
                self.path, key, f"{value!r} is no whole number above 0.", "Correct it, or give --shape."
            )
        names = keys[0] if len(keys) == 1 else f"one of {', '.join(keys)}"
        raise ConfigFileError(self.path, "", f"no {names}, {what}.", _HINTS.get(keys[0], ""))

    def number_or(self, keys: Sequence[str], default: int) -> int:
        """``number``, or the default where none of the keys is there or all are null or 0."""
        return self.number(keys, "") if any(self.get(key) not in (None, 0) for key in keys) else default

    def word(self, keys: Sequence[str], words: Mapping[str, str], default: str) -> str:
        """A field in kernelmux's own word for it; raises ConfigFileError for one it has no word for."""
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if isinstance(value, str) and value.removeprefix("torch.").lower() in words:
                return words[value.removeprefix("torch.").lower()]
            known = ", ".join(sorted(set(words.values())))
            raise ConfigFileError(
                self.path, key, f"{value!r} is none of {known}.", "`kernelmux tune` takes --activation and --dtype."
            )
        return default

    @property
    def activation(self) -> str:
        return self.word(ACTIVATION, ACTIVATION_WORDS, "silu")

    @property
    def dtype(self) -> str:
        return self.word(DTYPE, DTYPE_WORDS, "bfloat16")

    @property
    def is_moe(self) -> bool:
        return any(self.get(key) not in (None, 0) for key in EXPERTS)


_NOT_MOE = "Is it a mixture-of-experts model? Else give --shape."
_HINTS = {EXPERTS[0]: _NOT_MOE, TOPK[0]: _NOT_MOE, INTERMEDIATE[0]: _NOT_MOE}


def dtype_word(text: str) -> str:
    """``bf16`` -> ``bfloat16``; raises UsageError for a dtype fused MoE has no tables for."""
    found = DTYPE_WORDS.get(text.removeprefix("torch.").lower())
    if found is None:
        raise UsageError(f"unknown dtype {text!r} for fused MoE. Use one of {', '.join(ELEMENT_BYTES)}.")
    return found


def divided(size: int, parts: int, what: str, path: Path | str) -> int:
    """One rank's share under tensor parallelism; raises UsageError where it is no whole number."""
    if parts < 1 or size % parts:
        raise UsageError(f"--tp {parts} does not divide the {what} {size} of {path}. Choose a divisor.")
    return size // parts


def moe_axes(config: ModelConfig) -> dict[str, int]:
    """E, N (all ranks together), K and topk of the routed experts; K is the latent size where experts have one."""
    experts = config.number(EXPERTS, "the number of experts")
    width = config.number(INTERMEDIATE, "the experts' intermediate size")
    hidden = config.number(HIDDEN, "the hidden size")
    topk = config.number(TOPK, "the experts a token visits")
    return {"E": experts, "N": width, "K": config.number_or(LATENT, hidden), "topk": topk}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}. Name a model's config.json, or give --shape.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Name a model's config.json.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigFileError(path, "", f"not JSON ({error}).", "Download the model's config.json again.") from error


def _language(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: the file itself, or what is nested in it."""
    if any(key in raw for key in EXPERTS) or {"hidden_size", "num_hidden_layers"} <= raw.keys():
        return raw
    for key in NESTED:
        inner = raw.get(key)
        if isinstance(inner, Mapping):
            merged = {k: raw[k] for k in (*DTYPE, "quantization_config", "tie_word_embeddings") if k in raw}
            return _language({**merged, **inner})
    return raw
