"""The tiled float64 oracle: the dense one's arithmetic in memory linear in the sequence length, on the inputs' device.

One key head of one batch entry at a time, the query heads that read it are stacked into a single matrix of
group_size x seqlen_q rows. Blocks of whole rows go through it, so that no running maximum and no rescaling is needed:
the operations of each row are those of `ORACLE_FLOAT64` (`numerics.contract`), and sums over rows (dk, dv) are merely
taken in another order. A block holds `tile_elements` pairs at most, or one row where a row is longer; a handful of
such tiles are alive at once.

Values that are not finite reach what depends on them through a visible pair, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.rotary import turned_inputs
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, cap_slope, capped, key_head, visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.of_case import kept, rescale
from flashverify.oracles.shapes import require_forward, require_inputs

TILE_ELEMENTS = 2**24
"""Default number of pairs in a tile: 128 MiB of float64."""


def forward(case: AttentionCase, inputs: Inputs, tile_elements: int = TILE_ELEMENTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 out (batch, heads_q, seqlen_q, value_dim) and lse (batch, heads_q, seqlen_q).

    Raises:
        ValueError: if inputs have other shapes than the case, or tile_elements is less than 1.
    """
    require_inputs(case, inputs)
    _require_tile(tile_elements)
    (q, k), v = turned_inputs(case, inputs), inputs.v.double()
    slopes, bias = alibi_slope_tensor(case, q.device), dense_bias.expanded(case, inputs)
    out, lse = q.new_zeros(inputs.dout.shape), torch.full_like(q[..., 0], -torch.inf)
    if inputs.sink is not None:
        lse = lse.logaddexp(inputs.sink.double())
    for b, g, members in _groups(case):
        stacked_q = q[b, members].reshape(-1, case.head_dim)
        values, wild = _tame(v[b, g])
        stacked_lse = torch.empty_like(stacked_q[:, 0])
        stacked_out = q.new_empty(len(stacked_q), case.value_dim)
        for rows, visible in _tiles(case, b, len(members), q.device, tile_elements):
            scores = capped(case, (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale))
            scores = _biased(case, b, scores, slopes[b, members], rows)
            sees, scores = _with_bias(case, bias, b, members, rows, visible, scores)
            scores = torch.where(sees, scores, -torch.inf)
            top = scores.max(dim=1, keepdim=True).values
            sinks = _sinks(case, inputs, members, rows)
            if sinks is not None:
                top = torch.maximum(top, sinks)
            top = torch.where(torch.isneginf(top), 0.0, top)
            weights = scores.sub_(top).exp_()
            length = weights.sum(dim=1, keepdim=True)
            if sinks is not None:
                length = length + (sinks - top).exp()
            keeps = _keeps(case, b, members, rows, q.device)
            weights = weights if keeps is None else weights.mul_(keeps)
            tile = (weights @ values).div_(torch.where(length == 0, 1.0, length)).mul_(rescale(case))
            if wild is not None:
                tile[sees.double() @ wild > 0] = torch.nan
            stacked_out[rows] = tile
            stacked_lse[rows] = (top + length.log()).squeeze(1)
        out[b, members] = stacked_out.view(len(members), case.seqlen_q, case.value_dim)
        lse[b, members] = stacked_lse.view(len(members), case.seqlen_q)
    return out, lse


