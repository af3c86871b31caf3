"""Tiles of the score matrix: blocks of query rows with all their keys, for the query heads that share a key head.

A lane is one key head of one batch entry. The query heads that read it are stacked into rows, so that a tile is a plain
matrix and a sum over the group of query heads is a sum over rows. A sink is a key of its own behind the others, with zeros for
k and v, whose bias it is: what holds for keys holds for it; rows
beyond the length of their sequence see none of either. A tile holds at most `tile_elements` scores (or one query
row of each head of a group where even that is more), so memory is linear in the sequence length. All values are float64.
With rotary, q and k are the turned ones.
Non-finite inputs are replaced by 0 here: what depends on them has no budget, and nothing else may be touched by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.rotary import turned
from flashverify.cases.semantics import alibi_bias, alibi_slope_tensor, cap_slope, capped, exists, visible_mask
from flashverify.cases.tensors import Inputs
from flashverify.dropout.of_case import kept, rescale

TILE_ELEMENTS = 2**24
"""Default number of scores in a tile: 128 MiB a float64 matrix, of which some twenty are alive at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tile lies: lanes x (all heads of the group) x query rows."""

    lanes: slice
    rows: slice
    group: int

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tile's rows of a (lanes, group, seqlen_q, ...) tensor, stacked to (lanes, group·rows, ...)."""
        part = tensor[self.lanes, :, self.rows]
        return part.reshape(part.shape[0], -1, *part.shape[3:])

    def put(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Write stacked rows back into a (lanes, group, seqlen_q, ...) tensor."""
        target = tensor[self.lanes, :, self.rows]
        target.copy_(values.reshape(target.shape))


@dataclass(frozen=True, slots=True)
class Capped:
    """What a soft cap makes of the products of a tile, (c, r, n) each.

    Attributes:
        size: the cap.
        tanh: what it multiplies: the score, but for a bias.
        slope: derivative of a logit by softmax scale·product, sech² of what tanh is taken of.
    """

    size: float
    tanh: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def of(cls, case: AttentionCase, size: float, product: torch.Tensor) -> Capped:
        """The cap of a case, applied to products of q and k."""
        x = case.softmax_scale * product
        return cls(size=size, tanh=capped(case, x) / size, slope=cap_slope(case, x))


@dataclass(frozen=True, slots=True)
class Tile:
    """Inputs of one tile and its scores; c lanes, r stacked query rows, n keys, d features.

    Attributes:
        place: where it lies.
        q, dout: (c, r, d). q and k are turned, in float64, if the case says so.
        k, v: (c, n, d).
        seen: bool (r, n), or (c, r, n) where tensors hide pairs or lengths are a sequence's own, whether a row sees a key.
        lengths: (r, 1) or (c, r, 1), number of keys that each row sees, the sink among them.
        case: the case.
        product: q·kᵀ, (c, r, n).
        score_magnitude: A = |q|·|k|ᵀ, (c, r, n).
        score: S, what the exponent multiplies: the product, or tanh(softmax scale·product / cap) with a soft cap, plus the bias
            over `scale`, (c, r, n).
        cap: what a soft cap makes of the product, or None.
        bias: what is added to the logits, natural units, (c, r, n), or None.
        bias_magnitude: sum of the magnitudes of the biases that it is a sum of, (c, r, n), or None.
        bias_terms: how many those are.
        turned: sums of the magnitudes of what elements of q and of k are sums of, (c, r, d) and (c, n, d), 0 of those that are
            not turned (`rotary.Turned`); or None, without rotary.
        kept: bool (c, r, n), which pairs dropout keeps, seen or not, the sink's never, whose values are 0; None: no dropout.
        rescale: what kept pairs are multiplied by, 1 without dropout.
    """

    place: Place
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    seen: torch.Tensor
    lengths: torch.Tensor
    case: AttentionCase
    product: torch.Tensor
    score_magnitude: torch.Tensor
    score: torch.Tensor
    cap: Capped | None
    bias: torch.Tensor | None
    bias_magnitude: torch.Tensor | None
    bias_terms: int
    turned: tuple[torch.Tensor, torch.Tensor] | None
    kept: torch.Tensor | None
    rescale: float

    @property
    def keys(self) -> int:
        """Number of keys, without the sink."""
        return self.case.seqlen_k

    @property
    def rows_that_see(self) -> torch.Tensor:
        """How many of the rows see each key, (n, 1) or (c, n, 1)."""
        return self.seen.sum(-2)[..., None].double()

    @property
    def lengths_kept(self) -> torch.Tensor:
        """Number of keys that each row sees and keeps, (r, 1) or (c, r, 1)."""
        return self.lengths if self.kept is None else (self.seen & self.kept).sum(-1, keepdim=True).double()

    @property
    def rows_that_keep(self) -> torch.Tensor:
        """How many of the rows see and keep each key, (n, 1) or (c, n, 1)."""
        return self.rows_that_see if self.kept is None else (self.seen & self.kept).sum(-2)[..., None].double()

    @property
    def spans(self) -> torch.Tensor:
        """From the first key that a row sees to the last, at most, shaped like `lengths`."""
        if self.case.bias not in {"hidden", "mask"}:
            return self.lengths
        return torch.where(self.lengths > 0.0, float(self.k.shape[1]), self.lengths)

    def kept_of(self, values: torch.Tensor) -> torch.Tensor:
        """The values of pairs (c, r, n) where they are kept, 0 where they are dropped; without the factor `rescale`."""
        return values if self.kept is None else torch.where(self.kept, values, 0.0)

    def dropped_of(self, values: torch.Tensor) -> torch.Tensor:
        """The values of pairs (c, r, n) where they are dropped, summed over keys, (c, r, 1)."""
        if self.kept is None:
            return torch.zeros_like(values[..., :1])
        return torch.where(self.kept, 0.0, values).sum(-1, keepdim=True)

    @property
    def softmax_scale(self) -> float:
        """What multiplies the product of q and k, and the gradients of both."""
        return self.case.softmax_scale

    @property
    def scale(self) -> float:
        """What multiplies a score in the logit: the softmax scale (1 for 0, if there is a bias), or the soft cap."""
        return _logit_scale(self.case)

    @property
    def sensitivity(self) -> torch.Tensor:
        """Sum of the magnitudes of all that a product is a sum of, (c, r, n): A; with rotary, turned elements are sums too."""
        if self.turned is None:
            return self.score_magnitude
        q, k = (torch.maximum(x.abs(), terms) for x, terms in zip((self.q, self.k), self.turned, strict=True))
        return q @ k.mT

    @property
    def bias_of_score(self) -> torch.Tensor | None:
        """The size of the bias in units of scores, (c, r, n), or None."""
        return None if self.bias_magnitude is None else self.bias_magnitude / abs(self.scale)

    @property
    def logit(self) -> torch.Tensor:
        """Natural logits scale·S, -inf where a row does not see a key, (c, r, n)."""
        return (self.scale * self.score).masked_fill(~self.seen, -torch.inf)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The inputs of a case arranged by lanes, float64: queries (lanes, group, seqlen_q, d), keys (lanes, seqlen_k, d).

    Keys have one more row of zeros where there is a sink.
    """

    case: AttentionCase
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    bias: torch.Tensor | None
    sink: torch.Tensor | None
    turned: tuple[torch.Tensor, torch.Tensor] | None

    @classmethod
    def of(cls, case: AttentionCase, inputs: Inputs) -> Lanes:
        """Arrange the inputs (any dtype, exact values) by lanes."""
        q, k, of_rows = inputs.q, inputs.k, None
        if case.rotary is not None:
            of_q, of_k = turned(case, inputs)
            q, k, of_rows = of_q.values, of_k.values, (by_lane(case, of_q.terms), _finite(of_k.terms).flatten(0, 1))
        keys, lanes = (case.batch * case.heads_kv, case.seqlen_k), (case.batch * case.heads_kv, case.group_size)
        bias, sink = dense_bias.expanded(case, inputs), inputs.sink
        return cls(
            case=case,
            q=by_lane(case, q),
            k=pad(_finite(k).reshape(*keys, case.head_dim), (0, 0, 0, int(case.sink))),
            v=pad(_finite(inputs.v).reshape(*keys, case.value_dim), (0, 0, 0, int(case.sink))),
            dout=by_lane(case, inputs.dout),
            bias=None if bias is None else bias.reshape(*lanes, case.seqlen_q, case.seqlen_k),
            sink=None if sink is None else sink.double().expand(case.batch, -1, 1).reshape(lanes),
            turned=of_rows,
        )

    def of_keys(self, sums: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What was collected for every key (lanes, seqlen_k, ...), without the sink, shaped like k or v."""
        return sums[:, : self.case.seqlen_k].reshape(like.shape)

    def tiles(self, tile_elements: int) -> Iterator[Tile]:
        """All tiles; none if the case has no query or no key.

        Raises:
            ValueError: if tile_elements is less than 1.
        """
        for place in places(self.case, tile_elements):
            yield self._tile(place)

    def _tile(self, place: Place) -> Tile:
        q, k = place.take(self.q), self.k[place.lanes]
        rows = torch.arange(place.rows.start, place.rows.stop, device=q.device)
        columns = torch.arange(self.case.seqlen_k, device=q.device)
        entries, stacked = self._entries(place), rows.repeat(place.group)
        seen = visible_mask(self.case, entries, stacked, columns)
        biases = self._biases(place, rows, columns)
        if self.bias is not None:
            seen = seen & dense_bias.shown(place.take(self.bias))
        if self.sink is not None:
            real = exists(self.case, entries, stacked)
            seen = pad(seen, (0, 1), value=True) if real is None else torch.cat([seen, real], -1)
            of_sinks = self.sink[place.lanes].repeat_interleave(rows.numel(), 1)[..., None]
            first, *others = biases or [of_sinks.new_zeros(*of_sinks.shape[:2], columns.numel())]
            biases = [torch.cat([first, of_sinks], -1), *(pad(x, (0, 1)) for x in others)]
        keeps = kept(self.case, entries, self._heads(place, rows), stacked[:, None], columns)
        if keeps is not None and self.sink is not None:
            keeps = pad(keeps, (0, 1), value=False)
        product = q @ k.mT
        cap = self.case.softcap
        made = None if cap is None else Capped.of(self.case, cap, product)
        score = product if made is None else made.tanh
        bias, magnitude, terms = None, None, len(biases)
        if biases:
            bias, magnitude = sum(biases[1:], biases[0]), sum((x.abs() for x in biases[1:]), biases[0].abs())
            score = score * (self.case.softmax_scale != 0.0) + bias / _logit_scale(self.case)
        return Tile(
            place=place,
            q=q,
            k=k,
            v=self.v[place.lanes],
            dout=place.take(self.dout),
            seen=seen,
            lengths=seen.sum(-1, keepdim=True).double(),
            case=self.case,
            product=product,
            score_magnitude=q.abs() @ k.abs().mT,
            score=score,
            cap=made,
            bias=bias,
            bias_magnitude=magnitude,
            bias_terms=terms,
            turned=None if self.turned is None else (place.take(self.turned[0]), self.turned[1][place.lanes]),
            kept=keeps,
            rescale=rescale(self.case),
        )

    def _entries(self, place: Place) -> torch.Tensor:
        """The batch entry of each of a tile's lanes, (c, 1, 1)."""
        lanes = torch.arange(place.lanes.start, place.lanes.stop, device=self.q.device)
        return (lanes // self.case.heads_kv)[:, None, None]

    def _heads(self, place: Place, rows: torch.Tensor) -> torch.Tensor:
        """The query head of each of a tile's stacked rows, (c, r, 1)."""
        lanes = torch.arange(place.lanes.start, place.lanes.stop, device=self.q.device)
        members = torch.arange(place.group, device=self.q.device).repeat_interleave(rows.numel())
        return (lanes % self.case.heads_kv * place.group)[:, None, None] + members[:, None]

    def _biases(self, place: Place, rows: torch.Tensor, columns: torch.Tensor) -> list[torch.Tensor]:
        """What is added to the logits of the keys, one after the other: linear biases, then a tensor's, (c, r, n) each."""
        biases = []
        if self.case.alibi is not None:
            slopes = alibi_slope_tensor(self.case, self.q.device).reshape(-1, self.case.group_size)[place.lanes]
            of_rows = slopes.repeat_interleave(rows.numel(), 1)[..., None]
            biases.append(alibi_bias(self.case, self._entries(place), of_rows, rows.repeat(place.group), columns))
        if self.bias is not None and self.bias.dtype != torch.bool:
            biases.append(dense_bias.added(place.take(self.bias)))
        return biases


def _logit_scale(case: AttentionCase) -> float:
    if case.softcap is not None:
        return case.softcap
    return 1.0 if case.is_biased and case.softmax_scale == 0.0 else case.softmax_scale


def by_lane(case: AttentionCase, tensor: torch.Tensor) -> torch.Tensor:
    """A (batch, heads_q, seqlen_q, ...) tensor as finite float64 (lanes, group, seqlen_q, ...)."""
    shape = (case.batch * case.heads_kv, case.group_size, case.seqlen_q, *tensor.shape[3:])
    return _finite(tensor).reshape(shape)


def places(case: AttentionCase, tile_elements: int) -> Iterator[Place]:
    """Where the tiles of a case lie: several lanes whole, or blocks of the query rows of one lane."""
    if tile_elements < 1:
        raise ValueError(f"tile_elements: got {tile_elements}, accepted are integers >= 1")
    lanes, group = case.batch * case.heads_kv, case.group_size
    row_elements = group * (case.seqlen_k + case.sink)
    if row_elements == 0 or case.seqlen_q == 0:
        return
    rows = min(case.seqlen_q, max(1, tile_elements // row_elements))
    together = max(1, tile_elements // (row_elements * rows)) if rows == case.seqlen_q else 1
    for lane in range(0, lanes, together):
        for row in range(0, case.seqlen_q, rows):
            yield Place(slice(lane, min(lane + together, lanes)), slice(row, min(row + rows, case.seqlen_q)), group)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """float64 copy with 0 in place of values that are not finite."""
    values = tensor.double()
    return torch.where(torch.isfinite(values), values, 0.0)
