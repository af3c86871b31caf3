"""Packing loses nothing and shows who reads, or leaves, what is of no sequence; defects of packed kernels are caught."""

from __future__ import annotations

import math

import pytest
import torch

from flashverify.adapters.function import FunctionKernel
from flashverify.adapters.kernel import KernelDefectError
from flashverify.adapters.packing import PACKED, pack, rows_of, unpack
from flashverify.adapters.triton import TritonKernel
from flashverify.campaign.worker import examine_with
from flashverify.cases.case import LENGTHS, AttentionCase
from flashverify.cases.lengths import lengths, packing
from flashverify.cases.regimes import draw
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.oracles import tiled
from flashverify.records.measurement import Verdict
from tests.adapters.packed_attention import CPU, PackedKernel, leaks_into, overwrites, varlen, whole_stretches

CASE = AttentionCase(
    dtype="fp64",
    batch=8,
    heads_q=4,
    heads_kv=2,
    seqlen_q=7,
    seqlen_k=9,
    head_dim=4,
    head_dim_v=3,
    lengths="used",
    lse_grad=True,
)

FEATURES = {
    "full": {},
    "causal": {"mask": "causal"},
    "window": {"window_left": 3, "window_right": 1},
    "causal, linear biases, sink": {"mask": "causal", "alibi": "batch", "sink": True},
    "cap, slopes of heads": {"softcap": 2.0, "alibi": "heads", "scale": -0.7},
    "window, sink, dlse not": {"window_left": 0, "sink": True, "lse_grad": False},
    "no keys, sink": {"seqlen_k": 0, "sink": True},
    "no queries": {"seqlen_q": 0},
    "no sequences": {"batch": 0},
    "empty last": {"batch": 4, "seed": 1},
}

CHECKS = ("function", "accuracy")

by_feature = pytest.mark.parametrize("changes", FEATURES.values(), ids=FEATURES)
by_packing = pytest.mark.parametrize("kind", LENGTHS)


def as_outputs(case: AttentionCase, packed: Inputs) -> Outputs:
    """Outputs whose tensors are those of packed inputs, with what rows of no sequence have to hold."""
    of_q, of_k = rows_of(case, CPU)

    def emptied(x: torch.Tensor, rows, value: float) -> torch.Tensor:
        kept = torch.zeros(rows.count, dtype=torch.bool)
        kept[rows.slot] = True
        return torch.where(kept.view(-1, *[1] * (x.ndim - 1)), x, value)

    assert packed.dlse is not None
    return Outputs(
        out=emptied(packed.dout, of_q, 0.0),
        lse=emptied(packed.dlse.T, of_q, -math.inf).T,
        dq=emptied(packed.q, of_q, 0.0),
        dk=emptied(packed.k, of_k, 0.0),
        dv=emptied(packed.v, of_k, 0.0),
    )


@by_packing
def test_round_trip(kind: str) -> None:
    case = CASE.replace(lengths=kind)
    inputs = draw(case)
    packed, where = pack(case, inputs), packing(case)
    assert packed.q.shape == (where.rows_q, 4, 4)
    assert packed.v.shape == (where.rows_k, 2, 3)
    found = unpack(case, inputs, as_outputs(case, packed))
    assert inputs.dlse is not None
    for b, (queries, keys) in enumerate(lengths(case)):
        start_q, start_k = where.cu_seqlens_q[b], where.cu_seqlens_k[b]
        assert torch.equal(packed.q[start_q : start_q + queries].transpose(0, 1), inputs.q[b, :, :queries])
        assert torch.equal(packed.k[start_k : start_k + keys].transpose(0, 1), inputs.k[b, :, :keys])
        for got, given, length in (
            (found.dq, inputs.q, queries),
            (found.out, inputs.dout, queries),
            (found.dk, inputs.k, keys),
            (found.dv, inputs.v, keys),
        ):
            assert torch.equal(got[b, :, :length], given[b, :, :length])
            assert not got[b, :, length:].any()
        assert torch.equal(found.lse[b, :, :queries], inputs.dlse[b, :, :queries])
        assert (found.lse[b, :, queries:] == -math.inf).all()


def test_rows_of_no_sequence_are_nan() -> None:
    packed, (of_q, of_k) = pack(CASE, draw(CASE)), rows_of(CASE, CPU)
    assert packed.dlse is not None
    for tensor, rows in ((packed.q, of_q), (packed.dout, of_q), (packed.dlse.T, of_q), (packed.k, of_k), (packed.v, of_k)):
        unused = rows.unused(tensor)
        assert unused.isnan().all()
        assert int(tensor.isnan().sum()) == unused.numel() > 0


@by_feature
@by_packing
def test_the_reference_is_the_oracles_function(kind: str, changes: dict[str, object]) -> None:
    case = CASE.replace(lengths=kind, **changes)
    record = examine_with(PackedKernel(), case, CHECKS)
    assert record.verdict is Verdict.PASS, record.reason


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@by_packing
def test_the_reference_passes_in_every_dtype(kind: str, dtype: str) -> None:
    case = CASE.replace(dtype=dtype, lengths=kind, mask="causal", sink=True)
    record = examine_with(PackedKernel(), case, (*CHECKS, "sharp", "distribution"))
    assert record.verdict is Verdict.PASS, record.reason
    assert [result.check for result in record.results if result.verdict is Verdict.PASS][:2] == list(CHECKS)


