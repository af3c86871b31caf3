"""The sharp budget of a case, and where it does not apply.

The model takes errors of distinct operations for independent. Where they are not, it says nothing: a tier that does not apply
to a case says why, and the hard budget alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, capped, key_head, visible_mask
from flashverify.cases.tensors import Inputs
from flashverify.numerics.calibration import ROUNDED
from flashverify.numerics.contract import Contract
from flashverify.numerics.dots import SplitProducts
from flashverify.numerics.formats import EVALUATION_UNIT
from flashverify.numerics.sharp_backward import backward_spread
from flashverify.numerics.sharp_forward import ForwardSpread, forward_spread
from flashverify.numerics.spread import Spread, factor

__all__ = ["ForwardSpread", "Spread", "backward_spread", "factor", "forward_spread", "inapplicable", "inapplicable_to"]

BIASES_ALONE = "biases alone tell the weights of a row apart: all rows have the same ones, and round them alike"

SAMPLED_LINES = 16
"""Rows and columns of a head's score matrix that are searched for repeated logits: spread evenly over it."""


def inapplicable(case: AttentionCase, inputs: Inputs, contract: Contract) -> str | None:
    """Why the sharp model says nothing of a case, or None (docs/numerics.md, section 14)."""
    reason = _untold(contract, case)
    if reason is not None:
        return reason
    if case.rotary is not None:
        return "queries and appended keys are turned and rounded before the product: one error for all keys of a row"
    if case.seqlen_q == 0 or case.seqlen_k == 0:
        return "no pair of a query and a key"
    if case.softmax_scale == 0.0 and case.is_biased:
        return BIASES_ALONE
    if case.softmax_scale == 0.0:
        return "all logits are 0: equal weights are rounded alike"
    return _alike(case, inputs, contract)


