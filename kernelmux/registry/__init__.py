"""What kernels are and what they require. Knows no op, no backend and no file of either."""

from kernelmux.registry.config import ConfigChoice
from kernelmux.registry.decision import ACCEPTED, Accepted, Conditional, Decision, Rejected, combine
from kernelmux.registry.kernel import BACKENDS, EVIDENCE, Kernel, Numerics
from kernelmux.registry.measurement import Measurement
from kernelmux.registry.op import Op, Tolerance, Work
from kernelmux.registry.packages import Packages
from kernelmux.registry.problem import Problem, dtype_name
from kernelmux.registry.registry import Registry
from kernelmux.registry.requirements import (
    ANY,
    ActivationIn,
    Aligned,
    AllOf,
    AnyOf,
    DtypeIn,
    KnownIssue,
    NeedsPackage,
    OnCapability,
    Predicate,
    Requirement,
    SchemeIn,
    SharedMemory,
    VendorIn,
)

__all__ = [
    "ACCEPTED", "ANY", "BACKENDS", "EVIDENCE", "Accepted", "ActivationIn", "Aligned", "AllOf", "AnyOf", "Conditional",
    "ConfigChoice", "Decision", "DtypeIn", "Kernel", "KnownIssue", "Measurement", "NeedsPackage", "Numerics",
    "OnCapability", "Op", "Packages", "Predicate", "Problem", "Registry", "Rejected", "Requirement", "SchemeIn",
    "SharedMemory", "Tolerance", "VendorIn", "Work", "combine", "dtype_name",
]  # fmt: skip
