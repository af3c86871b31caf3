"""The dropout of a case: which of its pairs are kept, and what makes up for those that are dropped.

With Z_ij = 1 for a pair that is kept, 0 for one that is dropped, and r = 2^32 / (2^32 - t):

    out_i = sum_j P_ij Z_ij r v_j,   dP_ij = Z_ij r dout_i·v_j,   dv_j = sum_i P_ij Z_ij r dout_i

P and lse are those without dropout; a dropped pair is a visible one. Rows and keys count from the first of their sequence.
Each statement comes in scalar form (for mpmath and balls) and vectorised (for float64); tests hold them equal.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from flashverify.cases.case import AttentionCase
from flashverify.dropout.mask import ALL, keep_scalar, keep_tensor, stream_of

if TYPE_CHECKING:
    import torch


def exact_rescale(case: AttentionCase) -> Fraction:
    """What kept pairs are multiplied by: r, exactly; 1 without dropout, and 0 where everything is dropped."""
    stream = stream_of(case)
    if stream is None:
        return Fraction(1)
    return Fraction(ALL, ALL - stream.threshold) if stream.threshold < ALL else Fraction(0)


def rescale(case: AttentionCase) -> float:
    """`exact_rescale` rounded to float64."""
    stream = stream_of(case)
    return 1.0 if stream is None else stream.rescale


def kept_scalar(case: AttentionCase, batch: int, head: int, i: int, j: int) -> bool:
    """Whether query row i of a query head keeps its pair with key column j (scalar form); True without dropout."""
    stream = stream_of(case)
    return stream is None or keep_scalar(stream, case.heads_q, batch, head, i, j)


def kept(
    case: AttentionCase, entries: torch.Tensor, heads: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor | None:
    """Which pairs are kept (vectorised form of `kept_scalar`), or None: there is no dropout.

    Args:
        case: the case.
        entries: integer tensor of batch entries.
        heads: integer tensor of query heads.
        rows: integer tensor of query rows; these three broadcast against one another, and against (1,).
        columns: integer tensor (C,) of key columns; all on one device.

    Returns:
        bool tensor (..., C).
    """
    stream = stream_of(case)
    return None if stream is None else keep_tensor(stream, case.heads_q, entries, heads, rows, columns)
