"""Perturbation: what a query cannot see does not matter, whatever it holds, and gets no gradient.

    x -> x'  where S_ij is hidden from row i  =>  out_i, lse_i, dq_i are the same bits
    ... and hidden from every row             =>  dk_j = dv_j = 0 exactly, and all else is the same bits
    ... and dout_i = dlse_i = 0 where it is seen  =>  dk_j = dv_j = 0, and dk, dv of the other keys are the same bits
    q_i, dout_i -> anything in a row that sees no key  =>  out_i = dq_i = 0, and all else is the same bits
    one entry, one group of heads -> anything  =>  the other entries, the other groups are the same bits

x' is finite: a huge power of two, and 1 - x. NaN and infinities take its place where a kernel promises that these do not matter
(`ANYTHING_HIDDEN`; of other entries and heads, `INDEPENDENT`); where it does not promise it, what they reach is counted and not
judged. Bits are asked of a kernel that promises them; another one's values must lie within two budgets. Zeros are asked of all.

The third line needs cotangents of 0 because a row that sees a changed key changes itself, and its share of dk and dv with it;
with them its dS is P·(0 - 0). It takes x' = 1 - x alone: a huge score may be beyond the range of a row that sees it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec
import torch

from flashverify.adapters.kernel import ANYTHING_HIDDEN, INDEPENDENT, REPEATABLE, VISIBLE_ALONE, promises
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import limited, visible_mask
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.checks.examination import Examination
from flashverify.checks.registry import register
from flashverify.checks.related import Claim, equal, examine, on, power_below, real_rows, same, seen_pairs
from flashverify.numerics.formats import FORMATS, FP32, FP64
from flashverify.records.measurement import CheckResult
from flashverify.records.relations import EXACT, OBSERVED, Relation

HUGE = 2.0**100
"""What hidden places hold, where the format and the products with it have room for it."""

MARGIN = 4.0
"""How far sums of products with a huge number stay below the largest number of the accumulator."""

NOT_FINITE = (math.nan, math.inf, -math.inf)

FINITE_BITS = frozenset({REPEATABLE, VISIBLE_ALONE})
OTHERS_BITS = frozenset({REPEATABLE, INDEPENDENT})

OF_ROWS = ("out", "lse", "dq")
"""Tensors with a row for each query row."""

OF_SUMS = ("dk", "dv", "dbias", "dsink")
"""Tensors that sum over query rows."""

Where = Mapping[str, torch.Tensor | None]


class Filling(Enum):
    """What is put where nobody looks."""

    FINITE = "a huge number and others, in turns"
    OTHERS = "other numbers"
    NOT_FINITE = "NaN and infinities, in turns"


@register("perturbation")
def perturbation(examination: Examination) -> CheckResult | None:
    """Every claim whose turn it is; None if it is none's, or nothing is hidden."""
    return examine("perturbation", CLAIMS, examination)


def hidden_from_all(examination: Examination) -> Iterator[Relation]:
    """Keys that no row sees: nothing changes, and their gradients are 0."""
    case, drawn = examination.case, examination.inputs
    seen = seen_pairs(case, drawn).reshape(case.batch, case.heads_kv, case.group_size * case.seqlen_q, case.seqlen_k)
    hidden = ~seen.any(2) & real_rows(case, drawn.q.device)[1]
    if not hidden.any():
        return
    for filling, mode in _fillings(examination):
        outputs = on(examination, _filled(case, drawn, filling, k=hidden, v=hidden)).outputs
        everything = dict.fromkeys((*OF_ROWS, *OF_SUMS))
        yield from _unchanged(FROM_ALL, examination, outputs, examination.outputs, everything, mode)
        yield from _zero(FROM_ALL, outputs, {"dk": hidden, "dv": hidden}, mode)


def hidden_from_some(examination: Examination) -> Iterator[Relation]:
    """Keys that some rows see and others do not: these others do not change, nor what they alone give to dk and dv."""
    case, drawn = examination.case, examination.inputs
    split = split_keys(case, seen_pairs(case, drawn))
    if split is None:
        return
    changed, blind = split
    keys = changed.expand(case.batch, case.heads_kv, case.seqlen_k)
    rows: Where = {"out": blind[..., None], "lse": blind, "dq": blind[..., None]}
    for filling, mode in _fillings(examination):
        outputs = on(examination, _filled(case, drawn, filling, k=keys, v=keys)).outputs
        yield from _unchanged(FROM_SOME, examination, outputs, examination.outputs, rows, mode)
    if case.forward_only:
        return
    quiet = dataclasses.replace(
        drawn,
        dout=drawn.dout.masked_fill(~blind[..., None], 0.0),
        dlse=None if drawn.dlse is None else drawn.dlse.masked_fill(~blind, 0.0),
    )
    before = on(examination, quiet)
    outputs = on(examination, _filled(case, quiet, Filling.OTHERS, k=keys, v=keys)).outputs
    yield from _unchanged(FROM_SOME, before, outputs, before.outputs, {**rows, **dict.fromkeys(OF_SUMS)}, EXACT)
    yield from _zero(FROM_SOME, outputs, {"dk": keys, "dv": keys}, EXACT)


