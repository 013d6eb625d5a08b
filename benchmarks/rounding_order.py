"""Does it matter in which order a norm rounds? Argmax flips of a 32-layer toy transformer against Hugging Face's norm.

Random weights, each linear layer quantized to int4 (symmetric, groups of 128) and dequantized to bf16, as a W4A16
checkpoint runs; norm weights around 1. The same tokens go through the same network three and more times; only the norm
differs: Hugging Face's own formula (transformers' LlamaRMSNorm where it is installed), kernelmux's kernel that promises
``cast_before_mul`` (Hugging Face's order), and the one that promises ``fp32_mul``. Both add the residual as Hugging
Face does, rounded. Counted are positions at which the largest logit is another one.

    python benchmarks/rounding_order.py --out benchmarks/results/rounding-order-cpu.json [--device cuda:0]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernelmux as km
from kernelmux.device import resolve_device

LAYERS, HIDDEN, INNER, HEADS, VOCABULARY, GROUP = 32, 1024, 2816, 8, 8192, 128
EPS = 1e-6
AddNorm = Callable[[Tensor, "Tensor | None", Tensor], "tuple[Tensor, Tensor]"]


def int4(rows: int, columns: int, generator: torch.Generator, place: str) -> Tensor:
    """A random [rows, columns] bf16 weight that went through int4: 15 levels a group of 128 columns."""
    weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    groups = weight.view(rows, -1, GROUP)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / 7).bfloat16().float()
    return ((groups / scale).round().clamp(-7, 7) * scale).view(rows, columns).bfloat16().to(place)


class Toy:
    """Llama's layer structure: norm, causal attention, norm, SwiGLU; a norm and a head at the end."""

    def __init__(self, layers: int, seed: int, place: str):
        generator = torch.Generator().manual_seed(seed)

        def linear(rows: int, columns: int) -> Tensor:
            return int4(rows, columns, generator, place)

        def norm() -> Tensor:
            return (1 + 0.25 * torch.randn(HIDDEN, generator=generator)).bfloat16().to(place)

        self.embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator).bfloat16().to(place)
        self.layers = [
            {
                "norm1": norm(), "qkv": linear(3 * HIDDEN, HIDDEN), "out": linear(HIDDEN, HIDDEN),
                "norm2": norm(), "gate_up": linear(2 * INNER, HIDDEN), "down": linear(HIDDEN, INNER),
            }
            for _ in range(layers)
        ]  # fmt: skip
        self.norm, self.head = norm(), linear(VOCABULARY, HIDDEN)

    def logits(self, tokens: Tensor, add_norm: AddNorm) -> Tensor:
        """[S, vocabulary] bf16 of one sequence [S]. ``add_norm(delta, residual, weight)`` -> (normed, residual)."""
        delta, residual = self.embedding[tokens], None
        for layer in self.layers:
            normed, residual = add_norm(delta, residual, layer["norm1"])
            delta = F.linear(self.attention(F.linear(normed, layer["qkv"])), layer["out"])
            normed, residual = add_norm(delta, residual, layer["norm2"])
            gate, up = F.linear(normed, layer["gate_up"]).chunk(2, dim=-1)
            delta = F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(add_norm(delta, residual, self.norm)[0], self.head)

    def attention(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.view(len(qkv), HEADS, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(len(qkv), HIDDEN)


def hugging_face(place: str) -> tuple[AddNorm, str]:
    """transformers' own class, or its formula."""
    try:
        from transformers import __version__
        from transformers.models.llama.modeling_llama import LlamaRMSNorm
    except ImportError:
        norm: Any = None
        said = "the formula of transformers' LlamaRMSNorm"
    else:
        norm = LlamaRMSNorm(HIDDEN, eps=EPS).to(place)
        said = f"LlamaRMSNorm of transformers {__version__}"

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        if norm is not None:
            norm.weight.data = weight
            with torch.no_grad():
                return norm(x)
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return weight * wide.to(x.dtype)

    def add_norm(delta: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = delta if residual is None else residual + delta
        return normed(total, weight), total

    return add_norm, said


def kernels(device: str, tokens: int, *demands: str) -> tuple[AddNorm, list[str]]:
    """kernelmux's choice under these demands on its numerics, and its name."""
    problem: dict[str, Any] = {"device": device, "dtype": "bfloat16", "shape": {"M": tokens, "H": HIDDEN}}
    order = [word for word in demands if not word.startswith("residual")]
    first = km.select_backend("rms_norm", demands=tuple(order), **problem)
    fused = km.select_backend("fused_add_rms_norm", demands=demands, **problem)

    def add_norm(delta: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        if residual is None:
            return first(delta, first.prepare(weight=weight), eps=EPS), delta
        return fused(delta, fused.prepare(weight=weight), residual=residual, eps=EPS)

    return add_norm, [first.kernel, fused.kernel]


def compare(runs: dict[str, Tensor], against: str) -> dict[str, dict[str, float]]:
    """For each other run: positions with another argmax, and how far the logits are apart."""
    truth = runs[against].float()
    spread = float(truth.std())
    found = {}
    for name, logits in runs.items():
        if name != against:
            other = logits.float()
            found[name] = {
                "flips": int((other.argmax(-1) != truth.argmax(-1)).sum()),
                "positions": len(truth),
                "logits_equal": round(float((other == truth).double().mean()), 6),
                "mean_logit_error": round(float((other - truth).abs().mean()) / spread, 6),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    began = time.monotonic()
    toy = Toy(options.layers, options.seed, options.device)
    generator = torch.Generator().manual_seed(options.seed + 1)
    tokens = torch.randint(VOCABULARY, (options.sequences, options.length), generator=generator).to(options.device)
    reference, said = hugging_face(options.device)
    variants: dict[str, AddNorm] = {"hugging face": reference}
    names = {}
    for name, demands in {
        "cast_before_mul": ("cast_before_mul", "residual_rounded"),
        "fp32_mul": ("fp32_mul", "residual_rounded"),
        "fp32_mul, residual_fp32": ("fp32_mul", "residual_fp32"),
    }.items():
        variants[name], names[name] = kernels(options.device, options.length, *demands)
    logits: dict[str, list[Tensor]] = {name: [] for name in variants}
    for sequence in tokens:
        for name, add_norm in variants.items():
            logits[name].append(toy.logits(sequence, add_norm).cpu())
    found = compare({name: torch.cat(parts) for name, parts in logits.items()}, "hugging face")
    device = resolve_device(options.device)
    result = {
        "benchmark": "rounding order", "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": f"python benchmarks/rounding_order.py --device {options.device} --out FILE",
        "device": device.torch_name, "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "network": {
            "layers": options.layers, "hidden": HIDDEN, "inner": INNER, "heads": HEADS, "vocabulary": VOCABULARY,
            "weights": f"int4 in groups of {GROUP}, dequantized to bfloat16", "seed": options.seed,
            "sequences": options.sequences, "length": options.length,
        },
        "reference": said,
        "runs": [{"norm": name, "kernels": names[name], **entry} for name, entry in found.items()],
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for run in result["runs"]:
        print(f"{run['norm']}: {run['flips']} of {run['positions']} positions have another argmax ({run['kernels']})")


if __name__ == "__main__":
    main()
