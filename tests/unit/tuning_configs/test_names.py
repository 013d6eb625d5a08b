from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmux.contracts.moe_shape import MoeShape
from kernelmux.tuning_configs.names import TableName

# Real names from SGLang's and vLLM's folders.
PUBLIC = [
    "E=128,N=384,device_name=NVIDIA_H100_80GB_HBM3.json",
    "E=128,N=384,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
    "E=128,N=384,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json",
    "E=257,N=256,device_name=NVIDIA_H20-3e,dtype=fp8_w8a8,block_shape=[128, 128]_down.json",
    "E=64,N=1280,device_name=NVIDIA_A100-SXM4-80GB,dtype=int8_w8a16.json",
    "E=16,N=1024,device_name=NVIDIA_H100_80GB_HBM3,dtype=int8_w8a8,per_channel_quant=True.json",
    "E=256,N=512,device_name=NVIDIA_H200_down.json",
    "E=8,N=7168,device_name=AMD_Instinct_MI300X,dtype=float32.json",
    "E=384,N=128,device_name=,dtype=int4_w4a16_down.json",
    "E=128,N=1856,device_name=NVIDIA_H100_80GB_HBM3,K=2688,topk=6,activation=relu2_down.json",
]

words = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12).filter(
    lambda w: not w.endswith("_down")
)
sizes = st.integers(1, 99_999)


@st.composite
def names(draw: st.DrawFn) -> TableName:
    block = draw(st.none() | st.tuples(sizes, sizes))
    qualifier = draw(st.none() | st.tuples(sizes, sizes, st.sampled_from(["silu", "gelu_tanh", "relu2"])))
    K, topk, activation = qualifier or (None, None, None)
    return TableName(
        draw(sizes), draw(sizes),
        draw(st.text("ABCdef_-0123456789()+.", max_size=30).filter(lambda w: not w.endswith("_down"))),
        draw(st.none() | words), block, draw(st.booleans()), draw(st.booleans()), K, topk, activation,
        draw(st.booleans()),
    )  # fmt: skip


@given(names())
def test_a_formatted_name_is_parsed_back(name: TableName) -> None:
    assert TableName.parse(name.format()) == name


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_name_is_written_back_byte_for_byte(text: str) -> None:
    assert TableName.parse(text).format() == text


def test_the_parts_are_read() -> None:
    name = TableName.parse(PUBLIC[3])
    assert (name.E, name.N, name.device_name, name.dtype) == (257, 256, "NVIDIA_H20-3e", "fp8_w8a8")
    assert (name.block_shape, name.per_channel_quant, name.down, name.K) == ((128, 128), False, True, None)


def test_up_down_and_sidecar_belong_together() -> None:
    name = TableName.of("NVIDIA_H200", MoeShape(128, 384, 2048, 8))
    assert name.format() == "E=128,N=384,device_name=NVIDIA_H200.json"
    assert name.side(True).format() == "E=128,N=384,device_name=NVIDIA_H200_down.json"
    assert name.side(True).sidecar == name.sidecar == "E=128,N=384,device_name=NVIDIA_H200.meta.json"


def test_bf16_and_fp16_share_a_name_and_fp32_has_its_own() -> None:
    shape = MoeShape(8, 64, 128, 2)
    assert TableName.of("X", shape) == TableName.of("X", shape.with_dtype("float16"))
    assert TableName.of("X", shape.with_dtype("float32")).dtype == "float32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("table.json", "E=... is missing"),
        ("E=128,device_name=X.json", "N=... is missing"),
        ("E=128,N=384.json", "device_name=... is missing"),
        ("E=0,N=384,device_name=X.json", "E=... is missing or malformed"),
        ("E=128,N=384,device_name=X.txt", "does not end in .json"),
        ("E=128,N=384,device_name=X,block_shape=[128].json", "out of order or malformed"),
        ("E=128,N=384,device_name=X,K=5.json", "out of order or malformed"),
        ("E=128,N=384,device_name=NVIDIA H100.json", "out of order or malformed"),
        ("E=\u0661,N=384,device_name=X.json", "E=... is missing"),
    ],
)
def test_what_is_off_in_a_name_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        TableName.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("device", ["a,b", "a b", "../a", "x_down", "a\\b"])
def test_a_device_no_file_name_can_carry_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a file name"):
        TableName(8, 64, device)
