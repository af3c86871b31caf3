"""Cases, inputs and an a-priori bound for tests of the oracles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, cap_slope, capped, exists, visible
from flashverify.cases.tensors import Inputs, Outputs, has_gradients
from flashverify.dropout.of_case import exact_rescale, kept_scalar
from flashverify.numerics.formats import FP64

UNIT = FP64.unit_roundoff

# Products of error terms, and the rounding of the bound's own evaluation: holds while every omega is below 2^-10.
SMALL = 2.0**-10
SECOND_ORDER = 1 + 8 * SMALL


@dataclass(frozen=True)
class Problem:
    """A case, and what its inputs are like: q is multiplied by `stretch`, `kind` names a structure."""

    case: AttentionCase
    stretch: float = 1.0
    kind: str = "normal"

    def __str__(self) -> str:
        return f"{self.case.id}-{self.kind}-x{self.stretch:g}"


def problem(nq, nk, d, mask="full", *, stretch=1.0, kind="normal", dtype="fp32", **fields) -> Problem:
    case = AttentionCase(dtype=dtype, seqlen_q=nq, seqlen_k=nk, head_dim=d, mask=mask, **fields)
    return Problem(case, stretch, kind)


PROBLEMS = [
    problem(5, 5, 4),
    problem(6, 6, 3, "causal", lse_grad=True),
    problem(7, 4, 3, "causal", dtype="bf16", lse_grad=True),
    problem(4, 7, 3, "causal", dtype="fp16"),
    problem(7, 4, 3, "causal-topleft"),
    problem(3, 8, 2, "causal-topleft", lse_grad=True),
    problem(5, 6, 4, heads_q=4, heads_kv=2, lse_grad=True),
    problem(6, 5, 3, "causal", heads_q=3, heads_kv=1, batch=2, dtype="bf16", lse_grad=True),
    problem(3, 5, 2, heads_q=6, heads_kv=3, batch=2),
    problem(4, 5, 3, scale=0.0, lse_grad=True),
    problem(4, 5, 3, scale=-0.7),
    problem(5, 5, 3, "causal", scale=30.0, lse_grad=True),
    problem(5, 6, 8, stretch=32.0, dtype="fp16"),
    problem(5, 6, 8, stretch=2.0**20, dtype="fp64", lse_grad=True),
    problem(6, 5, 1, dtype="fp64", lse_grad=True),
    problem(4, 1, 3, lse_grad=True),
    problem(1, 6, 3, dtype="fp16"),
    problem(1, 1, 1),
    problem(0, 4, 3, lse_grad=True),
    problem(4, 0, 3, lse_grad=True),
    problem(4, 4, 3, batch=0),
    problem(4, 6, 3, kind="equal-keys", lse_grad=True),
    problem(4, 6, 3, kind="cancelling-values"),
    problem(4, 6, 3, kind="offset-values", dtype="fp64"),
    problem(5, 5, 4, softcap=1.5, lse_grad=True),
    problem(6, 7, 3, "causal", softcap=0.5, scale=-1.0, heads_q=4, heads_kv=2, dtype="bf16", lse_grad=True),
    problem(7, 5, 3, softcap=2.0, window_left=2, window_right=1, heads_q=2, lse_grad=True),
    problem(4, 7, 3, "causal-topleft", softcap=30.0, window_left=1, stretch=32.0, dtype="fp16"),
    problem(5, 6, 8, softcap=15.0, stretch=2.0**20, dtype="fp64", lse_grad=True),
    problem(5, 4, 3, softcap=2.0**40, dtype="fp64", lse_grad=True),
    problem(4, 6, 3, kind="equal-keys", softcap=1.0, lse_grad=True),
    problem(4, 0, 3, softcap=1.0, lse_grad=True),
    problem(5, 5, 4, alibi="heads", lse_grad=True),
    problem(4, 7, 3, alibi="heads", heads_q=4, heads_kv=2, dtype="fp16"),
    problem(7, 4, 3, "causal", alibi="batch", heads_q=3, batch=2, dtype="bf16", lse_grad=True),
    problem(6, 7, 3, alibi="batch", softcap=1.5, heads_q=4, heads_kv=2, batch=2, lse_grad=True),
    problem(7, 6, 3, "causal", alibi="heads", softcap=30.0, window_left=2, heads_q=2, stretch=32.0, dtype="fp16"),
    problem(5, 6, 8, alibi="heads", heads_q=3, stretch=2.0**20, dtype="fp64", lse_grad=True),
    problem(4, 6, 3, kind="equal-keys", alibi="batch", scale=0.0, batch=2, lse_grad=True),
    problem(3, 40, 2, alibi="heads", heads_q=2, window_right=1, scale=-0.7, lse_grad=True),
    problem(4, 0, 3, alibi="heads"),
    problem(4, 4, 3, alibi="batch", batch=0),
    problem(5, 5, 4, bias="full", batch=2, heads_q=2, lse_grad=True),
    problem(4, 7, 3, bias="heads", sink=True, batch=2, heads_q=4, heads_kv=2, dtype="fp16", lse_grad=True),
    problem(6, 4, 3, "causal", bias="batch", softcap=1.5, batch=2, heads_q=3, dtype="bf16", lse_grad=True),
    problem(5, 6, 3, bias="hidden", heads_q=2, alibi="heads", softcap=1.5, window_left=3, window_right=1, lse_grad=True),
    problem(6, 5, 3, "causal-topleft", bias="hidden", sink=True, batch=2, softcap=2.0, scale=-0.7, lse_grad=True),
    problem(5, 4, 3, "causal", bias="mask", batch=2, heads_q=2, lse_grad=True),
    problem(4, 5, 3, bias="mask", sink=True, scale=0.0, batch=2, heads_q=2, alibi="batch", lse_grad=True),
    problem(7, 4, 3, "causal", sink=True, heads_q=4, heads_kv=2, batch=2, dtype="bf16", lse_grad=True),
    problem(5, 6, 8, bias="full", sink=True, heads_q=2, stretch=2.0**20, dtype="fp64", lse_grad=True),
    problem(4, 0, 3, bias="full", sink=True, heads_q=2, lse_grad=True),
    problem(0, 4, 3, bias="heads", sink=True, lse_grad=True),
    problem(4, 4, 3, bias="mask", sink=True, batch=0),
    problem(5, 5, 4, lengths="ragged", batch=4, lse_grad=True),
    problem(4, 7, 3, "causal", lengths="used", batch=8, heads_q=2, dtype="bf16", lse_grad=True),
    problem(7, 4, 3, window_left=2, window_right=1, lengths="ragged", batch=6, softcap=1.5, seed=1, lse_grad=True),
    problem(
        6, 5, 3, "causal", lengths="ragged", batch=5, alibi="batch", sink=True, heads_q=4, heads_kv=2, seed=2, lse_grad=True
    ),
    problem(5, 6, 3, alibi="heads", lengths="used", batch=8, softcap=30.0, window_left=3, scale=-0.7, seed=3, dtype="fp16"),
    problem(4, 0, 3, lengths="ragged", batch=4, sink=True, lse_grad=True),
    problem(1, 1, 3, lengths="used", batch=0),
    problem(5, 6, 4, dropout=0.5, lse_grad=True),
    problem(6, 9, 3, "causal", dropout=0.1, batch=2, heads_q=4, heads_kv=2, seed=3, dtype="bf16", lse_grad=True),
    problem(7, 6, 3, dropout=0.9, bias="full", sink=True, batch=2, heads_q=2, softcap=1.5, lse_grad=True),
    problem(5, 7, 3, "causal-topleft", dropout=0.2, bias="hidden", window_left=2, heads_q=2, scale=-0.7, dtype="fp16"),
    problem(6, 5, 3, dropout=0.17, lengths="ragged", batch=8, heads_q=4, heads_kv=1, alibi="batch", seed=1, lse_grad=True),
    problem(5, 6, 8, dropout=0.5, heads_q=2, stretch=2.0**20, dtype="fp64", seed=2, lse_grad=True),
    problem(20, 17, 2, dropout=0.996, heads_q=2, sink=True, lse_grad=True),
    problem(4, 6, 3, kind="equal-keys", dropout=0.5, lse_grad=True),
    problem(4, 6, 3, kind="offset-values", dropout=2.0**-32, dtype="fp64"),
    problem(4, 5, 3, dropout=0.0, heads_q=2, lse_grad=True),
    problem(4, 5, 3, "causal", dropout=1.0, heads_q=2, sink=True, bias="batch", lse_grad=True),
    problem(4, 0, 3, dropout=0.5, lse_grad=True),
    problem(4, 4, 3, dropout=0.5, batch=0),
]
"""Small problems that between them use every feature, and every size that is zero or one."""


def draw(example: Problem) -> Inputs:
    """Inputs in the case's dtype, from numpy's generator."""
    case = example.case
    rng = np.random.default_rng([case.seed, case.seqlen_q, case.seqlen_k, case.head_dim, case.heads_q])
    rows = (case.batch, case.heads_q, case.seqlen_q)
    keys = (case.batch, case.heads_kv, case.seqlen_k, case.head_dim)
    q, dout = rng.standard_normal((*rows, case.head_dim)), rng.standard_normal((*rows, case.head_dim))
    k, v, dlse = rng.standard_normal(keys), rng.standard_normal(keys), rng.standard_normal(rows)
    if example.kind == "equal-keys":
        k[:] = k[:, :, :1]
    elif example.kind == "cancelling-values":
        k[:, :, 1::2], v[:, :, 1::2] = k[:, :, ::2], -v[:, :, ::2]
    elif example.kind == "offset-values":
        v = 1000 + v
    if case.lengths is not None:
        real = exists(case, torch.arange(case.batch)[:, None, None], torch.arange(case.seqlen_q)).numpy()[:, None]
        dout, dlse = dout * real, dlse * real[..., 0]
    dtype = getattr(torch, DTYPES[case.dtype])
    wide = torch.float64 if case.dtype == "fp64" else torch.float32
    q, k, v, dout = (torch.from_numpy(x).to(dtype) for x in (q * example.stretch, k, v, dout))
    bias, sink = _draw_bias(case, rng), rng.standard_normal((1, case.heads_q, 1))
    return Inputs(
        *(q, k, v, dout),
        torch.from_numpy(dlse).to(wide) if case.lse_grad else None,
        bias if bias is None or bias.dtype == torch.bool else bias.to(dtype),
        torch.from_numpy(sink).to(wide) if case.sink else None,
    )


def _draw_bias(case: AttentionCase, rng: np.random.Generator) -> torch.Tensor | None:
    """Biases of size 1, or a mask, that hides a third of the pairs and all those of the second row."""
    stored = dense_bias.shape(case)
    if stored is None:
        return None
    values, shown = torch.from_numpy(rng.standard_normal(stored)), torch.from_numpy(rng.random(stored) > 1 / 3)
    shown[:, :, 1:2] = False
    if case.bias == "mask":
        return shown
    return values.masked_fill(~shown, -torch.inf) if case.bias == "hidden" else values


@dataclass
class _Terms:
    """Float64 tensors by query head: what both bounds are made of."""

    case: AttentionCase
    scale: float
    sees: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    x: torch.Tensor
    bent: torch.Tensor
    s: torch.Tensor
    added: torch.Tensor
    magnitude: torch.Tensor
    sink: torch.Tensor | None
    entering: torch.Tensor

    @classmethod
    def of(cls, case: AttentionCase, inputs: Inputs) -> _Terms:
        group = case.heads_q // case.heads_kv
        q, dout = inputs.q.double(), inputs.dout.double()
        k, v = inputs.k.double().repeat_interleave(group, 1), inputs.v.double().repeat_interleave(group, 1)
        sizes = (case.batch, 1, case.seqlen_q, case.seqlen_k)
        table = [visible(case, b, i, j) for b, _, i, j in np.ndindex(sizes)]
        sees = torch.tensor(table, dtype=torch.bool).reshape(sizes)
        scale = case.softmax_scale
        x = scale * (q @ k.mT)
        bent = s = capped(case, x)
        added = torch.zeros_like(s)
        if case.alibi is not None:
            slopes = alibi_slope_tensor(case)[..., None, None]
            entries = torch.arange(case.batch)[:, None, None, None]
            linear = alibi_bias(case, entries, slopes, torch.arange(case.seqlen_q), torch.arange(case.seqlen_k))
            s, added = s + linear, added + linear.abs()
        bias = dense_bias.expanded(case, inputs)
        if bias is not None:
            s, added = s + dense_bias.added(bias), added + dense_bias.added(bias).abs()
            sees = sees & dense_bias.shown(bias)
        sink = None if inputs.sink is None else inputs.sink.double()
        magnitude, entering = abs(scale) * (q.abs() @ k.abs().mT), torch.ones_like(s)
        if case.dropout is not None:
            keeps = [kept_scalar(case, *place) for place in np.ndindex(*s.shape)]
            entering = float(exact_rescale(case)) * torch.tensor(keeps, dtype=torch.float64).reshape(s.shape)
        return cls(case, scale, sees, q, k, v, dout, x, bent, s, added, magnitude, sink, entering)

    def products(self) -> tuple[torch.Tensor, torch.Tensor]:
        """dP, and how far a float64 one can be from it: products in any order; dropout's factor, rounded, and its product."""
        dp, size = self.dout @ self.v.mT, self.case.head_dim * UNIT * (self.dout.abs() @ self.v.abs().mT)
        dp, error = self.entering * dp, self.entering * size
        return dp, error if self.case.dropout is None else error + 2 * UNIT * dp.abs()

    def p(self, lse: torch.Tensor) -> torch.Tensor:
        safe = torch.where(lse.isinf(), torch.inf, lse)
        return torch.where(self.sees, (self.s - safe[..., None]).exp(), 0.0)

    def score_error(self) -> torch.Tensor:
        """How far a float64 x can be from the exact one."""
        return UNIT * ((self.case.head_dim + 2) * self.magnitude + 2 * self.x.abs())

    def moved(self) -> torch.Tensor:
        """How far x / cap can be from the exact one: x's error and the quotient's rounding."""
        assert self.case.softcap is not None
        return (self.score_error() + UNIT * self.x.abs()) / self.case.softcap

    def logit_error(self) -> torch.Tensor:
        """How far a float64 logit can be from the exact one.

        Under a cap: what y = x / cap is moved by, through the slope (ln slope has slope 2 at most, so that it is within
        e^(2 moved) of the one at y, and it never exceeds 1), tanh within 2 ulp (4u), and the product u. A bias is exact, and
        its sum one rounding; two of them can be added in either order.
        """
        summed = UNIT * self.s.abs() if self.case.alibi is not None or self.case.bias is not None else 0.0
        if self.case.alibi is not None and self.case.bias is not None:
            summed = summed + UNIT * (self.bent.abs() + self.added)
        if self.case.softcap is None:
            return self.score_error() + summed
        moved = self.moved()
        slope = torch.where(moved > SMALL, 1.0, cap_slope(self.case, self.x) * (2 * moved.clamp(max=SMALL)).exp())
        return self.case.softcap * slope.clamp(max=1) * moved + 5 * UNIT * self.bent.abs() + summed

    def slope_error(self) -> torch.Tensor:
        """How far the float64 slope 4e / (1 + e)² can be from the exact one, relatively.

        What y is moved by, twice; exp within 2 ulp (4u, times (1 - e) / (1 + e)), 1 + e twice, a square, a quotient.
        """
        return (2 * self.moved()).expm1() + 8 * UNIT


