"""Devices made up for tests: operations in plain torch, right to the last bit or with one of them broken."""

from __future__ import annotations

import torch

from flashverify.numerics.axioms.arithmetic import BlockModel
from flashverify.numerics.axioms.rounding import fused_multiply_add, round_to
from flashverify.numerics.axioms.tensor_core import Probe, Treatment, emulate
from flashverify.numerics.axioms.wide_products import CHAINS
from flashverify.numerics.formats import BF16, FP16, TF32

OPERANDS = {torch.float16: FP16, torch.bfloat16: BF16}

HOPPER = {"fp16": BlockModel(16, 2), "bf16": BlockModel(16, 2), "tf32": BlockModel(8, 2)}


class FakeDevice:
    """A device whose operations are right; tensor cores are emulated, and tf32 operands truncated."""

    name = "fake"
    device = torch.device("cpu")

    def __init__(self, lane="gpu", cores=None, treatment=None, chain="fma-chain"):
        self.lane = lane
        self.cores = HOPPER if cores is None else cores
        self.treatment = treatment or Treatment()
        self.chain = chain

    def dots(self, left, right, accumulator, *, precision=None, warps=4, cast_to=None):
        if cast_to is not None:
            left, right = left.to(cast_to), right.to(cast_to)
        return self.dot(left, right, None, precision), self.dot(left, right, accumulator, precision)

    def dot(self, left, right, accumulator, precision):
        wide = left.double(), right.double()
        if left.dtype == torch.float64:
            total = torch.zeros(*left.shape[:2], right.shape[2], dtype=torch.float64) if accumulator is None else accumulator
            return self.double_dot(left, right, total)
        operand = OPERANDS.get(left.dtype, TF32)
        if operand is TF32 and precision in ("ieee", "tf32x3", "bf16x6"):
            blank = torch.empty(*left.shape[:2], right.shape[2])
            return CHAINS[self.chain](Probe(*wide, accumulator, blank))
        if operand is TF32:
            wide = tuple(round_to(x, TF32, "truncated") for x in wide)
        return emulate(*wide, accumulator, self.cores[operand.name], operand, self.treatment)

    def double_dot(self, left, right, total):
        return total + left @ right

    def instruction(self):
        return "an emulated instruction"

    def exp2(self, x):
        return torch.exp2(x.double()).float()

    def log2(self, x):
        return torch.log2(x.double()).float()

    def divide(self, x, y):
        return x / y

    def cast(self, x, dtype):
        return x.to(dtype)

    def multiply_add(self, a, b, c, contraction):
        if contraction is False:
            return a * b + c, a * b - c
        return fused_multiply_add(a, b, c), fused_multiply_add(a, b, -c)

    def row_sums(self, x):
        while x.shape[1] > 1:
            half = x.shape[1] // 2
            x = x[:, :half] + x[:, half:]
        return x[:, 0]

    def maximum(self, x, y):
        return torch.fmax(x, y)

    def select(self, x, y):
        return torch.where(x <= y, x, y)
