"""Regimes whose logits are designed: which key a query attends to, and how the maximum moves, is known beforehand.

Designed logits hold for any scale within `sampling.DESIGN_SCALES`, negative ones included; outside they stay finite.
They are designed as they are before a softcap: with one, their order holds, and what is promised of their size and gaps
does not. With linear biases neither is promised, nor equal weights (zero-queries) or one key's weight of 1 (one-hot, copy).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flashverify.cases.sampling import Source, Values, ordered_sum

OWN_LOGIT = 64.0
"""one-hot: the logit of a query's own key."""

COPY_GAP = 150 * math.log(2)
"""copy: weights below exp(-gap) = 2^-150 round to 0 in float32, even as subnormals."""

NEGATIVE_LOGIT = -(2.0**17)
"""all-negative-logits: below -65504 and below any finite stand-in for -inf that is in use (-5e4, -1e5)."""

SINK_LOGIT = 12.0
"""sink: the logit of the first key that is seen, against about 1 for the others."""

KEY_OFFSET_LOGIT = 64.0
"""key-offset: standard deviation, over rows, of the shift that all logits of a row have in common."""

FIRST_KEYS = 16
"""falling-maximum: keys that stand above all later ones: not more than the smallest tile has."""

FALLING_GAPS = (24.0, 200.0)
"""falling-maximum: gaps in even and odd rows; exp of the second overflows float32."""


