"""The rigorous oracle: attention and its gradients in ball arithmetic (Johansson, Arb, IEEE Trans. Computers 66, 2017).

    X = scale·QKᵀ,   S = X or, with a softcap, cap·tanh(X / cap);   the biases added with alibi
    with rotary, Q and K are the turned ones, exact: sums of two products of float64
    c_i = an exact point at the largest visible S_ij,   lse_i = c_i + ln sum_j exp(S_ij - c_i)      (a sink is one more S_ij)

and the backward pass of `flashverify.oracles`. Every intermediate is a ball that holds the exact value, whatever the
rounding, so that the result's radius is a proof. The shift by c_i keeps ln's argument between 1 and seqlen_k. Where
large logits or cancellation leave a ball wide compared with a float64 ulp, the precision is doubled, for that key
head of that batch entry, up to a limit; then the ball is returned as wide as it is.

Keys that no row sees are replaced by zero first, so that they do not matter even if they are NaN. A non-finite value
that one row sees can make out and gradients of other rows and keys of that head NaN, with radius inf: less is
claimed, never something false.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import torch
from flint import arb, arb_mat, ctx

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.rotary import key_position, query_position, turned_scalar
from flashverify.cases.semantics import alibi_scalar, cap_slope_scalar, capped_scalar, key_head, visible
from flashverify.cases.tensors import FORWARD, OF_FEATURES, TENSORS, Inputs, Outputs, has_gradients
from flashverify.dropout.of_case import exact_rescale, kept_scalar
from flashverify.oracles.enclosure import EnclosedTensor, Enclosure, enclosed_tensor, is_sharp
from flashverify.oracles.shapes import require_forward, require_inputs

Arb: TypeAlias = Any
"""A ball (python-flint has no type stubs)."""
Matrix: TypeAlias = Any
"""A matrix of balls."""

PRECISION = 128
"""Default precision in bits."""

EXACT_SUM = 4400
"""Bits that hold the sum of two products of float64 exactly: from 2^-2148 to 2^2048, and a carry."""

PRECISION_LIMIT = 4096
"""Enough for the logits of any float64 inputs: below 2^2100, so that 2100 bits before the point are lost at most."""


@dataclass(frozen=True, slots=True)
class _Head:
    """One query head's tensors, as matrices and lists of exact balls; out, lse, biases and a sink only where there are any.

    `keeps` is 1 for pairs that dropout keeps, and 0 for those that it drops, or None: there is no dropout.
    """

    sees: list[list[bool]]
    keeps: Matrix | None
    q: Matrix
    k: Matrix
    v: Matrix
    dout: Matrix
    dlse: list[Arb]
    out: Matrix | None
    lse: list[Arb] | None
    bias: Matrix | None
    sink: Arb | None


@dataclass(frozen=True, slots=True)
class _Sum:
    """Balls of a tensor's slice, and a bound of the magnitude of the terms that each is a sum of."""

    values: list[Arb]
    terms: Arb

    def is_sharp(self) -> bool:
        return all(is_sharp(value, self.terms) for value in self.values)


def forward(
    case: AttentionCase, inputs: Inputs, precision: int = PRECISION, limit: int = PRECISION_LIMIT
) -> tuple[EnclosedTensor, EnclosedTensor]:
    """Enclosures of out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q), on the CPU.

    Args:
        case: the case.
        inputs: its inputs, any float dtype, taken as exact.
        precision: bits to begin with, doubled where they do not suffice.
        limit: largest precision in bits.

    Raises:
        ValueError: if inputs have other shapes than the case, or precision is less than 2.
    """
    found = _enclose(case, inputs, None, ("out", "lse"), precision, limit)
    return found["out"], found["lse"]


