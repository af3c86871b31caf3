"""What a device's arithmetic was measured to do. Pure data: it crosses to worker processes, and goes into certificates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from flashverify.numerics import published
from flashverify.numerics.contract import Contract
from flashverify.numerics.dots import SplitProducts, TensorCore
from flashverify.numerics.formats import FP32

Rounding = Literal["truncate", "nearest"]
Chaining = Literal["accumulator", "separate"]


@dataclass(frozen=True, slots=True)
class BlockModel:
    """How a tensor core sums: `block` products a step, aligned to the largest exponent among them, summed exactly, rounded.

    Attributes:
        block: products of one step.
        extra_bits: bits kept below the last bit of float32 when a term is aligned; what lies below is truncated.
        rounding: how the exact sum of a step's aligned terms becomes a float32 ("nearest": to nearest even).
        chaining: "accumulator" if the running sum is one of the terms of each step, "separate" if a step sums its products
            alone and is then added to the running sum, rounded to nearest.
    """

    block: int
    extra_bits: int
    rounding: Rounding = "truncate"
    chaining: Chaining = "accumulator"

    @property
    def bound(self) -> TensorCore:
        """A contract's tensor core whose bound covers this model.

        Its step truncates the running sum with the products, and the sum: t + 2 roundoffs beside t for each product. Rounding
        to nearest errs by less. A step that is added to the running sum afterwards errs by 2 + 1: covered from t = 1 on.
        """
        return TensorCore(self.block, self.extra_bits if self.chaining == "accumulator" else min(self.extra_bits, 1))

    def describe(self) -> str:
        """The model in words."""
        ending = "truncated" if self.rounding == "truncate" else "rounded to nearest"
        after = "" if self.chaining == "accumulator" else ", then added to the accumulator"
        return f"blocks of {self.block}, {self.extra_bits} extra bits, {ending}{after}"


@dataclass(frozen=True, slots=True)
class Observation:
    """One line of the axioms table.

    Attributes:
        name: the primitive and what was asked of it.
        value: what was seen.
        text: the model or the limit that it was held to; where it fits none, what was tried.
        inputs: how many results were compared.
        exhaustive: whether these were all inputs that there are (in the stated range).
        fits: whether a model or limit that budgets can stand on holds.
    """

    name: str
    value: str
    text: str = ""
    inputs: int = 0
    exhaustive: bool = False
    fits: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What a device's arithmetic was measured to do.

    Errors are computed minus true value. An ulp is the spacing of float32 at the true value. A maximum includes the error of
    the float64 reference. A number that was not measured is NaN; a word that was not found is empty.

    Attributes:
        device: name of the GPU, or of what ran the interpreter.
        lane: "gpu" or "interpreter".
        tensor_cores: block model by operand format ("fp16", "bf16", "tf32"); formats that fit none, or have none, are absent.
        fp32_dot: order of float32 products with input_precision="ieee": "fma-chain", "any-order", or empty if neither fits.
        fp64_dot: the same of float64 products.
        exp2_max_ulps: largest error of exp2 on [-150, 0] where the result is normal.
        exp2_mean_ulps: mean signed error of the same, arguments from 1 on in magnitude: there the fraction takes all values.
        exp2_rms_ulps: root mean square error of these.
        exp2_flushes_below: the smallest result other than 0.
        log2_max_ulps: largest error of log2 where the result is at least 1 in magnitude, in ulps.
        log2_max_absolute: largest error of log2 where it is below 1, absolute.
        division_max_ulps: largest error of a division.
        division_rms_ulps: root mean square error of the same.
        casts_round_to_nearest: whether a cast from float32 rounds to nearest even, by target format.
        fuses: whether a·b + c is contracted to a fused operation by default.
        sum_order: tl.sum: "sequential", "tree" or "unknown: any order".
        default_dot_precision: what tl.dot does to float32 operands by default: "tf32" or "ieee".
        truncates_tf32: whether float32 operands are truncated to tf32, rather than rounded to nearest.
        exhaustive: primitives whose figures are of every input: of these the measured value is the bound.
        observations: the table.
    """

    device: str
    lane: str
    tensor_cores: dict[str, BlockModel] = field(default_factory=dict)
    fp32_dot: str = ""
    fp64_dot: str = ""
    exp2_max_ulps: float = math.nan
    exp2_mean_ulps: float = math.nan
    exp2_rms_ulps: float = math.nan
    exp2_flushes_below: float = math.nan
    log2_max_ulps: float = math.nan
    log2_max_absolute: float = math.nan
    division_max_ulps: float = math.nan
    division_rms_ulps: float = math.nan
    casts_round_to_nearest: dict[str, bool] = field(default_factory=dict)
    fuses: bool = False
    sum_order: str = ""
    default_dot_precision: str = ""
    truncates_tf32: bool = False
    exhaustive: tuple[str, ...] = ()
    observations: tuple[Observation, ...] = ()

    @property
    def unexplained(self) -> tuple[Observation, ...]:
        """Observations that fit no model: budgets have no ground there, and nothing can be certified."""
        return tuple(observation for observation in self.observations if not observation.fits)

    def refine(self, contract: Contract) -> Contract:
        """The contract with the constants that it takes from publications replaced by this device's.

        - dot: block and extra bits, where it is a tensor core of a format that was measured. The contract's bound is that
          of truncation, which covers rounding to nearest.
        - exp2, log2, division: where the contract states the published constant. A kernel that states another one computes
          in a way of its own, and keeps it. If every input was tried, the measured value is the bound; if a sample was,
          the larger of it and the published one. The mean and the rms error of exp2 come with it.
        - products of pieces: their tensor core in the same way.
        - tf32: operands may be truncated, where they were seen to be.

        A contract in float64 is returned as it is.
        """
        if contract.accumulator != FP32:
            return contract
        changes: dict[str, object] = {
            "exp2_ulps": self._bound("exp2", contract.exp2_ulps, self.exp2_max_ulps, published.EXP2_ULPS),
            "log2_ulps": self._bound("log2", contract.log2_ulps, self.log2_max_ulps, published.LOG2_ULPS),
            "log2_absolute": self._bound("log2", contract.log2_absolute, self.log2_max_absolute, published.LOG2_ABSOLUTE),
            "division_ulps": self._bound("division", contract.division_ulps, self.division_max_ulps, published.DIVISION_ULPS),
        }
        if contract.exp2_ulps == published.EXP2_ULPS and not math.isnan(self.exp2_rms_ulps):
            changes |= {"exp2_mean_ulps": self.exp2_mean_ulps, "exp2_rms_ulps": self.exp2_rms_ulps}
        dot = contract.dot
        operand = dot.pieces if isinstance(dot, SplitProducts) else contract.operand or contract.storage
        model = self.tensor_cores.get(operand.name)
        if isinstance(dot, TensorCore) and model is not None:
            changes["dot"] = model.bound
        if isinstance(dot, SplitProducts) and model is not None:
            changes["dot"] = dataclasses.replace(dot, core=model.bound)
        if contract.operand is not None and operand.name == "tf32" and self.truncates_tf32:
            changes["operand_truncated"] = True
        return dataclasses.replace(contract, **changes)  # type: ignore[arg-type]

    def _bound(self, primitive: str, stated: float, measured: float, known: float) -> float:
        if stated != known or math.isnan(measured):
            return stated
        return measured if primitive in self.exhaustive else max(measured, known)