def _untold(contract: Contract, case: AttentionCase) -> str | None:
    """Why the model says nothing of a kernel with this contract, or None."""
    pieces = contract.dot.pieces.name if isinstance(contract.dot, SplitProducts) else ""
    operand = contract.operand.name if contract.operand is not None else ""
    reasons = (
        (pieces, f"products are made of pieces in {pieces}: what they leave out is no rounding"),
        (operand, f"operands are rounded to {operand}: one error for all keys of a row"),
        (contract.prescaled, "q or k is scaled and rounded before the product: one error for all keys of a row"),
        (
            contract.block_k is not None and not contract.block_k_exact,
            "the walk over key blocks is not known: which weights are rounded is not either",
        ),
        (contract.splits is None, "rows share their keys out to parts of their own: the walk over key blocks is not one"),
        (
            contract.rescale == "folded" and case.dropout is not None,
            "dropout's factor is folded into P before its rounding: weights that are 1 all have one error",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def inapplicable_to(tensor: str, case: AttentionCase, contract: Contract) -> str | None:
    """Why the sharp model says nothing of one tensor of a case that it otherwise applies to, or None."""
    if tensor in {"dk", "dv"} and contract.group_partials and case.group_size > 1:
        return "each query head's share is rounded before the sum over its group"
    return None


TOLERATED_REPEATS = 0.5 * (ROUNDED.largest**2 - 1.0)
"""Share of a line's logits that may repeat: c pairs of equal weights among n make a variance 1 + 2c/n times as large."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Evenly spread lines of a head: indices on a device."""

    indices: torch.Tensor

    @classmethod
    def of(cls, length: int, device: torch.device) -> _Sample:
        count = min(length, SAMPLED_LINES)
        return cls(torch.linspace(0, length - 1, count, device=device).round().long())


def _alike(case: AttentionCase, inputs: Inputs, contract: Contract) -> str | None:
    """Why weights of sampled rows or columns are rounded alike, or None.

    Equal logits give equal weights (a few coincide by chance), and logits that vary by less than a spacing of P's format (the
    accumulator's, if P is not rounded) give weights whose roundings are no sample of a uniform distribution. Rows that see
    fewer than two keys say nothing.
    """
    device = inputs.q.device
    rows, columns = _Sample.of(case.seqlen_q, device).indices, _Sample.of(case.seqlen_k, device).indices
    every_row = torch.arange(case.seqlen_q, device=device)
    every_column = torch.arange(case.seqlen_k, device=device)
    for head in range(case.heads_q):
        q, k = inputs.q[:, head].double(), inputs.k[:, key_head(case, head)].double()
        scored, seen_by_rows = _scored(case, q, k, rows, every_column), _seen(case, inputs, head, rows, every_column)
        of_rows = _biased(case, inputs, head, scored, rows, every_column)
        if _repeats(of_rows, seen_by_rows, _uncertain(case, contract, q[:, rows], k)):
            return "logits repeat within a row: equal weights are rounded alike"
        of_columns, seen_by_columns = (
            _biased(case, inputs, head, _scored(case, q, k, every_row, columns), every_row, columns).mT,
            _seen(case, inputs, head, every_row, columns).mT,
        )
        if _repeats(of_columns, seen_by_columns, _uncertain(case, contract, k[:, columns], q)):
            return "logits repeat within a column: equal weights are rounded alike"
        spread = _deviation(scored, seen_by_rows)
        if bool((spread < 2.0 * (contract.probability or contract.accumulator).unit_roundoff).any()):
            alone = "weights of a row differ by less than a spacing: they are rounded alike"
            return BIASES_ALONE if case.is_biased else alone
    return None


def _repeats(scores: torch.Tensor, seen: torch.Tensor, uncertain: torch.Tensor) -> bool:
    """Whether lines of scores (batch, lines, length) hold more equal ones among those seen than chance explains.

    Args:
        scores: scores.
        seen: bool, broadcast against them.
        uncertain: (batch, lines, 1), how far float64 may set equal scores apart.
    """
    ordered = scores.masked_fill(~seen, torch.inf).sort(-1).values
    equal = (ordered[..., 1:] - ordered[..., :-1] <= uncertain) & ordered[..., 1:].isfinite()
    return bool((equal.sum(-1) > TOLERATED_REPEATS * seen.sum(-1)).any())


def _scored(case: AttentionCase, q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Logits of some rows and columns but for their biases, (batch, rows, columns)."""
    return capped(case, case.softmax_scale * (q[:, rows] @ k[:, columns].mT))


def _seen(case: AttentionCase, inputs: Inputs, head: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Which pairs of a query head are seen, bool, (batch, rows, columns), or the last two of them."""
    seen, bias = visible_mask(case, _entries(case, rows), rows, columns), dense_bias.expanded(case, inputs)
    return seen if bias is None else seen & dense_bias.shown(bias[:, head][:, rows][..., columns])


def _biased(
    case: AttentionCase, inputs: Inputs, head: int, scored: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """`_scored` of a query head with its biases: logits, (batch, rows, columns)."""
    bias = dense_bias.expanded(case, inputs)
    if bias is not None:
        scored = scored + dense_bias.added(bias[:, head][:, rows][..., columns])
    if case.alibi is None:
        return scored
    slopes = alibi_slope_tensor(case, scored.device)[:, head, None, None]
    return scored + alibi_bias(case, _entries(case, rows), slopes, rows, columns)


def _entries(case: AttentionCase, rows: torch.Tensor) -> torch.Tensor:
    """All batch entries, (batch, 1, 1), on the device of the rows."""
    return torch.arange(case.batch, device=rows.device)[:, None, None]


def _uncertain(case: AttentionCase, contract: Contract, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """How far equal logits of each row may be apart, (batch, rows, 1).

    Twice the largest float64 error of scores that are summed in any order; and capped logits are equal within a rounding of
    the cap to the kernel.
    """
    largest = columns.square().sum(-1).amax(-1)[..., None, None]
    sizes = abs(case.softmax_scale) * (rows.square().sum(-1, keepdim=True) * largest).sqrt()
    of_cap = 0.0 if case.softcap is None else contract.accumulator.unit_roundoff * case.softcap
    return 2.0 * (rows.shape[-1] + 1.0) * EVALUATION_UNIT * sizes + of_cap


def _deviation(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the scores that a line (batch, lines, length) sees; infinite where it sees fewer than two."""
    count = seen.sum(-1)
    mean = torch.where(seen, scores, 0.0).sum(-1) / count.clamp(min=1)
    squares = torch.where(seen, (scores - mean[..., None]).square(), 0.0).sum(-1)
    return torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), torch.inf)
