"""Budgets where sequences have lengths of their own: none for rows and keys that do not exist, those of the sequence else."""

from __future__ import annotations

import pytest
import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.regimes import draw
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.conditioning import magnitudes
from flashverify.numerics.hard import backward_budget, feature_budget, forward_budget
from flashverify.numerics.sharp import backward_spread, forward_spread
from flashverify.oracles import tiled
from tests.numerics.contracts import contract_of
from tests.numerics.simulator import Options

CASE = AttentionCase(
    dtype="fp16", batch=8, heads_q=4, heads_kv=2, seqlen_q=20, seqlen_k=33, head_dim=8, lengths="ragged", lse_grad=True
)

CHANGES = {
    "full": {},
    "causal": {"mask": "causal"},
    "window": {"window_left": 9, "window_right": 3},
    "linear biases": {"alibi": "heads", "mask": "causal"},
    "cap": {"softcap": 2.0},
    "sink": {"sink": True},
    "sink, causal, linear biases": {"sink": True, "mask": "causal", "alibi": "heads"},
}

CONTRACT = contract_of(CASE.dtype, Options(block_k=16))

SHARE = 1.0 / 16.0

by_change = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def cut(inputs: Inputs, b: int, queries: int, keys: int) -> Inputs:
    """The inputs of one sequence alone."""
    assert inputs.dlse is not None
    return Inputs(
        q=inputs.q[b : b + 1, :, :queries],
        k=inputs.k[b : b + 1, :, :keys],
        v=inputs.v[b : b + 1, :, :keys],
        dout=inputs.dout[b : b + 1, :, :queries],
        dlse=inputs.dlse[b : b + 1, :, :queries],
        sink=inputs.sink,
    )


def silent(case: AttentionCase, inputs: Inputs) -> Inputs:
    """The inputs with zeros for queries and keys that do not exist, so that they are no part of bounds by all keys either."""
    for b, (queries, keys) in enumerate(lengths(case)):
        inputs.q[b, :, queries:] = 0.0
        inputs.k[b, :, keys:] = 0.0
        inputs.v[b, :, keys:] = 0.0
    return inputs


def found(case: AttentionCase, inputs: Inputs) -> dict[str, Outputs]:
    """Every kind of budget of a case, by name."""
    out, lse = tiled.forward(case, inputs)
    hard = forward_budget(case, inputs, out, lse, CONTRACT)
    gradients = backward_budget(case, inputs, out, lse, CONTRACT, hard)
    spread = forward_spread(case, inputs, out, lse, CONTRACT)
    of_gradients = backward_spread(case, inputs, out, lse, CONTRACT, spread)
    return {
        "hard": Outputs(hard.out, hard.lse, *gradients, *feature_budget(case, inputs, out, lse, CONTRACT, hard)),
        "bias": Outputs(spread.out.bias, spread.lse.bias, *(x.bias for x in of_gradients)),
        "deviation": Outputs(spread.out.deviation, spread.lse.deviation, *(x.deviation for x in of_gradients)),
        "magnitude": magnitudes(case, inputs, lse),
    }


@pytest.mark.parametrize("changes", [*CHANGES.values(), {"dropout": 0.5}, {"dropout": 0.9, "sink": True}], ids=str)
def test_rows_and_keys_that_do_not_exist_have_no_budget(changes: dict[str, object]) -> None:
    case = CASE.replace(**changes)
    of_case = found(case, draw(case))
    for kind in ("hard", "bias", "deviation"):
        for b, (queries, keys) in enumerate(lengths(case)):
            for name in ("out", "lse", "dq", "dk", "dv"):
                length = keys if name in {"dk", "dv"} else queries
                assert not getattr(of_case[kind], name)[b, :, length:].any(), (kind, name, b)


@by_change
def test_budgets_are_those_of_each_sequence_alone(changes: dict[str, object]) -> None:
    """Up to a share by which the centre that values are moved to first, a mean over all keys, changes an upper bound."""
    case = CASE.replace(**changes)
    inputs = silent(case, draw(case))
    of_case = found(case, inputs)
    for b, (queries, keys) in enumerate(lengths(case)):
        if not queries or not keys:
            continue
        alone = case.replace(batch=1, seqlen_q=queries, seqlen_k=keys, lengths=None)
        of_sequence = found(alone, cut(inputs, b, queries, keys))
        for kind, name in ((kind, name) for kind in of_case for name in ("lse", "dq", "dk", "dv")):
            whole, own = getattr(of_case[kind], name)[b], getattr(of_sequence[kind], name)[0]
            torch.testing.assert_close(whole[:, : own.shape[1]], own, rtol=SHARE, atol=0.0, msg=f"{kind} of {name}, entry {b}")


def test_tiles_of_few_rows_give_the_same_budgets() -> None:
    case = CASE.replace(mask="causal", sink=True, alibi="batch")
    inputs = draw(case)
    out, lse = tiled.forward(case, inputs)
    whole = forward_budget(case, inputs, out, lse, CONTRACT)
    for elements in (1, 300, 2000):
        tiles = forward_budget(case, inputs, out, lse, CONTRACT, elements)
        torch.testing.assert_close(tiles.out, whole.out, rtol=2.0**-40, atol=0.0)
        torch.testing.assert_close(tiles.lse, whole.lse, rtol=2.0**-40, atol=0.0)
