"""Runs the PTX that NVFP4 kernels hold inline, instruction by instruction, on numpy: no GPU, no table of our own.

``install()`` teaches Triton's interpreter ``inline_asm_elementwise`` for such text, so that whole kernels run.
"""

import re
from types import SimpleNamespace

import numpy as np


def _bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values):
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded & 0xFFFF)


def _fp16(bits):
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def _to_fp16(values):
    return values.astype(np.float16).view(np.uint16).astype(np.uint32)


def _halves(bits):
    return bits & 0xFFFF, bits >> 16


def _pairwise(read, write, how, *registers):
    with np.errstate(all="ignore"):
        low, high = (
            write(how(*(read(part).astype(np.float64) for part in parts)).astype(np.float32))
            for parts in zip(*map(_halves, registers), strict=True)
        )
    return (low | (high << 16)).astype(np.uint32)


def _lop3(a, b, c, table):
    out = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c)), np.uint32)
    for row in range(8):
        if int(table) >> row & 1:
            out |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return out


def _prmt(a, b, select):
    data = [(register >> (8 * byte)) & 0xFF for register in (a, b) for byte in range(4)]
    nibbles = [int(select) >> (4 * place) & 0xF for place in range(4)]
    assert all(nibble < 8 for nibble in nibbles), "no sign is copied here"
    return sum((data[nibble] << (8 * place) for place, nibble in enumerate(nibbles)), np.uint32(0)).astype(np.uint32)


_OPS = {
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shl.b32": lambda a, b: a << b,
    "shr.b32": lambda a, b: a >> b,
    "shf.l.wrap.b32": lambda low, high, by: (high << by) | (low >> (32 - by)),
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
    "mul.rn.f16x2": lambda a, b: _pairwise(_fp16, _to_fp16, lambda x, y: x * y, a, b),
    "fma.rn.bf16x2": lambda a, b, c: _pairwise(_bf16, _to_bf16, lambda x, y, z: x * y + z, a, b, c),
}


def run(text, *arguments):
    """The register ``$0`` (uint32) after ``text``; ``arguments`` are ``$1``, ``$2``, ... as uint32 arrays."""
    held = {f"${nth}": np.asarray(value, np.uint32) for nth, value in enumerate(arguments, 1)}

    def value(word):
        return held[word] if word in held else np.uint32(int(word, 0))

    for line in re.sub(r"\.reg[^;]*;", "", text.strip().strip("{}").replace("{ ", "{", 1)).split(";"):
        line = line.strip()
        if not line:
            continue
        name, operands = line.split(None, 1)
        if name == "mov.b32" and operands.startswith("{"):
            into, source = re.fullmatch(r"\{(.+)\},\s*(\S+)", operands).groups()
            low, high = (word.strip() for word in into.split(","))
            held[low], held[high] = _halves(value(source))
        elif name == "mov.b32":
            into, source = (part.strip() for part in operands.split(",", 1))
            if source.startswith("{"):
                low, high = (value(word.strip()) for word in source.strip("{}").split(","))
                held[into] = low | (high << 16)
            else:
                held[into] = value(source)
        else:
            into, *sources = (part.strip() for part in operands.split(","))
            held[into] = np.asarray(_OPS[name](*(value(word) for word in sources)), np.uint32)
    return held["$0"]


def install(monkeypatch):
    """Triton's interpreter runs such text with pack=2: int16 pairs are one register, int32 elements one each."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create(self, asm, constraints, values, types, is_pure, pack):
        if not values:  # griddepcontrol: an ordering among kernels
            return SimpleNamespace(get_result=lambda nth: TensorHandle(np.zeros(1, np.int32), types[nth]))
        assert pack == 2
        registers = []
        for value in values:
            data = np.ascontiguousarray(value.data)
            registers.append(data.view(np.uint32) if data.itemsize == 2 else data.view(np.uint32)[..., ::2])
        out = np.ascontiguousarray(run(asm, *registers)).view(np.uint16)
        element = types[0].scalar if hasattr(types[0], "scalar") else types[0]
        data = out.view(np.float16) if str(element) == "fp16" else out
        return SimpleNamespace(get_result=lambda nth: TensorHandle(data, element))

    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", create)
