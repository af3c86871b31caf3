"""Products of float32 and float64 matrices: which precision, in which order, and what happens to operands on the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import gmpy2
import torch

from flashverify.numerics.axioms.arithmetic import Observation
from flashverify.numerics.axioms.finding import Finding, figure, is_complete
from flashverify.numerics.axioms.primitives import Precision, Primitives
from flashverify.numerics.axioms.products import Shape, any_order_headroom, draw
from flashverify.numerics.axioms.rounding import MODES, exponent_of, fused_multiply_add, power_of_two, round_to
from flashverify.numerics.axioms.tensor_core import Probe, search
from flashverify.numerics.dots import SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, FP32, FP64, TF32, Format

SINGLE_SHAPES = (Shape(32, 32, 64, 4), Shape(16, 16, 32, 1))
CONVERSION_SHAPES = (Shape(64, 16, 16, 4), Shape(16, 16, 16, 1))
DOUBLE_SHAPE = Shape(16, 16, 64, 4)

COARSEST = TensorCore(block=4, extra_bits=0)
SPLITS: dict[Precision, SplitProducts] = {
    "tf32x3": SplitProducts(COARSEST, TF32, 2),
    "bf16x6": SplitProducts(COARSEST, BF16, 3),
}
"""Products of pieces, as they may be at worst: on Volta's blocks of four without extra bits."""

FULL_PIECES = (1.0 + 2.0**-9 * (1.0 + 127.0 / 128.0) + 2.0**-17 - 2.0**-23, 1.0 + 2.0**-11 - 2.0**-22 - 2.0**-23)
"""float32 numbers whose pieces in bfloat16, and in tf32, are nearly as large as they can be, and of one sign."""

Chain = Callable[[Probe], torch.Tensor]


