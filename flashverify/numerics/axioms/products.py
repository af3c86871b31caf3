"""Products of matrices in fp16, bf16 and tf32: the tensor core's block model, found by a search, through every instruction.

Where there is no tensor core, in the interpreter, sums are held to the bound of any order (Higham, gamma_K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashverify.numerics.axioms.arithmetic import BlockModel, Observation
from flashverify.numerics.axioms.finding import Finding, figure, is_complete
from flashverify.numerics.axioms.primitives import Precision, Primitives
from flashverify.numerics.axioms.rounding import power_of_two, round_to
from flashverify.numerics.axioms.tensor_core import MODELS, Probe, Search, Treatment, search
from flashverify.numerics.formats import BF16, FP16, FP32, FP64, TF32, TORCH_DTYPES, Format


@dataclass(frozen=True, slots=True)
class Shape:
    """One product of matrices: rows M, columns N, terms K, warps of the program, and whether operands start in registers."""

    rows: int
    columns: int
    inner: int
    warps: int
    in_registers: bool = False


SHAPES = (
    Shape(64, 64, 64, 4),
    Shape(64, 64, 64, 4, in_registers=True),
    Shape(64, 32, 16, 4),
    Shape(64, 16, 256, 4),
    Shape(128, 32, 128, 8),
    Shape(16, 16, 16, 1),
    Shape(16, 32, 64, 4),
    Shape(16, 16, 256, 1),
)
"""Hopper's wgmma takes 64 rows for each group of four warps; fewer go through mma.sync, as all products do elsewhere."""

SMALL_SHAPES = (Shape(16, 16, 64, 4),)
"""In the interpreter, where the shape decides nothing."""

GROUPS = 4
"""Matrices of each kind of inputs."""

SPREAD = 6
"""Exponents are spread over 2^-6 to 2^6 in half of the matrices."""


def tensor_cores(primitives: Primitives) -> Finding:
    """The block model of each operand format, and what the tensor core does with zeros and subnormal operands."""
    if not is_complete(primitives):
        return _without_tensor_cores(primitives)
    models: dict[str, BlockModel] = {}
    observations: list[Observation] = []
    for operand in (FP16, BF16, TF32):
        probes, instructions = _probe(primitives, operand)
        found = search(probes, operand)
        observations.append(_searched(operand, found, instructions))
        if not found.fitting:
            continue
        model = max(found.fitting, key=lambda fitting: fitting.bound.kappa(SHAPES[0].inner))
        models[operand.name] = model
        observations += [_zeros(primitives, operand, model), _subnormals(primitives, operand, model)]
    return Finding({"tensor_cores": models}, tuple(observations))


