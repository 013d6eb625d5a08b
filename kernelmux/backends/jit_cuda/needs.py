"""What every kernel compiled here needs of a machine, judged from packages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...device import capabilities
from ...registry import ACCEPTED, Decision, NeedsPackage, OnCapability, Rejected, Requirement, VendorIn
from ...registry.value import Value

if TYPE_CHECKING:
    from ...device import Device
    from ...registry import Packages, Problem

# CuPy's package for a CUDA generation -> the packages that carry its NVRTC.
CARRIERS = {
    "cupy-cuda12x": ("nvidia-cuda-nvrtc-cu12",),
    "cupy-cuda13x": ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13"),
}
# The first NVRTC that compiles for a GPU, as its release notes and nvrtcGetSupportedArchs say.
FIRST_NVRTC = {
    "8.0": "12.0", "8.6": "12.0", "8.7": "12.0", "8.9": "12.0", "9.0": "12.0",
    "10.0": "12.8", "10.3": "12.9", "11.0": "13.0", "12.0": "12.8", "12.1": "12.9",
}  # fmt: skip


class NeedsNvrtc(Value):
    """CuPy of a CUDA generation with that generation's NVRTC, which must know the GPU."""

    def check(self, device: Device, packages: Packages, problem: Problem) -> Decision:
        if device.capability is None:
            return ACCEPTED  # another requirement says what is wrong
        first = FIRST_NVRTC.get(str(device.capability), "")
        lacking: list[str] = []
        old: list[str] = []
        for cupy, carriers in CARRIERS.items():
            if not packages.has(cupy):
                continue
            found = [version for name in carriers if (version := packages.get(name)) is not None]
            if any(packages.has(name, f">={first}" if first else "") for name in carriers):
                return ACCEPTED
            (old if found else lacking).extend(found or [cupy])
        install = f"`{command(packages, first)}`"
        if old:
            reason = f"NVRTC {old[0]} does not know {device.capability}: {first} is the first that does"
            return Rejected("package_version", reason, install)
        if lacking:
            reason = f"it is compiled by NVRTC, which {lacking[0]} calls and which is not installed"
            return Rejected("package_missing", reason, install)
        reason = "it is compiled through CuPy (cupy-cuda12x or cupy-cuda13x), which is not installed"
        return Rejected("package_missing", reason, install)

    def describe(self) -> str:
        return "CuPy with NVRTC"


def command(packages: Packages, first: str = "") -> str:
    """The pip command for CuPy and NVRTC: of the CuPy that is there, else of torch, else the older CUDA that will do.

    ``first``: the first NVRTC that will do, where that matters.
    """
    from ..libraries import cuda_of_torch

    thirteen = "cupy-cuda13x" in packages or (cuda_of_torch(packages.get("torch")) or "").startswith("13")
    generation = 13 if first.startswith("13") or (thirteen and "cupy-cuda12x" not in packages) else 12
    return f"pip install 'kernelmux[cuda{generation}]'"


COMPILED_HERE: tuple[Requirement, ...] = (
    OnCapability(capabilities(*FIRST_NVRTC), why="it uses instructions of 8.0 and later"),
    VendorIn(frozenset({"nvidia"})),
    NeedsNvrtc(),
    NeedsPackage("torch", ">=2.9", to_run=True, install="pip install 'kernelmux[torch]'"),
)