def backward(
    case: AttentionCase,
    inputs: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    precision: int = PRECISION,
    limit: int = PRECISION_LIMIT,
) -> tuple[EnclosedTensor, EnclosedTensor, EnclosedTensor]:
    """Enclosures of dq, dk and dv for the given out and lse (any float dtype, taken as exact), on the CPU.

    Raises:
        ValueError: if a tensor has another shape than the case says, or precision is less than 2.
    """
    require_forward(case, out, lse)
    found = _enclose(case, inputs, (out, lse), ("dq", "dk", "dv"), precision, limit)
    return found["dq"], found["dk"], found["dv"]


def attention(case: AttentionCase, inputs: Inputs, precision: int = PRECISION, limit: int = PRECISION_LIMIT) -> Enclosure:
    """Enclosures of all outputs that the case has, end to end: the backward pass gets the balls of out and lse. On the CPU.

    Raises:
        ValueError: if inputs have other shapes than the case, or precision is less than 2.
    """
    features = [name for name, has in zip(OF_FEATURES, has_gradients(inputs), strict=True) if has]
    names = FORWARD if case.forward_only else (*TENSORS, *features)
    found = _enclose(case, inputs, None, names, precision, limit)
    return Enclosure(
        mid=Outputs(**{name: tensor.mid for name, tensor in found.items()}),
        radius=Outputs(**{name: tensor.radius for name, tensor in found.items()}),
    )


def _enclose(
    case: AttentionCase,
    inputs: Inputs,
    given: tuple[torch.Tensor, torch.Tensor] | None,
    names: tuple[str, ...],
    precision: int,
    limit: int,
) -> dict[str, EnclosedTensor]:
    """The named tensors, for the given out and lse or, where there are none, the oracle's own."""
    if precision < 2:
        raise ValueError(f"precision: got {precision}, accepted are integers >= 2")
    require_inputs(case, inputs)
    slices: dict[str, list[EnclosedTensor]] = {name: [] for name in names}
    for b in range(case.batch):
        for g in range(case.heads_kv):
            heads = [_read(case, inputs, given, b, h) for h in range(case.heads_q) if key_head(case, h) == g]
            # No precision helps where the inputs themselves have no value.
            hopeless = any(not _is_finite(head) for head in heads)

            def compute(heads: list[_Head] = heads) -> dict[str, _Sum]:
                return _group(case, heads, backward="dq" in names)

            found = _sharpen(compute, names, precision, precision if hopeless else limit)
            for name in names:
                slices[name].append(found[name])
    return {name: (_summed if name in OF_FEATURES else _assemble)(case, name, parts) for name, parts in slices.items()}


def _summed(case: AttentionCase, name: str, parts: list[EnclosedTensor]) -> EnclosedTensor:
    """Dbias or dsink, from enclosures of what each pair of a query and a key, or each query row, contributes.

    Sums of midpoints are rounded once (`math.fsum`), upwards by less than an ulp; so are those of radii.
    """
    rows = (case.batch, case.heads_q, case.seqlen_q)
    shape = dense_bias.shape(case) if name == "dbias" else (1, case.heads_q, 1)
    assert shape is not None
    whole = (*rows, case.seqlen_k) if name == "dbias" else rows
    over = [axis for axis, (kept, size) in enumerate(zip(shape, whole, strict=True)) if kept == 1 != size]
    kept_axes = [axis for axis in range(len(whole)) if axis not in over]

    def lines(values: list[torch.Tensor]) -> list[list[float]]:
        nothing = torch.empty(0, dtype=torch.float64)
        table = torch.cat([nothing, *values]).reshape(whole).permute(*kept_axes, *over)
        count = math.prod(whole[axis] for axis in over)
        return table.reshape(math.prod(shape), count).tolist()

    mids = [math.fsum(line) for line in lines([part.mid for part in parts])]
    radii = [
        math.nextafter(math.fsum(line), math.inf) + (math.ulp(mid) if over and math.isfinite(mid) else 0.0)
        for line, mid in zip(lines([part.radius for part in parts]), mids, strict=True)
    ]
    mid, radius = (torch.tensor(values, dtype=torch.float64).reshape(shape) for values in (mids, radii))
    return EnclosedTensor(mid, radius)


