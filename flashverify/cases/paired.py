"""Cases in which every two features meet, for the standard matrix."""

from __future__ import annotations

from collections.abc import Iterator

from flashverify.cases.case import ALIBIS, BIASES, DTYPES, AttentionCase
from flashverify.cases.lengths import PACKINGS
from flashverify.cases.pairwise import covering

PAIRED: dict[str, tuple[object, ...]] = {
    "view": ("full", "causal", "window", "causal-window", "causal-topleft"),
    "bias": (None, *BIASES),
    "dtype": tuple(DTYPES),
    "alibi": (None, *ALIBIS),
    "heads": ((1, 1), (4, 2), (3, 1)),
    "scale": (None, -1.0, 0.0),
    "layout": ("contiguous", "bnhd", "padded"),
    "sizes": ((33, 33), (17, 40), (40, 20)),
    "lengths": (None, *PACKINGS),
    "cache": (None, "contiguous", "paged"),
    "dropout": (None, 0.17, 0.5),
    "softcap": (None, 2.0),
    "sink": (False, True),
    "head_dim_v": (None, 24),
    "lse_grad": (False, True),
}
"""Features of which every two meet in `pairs_of_features`."""


def pairs_of_features() -> Iterator[AttentionCase]:
    """Every pair of two features' values, in cases so small that balls enclose the truth of each."""

    def is_possible(settings: dict[str, object]) -> bool:
        topleft, cached = settings.get("view") == "causal-topleft", settings.get("cache") is not None
        if settings.get("lengths") is None and not cached:
            return not topleft or settings.get("alibi") is None
        if cached and any(settings.get(name) for name in ("lengths", "sink", "lse_grad", "dropout")):
            return False
        return not topleft and settings.get("bias") is None and settings.get("layout", "contiguous") == "contiguous"

    for index, chosen in enumerate(covering(PAIRED, is_possible)):
        view, heads, sizes = (chosen.pop(name) for name in ("view", "heads", "sizes"))
        yield AttentionCase(
            batch=2 if chosen["lengths"] is None else 4,
            heads_q=heads[0],  # type: ignore[index]
            heads_kv=heads[1],  # type: ignore[index]
            seqlen_q=sizes[0],  # type: ignore[index]
            seqlen_k=sizes[1],  # type: ignore[index]
            head_dim=16,
            mask={"window": "full", "causal-window": "causal"}.get(str(view), str(view)),
            window_left=7 if "window" in str(view) else None,
            window_right=3 if view == "window" else None,
            seed=index % 5,
            **chosen,  # type: ignore[arg-type]
        )