def _fused(accumulator: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return fused_multiply_add(a.expand_as(accumulator), b.expand_as(accumulator), accumulator)


def _rounded_twice(accumulator: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return accumulator + a * b


def _chain(step: Callable[..., torch.Tensor], *, backwards: bool = False, accumulator_last: bool = False) -> Chain:
    def along(probe: Probe) -> torch.Tensor:
        left, right = probe.left.float(), probe.right.float()
        start = torch.zeros_like(probe.result) if probe.accumulator is None else probe.accumulator
        total = torch.zeros_like(start) if accumulator_last else start
        places = range(left.shape[2])
        for k in reversed(places) if backwards else places:
            total = step(total, left[:, :, k : k + 1], right[:, k : k + 1, :])
        return total + start if accumulator_last else total

    return along


CHAINS: dict[str, Chain] = {
    "fma-chain": _chain(_fused),
    "fma-chain, backwards": _chain(_fused, backwards=True),
    "fma-chain, then the accumulator": _chain(_fused, accumulator_last=True),
    "multiply-add-chain": _chain(_rounded_twice),
    "multiply-add-chain, then the accumulator": _chain(_rounded_twice, accumulator_last=True),
}
"""Orders of float32 products that are tried."""

ANY_ORDER = "any-order"

LARGEST_SHOWN = 2**64
"""A larger multiple of a bound is not told apart: as an exact fraction it may be too large for a float."""


def single(primitives: Primitives) -> Finding:
    """float32 products with input_precision="ieee": which chain of operations gives every bit, or whether any order can."""
    shapes = SINGLE_SHAPES if is_complete(primitives) else SINGLE_SHAPES[1:]
    probes = [probe for shape in shapes for probe in _single_probes(primitives, shape)]
    observation, word = _ordered('fp32 products, "ieee"', probes, primitives)
    return Finding({"fp32_dot": word}, (observation,))


def _single_probes(primitives: Primitives, shape: Shape) -> list[Probe]:
    left, right = (
        draw((2, *size), FP32, seed, 2).to(primitives.device)
        for seed, size in ((11, (shape.rows, shape.inner)), (12, (shape.inner, shape.columns)))
    )
    accumulator = draw((2, shape.rows, shape.columns), FP32, 13, 2).float().to(primitives.device)
    plain, chained = primitives.dots(left.float(), right.float(), accumulator, precision="ieee", warps=shape.warps)
    return [Probe(left, right, accumulator, chained), Probe(left, right, None, plain)]


def _ordered(name: str, probes: list[Probe], primitives: Primitives) -> tuple[Observation, str]:
    """The chain that gives every bit of the probes; else whether any order can, else which rounding of operands they look like.

    The interpreter's products are numpy's, whose order depends on size and processor: no chain is looked for there.
    """
    chains = CHAINS if is_complete(primitives) else {}
    instruction = primitives.instruction()
    results = sum(probe.result.numel() for probe in probes)
    through = f", through {instruction}" if instruction else ""
    for word, chain in chains.items():
        if all(torch.equal(chain(probe), probe.result) for probe in probes):
            return Observation(name, word, f"every bit{through}; tried: {'; '.join(CHAINS)}", results), word
    used = max(any_order_headroom(p.left, p.right, p.accumulator, p.result, FP32) for p in probes)
    if used <= 1.0:
        tried = f"no bit for bit fit of {'; '.join(chains)}" if chains else "numpy's order, which no budget counts on"
        text = f"{figure(used)} of gamma_K is used; {tried}{through}"
        return Observation(name, ANY_ORDER, text, results), ANY_ORDER
    text = (
        f"the error is {figure(used)} of what products rounded to float32 can have in any order{_looks_like(probes)}{through}"
    )
    return Observation(name, "not float32 products", text, results, False, False), ""


def _looks_like(probes: list[Probe]) -> str:
    for mode in MODES:
        rounded = [
            dataclasses.replace(p, left=round_to(p.left, TF32, mode), right=round_to(p.right, TF32, mode)) for p in probes
        ]
        if all(any_order_headroom(p.left, p.right, p.accumulator, p.result, FP32) <= 1.0 for p in rounded):
            return f"; operands rounded to tf32 ({mode}) explain it"
    return ""


def default_precision(primitives: Primitives) -> Finding:
    """What `tl.dot` does to float32 operands if it is told nothing, and to bfloat16 ones that the kernel made float32."""
    shape = Shape(64, 32, 32, 4) if is_complete(primitives) else SINGLE_SHAPES[1]
    left, right = (
        draw((2, *size), FP32, seed).float().to(primitives.device)
        for seed, size in ((21, (shape.rows, shape.inner)), (22, (shape.inner, shape.columns)))
    )
    accumulator = torch.zeros((2, shape.rows, shape.columns), dtype=torch.float32, device=primitives.device)
    results = {
        precision: primitives.dots(left, right, accumulator, precision=precision, warps=shape.warps)[1]
        for precision in ("ieee", "tf32", None)
    }
    equal = [precision for precision in ("ieee", "tf32") if torch.equal(results[None], results[precision])]
    value = equal[0] if equal else "neither ieee nor tf32"
    return Finding(
        {"default_dot_precision": value if equal else ""},
        (
            Observation(
                "fp32 products, default precision",
                value,
                "the same bits as with that precision asked for" + ("; here both are the same" if len(equal) == 2 else ""),
                results[None].numel(), False, bool(equal),
            ),
            _upcast(primitives, shape),
        ),
    )  # fmt: skip


def _upcast(primitives: Primitives, shape: Shape) -> Observation:
    """bfloat16 made float32 inside the kernel, then "ieee": exact products, so only the summation can tell."""
    left, right = (
        draw((2, *size), BF16, seed, 2).to(primitives.device)
        for seed, size in ((31, (shape.rows, shape.inner)), (32, (shape.inner, shape.columns)))
    )
    accumulator = draw((2, shape.rows, shape.columns), FP32, 33).float().to(primitives.device)
    plain, chained = primitives.dots(
        left.bfloat16(), right.bfloat16(), accumulator, precision="ieee", warps=shape.warps, cast_to=torch.float32
    )
    probes = [Probe(left, right, accumulator, chained), Probe(left, right, None, plain)]
    instruction = primitives.instruction()
    observation, word = _ordered('bf16 made float32 in the kernel, "ieee"', probes, primitives)
    if word in CHAINS or not is_complete(primitives):
        return observation
    for operand in (BF16, TF32):
        fitting = search(probes, operand).fitting
        if fitting:
            text = (
                f"float32 was asked for: no budget of float32 products holds there. Through {instruction or 'what is unknown'}"
            )
            return Observation(observation.name, f"a tensor core: {fitting[0].describe()}", text, observation.inputs)
    return observation


def split_products(primitives: Primitives) -> Finding:
    """Products of pieces: the largest error relative to the sum of magnitudes, within the lemma on the coarsest tensor core.

    Random numbers cannot tell six products from three: their errors average out. Equal numbers whose pieces are all near
    their largest do: each product of pieces that is left out costs more than the limit. In the interpreter there is only
    float32 to be seen.
    """
    shape = Shape(64, 32, 32, 4) if is_complete(primitives) else SINGLE_SHAPES[1]
    left, right = (
        draw((2, *size), FP32, seed).to(primitives.device)
        for seed, size in ((41, (shape.rows, shape.inner)), (42, (shape.inner, shape.columns)))
    )
    accumulator = torch.zeros((2, shape.rows, shape.columns), dtype=torch.float32, device=primitives.device)
    observations = []
    for precision, dot in SPLITS.items() if is_complete(primitives) else ():
        errors = []
        for a, b in ((left, right), *((torch.full_like(left, x), torch.full_like(right, x)) for x in FULL_PIECES)):
            result = primitives.dots(a.float(), b.float(), accumulator, precision=precision, warps=shape.warps)[0]
            errors.append(((result.double() - a @ b).abs() / (a.abs() @ b.abs())).max() / FP32.unit_roundoff)
        error = torch.stack(errors).max()
        summed = dot.kappa(shape.inner) * FP32.unit_roundoff
        limit = dot.error(math.expm1(dot.sums * summed), math.expm1(summed)) / FP32.unit_roundoff + 2.0  # and one addition
        text = (
            f"of 2^-24 of the sum of {shape.inner} products' magnitudes; at most {figure(limit)} on a known tensor core; "
            f"products rounded to float32 may have {shape.inner}"
        )
        name = f'fp32 products, "{precision}"'
        observations.append(
            Observation(name, figure(float(error)), text, len(errors) * result.numel(), fits=bool(error <= limit))
        )
    return Finding({}, tuple(observations))


def tf32_operands(primitives: Primitives) -> Finding:
    """How float32 operands become tf32: products with the identity return them as they were multiplied."""
    if not is_complete(primitives):
        return Finding()
    observations, truncates = [], False
    for shape in CONVERSION_SHAPES:
        values = _with_ties(draw((32, shape.rows, shape.inner), FP32, 51, 20)).to(primitives.device)
        identity = torch.eye(shape.inner, dtype=torch.float32, device=primitives.device).expand(64, -1, -1)
        zeros = torch.zeros_like(values, dtype=torch.float32)
        columns = values[:, : shape.inner]
        padded = torch.zeros_like(zeros)
        padded[:, : shape.inner] = identity
        as_left = primitives.dots(values.float(), identity, zeros, precision="tf32", warps=shape.warps)[0]
        as_right = primitives.dots(padded, columns.float(), zeros, precision="tf32", warps=shape.warps)[0][:, : shape.inner]
        for side, given, result in (("left", values, as_left), ("right", columns, as_right)):
            fitting = [mode for mode in MODES if torch.equal(round_to(given, TF32, mode), result.double())]
            value = fitting[0] if fitting else "no known rounding"
            truncates |= "truncated" in fitting
            name = f"fp32 to tf32, {side} operand, {shape.rows} rows"
            text = f"tried: {', '.join(MODES)}; through {primitives.instruction() or 'an unknown instruction'}"
            observations.append(Observation(name, value, text, given.numel(), False, bool(fitting)))
    return Finding({"truncates_tf32": truncates}, tuple(observations))


def _with_ties(values: torch.Tensor) -> torch.Tensor:
    """float64 values, and after them as many that lie in the middle between two tf32 numbers."""
    below = round_to(values, TF32, "truncated")
    half_spacing = power_of_two(exponent_of(values, TF32.emin) - TF32.precision)
    return torch.cat([values, below + torch.copysign(half_spacing, values)])


def double(primitives: Primitives) -> Finding:
    """float64 products: a chain of fused operations, confirmed with exact arithmetic, or any order."""
    shape = DOUBLE_SHAPE
    left, right = (
        draw((1, *size), FP64, seed, 2).to(primitives.device)
        for seed, size in ((61, (shape.rows, shape.inner)), (62, (shape.inner, shape.columns)))
    )
    accumulator = draw((1, shape.rows, shape.columns), FP64, 63, 2).to(primitives.device)
    plain, chained = primitives.dots(left, right, accumulator, precision="ieee", warps=shape.warps)
    instruction = primitives.instruction()
    through = f", through {instruction}" if instruction else ""
    operands = left[0].tolist(), right[0].mT.tolist()
    cases = [(chained[0].tolist(), accumulator[0].tolist()), (plain[0].tolist(), torch.zeros_like(plain[0]).tolist())]
    for word, order in (DOUBLE_CHAINS if is_complete(primitives) else {}).items():
        if all(_gives(order, operands, results, starts) for results, starts in cases):
            text = f"every bit{through}; tried: {'; '.join(DOUBLE_CHAINS)}"
            return Finding({"fp64_dot": word}, (Observation("fp64 products", word, text, 2 * plain.numel()),))
    used = max(_exact_headroom(operands, results, starts, FP64) for results, starts in cases)
    word = ANY_ORDER if used <= 1.0 else ""
    tried = f"no bit for bit fit of {'; '.join(DOUBLE_CHAINS)}" if is_complete(primitives) else "numpy's order"
    text = f"{figure(used)} of gamma_K is used; {tried}{through}"
    value = word or "not float64 products"
    return Finding({"fp64_dot": word}, (Observation("fp64 products", value, text, 2 * plain.numel(), False, bool(word)),))


Rows = list[list[float]]
Order = Callable[[list[float], list[float], float], float]


def _fused_in_order(a: list[float], b: list[float], start: float) -> float:
    total = gmpy2.mpfr(start)
    for x, y in zip(a, b, strict=True):
        total = gmpy2.fma(gmpy2.mpfr(x), gmpy2.mpfr(y), total)
    return float(total)


DOUBLE_CHAINS: dict[str, Order] = {
    "fma-chain": _fused_in_order,
    "fma-chain, backwards": lambda a, b, start: _fused_in_order(a[::-1], b[::-1], start),
    "fma-chain, then the accumulator": lambda a, b, start: _fused_in_order(a, b, 0.0) + start,
}
"""Orders of float64 products that are tried."""


def _gives(order: Order, operands: tuple[Rows, Rows], results: Rows, starts: Rows) -> bool:
    """Whether the order gives every result; in double precision, whatever the caller's context is."""
    with gmpy2.context(gmpy2.ieee(64)):
        return all(
            order(row, column, starts[i][j]) == results[i][j]
            for i, row in enumerate(operands[0])
            for j, column in enumerate(operands[1])
        )


def _exact_headroom(operands: tuple[Rows, Rows], results: Rows, starts: Rows, accumulated: Format) -> float:
    """`any_order_headroom` against exact sums."""
    worst = 0.0
    for i, row in enumerate(operands[0]):
        for j, column in enumerate(operands[1]):
            if not math.isfinite(results[i][j]):
                return math.inf
            terms = [gmpy2.mpq(x) * gmpy2.mpq(y) for x, y in zip(row, column, strict=True)] + [gmpy2.mpq(starts[i][j])]
            bound = sum(map(abs, terms)) * len(terms) * gmpy2.mpq(accumulated.unit_roundoff)
            used = abs(gmpy2.mpq(results[i][j]) - sum(terms)) / bound
            worst = max(worst, float(min(used, LARGEST_SHOWN)))
    return worst