def _sharpen(
    compute: Callable[[], dict[str, _Sum]], names: tuple[str, ...], precision: int, limit: int
) -> dict[str, EnclosedTensor]:
    """Compute at rising precision until every ball is sharp or the limit is reached."""
    while True:
        with ctx.workprec(precision):
            sums = compute()
            if 2 * precision > limit or all(sums[name].is_sharp() for name in names):
                return {name: enclosed_tensor(sums[name].values, (len(sums[name].values),)) for name in names}
        precision *= 2


def _group(case: AttentionCase, heads: list[_Head], *, backward: bool) -> dict[str, _Sum]:
    """All outputs of the query heads that share a key head: out, lse, dq by head, dk and dv summed; flat, row-major.

    dbias is what each pair contributes to it, and dsink what each row does.
    """
    scale, factor = arb(case.softmax_scale), _rescale(case)
    values: dict[str, list[Arb]] = {name: [] for name in (*TENSORS, *OF_FEATURES)}
    dk, dv = arb_mat(case.seqlen_k, case.head_dim), arb_mat(case.seqlen_k, case.value_dim)
    for head in heads:
        x = (head.q * head.k.transpose()) * scale
        s = x if case.softcap is None else _entrywise(x, lambda entry: capped_scalar(case, entry, arb.tanh))
        s = s if head.bias is None else s + head.bias
        out, lse = head.out, head.lse
        if out is None or lse is None:
            out, lse = _softmax_product(head, s, factor)
        values["out"] += out.entries()
        values["lse"] += lse
        if backward:
            slope = None if case.softcap is None else _entrywise(x, lambda entry: cap_slope_scalar(case, entry, arb.sech))
            p, ds, of_logits, of_sink = _score_gradient(s, slope, head, out, lse, factor)
            values["dbias"] += of_logits
            values["dsink"] += of_sink
            values["dq"] += ((ds * head.k) * scale).entries()
            dk += (ds.transpose() * head.q) * scale
            dv += (_kept(p, head).transpose() * head.dout) * factor
    values["dk"], values["dv"] = dk.entries(), dv.entries()
    terms = _magnitudes(case, heads)
    return {name: _Sum(values[name], terms[name]) for name in values}


def _entrywise(matrix: Matrix, function: Callable[[Arb], Arb]) -> Matrix:
    return arb_mat(matrix.nrows(), matrix.ncols(), [function(entry) for entry in matrix.entries()])


def _rescale(case: AttentionCase) -> Arb:
    """A ball about dropout's factor for kept pairs; exactly 1 without dropout, and 0 where everything is dropped."""
    exact = exact_rescale(case)
    return arb(exact.numerator) / arb(exact.denominator)


def _kept(matrix: Matrix, head: _Head) -> Matrix:
    """A matrix of all pairs, with each that is dropped multiplied by 0: a NaN stays one."""
    if head.keeps is None:
        return matrix
    kept = [x * y for x, y in zip(matrix.entries(), head.keeps.entries(), strict=True)]
    return arb_mat(matrix.nrows(), matrix.ncols(), kept)


def _softmax_product(head: _Head, s: Matrix, factor: Arb) -> tuple[Matrix, list[Arb]]:
    """One head's out and lse."""
    weights, lse = [], []
    sink = [] if head.sink is None else [head.sink]
    for i, row in enumerate(head.sees):
        if not any(row) and not sink:
            weights += [arb(0)] * len(row)
            lse.append(arb.neg_inf())
            continue
        point = max([*(s[i, j].mid() for j, seen in enumerate(row) if seen), *sink])
        terms = [(s[i, j] - point).exp() if seen else arb(0) for j, seen in enumerate(row)]
        total = sum([*terms, *((one - point).exp() for one in sink)], arb(0))
        weights += [term / total for term in terms]
        lse.append(point + total.log())
    return (_kept(arb_mat(s.nrows(), s.ncols(), weights), head) * head.v) * factor, lse


