"""What a GPU is, described or live: a Device is the only thing a decision needs to know of a machine.

``catalog()`` reads ``devices.yaml``; ``detect()`` asks the machine. Neither ever creates a CUDA context, and this
module imports nothing heavy: PyYAML when the catalog is first read, torch only to look at a live GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from kernelmux import twin
from kernelmux.errors import ConfigFileError, UnknownDevice, UsageError

CATALOG_FILE = Path(__file__).with_name("devices.yaml")

# The minors that exist. "10.x" means exactly these: a minor NVIDIA adds later is not in the set until it is added here.
KNOWN_MINORS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {7: (0, 2, 5), 8: (0, 6, 7, 9), 9: (0,), 10: (0, 3), 11: (0,), 12: (0, 1)}
)
RATES = ("fp32", "bf16", "fp16", "fp8", "int8", "fp4")
_RATE_OF = {
    "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "float8": "fp8", "e4m3": "fp8", "e5m2": "fp8",
    "float4_e2m1fn_x2": "fp4", "float4": "fp4", "e2m1": "fp4", "nvfp4": "fp4", "mxfp4": "fp4",
}  # fmt: skip


class Capability(NamedTuple):
    """A CUDA compute capability. Compared for equality only: 12.0 is not "later than" 10.0 in any useful sense."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Read "9.0", "sm90", "sm_120" or "sm_90a"; raises UsageError for anything else."""
        found = re.fullmatch(_CAPABILITY, text.strip().lower())
        if found is None:
            raise UsageError(f"{text!r} is not a compute capability. Write it like 9.0, sm90 or sm_120.")
        dotted, compact = found.group("dotted"), found.group("compact")
        major, minor = dotted.split(".") if dotted else (compact[:-1], compact[-1])
        return cls(int(major), int(minor))

    @property
    def sm(self) -> int:
        """90 for 9.0, 120 for 12.0: the number triton's GPUTarget and nvcc use."""
        return self.major * 10 + self.minor

    @property
    def arch(self) -> str:
        return f"sm_{self.sm}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# Patterns stay text: re compiles and keeps each when it is first needed, and a first selection needs few.
_CAPABILITY = r"(?:sm[ _-]?)?(?P<dotted>\d{1,2}\.\d)|sm[ _-]?(?P<compact>\d{2,3})[af]?"


