"""Other schedules of our kernels: what is offered, and that they compute the same."""

import pytest
import torch
from flashverify_kernels import tiles as tables

from flashverify.adapters.schedules import SIZES, other_tiles
from flashverify.adapters.triton import TritonKernel
from flashverify.campaign.worker import examine_with
from flashverify.cases import regimes
from flashverify.cases.case import AttentionCase
from flashverify.records.measurement import Verdict

CASE = AttentionCase(dtype="fp16", seqlen_q=40, seqlen_k=48, head_dim=16, dropout=0.3, seed=58)
HOPPER_SHARED = 227 * 1024


def of_hopper(case, monkeypatch, precision="ieee"):
    monkeypatch.setattr(tables, "architecture", lambda device: "sm90")
    sizes = case.head_dim, case.value_dim
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[case.dtype]
    own = tables.entry("sm90", dtype, *sizes, case.mask != "full", precision, bool(case.dropout))
    return own, other_tiles(tables, own, case, torch.device("cuda", 0), precision)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 256])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_a_gpu_has_other_tiles_warps_and_stages(dtype, head_dim, mask, monkeypatch):
    own, others = of_hopper(CASE.replace(dtype=dtype, head_dim=head_dim, mask=mask), monkeypatch)
    assert own not in others
    assert len(set(others)) == len(others) >= 2
    kernels = [(tiles.forward, tiles.dkdv, tiles.dq) for tiles in others]
    own_kernels = (own.forward, own.dkdv, own.dq)
    same_sizes = [
        of
        for of in kernels
        if all((a.block_m, a.block_n) == (b.block_m, b.block_n) for a, b in zip(of, own_kernels, strict=True))
    ]
    assert any(all(a.num_warps != b.num_warps for a, b in zip(of, own_kernels, strict=True)) for of in same_sizes)
    assert any(all(a.num_stages != b.num_stages for a, b in zip(of, own_kernels, strict=True)) for of in same_sizes)
    if head_dim < 256:
        assert len(same_sizes) < len(others)


def test_the_keys_of_narrow_forward_tiles_stay_few(monkeypatch):
    _, others = of_hopper(CASE, monkeypatch)
    assert {tiles.forward.block_n for tiles in others} == {tables.FEWER_KEYS}


def test_the_interpreter_has_its_own_sizes(device):
    if device.type == "cuda":
        pytest.skip("needs the interpreter: a GPU has its own table")
    offered = TritonKernel(device).schedules(CASE)
    assert len(offered) == len(SIZES)
    assert TritonKernel(device).schedules(CASE.replace(seqlen_q=16)) == {}


@pytest.mark.parametrize("changes", [{"lengths": "ragged", "batch": 5}, {"cache": "contiguous", "dropout": None}])
def test_packed_and_cached_cases_have_no_other_schedules(changes, device):
    assert TritonKernel(device).schedules(CASE.replace(**changes)) == {}


def test_another_schedule_is_another_program_of_the_same_function(device):
    kernel, case = TritonKernel(device), CASE.replace(seqlen_q=140, seqlen_k=150) if device.type == "cuda" else CASE
    drawn = regimes.draw(case, device)
    own = kernel.run(case, drawn)
    for name, other in kernel.schedules(case).items():
        assert other.configuration(case) != kernel.configuration(case), name
        record = examine_with(other, case, ("accuracy",))
        assert record.verdict is Verdict.PASS, (name, record.reason)
        assert torch.equal(other.run(case, drawn).out == 0.0, own.out == 0.0)
