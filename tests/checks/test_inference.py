"""A walk that is not stated is read off the rounding errors: here of our own kernel, which is made not to state it."""

import dataclasses

import pytest

from flashverify.adapters.triton import TritonKernel
from flashverify.cases.case import AttentionCase
from flashverify.checks.examination import Examination

CASE = AttentionCase(dtype="bf16", seqlen_q=128, seqlen_k=144, head_dim=32)


class Closed(TritonKernel):
    """Our kernels, which keep their walk to themselves."""

    def contract(self, case):
        return dataclasses.replace(super().contract(case), block_k=16, block_k_exact=False)


class OffByOnePercent(Closed):
    """Fits no walk."""

    def run(self, case, inputs):
        given = super().run(case, inputs)
        given.out = given.out * 1.01
        return given


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_walk_is_found(dtype, device):
    stated = TritonKernel(device).contract(CASE.replace(dtype=dtype))
    examination = Examination(Closed(device), CASE.replace(dtype=dtype))
    assert (examination.walked.block_k, examination.walked.direction) == (stated.block_k, "left")
    assert examination.inferred["walk"].startswith(f"from the left in blocks of {stated.block_k}, runs: 1; inferred")
    assert not examination.contract.block_k_exact  # the hard budget never takes it


def test_a_kernel_that_fits_no_walk_is_left_to_the_hard_budget(device):
    examination = Examination(OffByOnePercent(device), CASE)
    assert examination.not_sharp == "the walk over key blocks is not known: which weights are rounded is not either"
    assert examination.inferred == {"walk": "no walk of those tried fits 4 draws"}


def test_what_is_stated_is_not_inferred(device):
    examination = Examination(TritonKernel(device), CASE)
    assert examination.walked is examination.contract
    assert examination.inferred == {}


def test_keys_of_one_block_have_one_walk(device):
    examination = Examination(Closed(device), CASE.replace(seqlen_k=16))
    assert examination.walked.block_k_exact
    assert examination.inferred == {}
