"""Scheme: how one layer is quantized, and reading it from a model's quantization config.

The names are the ones of every output; the fields carry what a kernel may require (group, block, packing).
Per-layer reading (ignored layers, mixed precision, fused modules) is not done here yet: a config that differs from
layer to layer is refused with a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        or ModelOpt's ``hf_quant_config.json``. Raises UnknownScheme for a name or method nobody knows, UsageError
        for a config whose layers differ.
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
            return _from_config(quant)
        to_dict = getattr(quant, "to_dict", None)  # transformers' quantization config objects
        if callable(to_dict):
            return _from_config(to_dict())
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

# ModelOpt's quant_algo -> Scheme name
_MODELOPT = {
    "FP8": "fp8_tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_channel",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4_w4a16",
}


def _from_config(config: Mapping[str, Any]) -> Scheme:
    inner = config.get("quantization_config", config)
    if inner is None or not inner:
        return _BY_NAME["none"]
    if not isinstance(inner, Mapping):
        raise UsageError(f"quantization_config must be an object, not {type(inner).__name__}.")
    if isinstance(inner.get("quantization"), Mapping):
        return _modelopt(inner["quantization"])
    method = inner.get("quant_method")
    if method is None and "quant_algo" in inner:
        return _modelopt(inner)
    if method is None and "config_groups" in inner:
        method = "compressed-tensors"
    if method is None:
        if "model_type" in inner or "architectures" in inner:
            return _BY_NAME["none"]  # a whole config.json with no quantization_config: an unquantized model
        raise UsageError(
            "this quantization config has no quant_method; expected the quantization_config of a config.json."
        )
    readers: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
        "fp8": _fp8,
        "awq": _integer,
        "gptq": _integer,
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
        "modelopt_fp4": _modelopt,
        "mxfp4": lambda _: _BY_NAME["mxfp4"],
    }
    if method not in readers:
        raise UnknownScheme(method, readers)
    return readers[method](inner)


def _fp8(config: Mapping[str, Any]) -> Scheme:
    block = config.get("weight_block_size")
    if block is None:
        return _BY_NAME["fp8_tensor"]
    return replace(_BY_NAME["fp8_block"], block=_pair(block, "weight_block_size"))


def _integer(config: Mapping[str, Any]) -> Scheme:
    method, bits = config["quant_method"], config.get("bits", config.get("w_bit", 4))
    names = {4: "int4_w4a16", 8: "int8_w8a16"}
    if bits not in names:
        raise UnknownScheme(f"{method} with {bits} bits", SCHEMES)
    group = config.get("group_size", config.get("q_group_size", 128))
    return replace(
        _BY_NAME[names[bits]],
        group=None if group in (None, -1) else int(group),
        zero_point=bool(config.get("zero_point", not config.get("sym", True))),
        packing=str(method),
    )


def _modelopt(config: Mapping[str, Any]) -> Scheme:
    algo = config.get("quant_algo")
    if algo is None:
        return _BY_NAME["none"]
    if str(algo).upper().startswith("MIXED"):
        raise _mixed("ModelOpt's quant_algo is MIXED_PRECISION")
    if algo not in _MODELOPT:
        raise UnknownScheme(algo, _MODELOPT)
    scheme = _BY_NAME[_MODELOPT[algo]]
    group = config.get("group_size")
    return replace(scheme, group=scheme.group if group is None else int(group), packing="modelopt")


def _compressed_tensors(config: Mapping[str, Any]) -> Scheme:
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise UsageError("config_groups of compressed-tensors must be an object.")
    schemes = {_tensor_group(group) for group in groups.values()}
    if not schemes:
        return _BY_NAME["none"]
    if len(schemes) > 1:
        raise _mixed(f"config_groups hold {' and '.join(sorted(s.name for s in schemes))}")
    return schemes.pop()


def _tensor_group(group: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights")
    if not weights:
        return _BY_NAME["none"]
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")
    group_size, inputs = weights.get("group_size"), group.get("input_activations")
    name = None
    if (kind, bits) == ("float", 8) and inputs:
        name = {"tensor": "fp8_tensor", "channel": "fp8_channel", "block": "fp8_block"}.get(str(strategy))
    elif (kind, bits) == ("float", 4):
        name = "mxfp4" if group_size == 32 else "nvfp4" if inputs else "nvfp4_w4a16"
    elif (kind, bits) == ("int", 8):
        name = "int8_w8a8" if inputs else "int8_w8a16"
    elif (kind, bits) == ("int", 4) and not inputs:
        name = "int4_w4a16"
    if name is None:
        words = (
            f"compressed-tensors {kind}{bits} weights by {strategy}{'' if inputs else ', activations not quantized'}"
        )
        raise UnknownScheme(words, SCHEMES)
    scheme = _BY_NAME[name]
    block = weights.get("block_structure")
    return replace(
        scheme,
        group=scheme.group if group_size in (None, -1) else int(group_size),
        block=_pair(block, "block_structure") if scheme.block and block else scheme.block,
        zero_point=weights.get("symmetric") is False,
        packing="compressed-tensors",
    )


def _pair(value: object, where: str) -> tuple[int, int]:
    sizes = [int(part) for part in value.split("x")] if isinstance(value, str) else value
    if isinstance(sizes, Sequence) and len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes):
        return (sizes[0], sizes[1])
    raise UsageError(f"{where} must be two positive numbers [n, k], not {value!r}.")


def _mixed(what: str) -> UsageError:
    return UsageError(f"{what}, so layers differ. Give the scheme of one layer by name: {', '.join(SCHEMES)}.")