DEFECTS = {
    "a key of the next sequence": (PackedKernel(further_key=1), {"lengths": "ragged"}),
    "a key that is not in use": (PackedKernel(further_key=1), {}),
    "top-left": (PackedKernel(top_left=True), {"mask": "causal"}),
    "top-left slopes": (PackedKernel(top_left=True), {"alibi": "heads"}),
    "slopes of the first entry": (PackedKernel(slopes_of_first=True), {"alibi": "batch"}),
    "the whole stretch": (PackedKernel(whole_stretches), {}),
}


@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
@pytest.mark.parametrize(("kernel", "changes"), DEFECTS.values(), ids=DEFECTS)
def test_a_wrong_function_fails(kernel: PackedKernel, changes: dict[str, object], dtype: str) -> None:
    record = examine_with(kernel, CASE.replace(dtype=dtype, **changes), CHECKS)
    assert record.verdict is Verdict.FAIL
    assert record.reason


LEFT = {
    "out": (PackedKernel(garbage=3.0), "out: got 3 in a row of no sequence, accepted is 0"),
    "out, NaN": (PackedKernel(garbage=math.nan), "out: got nan in a row of no sequence"),
    "lse": (PackedKernel(garbage_lse=0.0), "lse: got 0 in a row of no sequence, accepted is -inf"),
    "dq": (PackedKernel(leaks_into("q")), "dq: got 1 in a row of no sequence, accepted is 0"),
    "dk": (PackedKernel(leaks_into("k")), "dk: got 1 in a row of no sequence"),
    "dv": (PackedKernel(leaks_into("v")), "dv: got 1 in a row of no sequence"),
    "memory": (PackedKernel(overwrites), "k: the kernel wrote into the memory of its packed input"),
}


@pytest.mark.parametrize(("kernel", "words"), LEFT.values(), ids=LEFT)
def test_what_is_left_in_rows_of_no_sequence_is_a_defect(kernel: PackedKernel, words: str) -> None:
    with pytest.raises(KernelDefectError, match=words):
        kernel.run(CASE, draw(CASE))


def test_an_lse_of_another_shape_is_a_defect() -> None:
    def transposed(*args: object, **options: object) -> object:
        out, lse, rest = varlen(*args, **options)
        return out, lse.T, rest

    case = CASE.replace(lse_grad=False)
    with pytest.raises(KernelDefectError, match="lse: got shape"):
        PackedKernel(transposed).run(case, draw(case))


@by_feature
def test_a_case_with_lengths_is_the_separate_cases_of_its_sequences(changes: dict[str, object]) -> None:
    """The float64 oracle on padded tensors beside itself on each sequence cut out: the same sums but for zeros in them."""
    case = CASE.replace(**changes)
    inputs = draw(case)
    whole = tiled.attention(case, inputs)
    slack = 2.0**-44  # of sums in another order, of numbers about 1
    for b, (queries, keys) in enumerate(lengths(case)):
        alone = case.replace(batch=1, seqlen_q=queries, seqlen_k=keys, lengths=None, alibi=None)
        if case.alibi == "batch":
            continue  # whose slopes are those of a batch entry
        alone = alone.replace(alibi=case.alibi)
        own = Inputs(
            q=inputs.q[b : b + 1, :, :queries],
            k=inputs.k[b : b + 1, :, :keys],
            v=inputs.v[b : b + 1, :, :keys],
            dout=inputs.dout[b : b + 1, :, :queries],
            dlse=None if inputs.dlse is None else inputs.dlse[b : b + 1, :, :queries],
            sink=inputs.sink,
        )
        expected = tiled.attention(alone, own)
        for name in ("out", "lse", "dq", "dk", "dv"):
            found, length = getattr(whole, name)[b], keys if name in {"dk", "dv"} else queries
            torch.testing.assert_close(found[:, :length], getattr(expected, name)[0], rtol=slack, atol=slack)
            rest = found[:, length:]
            hidden = -math.inf if inputs.sink is None else inputs.sink[0]
            assert (rest == hidden).all() if name == "lse" else not rest.any()


def test_the_same_problem_in_float64_is_packed_too() -> None:
    examination = Examination(PackedKernel(), CASE.replace(dtype="fp16"))
    assert examination.doubled.case == CASE
    assert examination.doubled.outputs.out.shape == (8, 4, 7, 3)


def test_kernels_without_such_a_function_decline() -> None:
    kernel = FunctionKernel("tests.adapters.functions:eager", CPU)
    assert kernel.declines(CASE.replace(lse_grad=False)) in {PACKED, "grouped heads"}
    ours = TritonKernel(CPU)
    ours._varlen = None
    assert ours.declines(CASE) == PACKED
    assert ours.declines(CASE.replace(lengths=None)) is None
    assert ours.unrounded(CASE.replace(dtype="fp16"), draw(CASE)) is None