def capabilities(*texts: str) -> frozenset[Capability]:
    """An explicit set: ``capabilities("9.0", "10.x")`` is {9.0, 10.0, 10.3}.

    "10.x" stands for the minors known today, never for "10.0 and later"; an open end (">=9.0") raises UsageError.
    """
    out: set[Capability] = set()
    for text in texts:
        major, dot, minor = text.partition(".")
        if dot and minor == "x" and major.isdigit() and int(major) in KNOWN_MINORS:
            out.update(Capability(int(major), m) for m in KNOWN_MINORS[int(major)])
        elif text[:1] in "<>=!~":
            raise UsageError(f"{text!r} is open-ended: list the capabilities you mean, like '9.0', '10.0', '10.3'.")
        else:
            out.add(Capability.parse(text))
    return frozenset(out)


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU (or the CPU), described by the catalog or found in this machine.

    Every field is a fact of the hardware; ``devices.yaml`` says where each comes from.
    """

    name: str  # catalog name, "h100-sxm"
    torch_name: str  # exactly what torch reports, "NVIDIA H100 80GB HBM3"
    vendor: str  # "nvidia", "amd" or "cpu"
    capability: Capability | None  # None for AMD and the CPU
    arch: str  # "sm_90", "gfx942", "cpu"
    family: str  # GPUs whose tuned tables may stand in for each other share it
    sm_count: int
    shared_bytes: int  # per block, opt-in
    l2_bytes: int
    bandwidth_gbs: float  # 1e9 bytes a second
    memory_gb: float  # as the vendor names it; of a live GPU, GiB the driver reports
    peak_tflops: Mapping[str, float]  # dense, by RATES; a missing key: no such units
    trusted: bool  # False: a GPU nobody listed, portable kernels only
    live: bool = False
    index: int | None = None
    driver: str | None = None
    note: str = ""
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_tflops", MappingProxyType(dict(self.peak_tflops)))
        identity = (self.name, self.torch_name, self.sm_count, self.shared_bytes, self.live, self.index, self.driver)
        object.__setattr__(self, "_hash", hash(identity))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # String hashes differ between processes, so the kept hash must be computed again on the other side.
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return _rebuild, ({**values, "peak_tflops": dict(self.peak_tflops)},)

    def __str__(self) -> str:
        return f"{self.name} ({self.torch_name}, {self.capability or self.arch})"

    @property
    def table_name(self) -> str:
        """The device part of a tuned table's file name, as vLLM and SGLang write it: NVIDIA_H100_80GB_HBM3."""
        return re.sub(r"[\s/]+", "_", self.torch_name)

    @property
    def is_mig(self) -> bool:
        return " MIG " in f" {self.torch_name} "

    def peak(self, dtype: str) -> float:
        """Dense peak in TFLOP/s (TOP/s for int8); 0.0 where the device has no such units. ``"bfloat16"`` is bf16."""
        word = str(dtype).removeprefix("torch.").lower()
        rate = _RATE_OF.get(word, word)
        if rate not in RATES:
            raise UsageError(f"no peak rate is kept for dtype {dtype!r}. Use one of {', '.join(RATES)}.")
        return self.peak_tflops.get(rate, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Every fact, ready for json: the capability as text, the rates as an object."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        out["capability"] = str(self.capability) if self.capability else None
        return {**out, "peak_tflops": dict(self.peak_tflops), "table_name": self.table_name}


def _rebuild(values: dict[str, Any]) -> Device:
    return Device(**values)


class _Catalog(NamedTuple):
    devices: Mapping[str, Device]
    aliases: Mapping[str, tuple[str, ...]]  # catalog name -> other names people write
    keys: Mapping[str, str]  # normalised spelling -> catalog name
    representatives: Mapping[Capability, str]
    sources: Mapping[str, str]
    cited: Mapping[str, Mapping[str, str]]  # catalog name -> fact -> source key
    families: Mapping[str, str]  # family -> why its members' tables may stand in for each other


def normal(text: str) -> str:
    """The spelling names are compared in: lower case, runs of spaces, "_", "/" and "-" as one dash, no vendor word."""
    return re.sub(r"^(nvidia|amd)-", "", re.sub(r"[\s_/-]+", "-", text.strip().lower()).strip("-"))


def _parse(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml: 7 ms where pure Python takes 57 ms
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigFileError(path, "", f"cannot be read ({error}).", "Reinstall kernelmux.") from error


@lru_cache(maxsize=1)
def _load() -> _Catalog:
    raw = twin.read(CATALOG_FILE, _parse)
    devices: dict[str, Device] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    keys: dict[str, str] = {}
    cited: dict[str, Mapping[str, str]] = {}
    for name, entry in raw["gpus"].items():
        devices[name] = _described(name, entry, raw["arch"][entry["arch"]])
        aliases[name] = tuple(entry.get("aka", ()))
        seen, chip, rates = entry["src"]
        cited[name] = {
            "torch_name": seen, "capability": "cc", "shared_bytes": raw["arch"][entry["arch"]]["src"],
            "sm_count": chip, "l2_bytes": chip, "bandwidth_gbs": rates, "memory_gb": rates, "peak_tflops": rates,
        }  # fmt: skip
        for text in (name, entry["torch"], *aliases[name]):
            if keys.setdefault(normal(text), name) != name:
                raise ConfigFileError(CATALOG_FILE, f"gpus.{name}", f"{text!r} also names {keys[normal(text)]}.")
    representatives = {Capability.parse(cc): name for cc, name in raw["representatives"].items()}
    return _Catalog(
        MappingProxyType(devices), MappingProxyType(aliases), keys, representatives, raw["sources"], cited,
        raw["families"],
    )  # fmt: skip


def _described(name: str, entry: Mapping[str, Any], arch: Mapping[str, Any]) -> Device:
    rates = {rate: float(value) for rate, value in zip(RATES, entry["peak"], strict=True) if value}
    code = entry["arch"]
    return Device(
        name=name,
        torch_name=entry["torch"],
        vendor=arch["vendor"],
        capability=Capability.parse(code) if arch["vendor"] == "nvidia" else None,
        arch=Capability.parse(code).arch if arch["vendor"] == "nvidia" else code,
        family=entry["family"],
        sm_count=entry["sms"],
        shared_bytes=arch["shared"],
        l2_bytes=int(entry["l2"] * 2**20),
        bandwidth_gbs=float(entry["gbs"]),
        memory_gb=float(entry["gb"]),
        peak_tflops=rates,
        trusted=True,
        note=entry.get("note", ""),
    )


def catalog() -> Mapping[str, Device]:
    """Every described device by catalog name, in the file's order."""
    return _load().devices


def aliases(name: str) -> tuple[str, ...]:
    """Other names ``resolve_device`` takes for this catalog name."""
    return _load().aliases.get(name, ())


def sources(name: str) -> dict[str, str]:
    """Where each fact of a catalog entry comes from: field name -> document."""
    loaded = _load()
    return {fact: loaded.sources[key] for fact, key in loaded.cited.get(name, {}).items()}


def family_reason(family: str) -> str:
    """Why tuned tables of this family's members may stand in for each other; empty when nobody else is in it."""
    return str(_load().families.get(family, ""))


def by_torch_name(torch_name: str) -> Device | None:
    """The described device of a name torch, NVML or a table's file name carries; None when nobody listed it."""
    loaded = _load()
    name = loaded.keys.get(normal(torch_name))
    return loaded.devices[name] if name else None


def representative(capability: Capability) -> Device | None:
    """The card that stands for a bare capability, its note saying so; None for a capability with no entry."""
    from dataclasses import replace

    loaded = _load()
    name = loaded.representatives.get(capability)
    if name is None:
        return None
    device = loaded.devices[name]
    said = f"stands for any {capability} GPU: SM count, L2, bandwidth and peak rates are those of {device.torch_name}"
    return replace(device, note=f"{said}. {device.note}".rstrip(" ."))


def resolve_device(spec: object) -> Device:
    """The Device meant by a torch.device, "cuda:0", a catalog name or alias, a torch name, a capability or a Device.

    Names are compared without regard to case, spaces, underscores and dashes. A bare capability ("sm120", "12.0")
    gives the documented representative; one that nobody has listed ("sm_999") an untrusted Device, for which portable
    kernels alone are chosen. Raises UnknownDevice, with near matches; DeviceNotFound for "cuda:N" where no such GPU
    answers.
    """
    if isinstance(spec, Device):
        return spec
    if isinstance(spec, Capability):
        return _of_capability(spec)
    if isinstance(spec, str):
        text = spec
    elif hasattr(spec, "type") and hasattr(spec, "index"):  # torch.device, without importing torch
        text = str(spec)
    else:
        raise UsageError(f"a device is a name, a capability, a torch.device or a Device, not {type(spec).__name__}.")
    return _resolve_text(text)


def _resolve_text(text: str) -> Device:
    lowered = text.strip().lower()
    live = re.fullmatch(_LIVE, lowered)
    if live:
        from kernelmux.livegpu import current_index, detect

        return detect(int(live.group(1)) if live.group(1) else current_index())
    loaded = _load()
    name = loaded.keys.get("cpu" if lowered.startswith("cpu:") else normal(text))
    if name:
        return loaded.devices[name]
    if re.fullmatch(_CAPABILITY, lowered):
        return _of_capability(Capability.parse(lowered))
    mig = re.search(_MIG, normal(text))
    if mig:
        whole = by_torch_name(normal(text)[: mig.start()])
        hint = f" (a MIG slice of {whole.name} must be present: use cuda:N)" if whole else ""
        raise UsageError(f"{text!r} names a MIG slice, which only the machine that has it can describe{hint}.")
    raise UnknownDevice(normal(text), loaded.devices)


_LIVE = r"(?:cuda|hip|gpu)(?::(\d+))?"
_MIG = r"-mig\b"


def _of_capability(capability: Capability) -> Device:
    """The card a capability stands for; an untrusted one with the least of every fact where nobody has listed it."""
    listed = representative(capability)
    if listed is not None:
        return listed
    kin = min((d for d in catalog().values() if d.vendor == "nvidia"), key=lambda d: (d.peak("fp16"), d.name))
    return replace(
        kin,
        name=capability.arch,
        torch_name=capability.arch,
        capability=capability,
        arch=capability.arch,
        family=f"unlisted-{capability.arch}",
        shared_bytes=49152,  # what every CUDA GPU gives a block without being asked
        trusted=False,
        note=f"{capability.arch} is not in the catalog: only portable kernels are chosen; its rates are of {kin.name}",
    )


def detect(index: int = 0) -> Device:
    """The live GPU ``index``: see ``kernelmux.livegpu``. Raises DeviceNotFound with a remedy."""
    from kernelmux.livegpu import detect as find

    return find(index)


def live_devices() -> list[Device]:
    """Every GPU this process can use, in torch's order; empty on a machine without one."""
    from kernelmux.livegpu import live_devices as find

    return find()