def forward_bound(case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor):
    """How far float64 out and lse can be from the exact ones, elementwise.

    The contract: products in any order (D u relative to the sum of magnitudes), scaling u, a cap as `logit_error` has it,
    x - m one rounding, exp within 2 ulp (4u), row sums in any order, division u, log within 2 ulp. Errors of m cancel.
    With the exponent's error |xi_j| <= omega_j, out' - out = sum p (e^xi - 1)(v - out) / sum p e^xi exactly; P·V and the
    row sum add (N + 2) u. A sink is one more term of these sums, exact itself, with v = 0.
    """
    t = _Terms.of(case, inputs)
    if case.seqlen_k == 0:
        return torch.zeros_like(out), torch.zeros_like(lse)  # a sink's own lse is exact
    p, hidden = t.p(lse), ~t.sees.any(-1)
    top = t.s.masked_fill(~t.sees, -torch.inf).amax(-1)
    if t.sink is not None:
        top = torch.maximum(top, t.sink)
    top = torch.where(top.isinf(), 0.0, top)
    gap = (top[..., None] - t.s).clamp(min=0)
    omega = torch.where(t.sees, t.logit_error() + UNIT * (gap + 4), 0.0)
    _require_small(torch.where(p > UNIT, omega, 0.0))
    omega = omega.clamp(max=SMALL)
    shrunk, pushed = (p * (-omega).exp()).sum(-1), (p * omega.expm1()).sum(-1)
    values = t.entering[..., None] * t.v[:, :, None]
    spread = ((p * omega.expm1())[..., None] * (values - out[..., None, :]).abs()).sum(-2)
    terms = case.seqlen_k
    if t.sink is not None:
        share, sink_omega, terms = (t.sink - lse).exp(), UNIT * (top - t.sink + 4), terms + 1
        shrunk, pushed = shrunk + share * (-sink_omega).exp(), pushed + share * sink_omega.expm1()
        spread = spread + (share * sink_omega.expm1())[..., None] * out.abs()
    shrunk = torch.where(hidden, 1.0, shrunk)
    rescaled = 0 if case.dropout is None else 2  # the factor's own rounding, and the product's
    bound_out = spread / shrunk[..., None] + UNIT * (terms + 2 + rescaled) * ((p * t.entering) @ t.v.abs() + out.abs())
    finite = torch.where(hidden, 0.0, lse)
    bound_lse = pushed / shrunk + UNIT * (terms + 4 * (finite - top).abs() + 2 * finite.abs() + top.abs())
    lost = FP64.smallest_normal * (terms + 1)
    return _keep(bound_out, hidden[..., None], lost), _keep(bound_lse, hidden, lost)


