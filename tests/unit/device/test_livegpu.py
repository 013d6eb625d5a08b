"""Live detection, with the machine replaced by what its probes would say."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from kernelmux import livegpu
from kernelmux.device import Capability, catalog
from kernelmux.errors import DeviceNotFound
from kernelmux.livegpu import Facts, describe

H100 = Facts("NVIDIA H100 80GB HBM3", Capability(9, 0), "", 132, 232448, 50 * 2**20, 85_000_000_000, "580.95.05")


def test_a_listed_gpu_takes_counts_from_the_machine_and_rates_from_the_catalog() -> None:
    device = describe(H100, 3)
    assert (device.name, device.live, device.index, device.driver) == ("h100-sxm", True, 3, "580.95.05")
    assert device.trusted
    assert device.memory_gb == pytest.approx(79.2)
    assert device.peak_tflops == catalog()["h100-sxm"].peak_tflops


def test_a_mig_slice_is_not_the_whole_gpu() -> None:
    seen = Facts("NVIDIA H100 80GB HBM3 MIG 1g.10gb", Capability(9, 0), "", 16, 232448, 0, 10 * 2**30, None)
    device = describe(seen, 0)
    whole = catalog()["h100-sxm"]
    assert device.trusted
    assert device.is_mig
    assert device.sm_count == 16
    assert device.table_name == "NVIDIA_H100_80GB_HBM3_MIG_1g.10gb"
    assert device.family != whole.family
    assert device.name == "h100-sxm-mig-1g-10gb"
    assert device.peak("bf16") == pytest.approx(whole.peak("bf16") * 16 / 132, rel=1e-3)
    assert device.bandwidth_gbs == pytest.approx(whole.bandwidth_gbs / 8, rel=0.01)
    assert "MIG slice" in device.note


def test_an_unlisted_gpu_is_untrusted_and_says_so() -> None:
    device = describe(Facts("NVIDIA Z900 Ultra", Capability(13, 0), "", 200, 300_000, 0, 0, "700.1"), 0)
    assert not device.trusted
    assert device.capability == Capability(13, 0)
    assert device.arch == "sm_130"
    assert device.shared_bytes == 300_000
    assert device.family == "unlisted-z900-ultra"
    assert "not in the catalog" in device.note


def test_an_unlisted_gpu_without_a_shared_memory_fact_gets_what_every_gpu_has() -> None:
    assert describe(Facts("NVIDIA Z900", Capability(13, 0)), 0).shared_bytes == 49152


def test_a_listed_capability_under_an_unlisted_name_is_still_untrusted() -> None:
    device = describe(Facts("NVIDIA RTX PRO 4000 Blackwell", Capability(12, 0), "", 70), 0)
    assert not device.trusted
    assert device.shared_bytes == 101376
    assert device.peak("bf16") == pytest.approx(catalog()["rtx-5080"].peak("bf16") * 70 / 84, rel=1e-3)


def test_an_amd_gpu_has_no_capability_and_keeps_the_l2_of_all_its_dies() -> None:
    device = describe(Facts("AMD Instinct MI300X", None, "gfx942", 304, 65536, 4 * 2**20, 192 * 2**30), 0)
    assert (device.name, device.capability, device.arch) == ("mi300x", None, "gfx942")
    assert device.l2_bytes == 32 * 2**20


def test_properties_of_torch_become_facts() -> None:
    props = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=1)
    props.shared_memory_per_block_optin, props.L2_cache_size = 232448, 62914560
    facts = livegpu._torch_facts(props, "580.1")
    assert facts == Facts("NVIDIA H200", Capability(9, 0), "", 132, 232448, 62914560, 1, "580.1")


def test_a_torch_that_cannot_tell_leaves_the_catalogs_facts() -> None:
    props = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=2**30)
    device = describe(livegpu._torch_facts(props, None), 0)
    assert device.shared_bytes == 232448
    assert device.l2_bytes == catalog()["h200"].l2_bytes


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-b", [1]),
        ("GPU-", []),
        ("0,9,1", [0]),
        ("-1", []),
        ("MIG-1234", ["MIG-1234"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str | None, left: list[object]) -> None:
    assert livegpu._choose(visible, ["GPU-aa", "GPU-bb", "GPU-cc"]) == left


def _smi(monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], code, stdout=text, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)


def test_nvidia_smi_is_read_where_there_is_neither_torch_nor_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(monkeypatch, "GPU-aa, NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05, Disabled\n")
    (facts,) = livegpu._from_smi(None)
    device = describe(facts, 0)
    assert (device.name, device.driver, device.sm_count) == ("h100-sxm", "580.95.05", 132)
    assert device.shared_bytes == 232448


def test_nvidia_smi_with_mig_on_does_not_claim_the_whole_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(monkeypatch, "GPU-aa, NVIDIA H100 80GB HBM3, 9.0, 81559, 580.95.05, Enabled\n")
    (facts,) = livegpu._from_smi(None)
    assert describe(facts, 0).is_mig


def test_gpus_without_a_mig_column_and_a_failing_nvidia_smi_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(monkeypatch, "GPU-aa, NVIDIA L4, 8.9, 23034, 550.1, [N/A]\n")
    assert livegpu._from_smi(None)[0].torch_name == "NVIDIA L4"
    _smi(monkeypatch, "No devices were found\n", code=6)
    assert livegpu._from_smi(None) == ()


def test_a_hanging_nvidia_smi_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", hang)
    assert livegpu._from_smi(None) == ()


def test_an_index_past_the_last_gpu_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livegpu, "_probe", lambda: (H100,))
    assert livegpu.detect(0).name == "h100-sxm"
    with pytest.raises(DeviceNotFound, match=r"no cuda:4: this process sees 1 GPU"):
        livegpu.detect(4)


def test_hidden_gpus_are_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livegpu, "_probe", tuple)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceNotFound, match="CUDA_VISIBLE_DEVICES is ''"):
        livegpu.detect(0)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("something else", None),
    ],
)
def test_the_driver_version_is_read_from_its_file(
    monkeypatch: pytest.MonkeyPatch, line: str, version: str | None
) -> None:
    monkeypatch.setattr("pathlib.Path.read_text", lambda self, **kwargs: line + "\n")
    assert livegpu.driver_version() == version


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_described() -> None:
    device = livegpu.detect(0)
    assert device.live
    assert device.sm_count > 0
    assert device.shared_bytes >= 49152
    assert device.driver
