from __future__ import annotations

from pathlib import Path

import pytest

from kernelmux.device import by_torch_name
from kernelmux.errors import ConfigFileError
from kernelmux.tuning_configs import aliases
from kernelmux.tuning_configs.engines import vllm


def test_every_pair_has_evidence_and_a_source() -> None:
    for found in aliases.load().of.values():
        assert all(alias.evidence and alias.source and alias.grade in aliases.GRADES for alias in found)


def test_one_board_under_two_names_is_the_same_both_ways() -> None:
    assert aliases.for_device("AMD_Instinct_MI325X")[0].name == "AMD_Instinct_MI325_OAM"
    assert aliases.for_device("AMD_Instinct_MI325_OAM")[0].grade == "same"


def test_a_name_that_no_board_reports_may_be_read_but_is_asked_for_by_nobody() -> None:
    alias = aliases.never_reported("NVIDIA_H100")
    assert alias is not None
    assert alias.name == "NVIDIA_H100_80GB_HBM3"
    assert "NVIDIA_H100" in {found.name for found in aliases.for_device("NVIDIA_H100_80GB_HBM3")}
    assert aliases.for_device("NVIDIA_H100") == ()
    assert aliases.never_reported("NVIDIA_H100_PCIe") is None


@pytest.mark.parametrize("name", ["NVIDIA_H100_80GB_HBM3_MIG_1g.10gb", "NVIDIA H200 MIG 2g.35gb"])
def test_a_mig_slice_is_never_taken_for_the_whole_gpu(name: str) -> None:
    assert aliases.is_slice(name)
    assert aliases.for_device(name) == ()


def test_every_stand_in_has_the_shared_memory_of_the_other() -> None:
    for name, found in aliases.load().of.items():
        device = by_torch_name(name)
        for alias in found:
            other = by_torch_name(alias.name)
            if device is not None and other is not None:
                assert device.shared_bytes == other.shared_bytes


def test_vllms_family_rule_is_the_one_in_the_data() -> None:
    for word, name in aliases.load().vllm_families.items():
        assert vllm.device_name(f"NVIDIA {word} NVL") == name
    assert vllm.device_name("NVIDIA GH200 480GB") == "NVIDIA_GH200_480GB"


def test_a_pair_without_evidence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aliases.yaml"
    path.write_text("vllm_families: {}\npairs:\n  - {names: [A, B], grade: same, source: x}\n")
    with pytest.raises(ConfigFileError, match="evidence is compulsory"):
        aliases.load(path)