def backward_bound(case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor, given=None, slope_error=0.0):
    """How far float64 dq, dk and dv can be from the exact ones, elementwise.

    The contract: P within e^omega - 1, D and dP products in any order, dS two sums, a product with a cap's slope as
    `_Terms.slope_error` has it, and a product with P, then products in any
    order over seqlen_k keys (dq) or group x seqlen_q rows (dk, dv).

    Args:
        case: the case.
        inputs: its inputs.
        out: the out that the backward pass is given, or the exact one.
        lse: the same for lse.
        given: bounds of out and lse where the backward pass is given float64 approximations of them (end to end).
        slope_error: absolute error of a cap's slope, on top of the relative one.
    """
    t = _Terms.of(case, inputs)
    error_out, error_lse = (torch.zeros_like(out), torch.zeros_like(lse)) if given is None else given
    finite = torch.where(lse.isinf(), 0.0, lse)[..., None]
    p = t.p(lse)
    omega = t.logit_error() + UNIT * ((t.s - finite).abs() + 4) + error_lse[..., None]
    _require_small(torch.where(p > UNIT, omega, 0.0))
    omega = omega.clamp(max=SMALL)
    (dp, error_dp), delta = t.products(), (t.dout * out).sum(-1)[..., None]
    dlse = torch.zeros_like(lse) if inputs.dlse is None else inputs.dlse.double()
    sizes = (t.dout.abs() * out.abs()).sum(-1)[..., None]
    error_delta = case.head_dim * UNIT * sizes + (t.dout.abs() * error_out).sum(-1)[..., None]
    total = dp - delta + dlse[..., None]
    error_total = error_dp + error_delta + UNIT * ((dp - delta).abs() + total.abs())
    if case.softcap is not None:
        slope = cap_slope(case, t.x)
        error_total = slope * error_total + total.abs() * (slope * (t.slope_error() + UNIT) + slope_error)
        total = slope * total
    ds = p * total
    error_ds = p * omega.expm1() * total.abs() + p * error_total + UNIT * ds.abs()
    scale, group = abs(t.scale), case.heads_q // case.heads_kv
    rows, p = group * case.seqlen_q + 2, p * t.entering
    rescaled = 0 if case.dropout is None else 2
    bound_dq = scale * (error_ds @ t.k.abs() + (case.seqlen_k + 2) * UNIT * (ds.abs() @ t.k.abs()))
    bound_dk = scale * (error_ds.mT @ t.q.abs() + rows * UNIT * (ds.abs().mT @ t.q.abs()))
    bound_dv = (p * omega.expm1()).mT @ t.dout.abs() + (rows + rescaled) * UNIT * (p.mT @ t.dout.abs())
    shape = (case.batch, case.heads_kv, group, case.seqlen_k, case.head_dim)
    lost = FP64.smallest_normal * rows * (case.seqlen_k + 1)
    nowhere = torch.zeros((), dtype=torch.bool)
    summed = (bound.reshape(shape).sum(2) for bound in (bound_dk, bound_dv))
    return tuple(_keep(bound, nowhere, lost) for bound in (bound_dq, *summed))


