"""Scheme: how one layer is quantized.

The names are the ones of every output; the fields carry what a kernel may require (group, block, packing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelmux.errors import UnknownScheme, UsageError


@dataclass(frozen=True, slots=True)
class Scheme:
    """Quantization of one layer. ``none`` means the weights are in the activation dtype.

    ``weight`` is the element type of the stored weights (``native``, ``fp8``, ``int8``, ``int4``, ``fp4``) and
    ``activation_bits`` what the GEMM reads (16 where only the weights are quantized). ``group`` counts elements
    along K that share a scale; ``block`` is the [N, K] block of ``fp8_block``. ``packing`` names the checkpoint
    format where it matters (``awq``, ``gptq``, ``compressed-tensors``, ``modelopt``).
    """

    name: str
    weight: str = "native"
    weight_bits: int = 16
    activation_bits: int = 16
    group: int | None = None
    block: tuple[int, int] | None = None
    zero_point: bool = False
    packing: str | None = None
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        values = (self.name, self.weight, self.weight_bits, self.activation_bits)
        more = (self.group, self.block, self.zero_point, self.packing)
        object.__setattr__(self, "_hash", hash(values + more))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuilt from its fields: the kept hash belongs to one process (strings hash differently in another)."""
        fields = (self.name, self.weight, self.weight_bits, self.activation_bits)
        return (Scheme, (*fields, self.group, self.block, self.zero_point, self.packing))

    @classmethod
    def of(cls, quant: object) -> Scheme:
        """Read a Scheme from None, a name, a Scheme, or a model's quantization config (a mapping).

        A mapping may be the ``quantization_config`` of a Hugging Face ``config.json``, the whole ``config.json``,
        or ModelOpt's ``hf_quant_config.json``; skip lists are not looked at (``layer_scheme`` does that). Raises
        UnknownScheme for a name or method nobody knows, UsageError for a config whose layers differ.
        """
        if quant is None:
            return _BY_NAME["none"]
        if isinstance(quant, cls):
            return quant
        if isinstance(quant, str):
            name = _ALIASES.get(quant, quant)
            if name in _BY_NAME:
                return _BY_NAME[name]
            raise UnknownScheme(quant, SCHEMES)
        if isinstance(quant, Mapping):
            return _of_config(quant)
        to_dict = getattr(quant, "to_dict", None)  # transformers' quantization config objects
        if callable(to_dict):
            return _of_config(to_dict())
        raise UsageError(
            f"quant must be None, a scheme name, a Scheme or a model's quantization config, not {type(quant).__name__}."
        )


_BY_NAME: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("none"),
        Scheme("fp8_tensor", "fp8", 8, 8),
        Scheme("fp8_channel", "fp8", 8, 8),
        Scheme("fp8_block", "fp8", 8, 8, block=(128, 128)),
        Scheme("int8_w8a8", "int8", 8, 8),
        Scheme("int8_w8a16", "int8", 8, 16),
        Scheme("int4_w4a16", "int4", 4, 16, group=128),
        Scheme("nvfp4", "fp4", 4, 4, group=16),
        Scheme("nvfp4_w4a16", "fp4", 4, 16, group=16),
        Scheme("mxfp4", "fp4", 4, 16, group=32),
    )
}
SCHEMES: tuple[str, ...] = tuple(_BY_NAME)
_ALIASES = {"unquantized": "none", "modelopt_fp4": "nvfp4", "awq": "int4_w4a16", "gptq": "int4_w4a16"}


def _of_config(config: Mapping[str, Any]) -> Scheme:
    from kernelmux.quant.layers import LayerSchemes

    return LayerSchemes.read(config).only()