def blind_rows(examination: Examination) -> Iterator[Relation]:
    """Rows that see no key: their queries and cotangents change nothing, and they give nothing."""
    case, drawn = examination.case, examination.inputs
    blind = ~seen_pairs(case, drawn).any(-1) & real_rows(case, drawn.q.device)[0]
    if not blind.any():
        return
    changed = {"q": blind} if case.forward_only else {"q": blind, "dout": blind}
    for filling, mode in _fillings(examination):
        outputs = on(examination, _filled(case, drawn, filling, **changed)).outputs
        everything = dict.fromkeys((*OF_ROWS, *OF_SUMS))
        yield from _unchanged(BLIND, examination, outputs, examination.outputs, everything, mode)
        yield from _zero(BLIND, outputs, {"out": blind, "dq": blind}, mode)


def others(examination: Examination) -> Iterator[Relation]:
    """One entry and one group of heads hold no finite number: the others do not change."""
    case, drawn = examination.case, examination.inputs
    turn = _digest(case)
    groups = torch.zeros(case.batch, case.heads_kv, dtype=torch.bool, device=drawn.q.device)
    if case.batch > 1:
        groups[turn % case.batch] = True
    if case.heads_kv > 1:
        groups[:, turn % case.heads_kv] = True
    heads = groups.repeat_interleave(case.group_size, 1)
    of_rows, of_keys = (x[..., None].expand(-1, -1, n) for x, n in ((heads, case.seqlen_q), (groups, case.seqlen_k)))
    poisoned = _filled(case, drawn, Filling.NOT_FINITE, q=of_rows, k=of_keys, v=of_keys, dout=of_rows)
    outputs = on(examination, poisoned).outputs
    rest: Where = {
        **{"out": ~heads[..., None, None], "lse": ~heads[..., None], "dq": ~heads[..., None, None]},
        **dict.fromkeys(("dk", "dv"), ~groups[..., None, None]),
    }
    yield from equal(OTHERS, examination, outputs, examination.outputs, rest, OTHERS_BITS)


