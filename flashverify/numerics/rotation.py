"""What rotary embedding may do to products of q and k: lemma 17 of docs/numerics.md.

A kernel forms x' = x_a·cos -+ x_b·sin in the accumulator's format, two products and a sum, and rounds it once to storage:
queries before the product, appended keys when they are stored in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.numerics.coefficients import Coefficients
from flashverify.numerics.tiles import Tile


def turning_error(values: torch.Tensor, terms: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """Largest error of turned elements as a kernel stores them; 0 of those that are not turned.

    Args:
        values: x', float64, itself off by two products and a sum in float64 at most.
        terms: |x_a·cos| + |x_b·sin|, of the same shape; 0 of elements that are not turned (`rotary.Turned`).
        coefficients: the contract's coefficients.
    """
    computed = coefficients.growth(2.0) * terms + 3.0 * coefficients.tiny
    # twice: of the number that is rounded, and of `values`, whose unit roundoff is no larger than the contract's
    error = computed + coefficients.cast(coefficients.contract.storage, values.abs() + 2.0 * computed)
    return torch.where(terms > 0.0, error, 0.0)


@dataclass(frozen=True, slots=True)
class Turning:
    """Turned rows of a tile as a kernel has them: c lanes, r stacked query rows, n keys, d features.

    Attributes:
        q_error, k_error: largest errors, (c, r, d) and (c, n, d).
        q_reach, k_reach: upper bounds of magnitudes, both of a kernel's numbers and of the true ones.
    """

    q_error: torch.Tensor
    k_error: torch.Tensor
    q_reach: torch.Tensor
    k_reach: torch.Tensor

    @classmethod
    def of(cls, tile: Tile, coefficients: Coefficients) -> Turning | None:
        """The errors of a tile under a contract, or None: its rows are not turned."""
        if tile.turned is None:
            return None
        q_error, k_error = (
            turning_error(x, terms, coefficients) for x, terms in zip((tile.q, tile.k), tile.turned, strict=True)
        )
        return cls(q_error, k_error, tile.q.abs() + 2.0 * q_error, tile.k.abs() + 2.0 * k_error)

    @property
    def magnitude(self) -> torch.Tensor:
        """Upper bound of |q^|·|k^|ᵀ of what a kernel multiplies, (c, r, n)."""
        return self.q_reach @ self.k_reach.mT

    @property
    def moved(self) -> torch.Tensor:
        """Upper bound of |q^·k^ - q'·k'| before the product's own roundings, (c, r, n)."""
        return self.q_error @ self.k_reach.mT + self.q_reach @ self.k_error.mT
