"""How layers are quantized: the Scheme of one layer, and reading it from a model's own files.

``Scheme.of`` reads what is the same for a whole model; ``layer_scheme`` reads one layer, skip lists and per-layer
entries included. Their readers are imported when a config is read: naming a scheme costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kernelmux.quant.scheme import SCHEMES, Scheme

if TYPE_CHECKING:
    from kernelmux.quant.layers import LayerSchemes

__all__ = ["SCHEMES", "Scheme", "layer_scheme", "layer_schemes"]


def layer_scheme(config: Mapping[str, Any] | None, layer: str) -> Scheme:
    """The Scheme of one layer, by its module path, as in ``model.layers.3.self_attn.qkv_proj``.

    ``config``: a Hugging Face ``config.json``, its ``quantization_config``, or ModelOpt's ``hf_quant_config.json``.
    A fused module (``qkv_proj``, ``gate_up_proj``, ``experts``) has the scheme of its parts. Raises UsageError naming
    the key that is off, or the parts of a fused module that differ; UnknownScheme for a format nobody knows.
    """
    return layer_schemes(config).of(layer)


def layer_schemes(config: Mapping[str, Any] | None) -> LayerSchemes:
    """``layer_scheme`` for many layers of one model: the config is read once."""
    from kernelmux.quant.layers import LayerSchemes

    return LayerSchemes.read(config)
