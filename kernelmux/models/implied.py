"""What a model's class does that its ``config.json`` does not write, by ``model_type``: data in the words of fields.

A family that is not here is read like Llama, and the plan says so. Source of each: the family's modelling code in
transformers (``models/<model_type>/modeling_*.py``) and in vLLM (``model_executor/models/``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QK_NORM = {"use_qk_norm": True}
_DEEPSEEK: Mapping[str, Any] = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}
_BLOCK_SPARSE: Mapping[str, Any] = {"moe_module": "block_sparse_moe", "norm_topk_prob": True}

# Fields of our own making: moe_module and router (module names that skip lists use), root (of the module paths),
# rms_norm (the norm, where the field of its epsilon does not say).
IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": _QK_NORM,
    "qwen2_moe": {},
    "qwen3_moe": _QK_NORM,
    "qwen3_next": _QK_NORM,
    "qwen3_5_text": _QK_NORM,
    "qwen3_5_moe_text": _QK_NORM,
    "qwen3_vl_text": _QK_NORM,
    "qwen3_vl_moe_text": _QK_NORM,
    "mixtral": _BLOCK_SPARSE,
    "deepseek_v2": {"norm_topk_prob": False},
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK,
    "glm4_moe": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "minimax_m2": _BLOCK_SPARSE,
    "nemotron_h": {
        "root": "backbone", "rms_norm": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    },
    "gpt_oss": {"router": "router", "norm_topk_prob": True, "rms_norm": True},
}  # fmt: skip
