"""The parts of a layer as Sites: attention's projections, MLP, experts and router, Mamba. Sizes are one rank's.

Each is read from the fields that describe it, whatever the model is called. A field that is missing raises
ConfigFileError after the sites that could be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kernelmux.errors import KernelmuxError
from kernelmux.models.fields import HIDDEN, INTERMEDIATE, ModelConfig, divided, moe_axes
from kernelmux.models.site import GEMM_OPS, Site
from kernelmux.quant import Scheme
from kernelmux.quant.layers import LayerSchemes

_ACTS = {"silu": "silu_and_mul", "gelu": "gelu_and_mul", "gelu_tanh": "gelu_tanh_and_mul"}


class Blocks:
    """Makes the Sites of one model at one tensor parallel size."""

    def __init__(self, config: ModelConfig, schemes: Callable[[], LayerSchemes], tp: int):
        self.config, self.tp = config, tp
        self.schemes = schemes
        self.hidden = config.number(HIDDEN, "the hidden size")
        self.rms = bool(config.get("rms_norm")) or config.has(("rms_norm_eps",))

    def share(self, size: int, what: str) -> int:
        return divided(size, self.tp, what, self.config.path)

    def scheme(self, path: str) -> tuple[Scheme, str]:
        """A layer's Scheme, and in words why it could not be read."""
        try:
            return self.schemes().of(path), ""
        except KernelmuxError as error:
            return Scheme.of(None), str(error)

    def gemm(self, prefix: str, module: str, n: int, k: int, note: str = "") -> Site:
        """A dense projection [n, k] with the Scheme of its module."""
        scheme, trouble = self.scheme(f"{prefix}{module}")
        op = None if trouble else GEMM_OPS.get(scheme.name)
        return Site(module, op, (("N", n), ("K", k)), scheme, what=f"{scheme.name} GEMM", trouble=trouble, note=note)

    def norm(self, module: str, *, residual: bool = True, size: int | None = None, rows: int = 1) -> Site:
        """An RMSNorm over ``size`` (the hidden size if not given), with the residual added before it."""
        op = "fused_add_rms_norm" if residual else "rms_norm"
        return Site(module, op if self.rms else None, (("H", size or self.hidden),), rows=rows, what="LayerNorm")

    def attention(self, prefix: str, name: str = "self_attn") -> Iterator[Site]:
        """The projections and norms around attention, of the usual kind or latent (MLA)."""
        if self.config.has(("kv_lora_rank",)):
            yield from self._latent_attention(prefix, name)
            return
        config = self.config
        heads = config.number(("num_attention_heads",), "the attention heads")
        groups = config.number_or(("num_key_value_heads",), heads)
        size = config.number_or(("head_dim", "attention_head_dim"), max(1, self.hidden // heads))
        mine = self.share(heads, "number of attention heads")
        # Fewer key/value heads than ranks are repeated on them.
        kept = self.share(groups, "number of key/value heads") if groups > self.tp else 1
        queries = 2 * mine if config.get("attn_output_gate") else mine
        yield self.gemm(prefix, f"{name}.qkv_proj", (queries + 2 * kept) * size, self.hidden)
        if config.get("use_qk_norm"):
            if config.get("qk_norm_type") == "per_layer":
                yield self.norm(f"{name}.q_norm", residual=False, size=mine * size)
                yield self.norm(f"{name}.k_norm", residual=False, size=kept * size)
            else:
                yield self.norm(f"{name}.q_norm", residual=False, size=size, rows=mine)
                yield self.norm(f"{name}.k_norm", residual=False, size=size, rows=kept)
        yield self.gemm(prefix, f"{name}.o_proj", self.hidden, mine * size)

    def _latent_attention(self, prefix: str, name: str) -> Iterator[Site]:
        config = self.config
        heads = self.share(config.number(("num_attention_heads",), "the attention heads"), "number of attention heads")
        latent = config.number(("kv_lora_rank",), "the rank of keys and values")
        rope = config.number(("qk_rope_head_dim",), "the rotated part of a head")
        nope = config.number(("qk_nope_head_dim",), "the other part of a head")
        value = config.number(("v_head_dim",), "the size of a value head")
        rank = config.number_or(("q_lora_rank",), 0)
        if rank:
            fused = f"{name}.fused_qkv_a_proj_with_mqa"
            yield self.gemm(prefix, fused, rank + latent + rope, self.hidden, "the whole of it on every rank")
            yield self.norm(f"{name}.q_a_layernorm", residual=False, size=rank)
            yield self.gemm(prefix, f"{name}.q_b_proj", heads * (nope + rope), rank)
        else:
            yield self.gemm(prefix, f"{name}.q_proj", heads * (nope + rope), self.hidden)
            yield self.gemm(
                prefix, f"{name}.kv_a_proj_with_mqa", latent + rope, self.hidden, "the whole of it on every rank"
            )
        yield self.norm(f"{name}.kv_a_layernorm", residual=False, size=latent)
        note = "in decoding engines absorb it into the attention: two batched GEMMs a head"
        yield self.gemm(prefix, f"{name}.kv_b_proj", heads * (nope + value), latent, note)
        yield self.gemm(prefix, f"{name}.o_proj", self.hidden, heads * value)

    def mlp(self, prefix: str, name: str, width: int) -> Iterator[Site]:
        """A dense feed-forward block of this width (all ranks together), gated or not."""
        act = self.config.activation
        mine = self.share(width, f"intermediate size of {name},")
        gated = act in _ACTS
        first = f"{name}.gate_up_proj" if gated else f"{name}.up_proj"
        yield self.gemm(prefix, first, 2 * mine if gated else mine, self.hidden)
        yield Site(f"{name}.act", _ACTS.get(act, act), (("H", mine),))
        yield self.gemm(prefix, f"{name}.down_proj", self.hidden, mine)

    def dense_width(self) -> int:
        return self.config.number(("intermediate_size_mlp", "intermediate_size"), "the MLP's intermediate size")

    def moe(self, prefix: str, name: str) -> Iterator[Site]:
        """Router, choice of experts, the experts themselves, and what runs beside them for every token."""
        config = self.config
        axes = moe_axes(config)
        experts, topk, inner = axes["E"], axes["topk"], axes["K"]
        router = f"{name}.{config.get('router', 'gate')}"
        note = "routers stay in the model's dtype in every format"
        yield Site(router, "router_gemm", (("N", experts), ("K", self.hidden)), note=note)
        yield Site(f"{name}.topk", "topk", (("E", experts), ("topk", topk)), options=self._routing())
        if inner != self.hidden:
            yield self.gemm(prefix, f"{name}.fc1_latent_proj", inner, self.hidden)
        mine = self.share(axes["N"], "experts' intermediate size")
        scheme, trouble = self.scheme(f"{prefix}{name}.experts")
        yield Site(
            f"{name}.experts", None if trouble else "fused_moe",
            (("E", experts), ("N", mine), ("K", inner), ("topk", topk)),
            scheme, config.activation, what="experts", trouble=trouble, note=self._experts_note(),
        )  # fmt: skip
        if inner != self.hidden:
            yield self.gemm(prefix, f"{name}.fc2_latent_proj", self.hidden, inner)
        yield from self._shared(prefix, name)

    def _shared(self, prefix: str, name: str) -> Iterator[Site]:
        config = self.config
        one = config.number_or(("shared_expert_intermediate_size",), 0)  # Qwen's: a single one, behind a gate
        width = one or config.number_or(("moe_shared_expert_intermediate_size",), 0)
        count = config.number_or(("n_shared_experts", "num_shared_experts"), 0)
        if not width and count:
            width = count * config.number(INTERMEDIATE, "the experts' intermediate size")
        if not width:
            return
        module = f"{name}.{'shared_expert' if one else 'shared_experts'}"
        yield from self.mlp(prefix, module, width)
        if one:
            yield Site(f"{module}_gate", None, (("N", 1), ("K", self.hidden)), what="none GEMM")

    def _routing(self) -> tuple[tuple[str, Any], ...]:
        """The arguments of ``topk`` that the config fixes."""
        config = self.config
        found: dict[str, Any] = {"scoring": str(config.get("scoring_func") or "softmax")}
        if config.get("norm_topk_prob") is not None:
            found["renormalize"] = bool(config.get("norm_topk_prob"))
        for key, name in (("n_group", "n_group"), ("topk_group", "topk_group")):
            if config.number_or((key,), 1) > 1:
                found[name] = config.number((key,), "groups of experts")
        factor = config.get("routed_scaling_factor")
        if isinstance(factor, (int, float)) and factor != 1:
            found["routed_scaling_factor"] = float(factor)
        if config.get("topk_method") == "noaux_tc" or config.get("use_routing_bias"):
            found["bias"] = True
        return tuple(found.items())

    def _experts_note(self) -> str:
        limit = self.config.get("swiglu_limit")
        if not isinstance(limit, (int, float)) or not limit:
            return ""
        return (
            f"swiglu_limit {limit:g}: this model clamps gate and up and adds 1 to up, and its experts have biases. "
            "kernelmux's silu does neither: the choice holds for shape and scheme, not for the values"
        )

    def mamba(self, prefix: str, name: str) -> Iterator[Site]:
        """The projections and the gated norm of a Mamba-2 mixer; convolution and scan are no ops of kernelmux."""
        config = self.config
        heads = config.number(("mamba_num_heads",), "the Mamba heads")
        size = config.number(("mamba_head_dim",), "the size of a Mamba head")
        state = config.number(("ssm_state_size", "mamba_d_state"), "the state of a Mamba head")
        groups = config.number_or(("n_groups", "mamba_n_groups"), 1)
        mine = self.share(heads, "number of Mamba heads")
        kept = self.share(groups, "number of Mamba groups") if groups >= self.tp else 1
        width = mine * size
        yield self.gemm(prefix, f"{name}.in_proj", 2 * width + 2 * kept * state + mine, self.hidden)
        yield Site(f"{name}.conv1d", None, (("H", width + 2 * kept * state),), what="causal convolution and SSM scan")
        yield Site(f"{name}.norm", "gated_rms_norm", (("H", width),), options=(("n_groups", kept),))
        yield self.gemm(prefix, f"{name}.out_proj", self.hidden, width)
