"""The rules of other projects: their formulas are attention, their inputs are what they draw, and each tells what it can."""

import dataclasses
import math

import pytest
import torch

from flashverify.adapters.kernel import KernelDefectError
from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.regimes import draw
from flashverify.cases.sampling import torch_dtype
from flashverify.cases.tensors import Outputs
from flashverify.kernels import load
from flashverify.mutants import rival_inputs
from flashverify.mutants.rival_formulas import mixed, rounded
from flashverify.mutants.rivals import RULES, plain, real_rows, verdicts

CPU = torch.device("cpu")
CASE = AttentionCase(dtype="bf16", heads_q=2, seqlen_q=128, seqlen_k=128, head_dim=64)


class Formula:
    """A kernel that is a formula: what rounds P and dS, or whatever is given, with changes of its outputs."""

    name, device, sources = "formula", CPU, None
    saves_outputs = False

    def __init__(self, change=lambda outputs: outputs, *, run=mixed, returns_lse=True, predictable=True, declines=None):
        self.change, self.formula, self.returns_lse, self.predictable = change, run, returns_lse, predictable
        self.reason, self.runs = declines, 0

    def declines(self, case):
        return self.reason

    def run(self, case, inputs):
        self.runs += 1
        return self.change(self.formula(case, inputs))


def scaled(**factors):
    """A change of outputs: tensors by name times factors."""
    return lambda outputs: dataclasses.replace(outputs, **{n: getattr(outputs, n) * f for n, f in factors.items()})


def test_a_faultless_kernel_is_accepted_by_all_and_runs_once_for_rules_with_the_same_inputs():
    kernel = Formula()
    assert verdicts(kernel, CASE) == dict.fromkeys(RULES, True)
    assert kernel.runs == len({"normal", "uniform", "integers", "half normal"})


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_accepts_the_same_precision_and_nothing_that_is_far_off(name, dtype):
    case, rule = CASE.replace(dtype=dtype, seqlen_q=64, seqlen_k=64, mask="causal"), RULES[name]
    if dtype not in rule.dtypes:
        assert verdicts(Formula(), case)[name] is None
        return
    inputs = rule.draw(case, CPU)
    same = rule.same_precision and rule.same_precision(case, inputs)
    out = rounded(plain(case, inputs, torch.float32), torch_dtype(dtype)).out
    reference = rule.reference(case, inputs, out)
    own = same or reference
    assert rule.accepts(own, reference, same)
    for tensor in ("out", "dq", "dk", "dv"):
        x = getattr(own, tensor)
        spoilt = x.clone()
        spoilt.view(-1)[7] = math.nan
        for wrong in (2 * x, -x, spoilt, *([None] if tensor != "out" else [])):
            assert not rule.accepts(dataclasses.replace(own, **{tensor: wrong}), reference, same)


@pytest.mark.parametrize("name", RULES)
def test_an_output_that_is_infinite_is_not_accepted(name):
    def infinite(outputs):
        outputs.out.view(-1)[7] = math.inf
        return outputs

    assert verdicts(Formula(infinite), CASE)[name] is False


def test_a_nan_that_the_reference_has_too_is_accepted_by_two():
    nan = scaled(out=math.nan)(mixed(CASE, rival_inputs.normal(CASE, CPU)))
    assert [name for name, rule in RULES.items() if rule.accepts(nan, nan, nan)] == ["torch", "cudnn-frontend"]


def test_only_one_rule_looks_at_lse_and_only_if_it_is_the_kernels_own():
    off = scaled(lse=1 / math.log(2))
    assert [name for name, accepted in verdicts(Formula(off), CASE).items() if not accepted] == ["cudnn-frontend"]
    absent = Formula(scaled(lse=math.nan), returns_lse=False)
    assert all(verdicts(absent, CASE).values())


def test_a_small_defect_of_out_passes_an_absolute_tolerance_alone():
    found = verdicts(Formula(scaled(out=1 + 2.0**-6)), CASE)
    assert [name for name, accepted in found.items() if accepted] == ["triton-tutorial"]


def test_an_absolute_tolerance_fails_bfloat16_that_is_rounded_correctly():
    rule, case = RULES["triton-tutorial"], CASE.replace(mask="causal")
    inputs = rule.draw(case, CPU)
    best = rounded(plain(case, inputs, torch.float64), torch.bfloat16)
    assert not rule.accepts(best, rule.reference(case, inputs, best.out), None)


def test_a_small_defect_of_dq_passes_the_rules_with_large_factors():
    found = verdicts(Formula(scaled(dq=1 + 2.0**-6)), CASE)
    assert not found["flash-attention"]
    assert not found["flex-attention"]
    assert found["torch"]
    assert found["aotriton"]


