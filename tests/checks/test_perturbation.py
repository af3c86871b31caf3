"""What a query cannot see: healthy kernels pass, each way of letting it matter is seen, and promises decide what is judged."""

import dataclasses
import math

import pytest
import torch

from flashverify.adapters.kernel import ANYTHING_HIDDEN, INDEPENDENT, REPEATABLE, VISIBLE_ALONE
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.matrices import matrix
from flashverify.cases.semantics import visible_mask
from flashverify.checks import perturbation
from flashverify.checks.examination import Examination
from flashverify.checks.perturbation import BLIND, CLAIMS, FROM_ALL, FROM_SOME, OTHERS, huge, split_keys
from flashverify.checks.related import LARGEST, TURNS, in_turn, judge, scores, seen_pairs
from flashverify.kernels import load
from flashverify.numerics.formats import FORMATS, FP32
from flashverify.records.measurement import Verdict
from flashverify.records.relations import BOUNDED, EXACT, OBSERVED
from tests.checks.hiding import Hiding, product

CAUSAL = AttentionCase(
    dtype="bf16", batch=2, heads_q=4, heads_kv=2, seqlen_q=6, seqlen_k=9, head_dim=4, mask="causal", lse_grad=True
)
BLIND_ROWS = CAUSAL.replace(seqlen_q=9, seqlen_k=6)
WINDOW = CAUSAL.replace(dtype="fp16", mask="full", window_left=1, window_right=0)
SKIPPED = WINDOW.replace(seqlen_q=2)
MASKED = CAUSAL.replace(dtype="fp32", mask="full", bias="mask", seed=1)
PACKED = CAUSAL.replace(dtype="fp64", batch=5, lengths="used")
OURS = frozenset({REPEATABLE, INDEPENDENT, VISIBLE_ALONE})

CLAIM = {claim.name: claim for claim in CLAIMS}


def find(kernel, case, *names):
    examination = Examination(kernel, case)
    found = [one for name in names or CLAIM if CLAIM[name].applies(case) for one in CLAIM[name].examine(examination)]
    return judge("perturbation", tuple(found))


def broken(result):
    return {one.name for one in result.relations if one.differing and one.mode != OBSERVED}


@pytest.mark.parametrize("case", [CAUSAL, BLIND_ROWS, WINDOW, SKIPPED, MASKED, PACKED], ids=lambda case: case.id)
def test_a_healthy_kernel_passes_whatever_is_hidden_holds(case):
    result = find(Hiding(), case)
    assert (result.verdict, result.reason) == (Verdict.PASS, "")
    assert {one.mode for one in result.relations} == {EXACT}
    assert all(one.elements for one in result.relations)


@pytest.mark.parametrize(
    "case", [CAUSAL, BLIND_ROWS, SKIPPED, MASKED.replace(dtype="fp16", bias="hidden", sink=True)], ids=lambda c: c.id
)
def test_our_kernels_pass_and_what_they_do_not_promise_is_counted(case, device):
    result = find(load("triton", device), case)
    assert (result.verdict, result.reason) == (Verdict.PASS, "")
    assert {one.mode for one in result.relations} == {EXACT, OBSERVED}


def test_every_claim_has_cases_here():
    cases = (CAUSAL, BLIND_ROWS, WINDOW, SKIPPED, MASKED, PACKED)
    assert all(any(claim.applies(case) for case in cases) for claim in CLAIMS)


def lowered(scores_, seen):
    return torch.where(seen, scores_, scores_ - 1e30)


def uniform(scores_, seen):
    return scores_.masked_fill(~seen, -1e6)


def one_more(scores_, seen):
    """A causal mask that is off by one."""
    return scores_.masked_fill(~torch.cat([torch.ones_like(seen[..., :1]), seen[..., :-1]], -1), -torch.inf)


def leftover(case, inputs, outputs):
    """A hidden key gets a trace of a gradient: a share of the cotangents that it has nothing to do with."""
    dk = outputs.dk + 2.0**-20 * inputs.dout.sum().to(outputs.dk.dtype)
    return dataclasses.replace(outputs, dk=dk)


def across_entries(case, inputs, outputs):
    """Something is taken over the whole batch, such as a largest number that everything is scaled by and back."""
    return dataclasses.replace(outputs, lse=outputs.lse + 0.0 * inputs.q.float().amax())


def across_heads(case, inputs, outputs):
    return dataclasses.replace(outputs, dv=outputs.dv + 0.0 * inputs.dout.sum(1, keepdim=True)[..., :1, :1])


def last_bit(case, inputs, outputs):
    """out depends, in its last bit, on a key that some rows do not see."""
    nudged = torch.nextafter(outputs.out, torch.full_like(outputs.out, torch.inf))
    return dataclasses.replace(outputs, out=torch.where(inputs.k[:, :1, -1:, :1] > 1.0, nudged, outputs.out))


