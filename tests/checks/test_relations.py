"""Relations without an oracle: healthy kernels pass, each broken relation is seen, and promises decide how it is judged."""

import dataclasses
import itertools

import pytest
import torch

from flashverify.adapters.function import FunctionKernel
from flashverify.adapters.kernel import INDEPENDENT, PROMISES, REPEATABLE, SCALING, VISIBLE_ALONE
from flashverify.cases.case import AttentionCase
from flashverify.cases.matrices import matrix
from flashverify.cases.semantics import sides
from flashverify.checks import bounded_relations as bounded
from flashverify.checks import exact_relations as exact
from flashverify.checks import scaled_relations as scaled
from flashverify.checks.examination import Examination
from flashverify.checks.perturbation import CLAIMS as PERTURBATIONS
from flashverify.checks.related import LARGEST, TURNS, close, in_turn, judge, same, scores
from flashverify.checks.relations import CLAIMS, relations
from flashverify.kernels import load
from flashverify.records.measurement import Verdict
from flashverify.records.relations import BOUNDED, EXACT
from tests.checks.fakes import CPU
from tests.checks.hiding import Hiding

SHAPE = {"batch": 2, "heads_q": 4, "heads_kv": 2, "seqlen_q": 6, "seqlen_k": 9, "head_dim": 16}
CAUSAL = AttentionCase(dtype="bf16", mask="causal", lse_grad=True, **SHAPE)
FULL = CAUSAL.replace(dtype="fp32", mask="full", lse_grad=False)
HALF = CAUSAL.replace(dtype="fp16", mask="causal-topleft")
BIASED = CAUSAL.replace(dtype="fp32", mask="full", bias="full", sink=True)
MASKED = CAUSAL.replace(dtype="fp64", mask="full", bias="mask")
WINDOWED = CAUSAL.replace(seqlen_q=9, seqlen_k=6, window_left=2)
RAGGED = CAUSAL.replace(batch=5, lengths="ragged")
CASES = (CAUSAL, FULL, HALF, MASKED)

CLAIM = {claim.name: claim for claim in CLAIMS}


def find(kernel, case, *names):
    examination = Examination(kernel, case)
    found = [one for name in names or CLAIM if CLAIM[name].applies(case) for one in CLAIM[name].examine(examination)]
    return judge("relations", tuple(found))


def broken(result):
    return {one.name for one in result.relations if one.differing}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_healthy_kernel_passes(case):
    result = find(Hiding(), case)
    assert (result.verdict, result.reason) == (Verdict.PASS, "")
    assert {one.mode for one in result.relations} == {EXACT, BOUNDED}


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.id)
def test_a_kernel_that_promises_nothing_is_held_to_budgets(case):
    result = find(Hiding(given=()), case)
    assert (result.verdict, result.reason) == (Verdict.PASS, "")
    compared = [one for one in result.relations if one.name != exact.PREFIX or one.tensor not in {"dk", "dv"}]
    assert {one.mode for one in compared} == {BOUNDED}
    assert all(one.worst is None or one.worst <= 1.0 for one in compared)


@pytest.mark.parametrize("mask", ["full", "causal-topleft"])
def test_a_function_of_others_passes_both_checks_without_a_promise(mask):
    kernel = FunctionKernel("torch.nn.functional:scaled_dot_product_attention", CPU)
    case = FULL.replace(mask=mask)
    examination = Examination(kernel, case)
    found = [one for claim in (*CLAIMS, *PERTURBATIONS) if claim.applies(case) for one in claim.examine(examination)]
    assert judge("relations", tuple(found)).reason == ""
    assert len({one.name for one in found if one.elements}) >= 12
    assert "lse" not in {one.tensor for one in found}


@pytest.mark.parametrize("case", [CAUSAL, BIASED], ids=lambda case: case.id)
def test_our_kernels_pass(case, device):
    result = find(load("triton", device), case)
    assert (result.verdict, result.reason) == (Verdict.PASS, "")
    examined = {one.name for one in result.relations if one.elements}
    assert examined == {name for name, claim in CLAIM.items() if claim.applies(case)}


def test_every_relation_has_a_case_here():
    assert all(any(claim.applies(case) for case in (CAUSAL, FULL, HALF, BIASED, RAGGED)) for claim in CLAIMS)


