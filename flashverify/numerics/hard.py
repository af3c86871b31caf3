"""The hard budget: per element, the largest error that a contract's arithmetic can make. Derivation: docs/numerics.md.

A kernel's value passes if |value - truth| + rho <= budget and fails if |value - truth| - rho > budget, where rho is the
oracle's own radius; in between, the oracle is not sharp enough to tell.
"""

from flashverify.numerics.hard_backward import backward_budget, feature_budget
from flashverify.numerics.hard_forward import ForwardBudget, forward_budget
from flashverify.numerics.hard_range import range_violation

__all__ = ["ForwardBudget", "backward_budget", "feature_budget", "forward_budget", "range_violation"]
