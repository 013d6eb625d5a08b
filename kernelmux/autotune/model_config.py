"""The fused MoE shape to tune, from a model's Hugging Face ``config.json`` (read by ``kernelmux.models.fields``)."""

from __future__ import annotations

from pathlib import Path

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.errors import UsageError
from kernelmux.models.fields import ModelConfig, divided, dtype_word, moe_axes

__all__ = ["dtype_word", "moe_shape_of"]


def moe_shape_of(
    path: Path, *, tp: int = 1, activation: str | None = None, dtype: str | None = None, quant: str | None = None
) -> MoeShape:
    """The shape of one rank's experts under tensor parallelism ``tp`` (N is divided).

    ``activation`` and ``dtype`` override the file. Raises ConfigFileError naming the key that is missing or off,
    UsageError for a file that is not there, a ``tp`` that does not divide N, or a quantized model without ``quant``.
    """
    config = ModelConfig.read(path)
    axes = moe_axes(config)
    width = divided(axes["N"], tp, "intermediate size", path)
    quantized = config.quantization
    if quantized and quant is None:
        inner = quantized["quantization_config"]
        method = inner.get("quant_method", "unknown") if isinstance(inner, dict) else "unknown"
        raise UsageError(
            f"{path} is a quantized model (quant_method {method!r}), and only unquantized tables can be tuned. "
            "Add `--quant none` to tune its bf16 form."
        )
    return MoeShape(axes["E"], width, axes["K"], axes["topk"], activation or config.activation, dtype or config.dtype)
