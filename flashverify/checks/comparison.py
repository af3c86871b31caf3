"""A kernel's tensor beside its truth: the budget decides, the measurement is kept.

    pass:  |value - truth| + radius <= budget        fail:  |value - truth| - radius > budget

for every element; in between, the oracle is not sharp enough to tell. Where budget and radius are both 0 the value must be
exact. Where budget or radius is infinite or no number, or truth is no number, nothing could fail: such an element is undecided,
never a pass. A NaN where truth is a number is a failure whatever the budget.

In mode "enclosure" truth ± radius is a rigorous enclosure of the exact value, and what is asked is only that the value lies
inside it, plus the budget: pass and fail meet at |value - truth| - radius = budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flashverify.numerics.formats import Format
from flashverify.records.measurement import Element, Measurement, Sharp, Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of a kernel beside what is known of it; all tensors have one shape.

    Attributes:
        tensor: out, lse, dq, dk or dv.
        mode: "forward", "modular", "end-to-end" or "enclosure".
        value: the kernel's, any float dtype.
        truth: float64.
        radius: float64, how far the oracle's truth may be from the exact value.
        budget: float64, the error allowed.
        format: the format that ulps are counted in.
        magnitude: float64, the size of the terms that make each element (`numerics/conditioning.py`): what a relative distance
            is relative to; None: the size of the head.

    Raises:
        ValueError: if the shapes differ.
    """

    tensor: str
    mode: str
    value: torch.Tensor
    truth: torch.Tensor
    radius: torch.Tensor
    budget: torch.Tensor
    format: Format
    magnitude: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("truth", "radius", "budget", "magnitude"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != self.value.shape:  # broadcasting would compare the wrong elements
                shape = tuple(self.value.shape)
                raise ValueError(f"{name} of {self.tensor}: got shape {tuple(tensor.shape)}, accepted is the value's, {shape}")

    def error(self) -> torch.Tensor:
        """The difference value - truth in float64; 0 where both are the same infinity, NaN where only one is finite."""
        value = self.value.double()
        return torch.where(value == self.truth, 0.0, value - self.truth)

    def ratio(self, error: torch.Tensor) -> torch.Tensor:
        """The quotient error / budget; 0 if both are 0, infinite if the error is not finite or the budget alone is 0."""
        ratio = torch.where(error <= 0.0, 0.0, error / self.budget)
        return torch.where(error.isfinite() & ~ratio.isnan(), ratio, torch.inf)

    def undecided(self) -> torch.Tensor:
        """Which elements could not fail: budget or radius is no finite number >= 0, or truth is NaN."""
        bounded = self.budget.isfinite() & (self.budget >= 0.0) & self.radius.isfinite() & (self.radius >= 0.0)
        return ~bounded | self.truth.isnan()

    def beyond_radius(self) -> torch.Tensor:
        """|error| - radius, at least 0: the part of the error that the oracle's own cannot explain."""
        return (self.error().abs() - self.radius).clamp(min=0.0)

    def scale(self) -> torch.Tensor:
        """The size that an element's error is seen against: the largest |truth| of its head; 0 where that drowns in the budget.

        A head is the (N, D) matrix (lse: the N values) of one batch entry and head. Where truth cancels to less than the error
        allowed, there is no digit to count in.
        """
        known = torch.where(self.truth.isfinite(), self.truth, 0.0).abs()
        heads = known.flatten(2)
        largest = heads.amax(-1, keepdim=True).expand_as(heads).reshape(known.shape)
        return torch.where(largest > self.budget, largest, 0.0)

    def headroom(self) -> torch.Tensor:
        """(|error| + radius) / budget, elementwise (enclosures: - radius): at most 1 is a pass; infinite where undecided."""
        error = self.beyond_radius() if self.mode == "enclosure" else self.error().abs() + self.radius
        return torch.where(self.undecided(), torch.inf, self.ratio(error))

    def certain_excess(self) -> torch.Tensor:
        """(|error| - radius) / budget, elementwise: above 1 is a failure; 0 where undecided, unless the value alone is NaN."""
        excess = torch.where(self.undecided(), 0.0, self.ratio(self.beyond_radius()))
        return torch.where(self.value.isnan() & ~self.truth.isnan(), torch.inf, excess)

    def worst(self) -> int:
        """Flat index of the element that says most: the largest certain excess where one fails, else the largest headroom."""
        certain = self.certain_excess()
        fails = bool((certain > 1.0).any())
        return int((certain if fails else self.headroom()).argmax())


def measure(comparison: Comparison) -> Measurement:
    """The measurement of one comparison."""
    value = comparison.value.double()
    truth = comparison.truth
    error = comparison.error()
    if error.numel() == 0:
        return _empty(comparison)
    size = error.abs()
    headroom = comparison.headroom()
    beyond_radius = comparison.beyond_radius()
    certain = comparison.certain_excess()
    scale = comparison.scale()
    ulps = torch.where(scale > 0.0, error / comparison.format.ulp(scale), 0.0)
    size_of_terms = scale
    if comparison.magnitude is not None:
        # below the smallest normal number, spacing is absolute and nothing is relative
        size_of_terms = comparison.magnitude.clamp(min=comparison.format.smallest_normal)
    relative = torch.where(size_of_terms > 0.0, beyond_radius / size_of_terms, 0.0)

    def element(flat: int) -> Element:
        index = torch.unravel_index(torch.tensor(flat), size.shape)
        return Element(
            index=tuple(int(i) for i in index),
            value=float(value.reshape(-1)[flat]),
            truth=float(truth.reshape(-1)[flat]),
            budget=float(comparison.budget.reshape(-1)[flat]),
        )

    return Measurement(
        tensor=comparison.tensor,
        mode=comparison.mode,
        elements=size.numel(),
        max_error=float(size.max()),
        max_ulp=float(ulps.abs().max()),
        rms_error=float(error.square().mean().sqrt()),
        rms_ulp=float(ulps.square().mean().sqrt()),
        bias_ulp=float((ulps * truth.sign()).mean()),
        headroom=float(headroom.max()),
        certain_excess=float(certain.max()),
        max_relative=float(relative.max()),
        violations=int((certain > 1.0).sum()),
        worst=element(comparison.worst()),
        worst_ulp=element(int(torch.where(ulps.isnan(), torch.inf, ulps.abs()).argmax())),
    )


def _empty(comparison: Comparison) -> Measurement:
    return Measurement(
        tensor=comparison.tensor,
        mode=comparison.mode,
        elements=0,
        max_error=0.0,
        max_ulp=0.0,
        rms_error=0.0,
        rms_ulp=0.0,
        bias_ulp=0.0,
        headroom=0.0,
        certain_excess=0.0,
        max_relative=0.0,
        violations=0,
        worst=None,
        worst_ulp=None,
    )


def measure_sharply(comparison: Comparison) -> Sharp:
    """What is kept of a comparison with a sharp budget."""
    measured = measure(comparison)
    return Sharp(**{field: getattr(measured, field) for field in Sharp.__dataclass_fields__})


def judge(measurements: Sequence[Measurement | Sharp]) -> tuple[Verdict, str]:
    """Verdict and reason of some measurements: the worst of each tensor's; where nothing was measured, nothing is known."""
    if not measurements:
        return Verdict.INCONCLUSIVE, "nothing was measured"
    failed = [m for m in measurements if m.violations]
    if failed:
        worst = max(failed, key=lambda m: m.certain_excess)
        return Verdict.FAIL, _explain(worst, failed)
    unclear = [m for m in measurements if not m.headroom <= 1.0]
    if unclear:
        worst = max(unclear, key=lambda m: m.headroom)
        return Verdict.INCONCLUSIVE, f"{worst.tensor} ({worst.mode}): {_doubt(worst)}"
    return Verdict.PASS, ""


def _doubt(worst: Measurement | Sharp) -> str:
    element = worst.worst
    assert element is not None  # an empty tensor's headroom is 0
    if math.isnan(element.truth):
        return f"the oracle gives no number at {element.index}"
    if not 0.0 <= element.budget < math.inf:
        return f"no error bound: the budget at {element.index} is {element.budget:g}"
    return f"oracle not sharp enough: the value at {element.index} lies within its radius of the budget"


def _explain(worst: Measurement | Sharp, failed: Sequence[Measurement | Sharp]) -> str:
    element = worst.worst
    assert element is not None  # a violation has an element
    others = ", ".join(f"{m.tensor} ({m.mode})" for m in failed if m is not worst)
    return (
        f"{worst.tensor} ({worst.mode}): {worst.violations} of {worst.elements} elements beyond the budget, "
        f"worst {worst.certain_excess:.3g} times it at {element.index}: "
        f"value {element.value:.9g}, truth {element.truth:.9g}, budget {element.budget:.3g}"
        + (f"; also {others}" if others else "")
    )
