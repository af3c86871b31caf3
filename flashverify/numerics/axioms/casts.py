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
    wrong = dict.fromkeys(MODES, 0)
    tried = nans = nans_kept = signs_kept = zeros_wrong = 0
    for x in float32_patterns(0, 2 * SIGN - 1, SAMPLE, primitives):
        computed = primitives.cast(x, TORCH_DTYPES[target.name]).double()
        wide = x.double()
        is_nan = torch.isnan(wide)
        tried += x.numel()
        nans += int(is_nan.sum())
        nans_kept += int((is_nan & torch.isnan(computed)).sum())
        signs_kept += int((is_nan & torch.isnan(computed) & (torch.signbit(computed) == torch.signbit(wide))).sum())
        zeros_wrong += int(((computed == 0) & (torch.signbit(computed) != torch.signbit(wide))).sum())
        for mode in MODES:
            wrong[mode] += int(((computed != round_to(wide, target, mode)) & ~is_nan).sum())
    rounding = next((mode for mode in MODES if not wrong[mode]), None)
    complete = is_complete(primitives)
    name = f"cast to {target.name}"
    known = primitives.lane == "interpreter" and target is BF16
    text = "IEEE 754: to nearest, ties to even"
    if rounding != "nearest even":
        tried_modes = ", ".join(f"{mode}: {figure(wrong[mode] / tried)} of results differ" for mode in MODES)
        text += f"; tried {tried_modes}"
        if known:
            text = f"known: a kernel that is to be right in the interpreter rounds by integer arithmetic; tried {tried_modes}"
    of_nan = f"{'stays' if nans_kept == nans else 'does not always stay'} NaN, sign {_share(signs_kept, nans)}"
    of_zero = "kept" if zeros_wrong == 0 else f"lost {zeros_wrong} times"
    return rounding == "nearest even", [
        Observation(name, rounding or "no known rounding", text, tried, complete, rounding == "nearest even" or known),
        Observation(f"{name}, NaN", of_nan, "no budget depends on the sign", nans, complete, nans_kept == nans or known),
        Observation(f"{name}, sign of results that are 0", of_zero, "no budget depends on it", tried, complete),
    ]


def _share(kept: int, all_of_them: int) -> str:
    return "kept" if kept == all_of_them else "lost" if kept == 0 else f"kept by {figure(kept / all_of_them)}"


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
