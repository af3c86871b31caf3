"""Casts from float32, and what becomes of NaN and of the sign of zero."""

from __future__ import annotations

import torch

from flashverify.numerics.axioms.arithmetic import Observation
from flashverify.numerics.axioms.finding import SIGN, Finding, figure, float32_patterns, is_complete
from flashverify.numerics.axioms.primitives import Primitives
from flashverify.numerics.axioms.rounding import MODES, round_to
from flashverify.numerics.formats import BF16, FP16, TORCH_DTYPES, Format

SAMPLE = 2**18


def casts(primitives: Primitives) -> Finding:
    """float32 to fp16 and bf16, every pattern on a GPU, against the formula of each rounding."""
    nearest: dict[str, bool] = {}
    observations: list[Observation] = []
    for target in (FP16, BF16):
        is_nearest, found = _cast(primitives, target)
        nearest[target.name] = is_nearest
        observations += found
    return Finding({"casts_round_to_nearest": nearest}, tuple(observations))


def _cast(primitives: Primitives, target: Format) -> tuple[bool, list[Observation]]:
    tried = wrong = zeros_wrong = 0
    nans = torch.zeros(4, dtype=torch.int64)
    for x in float32_patterns(0, 2 * SIGN - 1, SAMPLE, primitives):
        computed, wide = primitives.cast(x, TORCH_DTYPES[target.name]).double(), x.double()
        is_nan, same_sign = torch.isnan(wide), torch.signbit(computed) == torch.signbit(wide)
        wrong += int(((computed != round_to(wide, target, "nearest even")) & ~is_nan).sum())
        zeros_wrong += int(((computed == 0) & ~same_sign).sum())
        tried += x.numel()
        if is_nan.any():
            stays = is_nan & torch.isnan(computed)
            counts = is_nan.sum(), stays.sum(), (stays & same_sign).sum(), (stays & torch.signbit(computed)).sum()
            nans += torch.stack(counts).cpu()
    all_of_them, stay, keep_sign, negative = nans.tolist()
    complete = is_complete(primitives)
    name = f"cast to {target.name}"
    known = primitives.lane == "interpreter" and target is BF16
    nearest = wrong == 0
    seen, text = ("nearest even", "IEEE 754: to nearest, ties to even") if nearest else _other_rounding(primitives, target)
    if known and not nearest:
        text = f"known: a kernel that is to be right in the interpreter rounds by integer arithmetic; {text}"
    sign = "kept" if keep_sign == stay else "lost" if negative in (0, stay) else "kept in part"
    of_nan = f"{'stays' if stay == all_of_them else 'does not always stay'} NaN, sign {sign}"
    of_zero = "kept" if zeros_wrong == 0 else f"lost {zeros_wrong} times"
    return nearest, [
        Observation(name, seen, text, tried, complete, nearest or known),
        Observation(
            f"{name}, NaN", of_nan, "no budget depends on the sign", all_of_them, complete, stay == all_of_them or known
        ),
        Observation(f"{name}, sign of results that are 0", of_zero, "no budget depends on it", tried, complete),
    ]


def _other_rounding(primitives: Primitives, target: Format) -> tuple[str, str]:
    """Which rounding a cast that is not to nearest even has, judged by random normal numbers."""
    x = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0)).to(primitives.device)
    computed = primitives.cast(x, TORCH_DTYPES[target.name]).double()
    differ = {mode: float((computed != round_to(x.double(), target, mode)).double().mean()) for mode in MODES}
    seen = next((f"{mode}, or nearly" for mode in MODES if differ[mode] == 0.0), "no known rounding")
    words = ", ".join(f"{mode}: {figure(share)} differ" for mode, share in differ.items())
    return seen, f"tried on normal numbers: {words}"


def special_values(primitives: Primitives) -> Finding:
    """tl.maximum and tl.where with NaN and zeros: what a running maximum and a mask do with them."""
    nan = float("nan")
    x = torch.tensor([nan, 1.0, nan, -0.0, 0.0, float("-inf")], dtype=torch.float32, device=primitives.device)
    y = torch.tensor([1.0, nan, nan, 0.0, -0.0, nan], dtype=torch.float32, device=primitives.device)
    larger, chosen = primitives.maximum(x, y), primitives.select(x, y)
    expected = torch.where(x <= y, x, y)
    same = bool(torch.equal(chosen.isnan(), expected.isnan()) and torch.equal(chosen.nan_to_num(), expected.nan_to_num()))
    of_nan = f"{larger[0]:g} and {larger[1]:g}"
    of_zeros = f"{larger[3]:g} and {larger[4]:g}"
    of_where = "does not leak" if same else "leaks"
    return Finding(
        {},
        (
            Observation("tl.maximum(NaN, 1) and (1, NaN)", of_nan, "NaN spreads, or is passed over", 2, True),
            Observation("tl.maximum(-0, 0) and (0, -0)", of_zeros, "either zero will do", 2, True),
            Observation("tl.where, a NaN that is not chosen", of_where, "IEEE 754", x.numel(), True, same),
        ),
    )