def test_squares_that_underflow_hide_errors_from_a_root_mean_square_in_float16():
    rule = RULES["flash-linear-attention"]
    case = CASE.replace(dtype="fp16")
    inputs = rule.draw(case, CPU)
    reference = rule.reference(case, inputs, inputs.dout)
    shrunk = Outputs(**{name: x * 2.0**-6 for name, x in reference.items()})  # as gradients are with a small loss
    off = dataclasses.replace(shrunk, dq=shrunk.dq + 2.0**-13)
    relative = (off.dq - shrunk.dq).float().square().mean().sqrt() / shrunk.dq.float().square().mean().sqrt()
    assert relative > 0.005
    assert rule.accepts(off, shrunk, None)
    assert not rule.accepts(*(Outputs(**{n: x.bfloat16() for n, x in y.items()}) for y in (off, shrunk)), None)


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({"dtype": "fp64"}, set(RULES)),
        ({"seqlen_q": 0}, set(RULES)),
        ({"cache": "contiguous", "seqlen_q": 1}, set(RULES)),
        ({"softcap": 30.0}, {"torch", "aotriton", "cudnn-frontend", "triton-tutorial", "flash-linear-attention"}),
        ({"lse_grad": True}, set(RULES) - {"flex-attention"}),
        ({"sink": True, "dtype": "fp16"}, set(RULES) - {"cudnn-frontend", "flash-linear-attention"}),
        ({"bias": "full"}, {"flash-attention", "triton-tutorial", "flash-linear-attention"}),
        ({"dropout": 0.2}, {"flex-attention", "triton-tutorial", "flash-linear-attention"}),
        ({"lengths": "ragged", "batch": 5}, {"torch", "triton-tutorial"}),
        ({"mask": "causal", "heads_q": 4, "heads_kv": 2, "seqlen_q": 20, "layout": "bnhd", "scale": 0.3}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_rule_says_nothing_of_what_its_project_does_not_test(changes, silent):
    case = CASE.replace(**({"seqlen_q": 48, "seqlen_k": 48, "head_dim": 32} | changes))
    found = verdicts(Formula(), case)
    assert list(found) == list(RULES)
    assert {name for name, accepted in found.items() if accepted is None} == silent
    assert all(accepted for accepted in found.values() if accepted is not None)


def test_nothing_is_said_of_what_the_kernel_declines_or_drops_by_itself():
    nothing = dict.fromkeys(RULES)
    assert verdicts(Formula(declines="too long"), CASE) == nothing
    assert verdicts(Formula(predictable=False), CASE.replace(dropout=0.2)) == nothing


def test_a_kernel_without_proper_outputs_is_not_accepted():
    def fails(case, inputs):
        raise KernelDefectError("dq: the kernel gives none")

    assert verdicts(Formula(run=fails), CASE) == dict.fromkeys(RULES, False)


def test_rows_of_no_sequence_are_left_out():
    case = CASE.replace(batch=5, seqlen_q=20, seqlen_k=30, head_dim=32, lengths="ragged")

    def spoil(outputs):
        for entry, (queries, keys) in enumerate(lengths(case)):
            for x in (outputs.out, outputs.dq, outputs.lse):
                x[entry, :, queries:] = math.nan
            for x in (outputs.dk, outputs.dv):
                x[entry, :, keys:] = math.nan
        return outputs

    assert set(verdicts(Formula(spoil), case).values()) == {True, None}
    packed = real_rows(case, mixed(case, draw(case)))
    assert packed.out.shape == (sum(queries for queries, _ in lengths(case)), 2, 32)
    assert packed.dk.shape == (sum(keys for _, keys in lengths(case)), 1, 32)


def test_inputs_are_what_the_projects_draw():
    case = CASE.replace(bias="hidden", seed=3)
    normal, half, uniform, integers = (
        draws(case, CPU)
        for draws in (rival_inputs.normal, rival_inputs.half_normal, rival_inputs.uniform, rival_inputs.sparse_integers)
    )
    assert torch.equal(half.q, normal.q / 2)
    assert torch.equal(half.dout, normal.dout)
    for x in (uniform.q, uniform.k, uniform.v, uniform.dout, uniform.bias[uniform.bias.isfinite()]):
        assert x.min() >= 0
        assert 0.5 < x.max() <= 1
    assert torch.equal(uniform.bias.isinf(), normal.bias.isinf())
    assert set(integers.v.unique().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert (integers.v == 0).float().mean() > rival_inputs.SPARSITY
    scores = case.softmax_scale * (integers.q.float() @ integers.k[:, [0, 0]].float().mT)
    deep = scores.amax(-1) < -87  # exp is 0 there, in float32
    assert 0 < deep.sum() <= deep.numel() / 16
    other = rival_inputs.uniform(case.replace(seed=4), CPU)
    assert not torch.equal(other.q, uniform.q)


def test_queries_reach_a_soft_cap():
    case = CASE.replace(softcap=30.0)
    assert torch.equal(rival_inputs.normal_capped(case, CPU).q, 30 * rival_inputs.normal(case, CPU).q)


@pytest.mark.parametrize("defect", ["delta-missing", "p-truncated"])
def test_a_large_defect_of_our_kernels_is_seen_by_all_and_a_small_one_by_one(defect, device):
    case = CASE.replace(mask="causal", heads_kv=2)
    assert all(verdicts(load("triton", device), case).values())
    seen = {name for name, accepted in verdicts(load(f"mutant:{defect}", device), case).items() if not accepted}
    assert seen == {"delta-missing": set(RULES), "p-truncated": {"flex-attention"}}[defect]
