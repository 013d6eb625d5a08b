"""devices.yaml: every entry is whole, every name leads to one device."""

from __future__ import annotations

import re

import pytest
import yaml

from kernelmux.device import (
    CATALOG_FILE,
    RATES,
    Capability,
    Device,
    aliases,
    catalog,
    family_reason,
    normal,
    representative,
    resolve_device,
    sources,
)

SERVED_ON = (
    "t4 a10 a100-sxm-40gb a100-sxm-80gb a100-pcie-40gb a100-pcie-80gb a800-sxm-80gb l4 l40s rtx-4090 rtx-6000-ada "
    "h100-sxm h100-pcie h100-nvl h800 h20 h20-3e h200 h200-nvl gh200 b200 gb200 b300 gb300 rtx-5090 rtx-5080 "
    "rtx-pro-6000-server rtx-pro-6000-workstation rtx-pro-6000-max-q rtx-pro-5000 gb10 jetson-thor "
    "mi300x mi325x mi355x cpu"
).split()

# Most bytes of shared memory one block may opt in to, CUDA C++ Programming Guide.
SHARED = {"7.5": 65536, "8.0": 166912, "8.6": 101376, "8.9": 101376, "9.0": 232448, "10.0": 232448, "10.3": 232448}
SHARED |= {"11.0": 232448, "12.0": 101376, "12.1": 101376}

# Names other projects' tuned tables carry.
TABLE_NAMES = {
    "NVIDIA_H100_80GB_HBM3": "h100-sxm", "NVIDIA_H100_PCIe": "h100-pcie", "NVIDIA_H200": "h200", "NVIDIA_H20": "h20",
    "NVIDIA_H20-3e": "h20-3e", "NVIDIA_H800": "h800", "NVIDIA_B200": "b200", "NVIDIA_GB200": "gb200",
    "NVIDIA_B300_SXM6_AC": "b300", "NVIDIA_A100-SXM4-80GB": "a100-sxm-80gb", "NVIDIA_A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA_A100_80GB_PCIe": "a100-pcie-80gb", "NVIDIA_A800-SXM4-80GB": "a800-sxm-80gb", "NVIDIA_L40S": "l40s",
    "NVIDIA_L20": "l20", "NVIDIA_GB10": "gb10", "NVIDIA_GeForce_RTX_4090": "rtx-4090",
    "NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition": "rtx-pro-6000-server",
    "NVIDIA_RTX_PRO_6000_Blackwell_Workstation_Edition": "rtx-pro-6000-workstation",
    "AMD_Instinct_MI300X": "mi300x", "AMD_Instinct_MI325X": "mi325x", "AMD_Instinct_MI355X": "mi355x",
}  # fmt: skip

each_device = pytest.mark.parametrize("device", catalog().values(), ids=list(catalog()))


def test_the_gpus_people_serve_on_are_described() -> None:
    assert set(SERVED_ON) <= set(catalog())


@each_device
def test_a_described_device_is_whole_and_plausible(device: Device) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", device.name)
    assert device.trusted
    assert not device.live
    assert device.sm_count > 0
    assert device.l2_bytes > 0
    assert device.bandwidth_gbs > 0
    assert set(device.peak_tflops) <= set(RATES)
    assert device.peak("fp32") > 0
    if device.vendor != "cpu":
        assert 10 < device.bandwidth_gbs < 10_000
        assert device.peak("fp16") >= device.peak("fp32")
        assert device.peak("fp8") in (0, pytest.approx(2 * device.peak("fp16"), rel=0.02))


@each_device
def test_shared_memory_is_the_programming_guides(device: Device) -> None:
    if device.vendor == "nvidia":
        assert device.shared_bytes == SHARED[str(device.capability)]


@each_device
def test_every_fact_names_its_source(device: Device) -> None:
    said = sources(device.name)
    facts = "torch_name capability shared_bytes sm_count l2_bytes bandwidth_gbs memory_gb peak_tflops".split()
    assert set(said) == set(facts)
    assert all(len(text) > 10 for text in said.values())


def test_torch_names_and_spellings_lead_to_one_device() -> None:
    taken: dict[str, str] = {}
    for device in catalog().values():
        for text in (device.name, device.torch_name, *aliases(device.name)):
            assert taken.setdefault(normal(text), device.name) == device.name, text


def test_the_catalog_file_repeats_no_key() -> None:
    class Strict(yaml.SafeLoader):
        pass

    def no_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, object]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), sorted({k for k in keys if keys.count(k) > 1})
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, no_repeats)
    yaml.load(CATALOG_FILE.read_text(encoding="utf-8"), Loader=Strict)


@pytest.mark.parametrize(("written", "name"), TABLE_NAMES.items(), ids=TABLE_NAMES)
def test_names_of_shipped_tables_resolve_and_are_written_back(written: str, name: str) -> None:
    device = resolve_device(written)
    assert device.name == name
    assert device.table_name == written


def test_a_family_of_several_says_why_and_every_reason_is_used() -> None:
    members: dict[str, list[Device]] = {}
    for device in catalog().values():
        members.setdefault(device.family, []).append(device)
    for family, devices in members.items():
        assert bool(family_reason(family)) == (len(devices) > 1), family
        assert len({d.capability for d in devices}) == 1, family
        assert len({d.shared_bytes for d in devices}) == 1, family


def test_every_capability_in_the_catalog_has_a_representative_that_says_so() -> None:
    for capability in {d.capability for d in catalog().values()} - {None}:
        assert isinstance(capability, Capability)
        device = representative(capability)
        assert device is not None
        assert device.capability == capability
        assert f"stands for any {capability} GPU" in device.note


def test_h100_and_h20_do_not_share_a_family() -> None:
    assert catalog()["h100-sxm"].family == catalog()["h200"].family
    assert catalog()["h100-sxm"].family != catalog()["h20"].family
