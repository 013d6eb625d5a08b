"""Look at the GPUs of this machine and describe them as Devices.

torch is asked where it is there and built for a GPU; NVML (nvidia-ml-py) or ``nvidia-smi`` where it is not. Nothing
here allocates on a GPU, and a machine without one is answered without waiting for a driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernelmux.device import RATES, Capability, Device, by_torch_name, catalog, normal
from kernelmux.errors import DeviceNotFound

SMI_TIMEOUT_S = 20.0  # a GPU fallen off the bus makes nvidia-smi wait; a healthy one answers within 2 s


@dataclass(frozen=True, slots=True)
class Facts:
    """What a probe saw of one GPU. Zero or empty: this probe cannot tell."""

    torch_name: str
    capability: Capability | None = None
    gcn_arch: str = ""
    sm_count: int = 0
    shared_bytes: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    driver: str | None = None


def detect(index: int = 0) -> Device:
    """The live GPU ``index`` in torch's order. Raises DeviceNotFound with a remedy."""
    seen = _probe()
    if 0 <= index < len(seen):
        return describe(seen[index], index)
    if seen:
        raise DeviceNotFound(
            f"there is no cuda:{index}: this process sees {len(seen)} GPU(s). Use cuda:0 to cuda:{len(seen) - 1}."
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f" CUDA_VISIBLE_DEVICES is {hidden!r}." if hidden is not None else ""
    raise DeviceNotFound(
        f"this machine has no GPU that answers.{why} Name the GPU you mean, for example `--device h100-sxm` "
        "(`kernelmux devices` lists them); to tune without a GPU add `--offline`."
    )


def live_devices() -> list[Device]:
    """Every GPU this process can use, in torch's order; empty on a machine without one."""
    return [describe(facts, index) for index, facts in enumerate(_probe())]


def current_index() -> int:
    """The device plain "cuda" means: torch's current one where torch already uses CUDA, else 0."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.current_device())
    return 0


def describe(facts: Facts, index: int) -> Device:
    """Join what the machine says with what the catalog knows of the same name."""
    known = by_torch_name(facts.torch_name)
    if known is not None:
        return _live(known, facts, index)
    mig = re.search(r"\s+MIG\b.*$", facts.torch_name)
    if mig:
        whole = by_torch_name(facts.torch_name[: mig.start()])
        if whole is not None:
            return _slice(whole, facts, index, mig.group().strip())
    return _unlisted(facts, index)


def _live(known: Device, facts: Facts, index: int) -> Device:
    return replace(
        known,
        torch_name=facts.torch_name,
        capability=facts.capability or known.capability,
        arch=facts.gcn_arch or (facts.capability.arch if facts.capability else known.arch),
        sm_count=facts.sm_count or known.sm_count,
        shared_bytes=facts.shared_bytes or known.shared_bytes,
        l2_bytes=(facts.l2_bytes if known.vendor == "nvidia" else 0) or known.l2_bytes,  # ROCm reports one XCD's share
        memory_gb=round(facts.memory_bytes / 2**30, 1) or known.memory_gb,
        live=True,
        index=index,
        driver=facts.driver,
    )


def _slice(whole: Device, facts: Facts, index: int, partition: str) -> Device:
    """A MIG slice: its own name and family, so that no table of the whole GPU is used for it."""
    share = facts.sm_count / whole.sm_count if facts.sm_count else 1.0
    memory = facts.memory_bytes / 2**30 / whole.memory_gb if facts.memory_bytes else share
    word = normal(partition).replace(".", "-")
    device = _live(whole, facts, index)
    return replace(
        device,
        name=f"{whole.name}-{word}",
        family=f"{whole.family}-{word}",
        bandwidth_gbs=round(whole.bandwidth_gbs * min(1.0, memory), 1),
        peak_tflops={rate: round(value * share, 2) for rate, value in whole.peak_tflops.items()},
        note=f"a MIG slice of {whole.torch_name}: tables of the whole GPU do not apply; bandwidth and peak rates are "
        "scaled by its share of memory and SMs",
    )


def _unlisted(facts: Facts, index: int) -> Device:
    """A GPU nobody listed: portable kernels only. Rates are those of its nearest kin, scaled by SM count."""
    kin = _kin(facts)
    share = facts.sm_count / kin.sm_count if facts.sm_count else 1.0
    name = re.sub(r"[^a-z0-9]+", "-", normal(facts.torch_name)).strip("-") or "gpu"
    device = _live(kin, facts, index)
    return replace(
        device,
        name=name,
        family=f"unlisted-{name}",
        capability=facts.capability,
        shared_bytes=facts.shared_bytes or (kin.shared_bytes if kin.capability == facts.capability else 49152),
        bandwidth_gbs=round(kin.bandwidth_gbs * share, 1),
        peak_tflops={rate: round(value * share, 2) for rate, value in kin.peak_tflops.items() if rate in RATES},
        trusted=False,
        note=f"{facts.torch_name} is not in the catalog: only portable kernels are chosen; bandwidth and peak rates "
        f"are estimates, those of {kin.name} scaled by SM count",
    )


def _kin(facts: Facts) -> Device:
    """The described GPU nearest in kind: the same capability or gfx name, the closest SM count."""
    described = [d for d in catalog().values() if d.vendor != "cpu"]
    same = [d for d in described if (d.arch == facts.gcn_arch if facts.gcn_arch else d.capability == facts.capability)]
    if not same:
        same = [d for d in described if d.vendor == ("amd" if facts.gcn_arch else "nvidia")]
    return min(same, key=lambda d: (abs(d.sm_count - facts.sm_count), d.name))


def _probe() -> Sequence[Facts]:
    """What the first probe that can see GPUs saw; empty when none can."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _probe_cached(visible, "torch" in sys.modules)


@lru_cache(maxsize=4)
def _probe_cached(visible: str | None, torch_loaded: bool) -> Sequence[Facts]:
    if not torch_loaded and not _has_driver():
        return ()  # importing torch takes seconds, and could find nothing
    return _from_torch() or _from_nvml(visible) or _from_smi(visible)


def forget() -> None:
    """Look again at the next question: a GPU went away or came back."""
    _probe_cached.cache_clear()


def _has_driver() -> bool:
    files = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
    return any(Path(p).exists() for p in files) or shutil.which("nvidia-smi") is not None


def _from_torch() -> tuple[Facts, ...]:
    if "torch" not in sys.modules and find_spec("torch") is None:
        return ()
    try:
        import torch

        if not torch.cuda.is_available():
            return ()
        driver = driver_version()
        return tuple(
            _torch_facts(torch.cuda.get_device_properties(i), driver) for i in range(torch.cuda.device_count())
        )
    except (
        ImportError,
        OSError,
        RuntimeError,
        AssertionError,
    ):  # a torch that cannot reach its driver says so in many ways
        return ()


def _torch_facts(props: Any, driver: str | None) -> Facts:
    gcn = str(getattr(props, "gcnArchName", "") or "").split(":")[0]
    amd = gcn.startswith("gfx")
    return Facts(
        torch_name=props.name,
        capability=None if amd else Capability(props.major, props.minor),
        gcn_arch=gcn if amd else "",
        sm_count=props.multi_processor_count,
        shared_bytes=getattr(props, "shared_memory_per_block_optin", 0) or 0,
        l2_bytes=getattr(props, "L2_cache_size", 0) or 0,
        memory_bytes=props.total_memory,
        driver=driver,
    )


def _from_nvml(visible: str | None) -> tuple[Facts, ...]:
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        wanted = _choose(visible, [_text(pynvml.nvmlDeviceGetUUID(h)) for h in handles])
        slices = [pynvml.nvmlDeviceGetHandleByUUID(w) if isinstance(w, str) else handles[w] for w in wanted]
        return tuple(_nvml_facts(pynvml, h, driver) for h in slices)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _nvml_facts(pynvml: Any, handle: Any, driver: str) -> Facts:
    name, parent = _text(pynvml.nvmlDeviceGetName(handle)), handle
    sm_count = 0
    if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        sm_count = int(pynvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount)
        if " MIG " not in name:
            name = f"{_text(pynvml.nvmlDeviceGetName(parent))} MIG"
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(parent)
    memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Facts(name, Capability(major, minor), sm_count=sm_count, memory_bytes=memory, driver=driver)


def _from_smi(visible: str | None) -> tuple[Facts, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=uuid,name,compute_cap,memory.total,driver_version,mig.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = (
        [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
        if done.returncode == 0
        else []
    )
    rows = [row for row in rows if len(row) == 6]
    wanted = _choose(visible, [row[0] for row in rows])
    return tuple(_smi_facts(rows[w]) for w in wanted if isinstance(w, int))


def _smi_facts(row: Sequence[str]) -> Facts:
    _, name, capability, memory, driver, mig = row
    cut = mig.lower() == "enabled"  # nvidia-smi names the whole GPU; which slice is used only torch or NVML can tell
    return Facts(
        torch_name=f"{name} MIG" if cut else name,
        capability=Capability.parse(capability),
        memory_bytes=0 if cut or not memory.isdigit() else int(memory) * 2**20,
        driver=driver,
    )


def _choose(visible: str | None, uuids: Sequence[str]) -> list[int | str]:
    """Which GPUs CUDA_VISIBLE_DEVICES leaves, as indices or the UUID of a MIG slice. CUDA stops at an unknown one."""
    if visible is None:
        return list(range(len(uuids)))
    out: list[int | str] = []
    for word in (w.strip() for w in visible.split(",")):
        if word.isdigit() and int(word) < len(uuids):
            out.append(int(word))
        elif word.startswith("MIG-"):
            out.append(word)
        elif word.startswith("GPU-") and sum(u.startswith(word) for u in uuids) == 1:
            out.append(next(i for i, u in enumerate(uuids) if u.startswith(word)))
        else:
            break
    return out


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def driver_version() -> str | None:
    """The kernel driver's version, read from its file: no process, no context; None when it does not say."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else None
