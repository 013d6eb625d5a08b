"""Walk through the layers of a model and collect every op: ``describe``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from kernelmux.errors import ConfigFileError, KernelmuxError, UsageError
from kernelmux.models.blocks import Blocks
from kernelmux.models.fields import ModelConfig
from kernelmux.models.implied import IMPLIED
from kernelmux.models.site import Model, Placed, Site
from kernelmux.quant import layer_schemes
from kernelmux.quant.layers import LayerSchemes

MOST_LAYERS = 4096
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")

# What a hybrid pattern's letters and words mean (Nemotron-H: hybrid_override_pattern, later layers_block_type).
MIXERS: Mapping[str, str] = {
    "M": "mamba", "*": "attention", "-": "mlp", "E": "moe",
    "mamba": "mamba", "attention": "attention", "mlp": "mlp", "moe": "moe",
}  # fmt: skip

# Fields that announce what is not read, and what they announce.
UNREAD: Mapping[str, str] = {
    "index_n_heads": "the indexer of its sparse attention (index_*) is not read",
    "num_nextn_predict_layers": "its multi-token prediction layers are not read",
    "num_mtp_modules": "its multi-token prediction layers are not read",
    "vision_config": "its vision tower is not read",
    "audio_config": "its audio tower is not read",
    "is_encoder_decoder": "its encoder and cross-attention are not read",
    "linear_num_key_heads": "its linear attention layers (linear_*) are not read",
    "altup_num_inputs": "its alternating updates (altup_*) are not read",
    "block_configs": "sizes that differ from layer to layer (block_configs) are not read",
    "hc_mult": "its hyper-connections (hc_*) are not read",
}


def describe(config: ModelConfig, tp: int = 1) -> Model:
    """Every op of a model as one of ``tp`` ranks runs it, and sentences for what could not be read.

    Raises ConfigFileError where not even the hidden size and the number of layers are there, UsageError where ``tp``
    does not divide the model.
    """
    return _Walk(config, tp).model()


class _Walk:
    def __init__(self, config: ModelConfig, tp: int):
        if tp < 1:
            raise UsageError(f"--tp {tp} must be at least 1.")
        self.config, self.tp = config, tp
        kinds = config.get("layers_block_type")
        said = config.has(LAYERS) or not isinstance(kinds, (list, tuple)) or not kinds
        self.count = config.number(LAYERS, "the number of layers") if said else len(kinds)
        if self.count > MOST_LAYERS:
            raise ConfigFileError(config.path, "num_hidden_layers", f"{self.count} layers are above {MOST_LAYERS}.")
        self.schemes = lru_cache(maxsize=1)(self._schemes)
        self.blocks = Blocks(config, self.schemes, tp)
        self.found: dict[Site, list[int]] = {}
        self.unread: dict[str, None] = {}
        self.mixers = self._mixers()
        self.dtype = "bfloat16"

    def _schemes(self) -> LayerSchemes:
        return layer_schemes(self.config.quantization)

    def model(self) -> Model:
        try:
            self.dtype = self.config.dtype
        except ConfigFileError as error:
            self.unread[f"{error} bfloat16 is taken."] = None
        root = self.config.get("root", "model")
        for layer in range(self.count):
            prefix = f"{root}.layers.{layer}."
            if self.mixers is None:
                self._layer(layer, prefix)
            else:
                self._mixer(layer, prefix)
        norm = "norm_f" if self.mixers else "norm"
        self._add(None, [self.blocks.norm(f"{root}.{norm}")])
        self._collect(None, self._head())
        self._announce()
        placed = tuple(Placed(site, tuple(layers)) for site, layers in self.found.items())
        try:
            method = self.schemes().method
        except KernelmuxError:
            method = "unknown"
        return Model(
            self.config.family or "unknown", self.dtype, self.count, self.tp, method, placed, tuple(self.unread)
        )

    def _layer(self, layer: int, prefix: str) -> None:
        """Attention and a feed-forward block, each behind a norm."""
        blocks = self.blocks
        self._add(layer, [blocks.norm("input_layernorm", residual=layer > 0)])
        if self._is_linear_attention(layer):
            self.unread["layer_types names linear attention layers, whose projections are not read."] = None
        else:
            self._collect(layer, blocks.attention(prefix))
        self._add(layer, [blocks.norm("post_attention_layernorm")])
        if self._is_moe(layer):
            self._collect(layer, blocks.moe(prefix, str(self.config.get("moe_module", "mlp"))))
        else:
            self._collect(layer, self._dense(prefix, "mlp"))

    def _dense(self, prefix: str, name: str) -> Iterable[Site]:
        yield from self.blocks.mlp(prefix, name, self.blocks.dense_width())

    def _mixer(self, layer: int, prefix: str) -> None:
        """One mixer behind a norm: what the hybrid pattern says."""
        blocks = self.blocks
        assert self.mixers is not None
        self._add(layer, [blocks.norm("norm", residual=layer > 0)])
        kind = self.mixers[layer]
        if kind == "attention":
            self._collect(layer, blocks.attention(prefix, "mixer"))
        elif kind == "mamba":
            self._collect(layer, blocks.mamba(prefix, "mixer"))
        elif kind == "moe":
            self._collect(layer, blocks.moe(prefix, "mixer"))
        else:
            self._collect(layer, self._dense(prefix, "mixer"))

    def _head(self) -> Iterable[Site]:
        vocabulary = self.config.number(("vocab_size",), "the size of the vocabulary")
        yield self.blocks.gemm("", "lm_head", -(-vocabulary // self.tp), self.blocks.hidden)

    def _collect(self, layer: int | None, sites: Iterable[Site]) -> None:
        """Add the sites as they are read; what is missing in the middle of a block becomes a sentence."""
        try:
            for site in sites:
                self._add(layer, [site])
        except ConfigFileError as error:
            self.unread[str(error)] = None

    def _add(self, layer: int | None, sites: Iterable[Site]) -> None:
        for site in sites:
            self.found.setdefault(site, []).extend([] if layer is None else [layer])

    def _mixers(self) -> list[str] | None:
        """The mixer of each layer, where the model says one by one; None for the usual two blocks a layer."""
        key = "hybrid_override_pattern" if self.config.get("hybrid_override_pattern") else "layers_block_type"
        pattern = self.config.get(key)
        if not pattern:
            return None
        if not isinstance(pattern, (str, list, tuple)) or any(str(kind) not in MIXERS for kind in pattern):
            raise ConfigFileError(
                self.config.path, key, "a layer is none of M (mamba), * (attention), - (MLP) and E (experts).", ""
            )
        if len(pattern) != self.count:
            raise ConfigFileError(
                self.config.path, key, f"{len(pattern)} layers, but num_hidden_layers is {self.count}.", ""
            )
        return [MIXERS[str(kind)] for kind in pattern]

    def _is_linear_attention(self, layer: int) -> bool:
        kinds = self.config.get("layer_types")
        known = isinstance(kinds, (list, tuple)) and layer < len(kinds)
        return bool(known and "linear" in str(kinds[layer]))

    def _is_moe(self, layer: int) -> bool:
        """Whether a layer has experts: the dense ones are the first few, every n-th, or named one by one."""
        config = self.config
        if not config.is_moe or layer < config.number_or(("first_k_dense_replace",), 0):
            return False
        kinds = config.get("mlp_layer_types")
        if isinstance(kinds, (list, tuple)) and layer < len(kinds):
            return bool(kinds[layer] == "sparse")
        named = config.get("mlp_only_layers")
        if isinstance(named, (list, tuple)) and layer in named:
            return False
        frequency = config.get("moe_layer_freq")
        if isinstance(frequency, (list, tuple)):
            return layer < len(frequency) and bool(frequency[layer])
        if layer % config.number_or(("moe_layer_freq",), 1):
            return False
        step = config.number_or(("decoder_sparse_step", "interleave_moe_layer_step"), 1)
        return (layer + 1) % step == 0

    def _announce(self) -> None:
        config = self.config
        for key, what in UNREAD.items():
            if config.get(key) or config.top.get(key):
                self.unread[f"{key} is set: {what}."] = None
        if config.family not in IMPLIED:
            self.unread[
                f"model_type {config.family!r} is not one kernelmux has a description of: what its fields do not say "
                "(norms, names of modules, routing) is taken as in Llama."
            ] = None
        if not self.blocks.rms:
            self.unread["no rms_norm_eps: its norms are taken for LayerNorm."] = None