def add(name, what):
    """A change of one output by what a function of case and inputs gives."""

    def change(case, inputs, outputs):
        tensor = getattr(outputs, name)
        return dataclasses.replace(outputs, **{name: tensor + what(case, inputs).to(tensor.dtype)})

    return change


def drifting():
    """A kernel whose every call is a little larger than the last one."""
    calls = itertools.count()
    return Hiding(change=add("dq", lambda case, inputs: torch.tensor(2.0**-4 * next(calls))))


def larger_than(limit):
    """Numbers beyond a limit are cut off, as a narrower format would."""

    def change(case, inputs, outputs):
        return dataclasses.replace(outputs, dk=outputs.dk.clamp(-limit, limit))

    return change


def first(axis):
    """1 in the first entry (or head), 0 in others."""

    def of(case, inputs):
        shape = [1] * 4
        shape[axis] = -1
        return (torch.arange((case.batch, case.heads_q)[axis]) == 0).reshape(shape) * 2.0**-4

    return of


DEFECTS = {
    "calls differ": (drifting, CAUSAL, {exact.AGAIN}),
    "gradients are cut off": (
        lambda: Hiding(change=larger_than(64.0)),
        CAUSAL,
        {scaled.VALUES_SCALED, scaled.COTANGENTS_SCALED},
    ),
    "dlse is scaled by another number": (
        lambda: Hiding(change=add("dk", lambda case, inputs: 2.0**-6 * inputs.dlse.sum().sign())),
        CAUSAL,
        {scaled.COTANGENTS_SCALED},
    ),
    "values have an offset": (
        lambda: Hiding(change=add("out", lambda case, inputs: torch.tensor(2.0**-7))),
        FULL,
        {scaled.VALUES_SCALED, bounded.ONES},
    ),
    "the first entry is special": (lambda: Hiding(change=add("out", first(0))), CAUSAL, {exact.ENTRIES_PERMUTED}),
    "the first head is special": (lambda: Hiding(change=add("dq", first(1))), CAUSAL, {exact.HEADS_PERMUTED}),
    "the batch size counts": (
        lambda: Hiding(change=add("dv", lambda case, inputs: torch.tensor(2.0**-4 * case.batch))),
        CAUSAL,
        {exact.ALONE},
    ),
    "the number of groups counts": (
        lambda: Hiding(change=add("out", lambda case, inputs: torch.tensor(2.0**-4 * case.heads_kv))),
        CAUSAL,
        {exact.ALONE, exact.GROUPED},
    ),
    "the length counts": (
        lambda: Hiding(change=add("lse", lambda case, inputs: torch.tensor(2.0**-12 * case.seqlen_k))),
        CAUSAL,
        {exact.PREFIX},
    ),
    "a window is announced and so it counts": (
        lambda: Hiding(change=add("dq", lambda case, inputs: torch.tensor(0.0 if case.window_left is None else 2.0**-4))),
        CAUSAL,
        {exact.WINDOW},
    ),
    "dk is not that of dq": (
        lambda: Hiding(change=lambda case, inputs, outputs: dataclasses.replace(outputs, dk=outputs.dk * 1.25)),
        CAUSAL.replace(dtype="fp32"),
        {bounded.DQ_AND_DK, bounded.DK_SUMMED},
    ),
    "dv is of another dout": (
        lambda: Hiding(change=lambda case, inputs, outputs: dataclasses.replace(outputs, dv=outputs.dv * 1.25)),
        CAUSAL,
        {bounded.DV_AND_OUT, bounded.DV_SUMMED},
    ),
    "the first key weighs more": (
        lambda: Hiding(change=add("out", lambda case, inputs: inputs.v[:, :1, :1, :1].double())),
        FULL,
        {bounded.KEYS_PERMUTED},
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_seen(name):
    make, case, names = DEFECTS[name]
    result = find(make(), case, *names)
    assert result.verdict is Verdict.FAIL
    assert broken(result) == names


@pytest.mark.parametrize(
    ("promise", "name", "kernel"),
    [
        (REPEATABLE, exact.AGAIN, drifting),
        (INDEPENDENT, exact.ALONE, DEFECTS["the batch size counts"][0]),
        (VISIBLE_ALONE, exact.PREFIX, DEFECTS["the length counts"][0]),
        (SCALING, scaled.VALUES_SCALED, DEFECTS["values have an offset"][0]),
    ],
)
def test_each_promise_decides_whether_bits_are_asked_for(promise, name, kernel):
    def modes(given):
        made = kernel()
        made.given = tuple(given)
        return {one.mode for one in find(made, CAUSAL, name).relations if one.tensor in {"out", "lse"}}

    assert modes(PROMISES) == {EXACT}
    assert modes(set(PROMISES) - {promise}) == {BOUNDED}


def test_small_numbers_of_float16_are_not_asked_to_scale():
    examination = Examination(Hiding(), HALF)
    outputs = examination.outputs
    (dv,) = (one for one in scaled.scaled_cotangents(examination) if one.tensor == "dv")
    assert 0 < dv.elements <= int((outputs.dv.abs() >= 2.0**-14).sum())
    assert {one.tensor for one in scaled.scaled_values(examination)} == {"out", "lse", "dv"}


@pytest.mark.parametrize("scale", [2.0**100, None])
def test_nothing_is_scaled_where_numbers_might_overflow(scale):
    found = list(scaled.scaled_values(Examination(Hiding(), CAUSAL.replace(scale=scale))))
    assert bool(found) == (scale is None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "case", [CAUSAL, HALF, CAUSAL.replace(seqlen_q=9, seqlen_k=6, window_left=2)], ids=lambda case: case.id
)
def test_the_first_rows_are_aligned_as_they_were(case, seed):
    case = case.replace(seed=seed)
    short = exact.short_case(case)
    assert 0 < short.seqlen_q < case.seqlen_q
    assert 0 < short.seqlen_k <= case.seqlen_k
    assert sides(short) == sides(case)
    if case.mask == "causal":
        assert short.seqlen_k - short.seqlen_q == case.seqlen_k - case.seqlen_q


def test_where_numbers_may_be_out_of_range_no_bound_is_asked_for():
    case = AttentionCase(dtype="fp16", seqlen_q=4, seqlen_k=4, head_dim=16, scale=2.0**100)
    assert list(bounded.dq_and_dk(Examination(Hiding(), case))) == []


def test_signs_of_zeros_and_payloads_of_nan_are_no_difference():
    value = torch.tensor([0.0, torch.nan, torch.inf, 1.0])
    other = torch.tensor([-0.0, -torch.nan, torch.inf, 1.0])
    assert same("r", "out", value, other).differing == 0
    assert same("r", "out", value, other + torch.tensor([0.0, 0.0, 0.0, 2.0**-23])).first == (3,)
    assert same("r", "out", value, torch.zeros(4), torch.tensor([True, False, False, False])).elements == 1


def test_a_difference_is_counted_against_its_bound():
    value, expected = torch.tensor([1.0, 2.0, torch.nan, torch.inf]), torch.tensor([1.0, 1.0, 1.0, torch.inf])
    one = close("r", "out", value, expected, torch.tensor([0.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    assert (one.elements, one.differing, one.first, one.worst) == (4, 1, (2,), 0.5)
    untold = close("r", "out", value, expected, torch.full((4,), torch.inf, dtype=torch.float64))
    assert (untold.elements, untold.differing, untold.worst) == (0, 0, None)


def test_names_are_those_of_one_relation():
    names = [claim.name for claim in (*CLAIMS, *PERTURBATIONS)]
    assert len(names) == len(set(names))


def test_every_relation_has_its_turn_in_both_matrices():
    for name, device, least in (("smoke", "cpu", 1), ("smoke", "cuda", 1), ("standard", "cuda", 10)):
        cases = [case for case in matrix(name) if scores(case) <= LARGEST[device]]
        for claim in CLAIMS:
            can = [case for case in cases if scores(case) and claim.applies(case)]
            mine = [case for case in can if in_turn(claim, case, device)]
            assert len(mine) >= least, (name, claim.name)
            assert len(mine) <= 2 * len(can) / TURNS[device] + 2 or not claim.costs, (name, claim.name)


def test_what_costs_nothing_applies_everywhere():
    result = relations(Examination(Hiding(), CAUSAL))
    free = {claim.name for claim in CLAIMS if not claim.costs and claim.applies(CAUSAL)}
    assert free <= {one.name for one in result.relations}
    assert relations(Examination(Hiding(), CAUSAL.replace(batch=0))) is None