def _power_of_two_above(x: float) -> float:
    """The smallest power of two that is at least x > 0."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(0.5 if fraction == 0.5 else 1.0, exponent)


def one_hot(source: Source) -> Values:
    """Keys of equal length, each query along one visible key: that key's logit is 64.

    From head size 32 or so its weight is 1. A tile that is lost, counted twice or weighed with the wrong maximum
    changes whole rows.
    """
    case = source.case
    values = source.normals()
    length = np.sqrt(ordered_sum(values.k**2, axis=3))[..., None]
    values.k = values.k / length * math.sqrt(case.head_dim)
    chosen = _visible_key(source)
    if case.seqlen_k:
        own = np.take_along_axis(source.by_query_head(values.k), chosen[..., None], axis=2)
        values.q = own * (OWN_LOGIT / (case.head_dim * source.scale))
    return values


def copy(source: Source) -> Values:
    """Keys are codes of +-1, each query is beta times the code of one visible key: out is that key's value, exactly.

    The gap to any other code is above 150 ln 2. Indexing of every kind shows: strides, head maps, tails, masks.
    Head sizes too small for seqlen_k distinct codes reuse codes, with their values. Every fourth row reads its
    last visible key.
    """
    case = source.case
    values = source.normals()
    bits = min(max(case.seqlen_k - 1, 1).bit_length(), case.head_dim)
    codes = min(2**bits, case.seqlen_k)
    if codes == 0:
        return values
    digits = np.arange(case.seqlen_k) % codes
    feature = np.arange(case.head_dim)
    pattern = 1.0 - 2.0 * ((digits[:, None] >> (feature % bits)) & 1)
    flips = np.copysign(1.0, source.normal("flips", (case.batch, case.heads_kv, 1, case.head_dim)))
    values.k = flips * pattern
    values.v = values.v[:, :, digits]
    # Two codes differ in one digit at least, which occurs this many times; each occurrence is worth 2·beta·scale.
    occurrences = case.head_dim // bits
    beta = _power_of_two_above(COPY_GAP / (2 * occurrences * abs(source.scale)))
    beta = math.copysign(min(beta, 2.0**14), source.scale)
    values.q = beta * np.take_along_axis(source.by_query_head(values.k), _visible_key(source)[..., None], axis=2)
    return values


def _visible_key(source: Source) -> npt.NDArray[np.int64]:
    """A visible key for each query, (batch, heads_q, seqlen_q): the last one every fourth row and the last; 0 if none."""
    first, end = source.keys_seen()
    shape = source.q_shape[:3]
    chosen = first + (source.stream("chosen").random(shape) * (end - first)).astype(np.int64)
    last = ((np.arange(source.case.seqlen_q) + source.case.seed) % 4 == 3) | source.last_rows()
    latest = np.maximum(end - 1, 0)
    return np.where(last, latest, np.minimum(chosen, latest))


def sink(source: Source) -> Values:
    """The first key that is seen takes nearly all the weight and its value is 0, as in trained models: out is the rest."""
    values = source.normals()
    first, _ = source.span_seen()
    key = slice(first, first + 1)
    values.k[..., 0] = 0.0
    values.k[:, :, key] = 0.0
    values.k[:, :, key, 0] = 8.0
    values.v[:, :, key] = 0.0
    values.q[..., 0] = SINK_LOGIT / (8.0 * source.scale)
    return values


def needle(source: Source) -> Values:
    """V is zero but for a 1 at one key: out shows that key's weight alone (a key that is dropped, or counted twice).

    The key is, by seed, batch and head, the last visible one, the first, or one at a tile's edge; so is the column.
    """
    case = source.case
    values = source.normals()
    values.v = np.zeros(source.v_shape)
    first, end = source.span_seen()
    if values.v.size:
        keys = first + source.landmarks(end - first, case.heads_kv)
        columns = source.landmarks(case.value_dim, case.heads_kv)
        batches, heads = np.indices(keys.shape)
        values.v[batches, heads, keys, columns] = 1.0
    return values


def identity_values(source: Source) -> Values:
    """V is an identity matrix over as many keys as it has columns, and zero elsewhere: out shows their weights one by one.

    By seed, batch and head the window ends at the last visible key, begins at the first, or begins at a tile's edge.
    """
    case = source.case
    values = source.normals()
    first, end = source.span_seen()
    keys = end - first
    starts = first + source.landmarks(max(keys - case.value_dim + 1, min(keys, 1)), case.heads_kv)
    column = np.arange(case.seqlen_k) - starts[..., None]
    values.v = (column[..., None] == np.arange(case.value_dim)).astype(np.float64)
    return values


def key_offset(source: Source) -> Values:
    """All keys share one large component: all logits of a row are shifted alike (maximum not subtracted)."""
    values = source.normals()
    values.k[..., 0] = 32.0
    values.q[..., 0] *= KEY_OFFSET_LOGIT / (32.0 * source.scale)
    return values


def all_negative_logits(source: Source) -> Values:
    """All logits are around -1.3e5 or below: under finite stand-ins for -inf and under unmasked tail keys (logit 0).

    The unscaled scores leave float16's range too, which a kernel's float16 accumulator would not survive.
    """
    values = source.normals()
    values.k[..., 0] = 2.0**14
    magnitude = _power_of_two_above(abs(NEGATIVE_LOGIT / (2.0**14 * source.scale)))
    values.q[..., 0] = math.copysign(magnitude, -source.scale)
    return values


def growing_maximum(source: Source) -> Values:
    """Logits grow with the key's position, by 16 in all from 64 keys on: each block moves the running maximum.

    Earlier blocks keep a visible weight, so that a missed rescaling of the sum or the accumulator shows.
    """
    case = source.case
    values = source.normals()
    # Levels are integers below 256, over 16: exact in bfloat16. The other components must not reorder them.
    levels = np.arange(case.seqlen_k) // max(math.ceil(case.seqlen_k / 256), 1)
    gap = min(0.25, 16 / max(levels.max(initial=0), 1))
    values.k *= gap / 16
    values.k[..., 0] = levels / 16
    values.q *= min(1.0, 1 / (abs(source.scale) * math.sqrt(case.head_dim)))
    factor = 1 + source.stream("factor").random(source.q_shape[:3])
    values.q[..., 0] = factor * (16 * gap / source.scale)
    return values


def falling_maximum(source: Source) -> Values:
    """The first 16 keys seen (half of them, if there are fewer than 32) stand above all later ones, by 24 or by 200.

    A running maximum that forgets earlier blocks overflows, or weighs later blocks as if nothing had come before.
    """
    case = source.case
    values = source.normals()
    first, _ = source.span_seen()
    above = np.arange(case.seqlen_k) < first + min(FIRST_KEYS, math.ceil((case.seqlen_k - first) / 2))
    values.k[..., 0] = np.where(above, 4.0, 0.0)
    gaps = np.where(np.arange(case.seqlen_q) % 2 == 0, *FALLING_GAPS)
    values.q[..., 0] = gaps / (4.0 * source.scale)
    return values


def zero_queries(source: Source) -> Values:
    """Queries are 0, values integers: all weights are 1, sums exact, lse = ln(number of visible keys)."""
    values = source.normals()
    values.q = np.zeros(source.q_shape)
    values.v = source.stream("v").integers(-4, 5, size=source.v_shape).astype(np.float64)
    return values


REGIMES = (
    one_hot,
    copy,
    sink,
    needle,
    identity_values,
    key_offset,
    all_negative_logits,
    growing_maximum,
    falling_maximum,
    zero_queries,
)
"""The regimes of this module, in the order of reports."""
