"""The parts of a quantization config that say how weights are stored, as Schemes. Which layers: ``rules.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kernelmux.errors import UnknownScheme, UsageError
from kernelmux.quant.scheme import SCHEMES, Scheme

NONE = Scheme.of("none")

# ModelOpt's quant_algo (upper case: it has written both) -> Scheme name
MODELOPT: Mapping[str, str] = {
    "FP8": "fp8_tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_channel",
    "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK_SCALES": "fp8_block",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4_w4a16",
    "W4A16_AWQ": "int4_w4a16",
    "W8A16": "int8_w8a16",
}
_UNQUANTIZED = ("", "NONE", "UNQUANTIZED")


def fp8(config: Mapping[str, Any]) -> Scheme:
    """One scale a tensor, or ``weight_block_size`` [n, k]. ``fbgemm_fp8`` has one a channel."""
    if config.get("quant_method") == "fbgemm_fp8":
        return Scheme.of("fp8_channel")
    block = config.get("weight_block_size")
    if block is None:
        return Scheme.of("fp8_tensor")
    return replace(Scheme.of("fp8_block"), block=pair(block, "weight_block_size"))


def integer(config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Scheme:
    """awq and gptq: weights of 4 or 8 bits in groups along K; ``overrides`` are a layer's own values."""
    config = {**config, **(overrides or {})}
    method = str(config["quant_method"])
    bits = config.get("bits", config.get("w_bit", 4))
    names = {4: "int4_w4a16", 8: "int8_w8a16"}
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in names:
        raise UnknownScheme(f"{method} with {bits} bits", SCHEMES)
    group = config.get("group_size", config.get("q_group_size", 128))
    zero_point = config.get("zero_point", not config.get("sym", True))
    return replace(
        Scheme.of(names[bits]),
        group=None if group in (None, -1) else count(group, "group_size"),
        zero_point=bool(zero_point),
        packing=method,
    )


def modelopt(algo: object, group: object = None) -> Scheme:
    """The Scheme of a ModelOpt ``quant_algo``."""
    word = str(algo or "").upper()
    if word in _UNQUANTIZED:
        return NONE
    if word not in MODELOPT:
        raise UnknownScheme(algo, MODELOPT)
    scheme = Scheme.of(MODELOPT[word])
    size = scheme.group if group is None or scheme.group is None else count(group, "group_size")
    return replace(scheme, group=size, packing="modelopt")


def tensor_group(group: object, where: str, *, packing: str = "compressed-tensors") -> Scheme:
    """One of the ``config_groups`` of compressed-tensors: types, bits and strategy of weights and activations.

    FP4 weights whose ``input_activations`` are missing are W4A16: the checkpoint holds no scale of an activation.
    """
    if not isinstance(group, Mapping):
        raise UsageError(f"{where} must be an object with weights and targets, not {type(group).__name__}.")
    weights = group.get("weights")
    if not weights:
        return NONE
    if not isinstance(weights, Mapping):
        raise UsageError(f"{where}.weights must be an object, not {type(weights).__name__}.")
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")
    group_size, inputs = weights.get("group_size"), group.get("input_activations")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise UsageError(f"{where}.input_activations must be an object or null, not {type(inputs).__name__}.")
    read_bits = None if not inputs else inputs.get("num_bits", bits)
    name = None
    if (kind, bits) == ("float", 8) and read_bits == 8:
        by = {"tensor": "fp8_tensor", "channel": "fp8_channel", "block": "fp8_block", "None": "fp8_tensor"}
        name = by.get(str(strategy))
    elif (kind, bits) == ("float", 4) and read_bits in (None, 4):
        name = "mxfp4" if group_size == 32 else "nvfp4" if inputs else "nvfp4_w4a16"
    elif (kind, bits) == ("int", 8) and read_bits in (None, 8):
        name = "int8_w8a8" if inputs else "int8_w8a16"
    elif (kind, bits) == ("int", 4) and not inputs:
        name = "int4_w4a16"
    if name is None:
        read = "activations not quantized" if not inputs else f"activations of {read_bits} bits"
        raise UnknownScheme(f"{packing} {kind}{bits} weights by {strategy}, {read}", SCHEMES)
    if "24" in str(group.get("format") or ""):
        raise UnknownScheme(f"{packing} {group['format']} (2:4 sparse)", SCHEMES)
    scheme = Scheme.of(name)
    block = weights.get("block_structure")
    return replace(
        scheme,
        group=scheme.group if group_size in (None, -1) else count(group_size, f"{where}.weights.group_size"),
        block=pair(block, "block_structure") if scheme.block and block else scheme.block,
        zero_point=weights.get("symmetric") is False,
        packing=packing,
    )


def pair(value: object, where: str) -> tuple[int, int]:
    """Two sizes, from a list or from ``"128x128"``."""
    sizes: Any = value.split("x") if isinstance(value, str) else value
    if isinstance(sizes, Sequence) and len(sizes) == 2:
        read = [int(size) if isinstance(size, str) and size.strip().isdecimal() else size for size in sizes]
        if all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in read):
            return (read[0], read[1])
    raise UsageError(f"{where} must be two positive numbers [n, k], not {value!r}.")


def count(value: object, where: str) -> int:
    """A whole number above 0."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise UsageError(f"{where} must be a whole number above 0, not {value!r}.")
