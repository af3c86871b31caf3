"""Numbers of every pair of a query and a key, summed as the gradients of biases and of sinks are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.numerics.tiles import Lanes, Place


@dataclass(frozen=True, slots=True)
class PairSums:
    """Numbers of pairs, put down tile by tile; only what has a gradient is kept.

    Attributes:
        of_keys: (lanes, group, seqlen_q, seqlen_k), or None: no bias has a gradient.
        of_sinks: (lanes, group, seqlen_q), or None: there is no sink.
    """

    of_keys: torch.Tensor | None
    of_sinks: torch.Tensor | None

    @classmethod
    def of(cls, lanes: Lanes) -> PairSums:
        """Zeros."""
        rows = lanes.q.shape[:3]
        has_bias = lanes.bias is not None and lanes.bias.dtype != torch.bool
        return cls(
            of_keys=lanes.q.new_zeros(*rows, lanes.case.seqlen_k) if has_bias else None,
            of_sinks=None if lanes.sink is None else lanes.q.new_zeros(rows),
        )

    def put(self, place: Place, values: torch.Tensor) -> None:
        """Put down a tile's values (c, r, n), the sink's last."""
        if self.of_sinks is not None:
            place.put(self.of_sinks, values[..., -1])
            values = values[..., :-1]
        if self.of_keys is not None:
            place.put(self.of_keys, values)

    def of_bias(self, case: AttentionCase) -> torch.Tensor | None:
        """Sums over what the bias is broadcast over, shaped like it."""
        if self.of_keys is None:
            return None
        pairs = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
        return dense_bias.summed(case, self.of_keys.reshape(pairs))

    def of_sink(self, case: AttentionCase) -> torch.Tensor | None:
        """Sums over batch entries and query rows, (1, heads_q, 1)."""
        if self.of_sinks is None:
            return None
        return self.of_sinks.reshape(case.batch, case.heads_q, case.seqlen_q).sum((0, 2))[None, :, None]
