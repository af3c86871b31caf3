"""Additions: whether a·b + c is contracted, and in which order tl.sum adds.

The order is read off the sums themselves (Xie, Wang and Zhang, FPRev: revealing the order of floating-point summation,
arXiv 2411.00442): with x_i = 2^60, x_j = -2^60 and ones elsewhere, every one that is added before the two meet is
absorbed. What remains says how many terms lie outside of the smallest partial sum that holds both, and all pairs together give
the tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch

from flashverify.numerics.axioms.arithmetic import Observation
from flashverify.numerics.axioms.finding import Finding, figure
from flashverify.numerics.axioms.primitives import Primitives
from flashverify.numerics.axioms.rounding import fused_multiply_add
from flashverify.numerics.formats import FP32

Tree: TypeAlias = "int | tuple[Tree, Tree]"
"""A term's position, or the two partial sums that are added."""

COLUMNS = (32, 128)
"""Lengths of the sums: tiles of kernels have such rows."""

ABSORBING = 2.0**60
"""So much larger than the number of terms that adding a partial sum of ones changes nothing."""

ROWS = 256
"""Random rows on which a tree is confirmed, bit for bit."""


def contraction(primitives: Primitives) -> Finding:
    """Whether a·b + c and a·b - c are rounded once or twice, by default and with contraction asked for or forbidden."""
    generator = torch.Generator().manual_seed(0)
    a, b, noise = (torch.randn(2**14, generator=generator).to(primitives.device) for _ in range(3))
    c = -a * b * (1.0 + noise)  # cancels to a varying degree
    seen = {}
    observations = []
    for setting, words in ((None, "by default"), (True, "asked for"), (False, "forbidden")):
        added, subtracted = primitives.multiply_add(a, b, c, setting)
        found = _rounding_of(a, b, c, added), _rounding_of(a, b, -c, subtracted)
        seen[setting] = found[0] if found[0] == found[1] else " and ".join(found)
        allowed = (TWICE,) if setting is False else (ONCE, TWICE)
        fits = seen[setting] in allowed
        text = "a·b + c and a·b - c" if fits else f"accepted: {' or '.join(allowed)}"
        observations.append(Observation(f"contraction {words}", seen[setting], text, 2 * a.numel(), False, fits))
    return Finding({"fuses": seen[None] == ONCE}, tuple(observations))


ONCE, TWICE, NEITHER = "fused, rounded once", "not fused, rounded twice", "neither fused nor rounded twice"


def _rounding_of(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, result: torch.Tensor) -> str:
    if torch.equal(result, fused_multiply_add(a, b, c)):
        return ONCE
    return TWICE if torch.equal(result, a * b + c) else NEITHER


def row_sum(primitives: Primitives) -> Finding:
    """The order of tl.sum along the rows of a tile."""
    orders, observations = [], []
    for columns in COLUMNS:
        tree = reveal(primitives, columns)
        x = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(columns)).to(primitives.device)
        sums = primitives.row_sums(x)
        confirmed = tree is not None and bool(torch.equal(sums, add_up(tree, x)))
        if tree is not None and confirmed:
            order = "sequential" if is_sequential(tree) else "tree"
            value, text = f"{order}, depth {depth(tree)}", f"bit for bit: {shown(tree)}"
            fits = True
        else:
            order = "unknown: any order"
            error, bound = _error_of(x, sums)
            fits = error <= bound
            value, text = order, f"no tree of additions fits; error {figure(error)}, any order allows {figure(bound)}"
        orders.append(order)
        probed = ROWS + columns * (columns - 1) // 2
        observations.append(Observation(f"tl.sum of {columns} terms", value, text, probed, False, fits))
    return Finding({"sum_order": orders[0] if len(set(orders)) == 1 else "unknown: any order"}, tuple(observations))


def _error_of(x: torch.Tensor, sums: torch.Tensor) -> tuple[float, float]:
    """Largest error relative to the sum of magnitudes, and the bound of any order (Higham, gamma_(n-1))."""
    wide = x.double()
    error = float(((sums.double() - wide.sum(1)).abs() / wide.abs().sum(1)).nan_to_num(torch.inf).max())
    return error, math.expm1((x.shape[1] - 1) * FP32.unit_roundoff)


def reveal(primitives: Primitives, columns: int) -> Tree | None:
    """The tree of additions behind `row_sums`, or None if what it does is not a tree of additions of two numbers."""
    pairs = list(itertools.combinations(range(columns), 2))
    x = torch.ones(len(pairs), columns, device=primitives.device)
    rows = torch.arange(len(pairs), device=primitives.device)
    first, second = (torch.tensor(places, device=primitives.device) for places in zip(*pairs, strict=True))
    x[rows, first], x[rows, second] = ABSORBING, -ABSORBING
    meets = {pair: columns - left for pair, left in zip(pairs, primitives.row_sums(x).tolist(), strict=True)}
    return _tree(list(range(columns)), meets)


def _tree(terms: Sequence[int], meets: dict[tuple[int, int], float]) -> Tree | None:
    """The tree over these terms; meets: terms of the smallest partial sum that holds both of a pair."""
    if len(terms) == 1:
        return terms[0]
    left = [terms[0], *(term for term in terms[1:] if meets[terms[0], term] < len(terms))]
    right = [term for term in terms[1:] if meets[terms[0], term] == len(terms)]
    if not right or len(left) + len(right) != len(terms):
        return None
    parts = _tree(left, meets), _tree(right, meets)
    return None if parts[0] is None or parts[1] is None else (parts[0], parts[1])


def add_up(tree: Tree, x: torch.Tensor) -> torch.Tensor:
    """Sums of the rows of a float32 matrix in the order of the tree."""
    return x[:, tree] if isinstance(tree, int) else add_up(tree[0], x) + add_up(tree[1], x)


def depth(tree: Tree) -> int:
    """How many additions a term goes through at most."""
    return 0 if isinstance(tree, int) else 1 + max(depth(tree[0]), depth(tree[1]))


def is_sequential(tree: Tree) -> bool:
    """Whether the terms are added to one running sum, one after the other, from the first on."""
    added = []
    while not isinstance(tree, int):
        tree, last = tree
        added.append(last)
    return [*added, tree] == list(range(len(added), -1, -1))


def shown(tree: Tree, levels: int = 2) -> str:
    """The topmost levels of a tree in words: which terms, in runs, are added last."""
    if isinstance(tree, int):
        return str(tree)
    if levels == 0:
        return _runs(sorted(_leaves(tree)))
    return f"({shown(tree[0], levels - 1)}) + ({shown(tree[1], levels - 1)})"


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else _leaves(tree[0]) + _leaves(tree[1])


def _runs(terms: list[int]) -> str:
    """Sorted numbers as first..last, with the step where it is not 1."""
    steps = {second - first for first, second in itertools.pairwise(terms)}
    if len(terms) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{terms[0]}..{terms[-1]}" + ("" if step == 1 else f" by {step}")
    return ", ".join(map(str, terms[:6])) + (", ..." if len(terms) > 6 else "")
