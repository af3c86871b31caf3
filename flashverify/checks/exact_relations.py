"""Relations that hold to the bit, of kernels that promise it: a problem again, in another order, or as part of one.

    f(x) = f(x)                              a batch entry and a group of heads alone = among others, in any order
    grouped heads = key heads repeated       of out, lse, dq; dk and dv: their sums over the group, within budgets
    first rows of a causal problem = the shorter problem            a window that reaches every key = none

Of other kernels both sides lie within budgets of one truth.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import torch

from flashverify.adapters.kernel import INDEPENDENT, REPEATABLE, VISIBLE_ALONE
from flashverify.cases import dense_bias
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import by_entry, sides
from flashverify.cases.tensors import Inputs
from flashverify.checks.examination import Examination
from flashverify.checks.related import Claim, bounded, close, compared, on, same, whole
from flashverify.records.relations import Relation

EVERYTHING = ("out", "lse", "dq", "dk", "dv", "dbias", "dsink")

SPECIALISED = 16
"""Head sizes that are multiples of it give strides that are: what is compiled for divisors of strides is compiled once."""


def again(examination: Examination) -> Iterator[Relation]:
    """The same call gives the same bits."""
    repeated = on(examination, examination.inputs)
    yield from compared(AGAIN, repeated, examination, dict.fromkeys(EVERYTHING, whole), {REPEATABLE})


def permuted_heads(examination: Examination) -> Iterator[Relation]:
    """Groups of heads in another order."""
    case, drawn = examination.case, examination.inputs
    groups = torch.arange(case.heads_kv, device=drawn.q.device).roll(1 + _turn(case) % (case.heads_kv - 1))
    heads = (groups[:, None] * case.group_size + torch.arange(case.group_size, device=groups.device)).flatten()
    by_heads, by_groups = (_picked(1, order) for order in (heads, groups))
    inputs = _changed(drawn, by_heads, by_groups, by_heads, by_heads)
    views = dict.fromkeys(("out", "lse", "dq", "dsink"), by_heads) | dict.fromkeys(("dk", "dv"), by_groups)
    if (dense_bias.shape(case) or (1, 1))[1] > 1:
        views["dbias"] = by_heads
    yield from compared(HEADS_PERMUTED, on(examination, inputs), examination, views, {REPEATABLE, INDEPENDENT})


def permuted_entries(examination: Examination) -> Iterator[Relation]:
    """Batch entries in another order; dsink, and a gradient that is summed over the batch, are left out."""
    case, drawn = examination.case, examination.inputs
    order = torch.arange(case.batch, device=drawn.q.device).roll(1 + _turn(case) % (case.batch - 1))
    pick = _picked(0, order)
    inputs = _changed(drawn, pick, pick, pick, whole)
    views = dict.fromkeys(("out", "lse", "dq", "dk", "dv"), pick)
    if (dense_bias.shape(case) or (1,))[0] > 1:
        views["dbias"] = pick
    yield from compared(ENTRIES_PERMUTED, on(examination, inputs), examination, views, {REPEATABLE, INDEPENDENT})


def alone(examination: Examination) -> Iterator[Relation]:
    """One batch entry, and one group of its heads, as a problem of its own."""
    case, drawn = examination.case, examination.inputs
    lone, entry, group = lone_case(case)
    heads = slice(None) if group is None else slice(group * case.group_size, (group + 1) * case.group_size)
    groups = slice(None) if group is None else slice(group, group + 1)

    def cut(of_heads: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        def pick(x: torch.Tensor) -> torch.Tensor:
            x = x if x.shape[0] == 1 else x[entry : entry + 1]
            return x if x.shape[1] == 1 else x[:, of_heads]

        return pick

    inputs = _changed(drawn, cut(heads), cut(groups), cut(heads), cut(heads))
    views = dict.fromkeys(("out", "lse", "dq"), cut(heads)) | dict.fromkeys(("dk", "dv"), cut(groups))
    if case.batch == 1:
        views["dsink"] = cut(heads)
    stored, of_lone = dense_bias.shape(case), dense_bias.shape(lone)
    if stored is not None and of_lone is not None and dense_bias.summands(case) == dense_bias.summands(lone):
        views["dbias"] = cut(heads)
    if examination.kernel.declines(lone) is None:
        yield from compared(ALONE, on(examination, inputs, lone), examination, views, {REPEATABLE, INDEPENDENT})


def prefix(examination: Examination) -> Iterator[Relation]:
    """The first rows of a causal problem, the others without cotangents, beside the problem that has these rows alone."""
    case, drawn = examination.case, examination.inputs
    short = short_case(case)
    if short is None or examination.kernel.declines(short) is not None:
        return
    rows, keys = short.seqlen_q, short.seqlen_k

    def first(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x[:, :, :count]

    late = torch.arange(case.seqlen_q, device=drawn.q.device) >= rows
    quiet = dataclasses.replace(
        drawn,
        dout=drawn.dout.masked_fill(late[:, None], 0.0),
        dlse=None if drawn.dlse is None else drawn.dlse.masked_fill(late, 0.0),
    )
    long = on(examination, quiet)
    inputs = _changed(drawn, first(rows), first(keys), whole, whole)
    views = dict.fromkeys(("out", "lse", "dq"), first(rows)) | dict.fromkeys(("dk", "dv"), first(keys))
    yield from compared(PREFIX, on(examination, inputs, short), long, views, {REPEATABLE, VISIBLE_ALONE})
    for tensor in ("dk", "dv"):
        rest = getattr(long.outputs, tensor)[:, :, keys:]
        yield same(PREFIX, tensor, rest, torch.zeros_like(rest))


def reaching_window(examination: Examination) -> Iterator[Relation]:
    """A window whose sides reach every key from every query beside none."""
    case = examination.case
    reach = case.seqlen_q + case.seqlen_k
    seen = case.replace(window_left=reach, window_right=reach if case.mask == "full" else None)
    if examination.kernel.declines(seen) is None:
        views = dict.fromkeys(EVERYTHING, whole)
        yield from compared(WINDOW, on(examination, examination.inputs, seen), examination, views, {REPEATABLE, VISIBLE_ALONE})


def grouped(examination: Examination) -> Iterator[Relation]:
    """Grouped heads beside as many key heads as query heads, which hold the same in a group."""
    case, drawn = examination.case, examination.inputs
    wide = case.replace(heads_kv=case.heads_q)
    if examination.kernel.declines(wide) is not None:
        return
    repeated = on(examination, _changed(drawn, whole, lambda x: x.repeat_interleave(case.group_size, 1), whole, whole), wide)
    views = dict.fromkeys(("out", "lse", "dq", "dbias", "dsink"), whole)
    yield from compared(GROUPED, repeated, examination, views, {REPEATABLE, INDEPENDENT})
    budgets, of_repeated = bounded(examination), bounded(repeated)
    if budgets is None or of_repeated is None:
        return
    for tensor in ("dk", "dv"):
        value, budget = getattr(examination.outputs, tensor), getattr(budgets, tensor)
        members, allowed = (
            getattr(x, tensor).double().reshape(*value.shape[:2], case.group_size, *value.shape[2:]).sum(2)
            for x in (repeated.outputs, of_repeated)
        )
        yield close(GROUPED, tensor, value, members, budget + allowed)


def lone_case(case: AttentionCase) -> tuple[AttentionCase, int, int | None]:
    """The problem of one batch entry, and of one group of heads where nothing counts heads; with which ones these are.

    Lengths, and what dropout drops, follow from the number of the entry: it is the first one then.
    """
    entry = 0 if case.lengths is not None or case.dropout is not None else _turn(case) % max(case.batch, 1)
    lone = case if case.alibi == "batch" else case.replace(batch=1)
    if case.alibi is not None or case.dropout is not None:
        return lone, entry, None
    return lone.replace(heads_q=case.group_size, heads_kv=1), entry, _turn(case) % case.heads_kv


def short_case(case: AttentionCase) -> AttentionCase | None:
    """The first rows of a causal problem with the keys that these see, aligned as they were; None if there are no such."""
    ahead = case.seqlen_k - case.seqlen_q if case.mask == "causal" else 0
    fewest = max(1, 1 - ahead)
    if fewest >= case.seqlen_q:
        return None
    rows = fewest + _turn(case) % (case.seqlen_q - fewest)
    short = case.replace(seqlen_q=rows, seqlen_k=min(case.seqlen_k, rows + ahead))
    return short if sides(short) == sides(case) else None


def _picked(axis: int, order: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x if x.shape[axis] == 1 else x.index_select(axis, order)


def _changed(
    drawn: Inputs,
    of_rows: Callable[[torch.Tensor], torch.Tensor],
    of_keys: Callable[[torch.Tensor], torch.Tensor],
    of_bias: Callable[[torch.Tensor], torch.Tensor],
    of_sink: Callable[[torch.Tensor], torch.Tensor],
) -> Inputs:
    """Inputs with something done to those that belong to query rows, to keys, to a bias and to sinks."""
    return Inputs(
        q=of_rows(drawn.q),
        k=of_keys(drawn.k),
        v=of_keys(drawn.v),
        dout=of_rows(drawn.dout),
        dlse=None if drawn.dlse is None else of_rows(drawn.dlse),
        bias=None if drawn.bias is None else of_bias(drawn.bias),
        sink=None if drawn.sink is None else of_sink(drawn.sink),
    )


def _turn(case: AttentionCase) -> int:
    return int.from_bytes(hashlib.sha256(f"relations/{case.id}".encode()).digest()[:8], "little")


def _keeps_strides(case: AttentionCase) -> bool:
    """Whether fewer rows or heads leave divisors of strides as they are."""
    return case.layout == "contiguous" and case.head_dim % SPECIALISED == 0 == case.value_dim % SPECIALISED


AGAIN = "the same call again"
HEADS_PERMUTED = "heads in another order"
ENTRIES_PERMUTED = "entries in another order"
ALONE = "an entry and a group alone"
PREFIX = "first rows of a causal problem"
WINDOW = "a window that reaches every key"
GROUPED = "grouped heads as repeated ones"

EXACT_CLAIMS = (
    Claim(AGAIN, "f(x) = f(x)", lambda case: True, again),
    Claim(
        HEADS_PERMUTED,
        "f of groups in another order = f's groups in that order",
        lambda case: case.heads_kv > 1 and case.alibi is None and case.dropout is None and case.cache is None,
        permuted_heads,
    ),
    Claim(
        ENTRIES_PERMUTED,
        "f of entries in another order = f's entries in that order",
        lambda case: (
            case.batch > 1 and not by_entry(case) and case.alibi != "batch" and case.dropout is None and case.cache is None
        ),
        permuted_entries,
    ),
    Claim(
        ALONE,
        "f of one entry and group = that part of f",
        lambda case: case.cache is None and _keeps_strides(case) and lone_case(case)[0] != case,
        alone,
    ),
    Claim(
        PREFIX,
        "f of the first rows and the keys that they see = that part of f, where the other rows have no cotangent",
        lambda case: (
            case.mask != "full"
            and case.lengths is None
            and case.cache is None
            and case.bias is None
            and _keeps_strides(case)
            and short_case(case) is not None
        ),
        prefix,
    ),
    Claim(
        WINDOW,
        "f with sides of Nq + Nk = f without a window",
        lambda case: case.window_left is None and case.window_right is None,
        reaching_window,
    ),
    Claim(
        GROUPED,
        "f of grouped heads = f of repeated key heads; dk, dv: their sums over the group",
        lambda case: case.group_size > 1 and case.cache is None and _keeps_strides(case),
        grouped,
    ),
)
"""docs/relations.md has them in full."""
