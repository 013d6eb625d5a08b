"""Op: the contract that every kernel of one operation keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernelmux.registry.value import Value


class Tolerance(Value):
    """How far a kernel may be from the fp32 reference, and the reason for the number.

    It holds for each row (last dimension) of each floating-point output: the L2 norm of its error is at most
    ``rtol`` times the norm of the reference's row, plus ``atol`` for each element (times the root of their number).
    Other outputs (ids, packed values) are equal.
    """

    rtol: float
    atol: float
    why: str


class Work(Value):
    """What one call must do at least: floating-point operations and bytes moved to or from memory."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Op:
    """What an op means. All behaviour is a lazy ``module:function``, so that declaring it imports nothing.

    ``schema`` is the torch schema. ``reference`` computes in fp32, ``meta`` gives shapes without data, ``examples``
    makes inputs, ``problem(x, weights, **op_args)`` reads the shape of a call (at least the token axis), ``work``
    maps a Problem to Work. ``token_axis`` is the axis that varies from call to call (None: there is none).
    ``weights`` names the tensors that a kernel's ``prepare`` takes, ``optional_weights`` those it takes where the
    checkpoint has them. ``scheme_of(**arguments)`` names the quantization that the tensors of a call have (None: the
    op has none). ``check(**arguments)`` raises
    BadShape for shapes and dtypes that do not fit; ``check_values(x, weights, **op_args)`` looks at values too, and so
    waits for the device: it runs in checked mode only (``KERNELMUX_CHECKED=1``).

    ``decoded(results, **arguments)`` turns packed results into the fp32 tensors that the tolerance is about (None: it
    is about the results themselves).

    ``outs`` names the keyword arguments that take the results, in their order (empty: a call always allocates).
    ``inplace`` pairs each of them with the argument it may be: ``(("out", "x"), ("residual_out", "residual"))``.
    """

    name: str
    summary: str
    schema: str
    reference: str
    meta: str
    examples: str
    problem: str
    axes: tuple[str, ...]
    token_axis: str | None
    schemes: frozenset[str]
    dtypes: tuple[str, ...]
    activations: tuple[str, ...] = ()
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    work: str | None = None
    weights: tuple[str, ...] = ()
    optional_weights: tuple[str, ...] = ()
    scheme_of: str | None = None
    check: str | None = None
    check_values: str | None = None
    decoded: str | None = None
    outs: tuple[str, ...] = ()
    inplace: tuple[tuple[str, str], ...] = ()
