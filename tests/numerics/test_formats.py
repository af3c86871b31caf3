"""Formats: ulp, roundoff and range agree with the hardware's own types, subnormals included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashverify.numerics.formats import BF16, FP16, FP32, FP64, TORCH_DTYPES, Format


@pytest.mark.parametrize("fmt", [FP16, FP32, FP64], ids=lambda fmt: fmt.name)
def test_ulp_is_the_distance_to_the_next_number(fmt: Format) -> None:
    dtype = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[fmt.name]
    smallest, normal = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).smallest_normal
    values = np.array([0, smallest, 5 * smallest, normal - smallest, normal, 1, 1.5, 2, 3.99, 1000], dtype)
    found = fmt.ulp(torch.from_numpy(values.astype(np.float64)))
    assert (found.numpy() == np.spacing(values).astype(np.float64)).all()
    assert torch.equal(found, fmt.ulp(-torch.from_numpy(values.astype(np.float64))))


def test_ulp_of_bfloat16_is_the_distance_to_the_next_bit_pattern() -> None:
    bits = torch.tensor([0, 1, 7, 0x7F, 0x80, 0x3F80, 0x3F7F, 0x4000, 0x7F7E], dtype=torch.int16)
    values, following = (pattern.view(torch.bfloat16).double() for pattern in (bits, bits + 1))
    assert torch.equal(BF16.ulp(values), following - values)


@pytest.mark.parametrize("fmt", [FP16, BF16, FP32, FP64], ids=lambda fmt: fmt.name)
def test_a_format_agrees_with_torch(fmt: Format) -> None:
    info = torch.finfo(TORCH_DTYPES[fmt.name])
    assert (fmt.largest, fmt.smallest_normal, 2 * fmt.unit_roundoff) == (info.max, info.tiny, info.eps)