def backward(
    case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor, tile_elements: int = TILE_ELEMENTS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv, shaped like q, k and v, float64, for the given out and lse (any float dtype).

    Raises:
        ValueError: if a tensor has another shape than the case says, or tile_elements is less than 1.
    """
    require_inputs(case, inputs)
    require_forward(case, out, lse)
    _require_tile(tile_elements)
    q, k, v, dout = inputs.q.double(), inputs.k.double(), inputs.v.double(), inputs.dout.double()
    delta, lse = (dout * out.double()).sum(dim=-1), lse.double()
    dlse = torch.zeros_like(lse) if inputs.dlse is None else inputs.dlse.double()
    slopes, bias = alibi_slope_tensor(case, q.device), dense_bias.expanded(case, inputs)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for b, g, members in _groups(case):
        stacked_q, stacked_dout = (x[b, members].flatten(0, 1) for x in (q, dout))
        stacked_lse, stacked_delta, stacked_dlse = (x[b, members].reshape(-1, 1) for x in (lse, delta, dlse))
        queries, keys = _tame(stacked_q)[0], _tame(k[b, g])[0]
        cotangents, wild = _tame(stacked_dout)
        stacked_dq = torch.empty_like(stacked_q)
        wild_pairs = torch.zeros_like(dv[b, g])
        for rows, sees in _tiles(case, b, len(members), q.device, tile_elements):
            alive = sees & ~torch.isneginf(stacked_lse[rows])
            x = (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale)
            slope = None if case.softcap is None else cap_slope(case, x)
            scores = _biased(case, b, capped(case, x), slopes[b, members], rows)
            alive, scores = _with_bias(case, bias, b, members, rows, alive, scores)
            p = scores.sub_(stacked_lse[rows]).exp_()
            p = torch.where(alive, p, 0.0)
            ds, keeps = stacked_dout[rows] @ v[b, g].T, _keeps(case, b, members, rows, q.device)
            ds = ds if keeps is None else ds.mul_(keeps).mul_(rescale(case))
            ds = ds.sub_(stacked_delta[rows]).add_(stacked_dlse[rows])
            if slope is not None:
                ds.mul_(slope)
            ds = torch.where(alive, ds.mul_(p), 0.0)
            stacked_dq[rows] = case.softmax_scale * (ds @ keys)
            dk[b, g] += ds.T @ queries[rows]
            dv[b, g] += (p if keeps is None else p * keeps).T @ cotangents[rows]
            if wild is not None:
                wild_pairs += alive.double().T @ wild[rows]
        dq[b, members] = stacked_dq.view(len(members), case.seqlen_q, case.head_dim)
        dk[b, g] *= case.softmax_scale
        dv[b, g] *= rescale(case)
        dv[b, g][wild_pairs > 0] = torch.nan
    return dq, dk, dv


def feature_gradients(
    case: AttentionCase, inputs: Inputs, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Dbias and dsink (`Outputs`) for the given out and lse, float64; None where a case has none.

    Of a bias: P (dP - D + dlse), summed over what it is broadcast over. Of a sink: exp(sink - lse) (dlse - D), summed over rows
    and batch entries. Whole matrices: memory for a few of them.

    Raises:
        ValueError: if a tensor has another shape than the case says.
    """
    require_inputs(case, inputs)
    require_forward(case, out, lse)
    lse = lse.double()
    rest = -(inputs.dout.double() * out.double()).sum(-1)
    if inputs.dlse is not None:
        rest = rest + inputs.dlse.double()
    dbias = dsink = None
    if inputs.sink is not None:
        shares = torch.where(torch.isneginf(lse), 0.0, (inputs.sink.double() - lse).exp())
        dsink = (shares * rest).sum((0, 2))[None, :, None]
    bias = dense_bias.expanded(case, inputs)
    if bias is not None and bias.dtype != torch.bool:
        heads = torch.tensor([key_head(case, h) for h in range(case.heads_q)], device=lse.device)
        q, k, v = inputs.q.double(), inputs.k.double()[:, heads], inputs.v.double()[:, heads]
        rows, columns = (torch.arange(size, device=lse.device) for size in (case.seqlen_q, case.seqlen_k))
        entries = torch.arange(case.batch, device=lse.device)[:, None, None, None]
        scores = capped(case, case.softmax_scale * (q @ k.mT))
        if case.alibi is not None:
            slopes = alibi_slope_tensor(case, lse.device)[..., None, None]
            scores = scores + alibi_bias(case, entries, slopes, rows, columns)
        seen = visible_mask(case, entries, rows, columns) & dense_bias.shown(bias) & ~torch.isneginf(lse)[..., None]
        p = torch.where(seen, (scores + dense_bias.added(bias) - lse[..., None]).exp(), 0.0)
        dp = inputs.dout.double() @ v.mT
        of_heads = torch.arange(case.heads_q, device=lse.device)[:, None, None]
        keeps = kept(case, entries, of_heads, rows[:, None], columns)
        dp = dp if keeps is None else rescale(case) * (dp * keeps)
        gradient = torch.where(seen, p * (dp + rest[..., None]), 0.0)
        dbias = dense_bias.summed(case, gradient)
    return dbias, dsink


def attention(case: AttentionCase, inputs: Inputs, tile_elements: int = TILE_ELEMENTS) -> Outputs:
    """Forward and backward end to end, float64 on the inputs' device.

    Raises:
        ValueError: if inputs have other shapes than the case, or tile_elements is less than 1.
    """
    out, lse = forward(case, inputs, tile_elements)
    gradients = backward(case, inputs, out, lse, tile_elements)
    return Outputs(out, lse, *gradients, *feature_gradients(case, inputs, out, lse))


def _require_tile(tile_elements: int) -> None:
    if tile_elements < 1:
        raise ValueError(f"tile_elements: got {tile_elements}, accepted are integers >= 1")


def _groups(case: AttentionCase) -> Iterator[tuple[int, int, list[int]]]:
    """Batch entry, key head, and the query heads that read it; nothing where there is no pair at all."""
    if case.seqlen_q == 0 or case.seqlen_k == 0:
        return
    for b in range(case.batch):
        for g in range(case.heads_kv):
            yield b, g, [h for h in range(case.heads_q) if key_head(case, h) == g]


def _tiles(
    case: AttentionCase, b: int, heads: int, device: torch.device, tile_elements: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of the stacked rows (head-major) of a batch entry, each with its visibility, bool (rows, seqlen_k)."""
    entry, columns = torch.tensor(b, device=device), torch.arange(case.seqlen_k, device=device)
    height = max(1, tile_elements // case.seqlen_k)
    total = heads * case.seqlen_q
    for start in range(0, total, height):
        stop = min(start + height, total)
        rows = torch.arange(start, stop, device=device) % case.seqlen_q
        yield slice(start, stop), visible_mask(case, entry, rows, columns)


def _biased(case: AttentionCase, b: int, scores: torch.Tensor, slopes: torch.Tensor, rows: slice) -> torch.Tensor:
    """A block's capped scores with the biases added, in place; slopes are those of the stacked heads."""
    if case.alibi is None:
        return scores
    stacked = torch.arange(rows.start, rows.stop, device=scores.device)
    entry, columns = torch.tensor(b, device=scores.device), torch.arange(case.seqlen_k, device=scores.device)
    return scores.add_(alibi_bias(case, entry, slopes[stacked // case.seqlen_q, None], stacked % case.seqlen_q, columns))


def _with_bias(
    case: AttentionCase,
    bias: torch.Tensor | None,
    b: int,
    members: list[int],
    rows: slice,
    sees: torch.Tensor,
    scores: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs of a block of stacked rows are seen, and their scores, under a bias (batch, heads_q, seqlen_q, seqlen_k)."""
    if bias is None:
        return sees, scores
    stacked = torch.arange(rows.start, rows.stop, device=bias.device)
    heads = torch.tensor(members, device=bias.device)
    block = bias[b, heads[stacked // case.seqlen_q], stacked % case.seqlen_q]
    return sees & dense_bias.shown(block), scores.add_(dense_bias.added(block))


def _keeps(case: AttentionCase, b: int, members: list[int], rows: slice, device: torch.device) -> torch.Tensor | None:
    """Which pairs of a block of stacked rows dropout keeps, bool (rows, seqlen_k), or None."""
    if case.dropout is None:
        return None
    stacked = torch.arange(rows.start, rows.stop, device=device)
    heads = torch.tensor(members, device=device)[stacked // case.seqlen_q]
    columns = torch.arange(case.seqlen_k, device=device)
    return kept(case, torch.tensor(b, device=device), heads[:, None], (stacked % case.seqlen_q)[:, None], columns)


def _sinks(case: AttentionCase, inputs: Inputs, members: list[int], rows: slice) -> torch.Tensor | None:
    """The sink of each row of the stacked heads, float64 (rows, 1), or None."""
    if inputs.sink is None:
        return None
    heads = torch.tensor(members, device=inputs.sink.device)
    return inputs.sink.double()[0, heads].repeat_interleave(case.seqlen_q, 0)[rows]


def _tame(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The values with zero for NaN and infinity, and where those were (1.0, else 0.0), or None if there were none."""
    finite = values.isfinite()
    if bool(finite.all()):
        return values, None
    return values.where(finite, torch.zeros_like(values)), (~finite).double()
