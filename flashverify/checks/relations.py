"""Relations: what has to hold between outputs of a kernel for related inputs, without an oracle that says what they are.

    exact (`exact_relations.py`):      f(x) = f(x); heads, entries permuted, or alone; prefix; window; groups
    exact (`scaled_relations.py`):     f(2^n v) = 2^n f; f(2^n dout) = 2^n f
    bounded (`bounded_relations.py`):  <dq, q> = <dk, k>; <dv, v> = <dout, out>; sums of dk, dv, dbias; v = 1; keys permuted

Exact ones are asked of kernels that promise bits, and of others within budgets (`related.py`, docs/relations.md). Those that
run the kernel again wait for their turn; those that look at the outputs that there are cost nothing but sums.
"""

from __future__ import annotations

from flashverify.checks.bounded_relations import BOUNDED_CLAIMS
from flashverify.checks.exact_relations import EXACT_CLAIMS
from flashverify.checks.examination import Examination
from flashverify.checks.registry import register
from flashverify.checks.related import examine
from flashverify.checks.scaled_relations import SCALED_CLAIMS
from flashverify.records.measurement import CheckResult

CLAIMS = (*EXACT_CLAIMS, *SCALED_CLAIMS, *BOUNDED_CLAIMS)
"""Every relation of this check."""


@register("relations")
def relations(examination: Examination) -> CheckResult | None:
    """Every relation whose turn it is; None if it is none's."""
    return examine("relations", CLAIMS, examination)
