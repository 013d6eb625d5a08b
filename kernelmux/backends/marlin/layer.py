"""What vLLM's weight converters want to see: a module with the attributes of one of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..libraries import module

if TYPE_CHECKING:
    from torch import Tensor

_UTILS = "vllm.model_executor.layers.quantization.utils"


def utils(name: str) -> Any:
    """One of vLLM's ``quantization.utils`` modules."""
    return vllm(f"{_UTILS}.{name}")


def vllm(name: str) -> Any:
    """One of vLLM's modules. Raises MissingPackage."""
    return module(name, "vllm>=0.33,<0.34", "Marlin")


def layer(parameters: dict[str, Tensor], **facts: Any) -> Any:
    """A torch module holding these tensors as parameters and these facts as attributes."""
    import torch

    made = torch.nn.Module()
    for name, tensor in parameters.items():
        made.register_parameter(name, torch.nn.Parameter(tensor.contiguous(), requires_grad=False))
    for name, fact in facts.items():
        setattr(made, name, fact)
    return made


def activation_dtype(device: Any, like: Tensor) -> Any:
    """The dtype scales are prepared in: fp16 on 7.5, which has no bf16, else bf16."""
    import torch

    capability = getattr(device, "capability", None)
    major = capability.major if capability is not None else torch.cuda.get_device_capability(like.device)[0]
    return torch.float16 if major < 8 else torch.bfloat16
