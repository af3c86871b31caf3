"""How large the terms are that make each output: the size against which a relative distance means something.

Attention cancels: a row that one key dominates has gradients many orders below the terms that they are the sum of, and
no arithmetic keeps their relative error small. What a good kernel does keep small is the error relative to the terms, with
the sensitivity of the exponential to its argument counted in (condition numbers of softmax: Blanchard, Higham and Higham,
IMA J. Numer. Anal. 41, 2021):

    W_ij = P_ij (1 + a_ij + Σ_j P_ij a_ij),  a = |scale|·|Q||K|ᵀ      a weight and its sensitivity to relative errors
    |out| -> W|V|        |lse| -> |lse| + Σ_j P_ij a_ij
    G_ij = W_ij (|dO||V|ᵀ + |dO|·(P|V|) + |dlse|) + P_ij |dO|·(W|V|)
    |dq| -> |scale| G|K|      |dk| -> |scale| Gᵀ|Q|      |dv| -> Wᵀ|dO|      |dbias|, |dsink| -> sums of G

With dropout |V| and |dO||V|ᵀ, and W in dv, are those of kept pairs, times the factor that makes up for the others.

With a soft cap c and t = tanh(X / c): a_ij is multiplied by 1 - t² and grows by c|t|, the roundings of tanh itself; G_ij is
multiplied by 1 - t², and grows by P_ij (|dO||V|ᵀ + ...) times what X does to 1 - t², 2|t|(1 - t²)|scale|·|Q||K|ᵀ / c.

With rotary, what a turned element is a sum of takes its place in |Q| and |K|.

A distance of n unit roundoffs of these magnitudes is what relative errors of about n unit roundoffs in every product explain.
"""

from __future__ import annotations

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.numerics.pairs import PairSums
from flashverify.numerics.tiles import TILE_ELEMENTS, Lanes, by_lane


def magnitudes(case: AttentionCase, inputs: Inputs, lse: torch.Tensor, tile_elements: int = TILE_ELEMENTS) -> Outputs:
    """The magnitude of the terms of every output element.

    Args:
        case: the case.
        inputs: its inputs, any dtype.
        lse: true lse, (batch, heads_q, seqlen_q), float64; -inf where a row sees no key.
        tile_elements: scores in a tile, at most.

    Returns:
        Outputs of float64 tensors >= 0; 0 for rows that see no key, and keys that no row sees.

    Raises:
        ValueError: if tile_elements is less than 1.
    """
    lanes = Lanes.of(case, inputs)
    scale = abs(case.softmax_scale)
    dead = torch.isneginf(lse.double())
    known_lse = by_lane(case, torch.where(dead, 0.0, lse.double()))
    dlse = torch.zeros_like(known_lse) if inputs.dlse is None else by_lane(case, inputs.dlse).abs()
    out, dq, of_lse = torch.zeros_like(lanes.dout), torch.zeros_like(lanes.q), known_lse.abs()
    dk, dv = torch.zeros_like(lanes.k), torch.zeros_like(lanes.v)
    pairs = PairSums.of(lanes)
    for tile in lanes.tiles(tile_elements):
        take, put = tile.place.take, tile.place.put
        raw = scale * tile.sensitivity
        cap = tile.cap
        amplification = raw if cap is None else raw * cap.slope + cap.size * cap.tanh.abs()
        if tile.bias is not None:
            amplification = amplification + tile.bias.abs()
        p = torch.where(tile.seen, torch.exp((tile.logit - take(known_lse)[..., None]).clamp(max=0.0)), 0.0)
        row = (p * amplification).sum(-1, keepdim=True)
        weight = p * (1.0 + amplification + row)
        entering = tile.rescale * tile.kept_of(weight)
        row_out = entering @ tile.v.abs()
        dout = tile.dout.abs()
        delta = (dout * (tile.rescale * tile.kept_of(p) @ tile.v.abs())).sum(-1, keepdim=True)
        products = tile.rescale * tile.kept_of(dout @ tile.v.abs().mT)
        gradient = weight * (products + delta + take(dlse)[..., None])
        gradient = gradient + p * (dout * row_out).sum(-1, keepdim=True)
        pairs.put(tile.place, gradient)
        if cap is not None:
            plain = p * (products + delta + take(dlse)[..., None])
            gradient = gradient * cap.slope + plain * cap.slope * 2.0 * cap.tanh.abs() * raw / cap.size
        put(out, row_out)
        put(of_lse, take(of_lse) + row.squeeze(-1))
        put(dq, scale * (gradient @ tile.k.abs()))
        dk[tile.place.lanes] += scale * (gradient.mT @ tile.q.abs())
        dv[tile.place.lanes] += entering.mT @ dout
    queries, keys = (case.batch, case.heads_q, case.seqlen_q), (case.batch, case.heads_kv, case.seqlen_k)
    return Outputs(
        out=out.reshape(*queries, case.value_dim),
        lse=of_lse.reshape(queries),
        dq=dq.reshape(*queries, case.head_dim),
        dk=dk[:, : case.seqlen_k].reshape(*keys, case.head_dim),
        dv=dv[:, : case.seqlen_k].reshape(*keys, case.value_dim),
        dbias=pairs.of_bias(case),
        dsink=pairs.of_sink(case),
    )
