"""Cases of decoding in which every two of its features meet, and larger ones of those that only a cache has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from flashverify.cases.case import ALIBIS, CACHES, DTYPES, ROTARIES, AttentionCase
from flashverify.cases.pairwise import covering

PAIRED: dict[str, tuple[object, ...]] = {
    "rotary": (None, *ROTARIES),
    "dtype": tuple(DTYPES),
    "cache": CACHES,
    "left_pad": (False, True),
    "view": ("full", "causal", "window", "causal-window"),
    "heads": ((1, 1), (4, 2), (6, 1)),
    "sizes": ((1, 70), (5, 40), (20, 33), (33, 20)),
    "lengths": (None, "keys"),
    "alibi": (None, *ALIBIS),
    "head_dim": (16, 40),
    "softcap": (None, 2.0),
    "head_dim_v": (None, 24),
    "scale": (None, -1.0),
    "parity": (0, 1),
}
"""Features of which every two meet in `pairs_of_cached_features`; the parity of the seed chooses the size of pages, and how
many columns are turned."""


def pairs_of_cached_features() -> Iterator[AttentionCase]:
    """Every pair of two values, in cases so small that balls enclose the truth of each; what is shared are pages of 16 keys."""

    def is_possible(settings: dict[str, object]) -> bool:
        if settings.get("cache") != "shared":
            return True
        return settings.get("parity", 0) == 0 and settings.get("sizes", (1, 70)) in {(1, 70), (5, 40)}

    # Of two sequences with lengths, seeds 0 and 1 (modulo 4) have none without keys, so that some are appended.
    for index, chosen in enumerate(covering(PAIRED, is_possible)):
        view, heads, sizes, parity = (chosen.pop(name) for name in ("view", "heads", "sizes", "parity"))
        yield AttentionCase(
            batch=3 if chosen["lengths"] is None else 2,
            heads_q=heads[0],  # type: ignore[index]
            heads_kv=heads[1],  # type: ignore[index]
            seqlen_q=sizes[0],  # type: ignore[index]
            seqlen_k=sizes[1],  # type: ignore[index]
            mask="causal" if "causal" in str(view) else "full",
            window_left=7 if "window" in str(view) else None,
            window_right=3 if view == "window" else None,
            seed=4 * index + parity,  # type: ignore[operator]
            **chosen,  # type: ignore[arg-type]
        )


def standard() -> Iterator[AttentionCase]:
    """Caches of a thousand keys and more: turned heads of models' sizes, and shared pages of both sizes."""
    for index, (dtype, rotary) in enumerate(product(DTYPES, ROTARIES)):
        yield AttentionCase(
            dtype=dtype,
            batch=(2, 5, 3)[index % 3],
            heads_q=8,
            heads_kv=(2, 1)[index // 2 % 2],
            seqlen_q=(1, 4, 65)[index % 3],
            seqlen_k=(1025, 2048)[index // 3 % 2],
            head_dim=(128, 64, 80, 256)[(index + index // 4) % 4],
            mask="causal" if index % 4 else "full",
            window_left=(None, 300)[index // 4],
            cache=CACHES[(index + index // 3) % 3],
            left_pad=index % 4 < 2,
            rotary=rotary,
            seed=index,
        )
    for index, (dtype, seqlen_q) in enumerate(product(DTYPES, (1, 7))):
        yield AttentionCase(
            dtype=dtype,
            batch=6,
            heads_q=4,
            heads_kv=2,
            seqlen_q=seqlen_q,
            seqlen_k=1300,
            head_dim=(64, 128)[index % 2],
            mask="causal",
            left_pad=index % 4 >= 2,
            cache="shared",
            seed=index + index // 2,
        )


def smoke() -> Iterator[AttentionCase]:
    """A case of each dtype: left pads, shared pages, and both pairings of columns, of all and of some."""
    plain = AttentionCase(dtype="fp16", batch=3, heads_q=2, seqlen_q=3, seqlen_k=70, head_dim=16, mask="causal", cache="shared")
    yield plain.replace(left_pad=True)
    yield plain.replace(dtype="bf16", head_dim=40, cache="contiguous", left_pad=True, rotary="half", seed=2)
    yield plain.replace(dtype="fp32", batch=2, mask="full", rotary="interleaved")
    yield plain.replace(dtype="fp64", batch=2, cache="paged", left_pad=True, rotary="half", head_dim=32, seed=1)
    yield plain.replace(dtype="bf16", batch=2, cache="paged", lengths="keys", left_pad=True, rotary="interleaved", seed=4)