def feature_bound(case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor, given=None):
    """How far float64 dbias and dsink can be from the exact ones; None where there are none. Arguments of `backward_bound`.

    dlse - D is one rounding, dP added to it another, the product with P or with the sink's share one more; then sums.
    """
    t = _Terms.of(case, inputs)
    error_out, error_lse = (torch.zeros_like(out), torch.zeros_like(lse)) if given is None else given
    finite = torch.where(lse.isinf(), 0.0, lse)
    delta, sizes = (t.dout * out).sum(-1), (t.dout.abs() * out.abs()).sum(-1)
    rest = -delta if inputs.dlse is None else inputs.dlse.double() - delta
    error_rest = case.head_dim * UNIT * sizes + (t.dout.abs() * error_out).sum(-1) + UNIT * rest.abs()
    dbias = dsink = None
    if t.sink is not None:
        share = (t.sink - lse).exp()
        omega = UNIT * ((t.sink - lse).abs() + 4) + error_lse
        _require_small(omega)
        error = share * (omega.expm1() * rest.abs() + error_rest + UNIT * rest.abs())
        count = case.batch * case.seqlen_q
        error = (error + count * UNIT * share * rest.abs()).sum((0, 2))[None, :, None]
        dsink = SECOND_ORDER * error + FP64.smallest_normal * count
    if has_gradients(inputs)[0]:
        p = t.p(lse)
        omega = t.logit_error() + UNIT * ((t.s - finite[..., None]).abs() + 4) + error_lse[..., None]
        _require_small(torch.where(p > UNIT, omega, 0.0))
        dp, error_dp = t.products()
        total = dp + rest[..., None]
        error_total = error_dp + error_rest[..., None] + UNIT * total.abs()
        error = p * (omega.clamp(max=SMALL).expm1() * total.abs() + error_total + UNIT * total.abs())
        count = dense_bias.summands(case)
        whole = dense_bias.summed(case, error + count * UNIT * (p * total).abs())
        dbias = SECOND_ORDER * whole + FP64.smallest_normal * count
    return dbias, dsink