def draw(shape: tuple[int, ...], operand: Format, seed: int, spread: int = 0) -> torch.Tensor:
    """Normal values with exponents spread over 2^-spread to 2^spread, rounded to a format: float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    exponents = torch.randint(-spread, spread + 1, shape, generator=generator)
    return round_to(values * power_of_two(exponents), operand, "nearest even")


def storage_of(operand: Format) -> torch.dtype:
    """The dtype that holds values of a format: tf32 travels as float32."""
    return TORCH_DTYPES["fp32" if operand is TF32 else operand.name]


def precision_of(operand: Format) -> Precision | None:
    """What `tl.dot` has to be told."""
    return "tf32" if operand is TF32 else None


def multiply(
    primitives: Primitives, operand: Format, left: torch.Tensor, right: torch.Tensor, accumulator: torch.Tensor, shape: Shape
) -> list[Probe]:
    """Multiply float64 matrices of values of a format on the device: with the accumulator, and without one."""
    left, right, accumulator = (x.to(primitives.device) for x in (left, right, accumulator))
    storage = torch.float32 if shape.in_registers else storage_of(operand)
    plain, chained = primitives.dots(
        left.to(storage),
        right.to(storage),
        accumulator,
        precision=precision_of(operand),
        warps=shape.warps,
        cast_to=storage_of(operand) if shape.in_registers else None,
    )
    return [Probe(left, right, accumulator, chained), Probe(left, right, None, plain)]


def drawn(primitives: Primitives, operand: Format, shape: Shape, groups: int = GROUPS) -> list[Probe]:
    """Normal inputs, half of them with spread exponents, multiplied on the device."""
    parts = [
        torch.cat([_normal(draw((groups, *size), operand, seed + spread, spread), operand) for spread in (0, SPREAD)])
        for seed, size in ((1, (shape.rows, shape.inner)), (2, (shape.inner, shape.columns)))
    ]
    accumulator = draw((2 * groups, shape.rows, shape.columns), FP32, 3, 2).float() * math.sqrt(shape.inner)
    return multiply(primitives, operand, parts[0], parts[1], accumulator, shape)


def _normal(x: torch.Tensor, operand: Format) -> torch.Tensor:
    """Values of the format, with none that is subnormal or 0: these have probes of their own."""
    return round_to(torch.copysign(x.abs().clamp(min=operand.smallest_normal), x), operand, "nearest even")


def _probe(primitives: Primitives, operand: Format) -> tuple[list[Probe], str]:
    probes: list[Probe] = []
    instructions: dict[str, None] = {}
    for shape in SHAPES:
        if shape.in_registers and operand is TF32:
            continue
        probes += drawn(primitives, operand, shape)
        instructions[primitives.instruction()] = None
    return probes, "; ".join(filter(None, instructions))


def _searched(operand: Format, found: Search, instructions: str) -> Observation:
    through = f", through {instructions}" if instructions else ""
    nearest = ""
    if found.nearest is not None:
        share = figure(found.nearest_wrong / found.sample)
        nearest = f"; the nearest that does not: {found.nearest.describe()} ({share} of {found.sample} results wrong)"
    value = " or ".join(model.describe() for model in found.fitting) or "no known model"
    text = f"{len(found.fitting)} of {len(MODELS)} models give every bit{nearest}{through}"
    return Observation(f"tensor core, {operand.name}", value, text, found.results, False, bool(found.fitting))


def _zeros(primitives: Primitives, operand: Format, model: BlockModel) -> Observation:
    """Every other product is 0, with one operand 0 and the other one large: does it push the others out of the window?"""
    shape = SHAPES[0]
    small, large = 2.0**-6, 2.0 ** (operand.emax - 4)  # a zero would count as emin·large, which is above small²
    wrong = {False: 0, True: 0}
    results = 0
    for zero_left in (True, False):
        left = _normal(draw((1, shape.rows, shape.inner), operand, 4) * small, operand)
        right = _normal(draw((1, shape.inner, shape.columns), operand, 5) * small, operand)
        zeros, others = (left.mT, right) if zero_left else (right, left.mT)
        zeros[:, ::2] = 0.0
        others[:, ::2] *= large / small
        accumulator = torch.zeros((1, shape.rows, shape.columns), dtype=torch.float32)
        for probe in multiply(primitives, operand, left, right, accumulator, shape):
            results += probe.result.numel()
            for zeros_align in wrong:
                wrong[zeros_align] += probe.wrong(model, operand, Treatment(zeros_align=zeros_align))
    value = "left out of the alignment" if not wrong[False] else "aligned like others" if not wrong[True] else "neither model"
    text = "products with a zero operand beside a large one; budgets count products other than 0 alone"
    return Observation(f"tensor core, {operand.name}, products of zeros", value, text, results, False, not wrong[False])


def _subnormals(primitives: Primitives, operand: Format, model: BlockModel) -> Observation:
    """Operands of one side are subnormal, those of the other large, so that products are normal.

    They are so small that the accumulator's last bits lie inside the window if it is that of their own size, and below it if it
    is that of the smallest normal number.
    """
    shape = SHAPES[0]
    large, tiny = 2.0 ** (operand.emax // 2), operand.smallest_subnormal * 2.0**4
    left = round_to(draw((1, shape.rows, shape.inner), FP64, 6, 1) * tiny, operand, "nearest even")
    right = round_to(draw((1, shape.inner, shape.columns), operand, 7) * large, operand, "nearest even")
    accumulator = (draw((1, shape.rows, shape.columns), FP32, 8) * large * tiny).float()
    treatments = {
        "exact, aligned like the smallest normal number": Treatment(),
        "exact, aligned by their own size": Treatment(subnormals="normalised"),
        "flushed to 0": Treatment(subnormals="flushed"),
    }
    probes = [
        *multiply(primitives, operand, left, right, accumulator, shape),
        *multiply(primitives, operand, right.mT, left.mT, accumulator.mT, shape),
    ]
    wrong = {words: sum(probe.wrong(model, operand, treatment) for probe in probes) for words, treatment in treatments.items()}
    value = next((words for words in treatments if not wrong[words]), "no known treatment")
    text = f"all operands of one side; tried: {'; '.join(treatments)}"
    fits = value in list(treatments)[:2]
    results = sum(probe.result.numel() for probe in probes)
    return Observation(f"tensor core, {operand.name}, subnormal operands", value, text, results, False, fits)


def _without_tensor_cores(primitives: Primitives) -> Finding:
    observations = [within_any_order(f"products, {FP16.name}", drawn(primitives, FP16, SMALL_SHAPES[0]))]
    direct = within_any_order(f"products, {BF16.name}", drawn(primitives, BF16, SMALL_SHAPES[0]))
    if not direct.fits:
        text = "the interpreter multiplies their bit patterns; a kernel that is to be right there holds them in float32"
        direct = Observation(direct.name, "wrong", text, direct.inputs)
    return Finding({"tensor_cores": {}}, (*observations, direct))


def within_any_order(name: str, probes: list[Probe]) -> Observation:
    """Products of float32 results held to the bound of additions in any order, each rounded to nearest."""
    used, results = 0.0, 0
    for probe in probes:
        used = max(used, any_order_headroom(probe.left, probe.right, probe.accumulator, probe.result, FP32))
        results += probe.result.numel()
    value = "within any order" if used <= 1.0 else "outside of any order"
    return Observation(name, value, f"{figure(used)} of gamma_K is used", results, False, used <= 1.0)


def any_order_headroom(
    left: torch.Tensor, right: torch.Tensor, accumulator: torch.Tensor | None, result: torch.Tensor, accumulated: Format
) -> float:
    """Largest error, in units of the bound of K products and additions in any order; infinite if a result is not finite.

    Args:
        left: float64 (G, M, K).
        right: float64 (G, K, N).
        accumulator: (G, M, N), or None.
        result: (G, M, N).
        accumulated: format of sums.
    """
    true, reach = left @ right, left.abs() @ right.abs()
    terms = left.shape[2]
    if accumulator is not None:
        true, reach, terms = true + accumulator, reach + accumulator.abs(), terms + 1
    bound = reach * (math.expm1(terms * accumulated.unit_roundoff) + math.expm1(terms * FP64.unit_roundoff))
    return float(((result.double() - true).abs() / bound).nan_to_num(math.inf, math.inf).max())