def split_keys(case: AttentionCase, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys from one place on, up to it, or there alone, such that some rows see some of them, and others see other keys alone.

    Args:
        case: the case, whose digest says which place is tried first.
        seen: which pairs take part, bool (..., seqlen_q, seqlen_k).

    Returns:
        The keys, bool (seqlen_k,), and the rows that see none of them, bool (..., seqlen_q); None where there are no such keys.
    """
    keys, turn = torch.arange(case.seqlen_k, device=seen.device), _digest(case)
    for place in dict.fromkeys((turn % case.seqlen_k, case.seqlen_k // 2, case.seqlen_k - 1, 0)):
        ways = (keys >= place, keys <= place, keys == place)
        for way in range(len(ways)):
            chosen = ways[(turn // case.seqlen_k + way) % len(ways)]
            sees = (seen & chosen).any(-1)
            if sees.any() and (~sees & (seen & ~chosen).any(-1)).any():
                return chosen, ~sees
    return None


def _digest(case: AttentionCase) -> int:
    return int.from_bytes(hashlib.sha256(f"perturbation/{case.id}".encode()).digest()[:8], "little")


def _fillings(examination: Examination) -> Iterator[tuple[Filling, str]]:
    """What to try on a kernel, and how it is judged."""
    yield Filling.FINITE, EXACT
    given = promises(examination.kernel)
    if given >= FINITE_BITS:
        yield Filling.NOT_FINITE, EXACT if ANYTHING_HIDDEN in given else OBSERVED


def _unchanged(
    name: str, examination: Examination, value: Outputs, expected: Outputs, where: Where, mode: str
) -> Iterator[Relation]:
    """Whether two calls give the same: bits, where the kernel promises that."""
    for one in equal(name, examination, value, expected, where, FINITE_BITS):
        yield one if mode == EXACT else msgspec.structs.replace(one, mode=mode)


def _zero(name: str, outputs: Outputs, where: Mapping[str, torch.Tensor], mode: str) -> Iterator[Relation]:
    """Whether rows of tensors are exactly 0, whatever the kernel promises."""
    for tensor, rows in where.items():
        value = getattr(outputs, tensor)
        if value is not None:
            yield same(name, tensor, value, torch.zeros_like(value), rows[..., None], mode)


def _filled(case: AttentionCase, drawn: Inputs, filling: Filling, **rows: torch.Tensor) -> Inputs:
    """Inputs of which some rows hold other values; each of `rows` is bool, (batch, heads, rows) of the tensor of that name."""
    changed = {}
    for name, where in rows.items():
        x = getattr(drawn, name)
        place = torch.arange(x.shape[2], device=x.device)[:, None]
        if filling is Filling.NOT_FINITE:
            values = torch.tensor(NOT_FINITE, dtype=x.dtype, device=x.device)[place % len(NOT_FINITE)]
        elif filling is Filling.OTHERS:
            values = 1 - x
        else:
            values = torch.where(place % 2 == 0, huge(case, drawn), 1 - x)
        changed[name] = torch.where(where[..., None], values, x)
    return dataclasses.replace(drawn, **changed)


def huge(case: AttentionCase, drawn: Inputs) -> torch.Tensor:
    """The largest power of two up to `HUGE` with which every sum of products stays finite, in the dtype of q."""
    accumulator = FP64 if case.dtype == "fp64" else FP32
    sizes = (float(x.abs().max()) for x in (drawn.q, drawn.k, drawn.v, drawn.dout) if x.numel())
    scale = abs(case.softmax_scale)
    terms = max(case.head_dim, case.value_dim, case.seqlen_k, case.seqlen_q)
    factor = terms * max(1.0, *sizes) * max(1.0, scale, scale / (case.softcap or math.inf))
    limit = min(HUGE, FORMATS[case.dtype].largest, accumulator.largest / (MARGIN * factor))
    return torch.tensor(power_below(limit), dtype=drawn.q.dtype, device=drawn.q.device)


def _whole(case: AttentionCase) -> torch.Tensor:
    """Which pairs masks and lengths show, bool (batch, seqlen_q, seqlen_k), on the CPU."""
    entries, rows, columns = (torch.arange(n) for n in (case.batch, case.seqlen_q, case.seqlen_k))
    seen = visible_mask(case, entries[:, None, None], rows, columns)
    return seen.expand(case.batch, case.seqlen_q, case.seqlen_k)


def _is_free(case: AttentionCase) -> bool:
    """Whether each key may be changed by itself: no two sequences have a page in common, and no rotation mixes columns."""
    return case.cache != "shared" and case.rotary is None


def _hides_from_all(case: AttentionCase) -> bool:
    if not (_is_free(case) and limited(case)):
        return False
    return bool((~_whole(case).any(1) & real_rows(case, torch.device("cpu"))[1][:, 0]).any())


def _hides_from_some(case: AttentionCase) -> bool:
    if not _is_free(case):
        return False
    if case.bias in {"hidden", "mask"}:
        return min(case.seqlen_q, case.seqlen_k) > 1
    return limited(case) and split_keys(case, _whole(case)) is not None


def _has_blind_rows(case: AttentionCase) -> bool:
    if not _is_free(case) or case.layout == "expanded":  # other cotangents have other strides, and delta other bits
        return False
    if case.bias in {"hidden", "mask"}:
        return True
    return bool((~_whole(case).any(2) & real_rows(case, torch.device("cpu"))[0][:, 0]).any())


def _has_others(case: AttentionCase) -> bool:
    return case.cache is None and case.layout != "expanded" and max(case.batch, case.heads_kv) > 1


FROM_ALL = "keys hidden from all rows"
FROM_SOME = "keys hidden from some rows"
BLIND = "rows that see no key"
OTHERS = "other entries and heads"

CLAIMS = (
    Claim(FROM_ALL, "no row sees j  =>  nothing changes with k_j and v_j, dk_j = dv_j = 0", _hides_from_all, hidden_from_all),
    Claim(
        FROM_SOME,
        "row i does not see j  =>  out_i, lse_i, dq_i, and its share of dk and dv, do not change with k_j and v_j",
        _hides_from_some,
        hidden_from_some,
    ),
    Claim(
        BLIND,
        "row i sees no key  =>  out_i = dq_i = 0, and nothing changes with q_i and dout_i",
        _has_blind_rows,
        blind_rows,
    ),
    Claim(OTHERS, "entry b and head group g change nothing of the others, whatever they hold", _has_others, others),
)
"""The claims of this check; docs/relations.md has them in full."""