def _score_gradient(
    s: Matrix, slope: Matrix | None, head: _Head, out: Matrix, lse: list[Arb], factor: Arb
) -> tuple[Matrix, Matrix, list[Arb], list[Arb]]:
    """P and dS of one head, and the gradients by its logits and, row by row, by its sink.

    dS is the gradient by X, through the cap's slope where there is one; that by a logit is not.
    """
    dp = _kept(head.dout * head.v.transpose(), head) * factor
    p, ds, of_logits, of_sink = [], [], [], []
    for i, row in enumerate(head.sees):
        if lse[i] == arb.neg_inf():
            p += [arb(0)] * len(row)
            ds += [arb(0)] * len(row)
            of_logits += [arb(0)] * len(row)
            of_sink.append(arb(0))
            continue
        delta = sum((head.dout[i, d] * out[i, d] for d in range(out.ncols())), arb(0))
        for j, seen in enumerate(row):
            p.append((s[i, j] - lse[i]).exp() if seen else arb(0))
            ds.append(p[-1] * (dp[i, j] - delta + head.dlse[i]) if seen else arb(0))
            of_logits.append(ds[-1])
            if seen and slope is not None:
                ds[-1] = ds[-1] * slope[i, j]
        if head.sink is not None:
            of_sink.append((head.sink - lse[i]).exp() * (head.dlse[i] - delta))
    return arb_mat(s.nrows(), s.ncols(), p), arb_mat(s.nrows(), s.ncols(), ds), of_logits, of_sink


def _magnitudes(case: AttentionCase, heads: list[_Head]) -> dict[str, Arb]:
    """For each output, a bound of the terms that it is a sum of: what complete cancellation is measured against.

    A softcap makes logits and dS smaller, if anything: its slope is 1 at most. So the bounds hold with one too. A bias is
    a term of the logits, and so of lse, alone.
    """
    q, k, v, dout = (max(_largest(getattr(head, name).entries()) for head in heads) for name in ("q", "k", "v", "dout"))
    scale, factor = abs(arb(case.softmax_scale)), _rescale(case)
    v = max(v * factor, v)
    out = max(v if head.out is None else _largest(head.out.entries()) for head in heads)
    dlse = max(_largest(head.dlse) for head in heads)
    bias = max(arb(0) if head.bias is None else _largest(head.bias.entries()) for head in heads)
    bias += max(arb(0) if head.sink is None else abs(head.sink) for head in heads)
    ds = case.value_dim * dout * (v + out) + dlse
    rows = len(heads) * case.seqlen_q
    return {
        "out": v,
        "lse": scale * case.head_dim * q * k + bias + 1,
        "dq": scale * case.seqlen_k * ds * k,
        "dk": scale * rows * ds * q,
        "dv": rows * dout * factor,
        "dbias": ds,
        "dsink": ds,
    }


def _largest(values: list[Arb]) -> Arb:
    return max((value.abs_upper() for value in values), default=arb(0))


def _read(
    case: AttentionCase,
    inputs: Inputs,
    given: tuple[torch.Tensor, torch.Tensor] | None,
    b: int,
    h: int,
) -> _Head:
    """One query head's tensors as exact balls, with zero for keys that no row sees."""
    g = key_head(case, h)
    sees = [
        [visible(case, b, i, j) and dense_bias.shown_scalar(inputs, b, h, i, j) for j in range(case.seqlen_k)]
        for i in range(case.seqlen_q)
    ]
    unseen = torch.tensor([not any(row[j] for row in sees) for j in range(case.seqlen_k)], dtype=torch.bool)
    k, v = (_float64(x[b, g]).masked_fill(unseen[:, None], 0.0) for x in (inputs.k, inputs.v))
    dlse = torch.zeros(case.seqlen_q) if inputs.dlse is None else inputs.dlse[b, h]
    return _Head(
        sees=sees,
        keeps=_keeps(case, b, h),
        q=_turned(case, _matrix(inputs.q[b, h]), [query_position(case, b, i) for i in range(case.seqlen_q)]),
        k=_turned(case, _matrix(k), [key_position(case, b, j) for j in range(case.seqlen_k)]),
        v=_matrix(v),
        dout=_matrix(inputs.dout[b, h]),
        dlse=_matrix(dlse[:, None]).entries(),
        out=None if given is None else _matrix(given[0][b, h]),
        lse=None if given is None else _matrix(given[1][b, h, :, None]).entries(),
        bias=None if case.alibi is None and inputs.bias is None else _biases(case, inputs, sees, b, h),
        sink=None if inputs.sink is None else arb(inputs.sink[0, h, 0].item()),
    )


