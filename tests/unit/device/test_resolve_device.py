"""resolve_device, Capability and Device as values."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.device import KNOWN_MINORS, Capability, Device, capabilities, catalog, normal, resolve_device
from kernelmux.errors import DeviceNotFound, UnknownDevice, UsageError

devices = st.sampled_from(sorted(catalog()))
known_capabilities = st.sampled_from([Capability(major, m) for major, minors in KNOWN_MINORS.items() for m in minors])


@given(devices, st.sampled_from(["name", "torch_name"]), st.sampled_from([" ", "_", "-", "__", " - "]), st.randoms())
def test_a_name_resolves_in_any_case_and_with_any_separators(name, field, separator, random) -> None:
    text = getattr(catalog()[name], field)
    respelt = separator.join(normal(text).split("-")) if field == "name" else text.replace(" ", separator)
    respelt = "".join(random.choice((c.upper(), c.lower())) for c in respelt)
    assert resolve_device(respelt) == catalog()[name]


@given(devices)
def test_resolving_a_device_gives_it_back(name) -> None:
    device = catalog()[name]
    assert resolve_device(device) is device


@given(known_capabilities, st.sampled_from(["{0}", "sm{1}", "sm_{1}", "SM{1}", "sm_{1}a", "sm {0}"]))
def test_every_spelling_of_a_capability_is_the_same_capability(capability, form) -> None:
    assert Capability.parse(form.format(capability, capability.sm)) == capability


@given(known_capabilities, known_capabilities)
def test_a_capability_set_holds_only_what_it_names(one, other) -> None:
    assert (other in capabilities(str(one))) == (one == other)


def test_12_1_is_not_12_0_and_12_0_is_not_later_than_10_0() -> None:
    assert Capability(12, 1) not in capabilities("12.0")
    assert Capability(12, 0) not in capabilities("10.x")


@pytest.mark.parametrize("major", KNOWN_MINORS)
def test_dot_x_expands_to_the_known_minors_only(major: int) -> None:
    assert capabilities(f"{major}.x") == {Capability(major, m) for m in KNOWN_MINORS[major]}


def test_ten_dot_x_is_10_0_and_10_3() -> None:
    assert capabilities("10.x") == capabilities("10.0", "10.3") != capabilities("10.0")


@pytest.mark.parametrize(
    "text", [">=9.0", ">9", "<=12.0", "~=10.0", "!=9.0", "13.x", "9", "", "sm", "ten", "9.0.0", "x.9"]
)
def test_open_ended_and_malformed_capabilities_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        capabilities(text)


@pytest.mark.parametrize("spec", ["sm120", "12.0", "sm_120", "SM_120a", Capability(12, 0)])
def test_a_bare_capability_gives_its_representative_and_says_so(spec: object) -> None:
    device = resolve_device(spec)
    assert device.name == "rtx-pro-6000-server"
    assert "stands for any 12.0 GPU" in device.note


@pytest.mark.parametrize(
    ("alias", "name"),
    [("H100", "h100-sxm"), ("a100", "a100-sxm-80gb"), ("dgx spark", "gb10"), ("4090", "rtx-4090"), ("cpu:0", "cpu")],
)
def test_aliases_lead_to_the_card_people_mean(alias: str, name: str) -> None:
    assert resolve_device(alias).name == name


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownDevice, match=r"h100-smx.*Did you mean h100-sxm"):
        resolve_device("H100 SMX")


@pytest.mark.parametrize("spec", ["sm77", "sm_999", "10.7"])
def test_a_capability_nobody_listed_is_an_untrusted_device(spec: str) -> None:
    device = resolve_device(spec)
    assert not device.trusted
    assert device.capability == Capability.parse(spec)
    assert device.name not in catalog()
    assert device.shared_bytes == 49152
    assert "only portable kernels" in device.note


def test_a_described_mig_slice_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="MIG slice of h100-sxm must be present"):
        resolve_device("NVIDIA H100 80GB HBM3 MIG 1g.10gb")


@pytest.mark.parametrize("spec", [None, 3, 9.0, object()])
def test_what_is_no_device_at_all_is_a_usage_error(spec: object) -> None:
    with pytest.raises(UsageError, match="a device is a name"):
        resolve_device(spec)


def test_a_torch_device_is_read_without_importing_torch() -> None:
    class TorchDevice:
        type, index = "cpu", None

        def __str__(self) -> str:
            return "cpu"

    assert resolve_device(TorchDevice()).name == "cpu"


@given(devices)
def test_a_device_survives_pickling_into_another_process(name) -> None:
    device = catalog()[name]
    again = pickle.loads(pickle.dumps(device))
    assert again == device
    assert hash(again) == hash(device)


def test_an_unpickled_device_is_found_in_a_dictionary_of_the_other_process() -> None:
    code = (
        "import pickle, sys; from kernelmux.device import catalog; d = pickle.loads(sys.stdin.buffer.read());"
        "print({catalog()[d.name]: 'found'}[d])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(catalog()["h200"]), capture_output=True)
    assert done.stdout.strip() == b"found", done.stderr


def test_a_device_cannot_be_changed() -> None:
    device = catalog()["l4"]
    with pytest.raises(AttributeError):
        device.sm_count = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        device.peak_tflops["bf16"] = 1.0  # type: ignore[index]


def test_peak_takes_torch_words_and_is_zero_where_there_are_no_units() -> None:
    h100 = catalog()["h100-sxm"]
    assert h100.peak("torch.bfloat16") == h100.peak("bfloat16") == h100.peak("bf16") == pytest.approx(989.4)
    assert h100.peak("nvfp4") == 0.0
    with pytest.raises(UsageError, match="int3"):
        h100.peak("int3")


def test_table_name_joins_runs_of_space_and_slashes() -> None:
    device: Device = replace(catalog()["h100-sxm"], torch_name="NVIDIA  H100 / NVL")
    assert device.table_name == "NVIDIA_H100_NVL"


def test_cuda_without_a_gpu_is_not_found_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelmux.livegpu._probe", tuple)
    with pytest.raises(DeviceNotFound, match=r"no GPU that answers.*--device h100-sxm.*--offline"):
        resolve_device("cuda:0")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("h101", "h100-sxm"), ("rtx-pro", "rtx-pro-6000-server"), ("h200x", "h200"), ("mi300", "mi300x")],
)
def test_a_name_nearly_right_is_met_with_the_one_that_was_meant(said: str, meant: str) -> None:
    with pytest.raises(UnknownDevice, match=f"Did you mean .*{meant}"):
        resolve_device(said)


def test_a_name_like_none_is_not_answered_with_the_whole_catalog() -> None:
    with pytest.raises(UnknownDevice) as error:
        resolve_device("nope")
    assert len(str(error.value)) < 100
    assert "`kernelmux devices`" in str(error.value)
