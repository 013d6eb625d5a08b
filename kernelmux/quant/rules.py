"""Which layers a quantization config speaks of: one class a format, each with that format's own matching rule.

A rule answers for one module as the checkpoint names it; fused modules are put together in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernelmux.errors import UnknownScheme, UsageError
from kernelmux.quant import formats
from kernelmux.quant.formats import NONE
from kernelmux.quant.names import EXPERTS, Paths, glob, is_head, is_linear, regex, spellings, strings
from kernelmux.quant.scheme import Scheme

SKIPPED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")


class Rule:
    """Base: ``schemes`` are those the config can give to a layer, ``entries`` every name and pattern it writes."""

    method = "none"
    schemes: tuple[Scheme, ...] = (NONE,)
    entries: tuple[str, ...] = ()

    def one(self, name: str) -> Scheme:
        """The Scheme of one module of the checkpoint."""
        return NONE

    def whole(self, experts: str) -> bool:
        """Whether a fused expert layer is skipped by its own path, whatever its parts are called."""
        return False


class Fp8(Rule):
    """``fp8`` and ``fbgemm_fp8``: skipped at dotted boundaries (`names.Paths`); ``lm_head`` is never quantized.

    An entry below an expert layer skips it (sglang ``quantization/utils.py:48-125``, vLLM ``quant_utils.py``
    ``is_layer_skipped``: an entry that contains the layer's path).
    """

    def __init__(self, config: Mapping[str, Any]):
        self.method = str(config.get("quant_method", "fp8"))
        self.schemes = (formats.fp8(config),)
        self.entries = strings(config, SKIPPED)
        self.skipped = Paths(self.entries)

    def one(self, name: str) -> Scheme:
        return NONE if is_head(name) or name in self.skipped else self.schemes[0]

    def whole(self, experts: str) -> bool:
        return experts in self.skipped


class Mxfp4(Fp8):
    """``mxfp4``: only expert layers are quantized (vLLM ``mxfp4.py`` gives linear layers no method); dotted boundaries.

    Checkpoints write ``model.layers.*.self_attn``: a ``*`` stands for one part of the path.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__({**config, "weight_block_size": None})
        self.method, self.schemes = "mxfp4", (Scheme.of("mxfp4"),)

    def one(self, name: str) -> Scheme:
        parts = name.split(".")
        return self.schemes[0] if EXPERTS in parts and not self._skips(name) else NONE

    def whole(self, experts: str) -> bool:
        return self._skips(experts)

    def _skips(self, name: str) -> bool:
        if name in self.skipped:
            return True
        numbered = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        return numbered != name and numbered in self.skipped


class Awq(Rule):
    """``awq``: an entry anywhere in the path skips it: a **substring** (sglang ``awq/awq.py:61``, expert layers too).

    Below an expert layer only entries that speak of experts count: ``gate`` names the router, not ``gate_proj``.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.method = "awq"
        self.schemes = (formats.integer(config),)
        self.entries = strings(config, SKIPPED)
        self.head = config.get("lm_head") is True

    def one(self, name: str) -> Scheme:
        if is_head(name) and not self.head:
            return NONE
        inside = f".{EXPERTS}." in name
        entries = [entry for entry in self.entries if not inside or EXPERTS in entry]
        return NONE if _within(entries, name) else self.schemes[0]

    def whole(self, experts: str) -> bool:
        return _within(self.entries, experts)


class Gptq(Rule):
    """``gptq``: ``dynamic`` maps regular expressions to a layer's own values, or skips it (``-:``); the first decides.

    They match from the start of the path (vLLM ``gptq_utils.py`` ``get_dynamic_override``).
    ``modules_in_block_to_quantize``, where given, lists what is quantized, as substrings
    (``is_layer_gptq_quantized``). ``modules_to_not_convert``: substrings.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.method = "gptq"
        self.config = config
        self.skipped = strings(config, SKIPPED)
        self.only = strings({"modules_in_block_to_quantize": _flat(config)}, ("modules_in_block_to_quantize",))
        dynamic = config.get("dynamic") or {}
        if not isinstance(dynamic, Mapping):
            raise UsageError(f"dynamic of gptq must be an object of patterns, not {type(dynamic).__name__}.")
        self.dynamic: list[tuple[Any, Mapping[str, Any] | None]] = []
        found = [formats.integer(config)]
        for pattern, values in dynamic.items():
            negative = pattern.startswith("-:")
            text = pattern.removeprefix("-:").removeprefix("+:")
            if not negative and not isinstance(values, Mapping):
                raise UsageError(f"dynamic[{pattern!r}] of gptq must be an object such as {{'bits': 8}}.")
            self.dynamic.append((regex(text, "dynamic of gptq"), None if negative else values))
            if not negative:
                found.append(formats.integer(config, values))
        self.schemes = tuple(dict.fromkeys(found))
        self.entries = (*self.skipped, *self.only, *dynamic)
        self.head = config.get("lm_head") is True

    def one(self, name: str) -> Scheme:
        if is_head(name) and not self.head:
            return NONE
        inside = f".{EXPERTS}." in name
        if _within([entry for entry in self.skipped if not inside or EXPERTS in entry], name):
            return NONE
        for pattern, values in self.dynamic:
            if any(pattern.match(spelled) for spelled in spellings(name)):
                return NONE if values is None else formats.integer(self.config, values)
        if self.only and not _within(self.only, name):
            return NONE
        return self.schemes[0]

    def whole(self, experts: str) -> bool:
        return _within(self.skipped, experts)


def _within(entries: Sequence[str], name: str) -> bool:
    """Whether an entry is anywhere in the path, however it is spelled."""
    return any(entry in spelled for spelled in spellings(name) for entry in entries)


def _flat(config: Mapping[str, Any]) -> list[Any] | None:
    """transformers writes lists of lists of names, AutoGPTQ plain lists."""
    value = config.get("modules_in_block_to_quantize")
    if not isinstance(value, (list, tuple)):
        return value
    return [name for part in value for name in (part if isinstance(part, (list, tuple)) else [part])]


class CompressedTensors(Rule):
    """``compressed-tensors``: an entry is a whole path, or after ``re:`` an expression that matches from its start.

    ``ignore`` first, then the groups' ``targets``: by path, then by class (``Linear``) (vLLM
    ``compressed_tensors/utils.py`` ``should_ignore_layer``, ``find_matched_target``). No group: not quantized.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.method = "compressed-tensors"
        ignore = strings(config, SKIPPED)
        groups = config.get("config_groups") or {}
        if not isinstance(groups, Mapping):
            raise UsageError("config_groups of compressed-tensors must be an object.")
        if "24" in str(config.get("format") or ""):
            groups = {name: {**dict(group), "format": config["format"]} for name, group in groups.items()}
        self.ignored = _names_or_regexes(ignore, "ignore")
        self.groups: list[tuple[Callable[[str], bool], tuple[str, ...], Scheme]] = []
        targets: list[str] = []
        for name, group in groups.items():
            scheme = formats.tensor_group(group, f"config_groups.{name}")
            named = strings(group, ("targets",))
            targets += named
            self.groups.append((_names_or_regexes(named, f"config_groups.{name}.targets"), named, scheme))
        self.schemes = tuple(dict.fromkeys(scheme for _, _, scheme in self.groups)) or (NONE,)
        self.entries = (*ignore, *targets)

    def one(self, name: str) -> Scheme:
        if self.ignored(name):
            return NONE
        for matches, _, scheme in self.groups:
            if matches(name):
                return scheme
        for _, targets, scheme in self.groups:
            if any(target.lower() in "linear" for target in targets):
                return scheme
        return NONE

    def whole(self, experts: str) -> bool:
        return self.ignored(experts)


def _names_or_regexes(entries: Sequence[str], where: str) -> Callable[[str], bool]:
    names = frozenset(entry for entry in entries if not entry.startswith("re:"))
    patterns = [regex(entry[3:], where) for entry in entries if entry.startswith("re:")]

    def matches(name: str) -> bool:
        spelled = spellings(name)
        return any(one in names for one in spelled) or any(p.match(one) for p in patterns for one in spelled)

    return matches


class ModelOpt(Rule):
    """``modelopt``: ``exclude_modules`` (``ignore`` in a config.json) holds paths and globs.

    A path matches at dotted boundaries (sglang ``is_layer_skipped``), a glob the whole path or one whole part of it
    (sglang ``modelopt_quant.py:379-425``; it also takes ``q_a_proj`` of one layer for the fused projection of every
    layer, which no checkpoint means: here the parts of the same layer decide).
    MIXED_PRECISION gives each layer its own algorithm in ``quantized_layers``, by path, for an expert layer also by
    those of its experts; a layer that is not named is not quantized (sglang and vLLM ``_resolve_quant_algo``).
    """

    def __init__(self, config: Mapping[str, Any]):
        self.method = "modelopt"
        entries = strings(config, SKIPPED)
        self.skipped = Paths(entry for entry in entries if "*" not in entry)
        globs = [entry for entry in entries if "*" in entry]
        self.starts = tuple(entry[:-1] for entry in globs if entry.find("*") == len(entry) - 1)  # nearly all of them
        self.globs = tuple(entry for entry in globs if entry.find("*") < len(entry) - 1)
        algo = config.get("quant_algo")
        self.mixed = str(algo or "").upper().startswith("MIXED")
        self.layers: dict[str, Scheme] = {}
        self.unknown: dict[str, UnknownScheme] = {}
        self.below: dict[str, dict[str, Scheme]] = {}
        if self.mixed:
            self._read_layers(config)
            self.schemes = tuple(dict.fromkeys(self.layers.values())) or (NONE,)
        else:
            self.schemes = (formats.modelopt(algo, config.get("group_size")),)
        self.entries = (*entries, *self.layers)

    def _read_layers(self, config: Mapping[str, Any]) -> None:
        layers = config.get("quantized_layers")
        if layers is None:  # older exports list the layers of each group instead
            layers = {}
            groups = config.get("config_groups") or {}
            if not isinstance(groups, Mapping):
                raise UsageError("config_groups of ModelOpt must be an object.")
            for name, group in groups.items():
                scheme = formats.tensor_group(group, f"config_groups.{name}", packing="modelopt")
                self._add(dict.fromkeys(strings(group, ("targets",)), scheme))
        if not isinstance(layers, Mapping):
            raise UsageError(f"quantized_layers must be an object of layers, not {type(layers).__name__}.")
        found = {}
        for name, entry in layers.items():
            if not isinstance(entry, Mapping):
                raise UsageError(f"quantized_layers[{name!r}] must be an object with quant_algo.")
            try:
                found[name] = formats.modelopt(entry.get("quant_algo"), entry.get("group_size"))
            except UnknownScheme as error:  # of this layer; the others can be read
                self.unknown[name] = error
        self._add(found)

    def _add(self, layers: Mapping[str, Scheme]) -> None:
        self.layers.update(layers)
        for name, scheme in layers.items():
            head, found, rest = name.rpartition(f".{EXPERTS}.")
            if found:
                self.below.setdefault(f"{head}.{EXPERTS}", {})[rest] = scheme

    def one(self, name: str) -> Scheme:
        if self._excluded(name):
            return NONE
        if not self.mixed:
            return self.schemes[0]
        for spelled in spellings(name):
            if spelled in self.unknown:
                raise self.unknown[spelled]
        if not self.layers and not self.unknown:
            raise UsageError(
                "this ModelOpt config is MIXED_PRECISION and names no layers. Read the model's hf_quant_config.json, "
                "whose quantized_layers does."
            )
        return next((self.layers[one] for one in spellings(name) if one in self.layers), NONE)

    def whole(self, experts: str) -> bool:
        return self._excluded(experts)

    def _excluded(self, name: str) -> bool:
        if name in self.skipped:
            return True
        texts = {*spellings(name), *name.split(".")}
        if any(text.startswith(self.starts) for text in texts):
            return True
        return any(glob(pattern, text) for pattern in self.globs for text in texts)


def linear_only(name: str, rule: Rule) -> Scheme:
    """``rule.one`` for modules with a GEMM; embeddings, norms and convolutions are not quantized by any format here."""
    return rule.one(name) if is_linear(name) else NONE