def _keeps(case: AttentionCase, b: int, h: int) -> Matrix | None:
    """1 for pairs of a query head that dropout keeps, 0 for those that it drops, seen or not; or None."""
    if case.dropout is None:
        return None
    pairs = product(range(case.seqlen_q), range(case.seqlen_k))
    return arb_mat(case.seqlen_q, case.seqlen_k, [int(kept_scalar(case, b, h, i, j)) for i, j in pairs])


def _biases(case: AttentionCase, inputs: Inputs, sees: list[list[bool]], b: int, h: int) -> Matrix:
    """What is added to one query head's logits, exact (`arb` takes a float64 without rounding); 0 for pairs that are hidden."""

    def added(i: int, j: int) -> Arb:
        if not sees[i][j]:
            return arb(0)
        return arb(alibi_scalar(case, b, h, i, j)) + arb(dense_bias.added_scalar(inputs, b, h, i, j))

    pairs = product(range(case.seqlen_q), range(case.seqlen_k))
    return arb_mat(case.seqlen_q, case.seqlen_k, [added(i, j) for i, j in pairs])


def _turned(case: AttentionCase, matrix: Matrix, positions: list[int] | list[int | None]) -> Matrix:
    """Rows of exact balls at positions, turned without rounding if the case says so."""
    if case.rotary is None:
        return matrix
    entries, columns = matrix.entries(), matrix.ncols()
    with ctx.workprec(EXACT_SUM):
        rows = [
            turned_scalar(case, entries[index * columns : (index + 1) * columns], place)
            for index, place in enumerate(positions)
        ]
        return arb_mat(matrix.nrows(), columns, [entry for row in rows for entry in row])


def _float64(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _matrix(tensor: torch.Tensor) -> Matrix:
    """Values of a two-dimensional tensor as exact balls: a float64 becomes an `arb` without rounding."""
    return arb_mat(tensor.shape[0], tensor.shape[1], _float64(tensor).flatten().tolist())


def _is_finite(head: _Head) -> bool:
    """Whether no input of the head is NaN or infinite, other than the lse of rows without keys."""
    entries = [*head.q.entries(), *head.k.entries(), *head.v.entries(), *head.dout.entries(), *head.dlse]
    if head.out is not None and head.lse is not None:
        entries += head.out.entries()
        entries += [value for value in head.lse if value != arb.neg_inf()]
    return all(value.is_finite() for value in entries)


def _assemble(case: AttentionCase, name: str, parts: list[EnclosedTensor]) -> EnclosedTensor:
    """The tensor of all batch entries and heads, from its slices in the order of batch entry, then key head."""
    rows = (case.batch, case.heads_q, case.seqlen_q)
    keys = (case.batch, case.heads_kv, case.seqlen_k)
    shapes = {
        "out": (*rows, case.value_dim),
        "lse": rows,
        "dq": (*rows, case.head_dim),
        "dk": (*keys, case.head_dim),
        "dv": (*keys, case.value_dim),
    }
    shape: tuple[int, ...] = shapes[name]
    nothing = torch.empty(0, dtype=torch.float64)
    return EnclosedTensor(
        torch.cat([nothing, *(part.mid for part in parts)]).reshape(shape),
        torch.cat([nothing, *(part.radius for part in parts)]).reshape(shape),
    )
