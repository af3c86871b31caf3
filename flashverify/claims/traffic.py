"""Claim: attention in tiles moves fewer bytes through the device's memory than standard attention.

Counted from the algorithms, for H heads of N tokens and D columns, in elements of 2 bytes, statistics of rows in 4 bytes.

**Standard**, forward: S = QKᵀ is written, read by the softmax, which writes P, read by the product with V. Backward: P is read
for dV, dP is written, dP and P are read and dS written, dS is read for dQ and for dK. With dropout the forward pass also writes
the dropped P and a byte of mask a pair and reads the dropped P in place of P, the backward pass reads the mask, and reads and
writes dP once more. Each product and the scaling of Q moves its operands of N x D once.

**Ours**: each of the four kernels (forward; delta; dK/dV; dQ) reads its inputs and writes its outputs. *At least* once each,
where caches keep what several blocks read. *At most* as often as blocks ask for it: a block of rows asks for all keys and
values, a block of keys for all queries and cotangents, with their rows' statistics. A mask is neither read nor written.
"""

from __future__ import annotations

from collections.abc import Sequence

from flashverify.claims.problems import DROPPING, ELEMENT, HEAD_DIM, HEADS, OURS, STANDARD
from flashverify.claims.profiler import Profile
from flashverify.records.claims import Claim, Outcome, Series

MEASURED = "bytes through device memory, measured"
COUNTED = "bytes, counted"
AT_MOST = "bytes that blocks ask for, counted"
STATISTIC = 4
"""Bytes of an lse or a delta."""

LENGTHS = (1024, 2048, 4096, 8192)


def standard_bytes(seqlen: int, dropping: bool) -> int:
    """What standard attention moves, forward and backward."""
    of_pairs = 11 + (4 if dropping else 0)  # elements a pair
    masks = 2 if dropping else 0  # bytes a pair
    of_rows = 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2  # tensors of N x D: scaling Q; QKᵀ; PV; dV; dP; dQ; its scaling; dK
    return HEADS * (seqlen**2 * (ELEMENT * of_pairs + masks) + of_rows * seqlen * HEAD_DIM * ELEMENT)


def our_least_bytes(seqlen: int) -> int:
    """What our kernels have to move: every input of every kernel read once, every output written once."""
    tensors = 4 + 2 + 6 + 5  # forward; delta; dK/dV; dQ
    statistics = 1 + 3 + 2 + 2
    return HEADS * seqlen * (tensors * HEAD_DIM * ELEMENT + statistics * STATISTIC)


def our_most_bytes(seqlen: int, rows_forward: int, keys_of_dkdv: int, rows_of_dq: int) -> int:
    """What the blocks of our kernels ask for.

    Args:
        seqlen: tokens, a multiple of the blocks' sizes.
        rows_forward: query rows of a block of the forward kernel.
        keys_of_dkdv: keys of a block of the dK/dV kernel.
        rows_of_dq: query rows of a block of the dQ kernel.
    """
    tile = 2 * seqlen * HEAD_DIM * ELEMENT
    again = (seqlen // rows_forward - 1) * tile
    again += (seqlen // keys_of_dkdv - 1) * (tile + 2 * seqlen * STATISTIC)
    again += (seqlen // rows_of_dq - 1) * tile
    return our_least_bytes(seqlen) + HEADS * again


def measure(blocks: tuple[int, int, int], blocks_dropping: tuple[int, int, int], profile: Profile) -> Claim:
    """The claim, from counts and from what a profiler measured.

    Args:
        blocks: rows of a forward block, keys of a dK/dV block, rows of a dQ block.
        blocks_dropping: the same with dropout.
        profile: bytes by subject and length, or why there are none.
    """
    series = []
    for subject in (STANDARD, STANDARD + DROPPING):
        values = [float(standard_bytes(n, subject != STANDARD)) for n in LENGTHS]
        series.append(_series(subject, COUNTED, LENGTHS, values))
    for subject, sizes in ((OURS, blocks), (OURS + DROPPING, blocks_dropping)):
        series.append(_series(subject, COUNTED, LENGTHS, [float(our_least_bytes(n)) for n in LENGTHS]))
        series.append(_series(subject, AT_MOST, LENGTHS, [float(our_most_bytes(n, *sizes)) for n in LENGTHS]))
    for subject, found in profile.moved.items():
        series.append(_series(subject, MEASURED, tuple(found), [float(x) for x in found.values()]))
    return judge(tuple(series), profile.missing)


def judge(series: tuple[Series, ...], missing: str | None) -> Claim:
    """The claim.

    Args:
        series: counted, and measured unless a reason is given.
        missing: why nothing was measured, or None.
    """
    by_name = {(one.subject, one.quantity): one for one in series}
    faults = []
    for dropping in ("", DROPPING):
        most, counted = by_name[OURS + dropping, AT_MOST], by_name[STANDARD + dropping, COUNTED]
        faults += [f"ours may ask for more at {n}" for n in most.lengths if not _less(most.at(n), counted.at(n))]
        if missing is None:
            ours, theirs = by_name[OURS + dropping, MEASURED], by_name[STANDARD + dropping, MEASURED]
            faults += [f"ours{dropping} moves more at {n}" for n in ours.lengths if not _less(ours.at(n), theirs.at(n))]
            faults += [
                f"ours{dropping} moves more than was counted at {n}" for n in ours.lengths if _less(most.at(n), ours.at(n))
            ]
    outcome: Outcome = "does not hold" if faults else "holds"
    shown = COUNTED if missing is not None else MEASURED
    found = "; ".join(
        f"{one.subject} {one.values[-1] / 2**20:,.0f} MiB at {one.lengths[-1]:,} tokens, slope {one.slope:.2f}"
        for one in series
        if one.quantity == shown and one.lengths
    )
    how = f"counted alone: {missing}" if missing is not None else "measured"
    return Claim(
        name="bytes",
        statement="Attention in tiles moves fewer bytes through the device's memory than standard attention, with and without "
        "dropout.",
        method="Counted from the algorithms (flashverify/claims/traffic.py), and measured by ncu: reads and writes of DRAM by "
        "all kernels of one forward and backward pass, each from empty caches (dram__bytes_read.sum, dram__bytes_write.sum); "
        "what a kernel leaves in the cache at its end is not counted as written. Decides: at every length ours moves fewer "
        "than standard attention, and no more than its blocks ask for.",
        outcome=outcome,
        finding=f"{how[0].upper()}{how[1:]}: {found}." + (f" But {'; '.join(faults)}." if faults else ""),
        series=series,
    )


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other


def _series(subject: str, quantity: str, lengths: Sequence[int], values: Sequence[float]) -> Series:
    return Series(subject=subject, quantity=quantity, unit="bytes", lengths=tuple(lengths), values=tuple(values))
