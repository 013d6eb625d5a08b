"""Which activations there are. Declarations of several backends read it, so it imports next to nothing."""

from __future__ import annotations

from ..registry.value import Value


class Activation(Value):
    """An op by its name, whether it takes [gate, up], and its formula in words."""

    name: str
    gated: bool
    formula: str


ACTIVATIONS = (
    Activation("silu_and_mul", True, "silu(gate) * up"),
    Activation("gelu_and_mul", True, "gelu(gate) * up"),
    Activation("gelu_tanh_and_mul", True, "tanh-approximated gelu(gate) * up"),
    Activation("relu2", False, "max(x, 0)^2"),
)