DEFECTS = {
    "hidden values are multiplied by 0": (Hiding(weigh=product), CAUSAL, {FROM_SOME}),
    "hidden scores are lowered by a large number": (Hiding(hide=lowered), CAUSAL, {FROM_SOME}),
    "hidden scores are a large negative number": (Hiding(hide=uniform), BLIND_ROWS, {BLIND}),
    "a causal mask is off by one": (Hiding(hide=one_more), CAUSAL, {FROM_SOME}),
    "a hidden key gets a gradient": (Hiding(change=leftover), SKIPPED, {FROM_ALL, FROM_SOME}),
    "something is taken over the batch": (Hiding(change=across_entries), CAUSAL, {OTHERS}),
    "something is taken over the heads": (Hiding(change=across_heads), CAUSAL, {OTHERS}),
    "the last bit follows a hidden key": (Hiding(change=last_bit), CAUSAL.replace(dtype="fp32"), {FROM_SOME}),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_seen(name):
    kernel, case, claims = DEFECTS[name]
    result = find(kernel, case)
    assert result.verdict is Verdict.FAIL
    assert broken(result) >= claims
    assert all(claim in result.reason for claim in claims)


def test_what_is_not_promised_of_nan_is_counted_and_not_judged():
    result = find(Hiding(weigh=product, given=tuple(OURS)), CAUSAL, FROM_SOME)
    assert result.verdict is Verdict.PASS
    reached = {one.tensor for one in result.relations if one.mode == OBSERVED and one.differing}
    assert reached == {"out", "dq"}
    assert find(Hiding(weigh=product, given=(*OURS, ANYTHING_HIDDEN)), CAUSAL, FROM_SOME).verdict is Verdict.FAIL


def test_bits_that_nobody_promised_are_held_to_budgets():
    case = CAUSAL.replace(dtype="fp32")
    result = find(Hiding(change=last_bit, given=()), case)
    assert result.verdict is Verdict.PASS
    assert {one.mode for one in result.relations if one.tensor == "out"} == {BOUNDED}
    assert max(one.worst for one in result.relations if one.worst is not None) <= 1.0
    assert broken(find(Hiding(hide=one_more, given=()), case)) >= {FROM_SOME}


def test_zeros_are_asked_of_kernels_that_promise_nothing():
    result = find(Hiding(change=leftover, given=()), SKIPPED, FROM_ALL)
    exact = [one for one in result.relations if one.mode == EXACT]
    assert [(one.tensor, bool(one.differing)) for one in exact] == [("dk", True), ("dv", False)]


def test_an_lse_that_a_kernel_has_not_is_not_asked_for():
    result = find(Hiding(returns_lse=False), CAUSAL.replace(lse_grad=False), FROM_SOME)
    assert "lse" not in {one.tensor for one in result.relations}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", [CAUSAL, BLIND_ROWS, WINDOW, MASKED], ids=lambda case: case.id)
def test_keys_are_split_so_that_some_rows_see_none_of_them(case, seed):
    case = case.replace(seed=seed)
    seen = seen_pairs(case, Examination(Hiding(), case).inputs)
    chosen, blind = split_keys(case, seen)
    assert chosen.any()
    assert not chosen.all()
    assert torch.equal(blind, ~(seen & chosen).any(-1))
    assert (blind & seen.any(-1)).any()
    assert (~blind).any()


def test_keys_that_all_rows_see_are_not_split():
    case = CAUSAL.replace(mask="full")
    assert split_keys(case, seen_pairs(case, Examination(Hiding(), case).inputs)) is None
    assert not any(claim.applies(case) for claim in CLAIMS if claim.name != OTHERS)


def test_pairs_are_those_of_the_definition():
    inputs = Examination(Hiding(), PACKED).inputs
    seen = seen_pairs(PACKED, inputs)
    for b, (queries, keys) in enumerate(lengths(PACKED)):
        mine = visible_mask(PACKED, torch.tensor(b), torch.arange(PACKED.seqlen_q), torch.arange(PACKED.seqlen_k))
        assert torch.equal(seen[b], mine.expand_as(seen[b]))
        assert not seen[b, :, queries:].any()
        assert not seen[b, :, :, keys:].any()


@pytest.mark.parametrize("dtype", FORMATS.keys() & {"fp16", "bf16", "fp32", "fp64"})
def test_the_huge_number_is_as_large_as_products_allow(dtype):
    case = CAUSAL.replace(dtype=dtype)
    inputs = Examination(Hiding(), case).inputs
    assert huge(case, inputs) == {"fp16": 2.0**15}.get(dtype, 2.0**100)
    steep = case.replace(dtype="fp32", scale=2.0**100)
    small = float(huge(steep, Examination(Hiding(), steep).inputs))
    assert math.frexp(small)[0] == 0.5
    assert small * 2.0**100 * float(inputs.q.abs().max()) < FP32.largest


def test_a_share_of_small_cases_has_a_turn_and_every_claim_has_some():
    for name, device, least in (("smoke", "cpu", 1), ("smoke", "cuda", 10), ("standard", "cuda", 10)):
        cases = matrix(name)
        for claim in CLAIMS:
            mine = [case for case in cases if in_turn(claim, case, device)]
            can = [case for case in cases if 0 < scores(case) <= LARGEST[device] and claim.applies(case)]
            assert len(mine) >= least, (name, claim.name)
            assert len(mine) <= 2 * len(can) / TURNS[device] + 2, (name, claim.name)
            assert all(scores(case) <= LARGEST[device] for case in mine)


def test_it_applies_in_turn_alone_and_not_where_a_mask_is_unknown(monkeypatch):
    def check(case):
        return perturbation.perturbation(Examination(Hiding(), case))

    turns = [case for case in (CAUSAL.replace(seed=seed) for seed in range(200)) if check(case) is not None]
    assert 0 < len(turns) < 2 * len(CLAIMS) * 200 / TURNS["cpu"]
    assert check(turns[0]).check == "perturbation"
    drops = next(
        case
        for case in (CAUSAL.replace(seed=seed, dropout=0.5) for seed in range(200))
        if any(in_turn(claim, case, "cpu") for claim in CLAIMS)
    )
    assert check(drops) is None
