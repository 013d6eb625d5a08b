"""Triton's NVFP4 quantizer, interpreted, on every positive bf16 value and on infinities and NaNs: the bytes of an
implementation of other means. bf16 values come as fp32, which holds them all: the interpreter has no bf16."""

import numpy as np
import pytest
import torch

from kernelmux.backends.triton import nvfp4_quantize
from tests import nvfp4_cases as cases
from tests import nvfp4_scalar as scalar


@pytest.fixture(autouse=True)
def _fused_multiply_add(monkeypatch):
    """The interpreter rounds the product of a fused multiply-add; a GPU does not."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def fma(self, x, y, z):
        with np.errstate(all="ignore"):
            exact = x.data.astype(np.longdouble) * y.data.astype(np.longdouble) + z.data.astype(np.longdouble)
            return TensorHandle(exact.astype(x.data.dtype), x.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)


@pytest.mark.parametrize(("factor", "layout"), [(1 / 2688, "linear"), (1e-38, "swizzled_128x4")])
def test_every_positive_bf16_value_as_the_largest_of_its_block(factor, layout):
    blocks = scalar.every_maximum(signs=False)
    cases.assert_same(nvfp4_quantize.quantize, blocks, factor, dtype=torch.float32, layout=layout)


@pytest.mark.parametrize("factor", scalar.factors()[::4], ids="{:.3g}".format)
def test_infinities_nans_and_a_sample_of_maxima_under_many_global_scales(factor):
    cases.assert_same(nvfp4_quantize.quantize, scalar.infinite_beside_finite(), factor, dtype=torch.float32)
    cases.assert_same(nvfp4_quantize.quantize, scalar.every_maximum()[5::16], factor, dtype=torch.float32)
