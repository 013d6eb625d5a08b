"""LayerSchemes: the quantization config of one model, answering for any of its layers, fused ones included."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kernelmux.errors import UnknownScheme, UsageError
from kernelmux.quant import rules
from kernelmux.quant.formats import NONE
from kernelmux.quant.names import EXPERTS, PROJECTIONS, shards, spellings, tail_of
from kernelmux.quant.rules import Rule, linear_only
from kernelmux.quant.scheme import SCHEMES, Scheme

METHODS: Mapping[str, Callable[[Mapping[str, Any]], Rule]] = {
    "fp8": rules.Fp8,
    "fbgemm_fp8": rules.Fp8,
    "awq": rules.Awq,
    "gptq": rules.Gptq,
    "compressed-tensors": rules.CompressedTensors,
    "compressed_tensors": rules.CompressedTensors,
    "modelopt": rules.ModelOpt,
    "modelopt_fp4": rules.ModelOpt,
    "modelopt_fp8": rules.ModelOpt,
    "modelopt_mixed": rules.ModelOpt,
    "mxfp4": rules.Mxfp4,
}
_WRAPPED = ("text_config", "llm_config", "language_config")


class LayerSchemes:
    """Scheme of any layer of one model. Make it with ``read``; ``of`` answers, and remembers what it answered."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self._known: dict[str, Scheme] = {}
        self._numbers = _expert_numbers(rule.entries)

    @classmethod
    def read(cls, config: Mapping[str, Any] | None) -> LayerSchemes:
        """From a ``config.json``, its ``quantization_config``, or ModelOpt's ``hf_quant_config.json``."""
        inner = _find(config)
        if not inner:
            return cls(Rule())
        method = inner.get("quant_method")
        if method is None and "quant_algo" in inner:
            method = "modelopt"
        if method is None and "config_groups" in inner:
            method = "compressed-tensors"
        if method is None:
            raise UsageError(
                "this quantization config has no quant_method; expected the quantization_config of a config.json."
            )
        if not isinstance(method, str) or method not in METHODS:
            raise UnknownScheme(method, METHODS)
        return cls(METHODS[method](inner))

    @property
    def method(self) -> str:
        """The format's name: ``fp8``, ``awq``, ``modelopt``, ``none``."""
        return self.rule.method

    def only(self) -> Scheme:
        """The Scheme of a model whose quantized layers are alike; raises UsageError where they differ."""
        if isinstance(self.rule, rules.ModelOpt) and self.rule.mixed:
            raise _mixed("ModelOpt's quant_algo is MIXED_PRECISION")
        if len(self.rule.schemes) > 1:
            names = " and ".join(sorted(scheme.name for scheme in self.rule.schemes))
            raise _mixed(f"the quantization config holds {names}")
        return self.rule.schemes[0]

    def of(self, layer: str) -> Scheme:
        """The Scheme of a layer by its module path; see ``kernelmux.quant.layer_scheme``."""
        if not isinstance(layer, str) or not layer.strip("."):
            raise UsageError(f"a layer is named by its module path, as in model.layers.0.mlp.experts, not {layer!r}.")
        found = self._known.get(layer)
        if found is None:
            found = self._known[layer] = self._of(layer)
        return found

    def _of(self, layer: str) -> Scheme:
        if self.rule.method == "none":
            return self.rule.schemes[0]
        if tail_of(layer) == EXPERTS:
            return self._experts(layer)
        whole = linear_only(layer, self.rule)
        parts = {part: linear_only(part, self.rule) for part in shards(layer)}
        if not parts:
            return whole
        tail = tail_of(layer)
        if whole not in parts.values() and any(tail in entry for entry in self.rule.entries):
            return whole  # the checkpoint holds the module fused, and an entry names it so
        return _agreed(layer, parts)

    def _experts(self, layer: str) -> Scheme:
        """An expert layer is skipped as a whole, or has the scheme of its experts, which must agree."""
        rule = self.rule
        if rule.whole(layer):
            return NONE
        if isinstance(rule, rules.ModelOpt) and rule.mixed:
            named = rule.one(layer)
            if named is not NONE:
                return named
            below = next((rule.below[one] for one in spellings(layer) if one in rule.below), {})
            return _agreed(layer, {f"{layer}.{rest}": scheme for rest, scheme in below.items()}) if below else named
        # Two experts every such layer has, and the last one that is named: a list that names some of them differs here.
        numbers = {0, 1, max(self._numbers.get(layer, ()), default=1)}
        answers = []
        for family in PROJECTIONS:
            found = {
                f"{layer}.{number}.{part}": linear_only(f"{layer}.{number}.{part}", rule)
                for number in sorted(numbers)
                for part in family
            }
            answers.append(self._ungated(found))
        usual = rule.schemes[0]
        spoken = [found for found in answers if any(scheme != usual for scheme in found.values())]
        return _agreed(layer, (spoken or answers)[0])

    def _ungated(self, found: dict[str, Scheme]) -> dict[str, Scheme]:
        """Without the gate projection where no entry names one: relu2 experts have none."""
        if any("gate_proj" in entry for entry in self.rule.entries):
            return found
        rest = {name: scheme for name, scheme in found.items() if tail_of(name) != "gate_proj"}
        return rest if len(set(rest.values())) == 1 and len(set(found.values())) > 1 else found