def end_to_end_bound(case: AttentionCase, inputs: Inputs, exact: Outputs, slope_error: float = 0.0) -> Outputs:
    """The bound of all outputs, where the backward pass gets the oracle's own out and lse."""
    given = forward_bound(case, inputs, exact.out, exact.lse)
    gradients = backward_bound(case, inputs, exact.out, exact.lse, given, slope_error)
    return Outputs(*given, *gradients, *feature_bound(case, inputs, exact.out, exact.lse, given))


def worst_ratio(found: torch.Tensor, mid: torch.Tensor, radius: torch.Tensor, bound: torch.Tensor) -> float:
    """Largest (|found - exact| at most) / (radius + bound); inf for NaN, a wrong infinity, or a wrong shape."""
    if found.shape != mid.shape or found.isnan().any():
        return math.inf
    if not found.numel():
        return 0.0
    error = torch.where(found == mid, 0.0, (found - mid).abs())
    return torch.where(error == 0, 0.0, error / (radius + bound)).max().item()


def worst_ratios(found: Outputs, exact, bound: Outputs) -> dict[str, float]:
    """`worst_ratio` of every output that was found against a ball enclosure."""
    return {
        name: worst_ratio(tensor, *(getattr(tensors, name) for tensors in (exact.mid, exact.radius, bound)))
        for name, tensor in found.items()
    }


def _keep(bound: torch.Tensor, hidden: torch.Tensor, lost: float) -> torch.Tensor:
    """The bound with its second order and what underflow can lose; rows that see nothing have no error."""
    return torch.where(hidden, 0.0, SECOND_ORDER * bound + lost)


def _require_small(omega: torch.Tensor) -> None:
    if omega.numel() and omega.max() > SMALL:
        raise ValueError(f"the bound's second order does not hold: omega is {omega.max():.1e}, accepted is {SMALL:.1e}")