def _find(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part that speaks of quantization; empty for an unquantized model."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise UsageError(f"a quantization config is an object, not {type(config).__name__}.")
    inner: Any = config
    for key in ("quantization_config", "compression_config"):
        if key in config:
            inner = config[key]
            break
    else:
        for key in _WRAPPED:
            wrapped = config.get(key)
            if isinstance(wrapped, Mapping) and wrapped.get("quantization_config"):
                inner = wrapped["quantization_config"]
    if inner is None:
        return {}
    if not isinstance(inner, Mapping):
        raise UsageError(f"quantization_config must be an object, not {type(inner).__name__}.")
    nested = inner.get("quantization")
    if isinstance(nested, Mapping):
        return {**nested, "quant_method": "modelopt"}
    speaks = any(key in inner for key in ("quant_method", "quant_algo", "config_groups"))
    if not speaks and ("model_type" in inner or "architectures" in inner):
        return {}  # a whole config.json with no quantization_config: an unquantized model
    return inner


def _expert_numbers(entries: tuple[str, ...]) -> dict[str, set[int]]:
    """Path of an expert layer -> the experts that entries name one by one."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        named = re.fullmatch(r"(.+\.experts)\.(\d{1,6})(?:\..*)?", entry)
        if named:
            found.setdefault(named[1], set()).add(int(named[2]))
    return found


def _agreed(layer: str, found: Mapping[str, Scheme]) -> Scheme:
    """The one scheme of a fused module's parts; raises UsageError naming the parts that differ."""
    schemes = set(found.values())
    if len(schemes) == 1:
        return schemes.pop()
    by_scheme: dict[str, list[str]] = {}
    for name, scheme in found.items():
        by_scheme.setdefault(_words(scheme), []).append(name.removeprefix(layer.rpartition(".")[0] + "."))
    said = ", ".join(
        f"{' and '.join(names[:3])}{' and more' if len(names) > 3 else ''}: {words}"
        for words, names in by_scheme.items()
    )
    raise UsageError(
        f"the parts of {layer} are quantized differently ({said}), and it runs as one. Quantize or skip them together, "
        "or ask for each part by its own name."
    )


def _words(scheme: Scheme) -> str:
    more = [f"group {scheme.group}" if scheme.group else "", f"block {scheme.block}" if scheme.block else ""]
    return " ".join([scheme.name, *filter(None, more)])


def _mixed(what: str) -> UsageError:
    return UsageError(
        f"{what}, so layers differ. Read one layer's with kernelmux.quant.layer_scheme(config, layer), or give its "
        f"scheme by name: {', '.join(SCHEMES)}."
    )
