"""A kernel's arithmetic on a CPU, step by step, for the tests of the budgets: numpy, one head at a time.

It shares no code with the budgets. Dots run either through BLAS (rounded to nearest, any order) or through an emulator of a
truncating tensor core, written from its description: products exact, all terms aligned to the largest exponent and
truncated to 23 + 2 fraction bits, summed, truncated to float32; steps of 16 products (8 for tf32) chained along K.
Defects can be planted by `Options`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from flashverify.cases.case import AttentionCase
from flashverify.dropout.mask import keep, stream_of

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Options:
    """How the simulated kernel works, and which defect it has (all defects default to none)."""

    dot: str = "tensor-core"  # or "any-order", "fma-chain", "tf32", "tf32-truncated", or a name of SPLITS
    block_k: int | None = 32
    direction: str = "left"  # from which end keys are walked, or "right"
    splits: int = 1  # runs of blocks that are walked apart and merged
    exponent: str = "scaled"  # or "fused", "shifted"
    exp2_ulps: int = 2
    noise: int = 0
    scale_factor: float = 1.0
    lose_maximum: bool = False
    no_rescale: bool = False
    tail_unmasked: bool = False
    causal_shift: int = 0
    without_delta: bool = False
    cap_slope: str = "tanh"  # how a soft cap's derivative is formed, or "sech", or "none": forgotten
    probability: str | None = None  # None: the storage type
    round_p_bits: int | None = None
    lse_base2: bool = False
    dropped_key: int | None = None
    prescale: bool = False
    cut: bool = False
    truncate_p: bool = False
    truncate_ds: bool = False
    truncate_out: bool = False
    round_scores: bool = False  # S to the storage type
    row_sum: str | None = None  # format that l is kept in
    accumulator: str | None = None  # format that the output's accumulator is rounded to after each block
    dq_accumulator: str | None = None  # the same for dq
    score_gradient: str | None = None  # None: the storage type
    log2e: float = math.log2(math.e)
    exp2_degree: int | None = None  # of a polynomial in the place of 2^fraction
    lse_error: float = 0.0
    rescale: str = "after"  # dropout's factor: the accumulators' at the end, or "folded" into P before its rounding
    rescaled_out: str = (
        "quotient"  # acc / l times the factor; or "product": acc times the factor, over l; or "factor": factor / l
    )
    fused_difference: bool = False  # dP·factor - delta in one operation
    factor: str | None = None  # format that the factor is rounded to; None: the accumulator's
    unscaled: str | None = None  # which of out, dv and dp is not multiplied by the factor
    sum_of_kept: bool = False  # l without dropped weights
    dropped_is_zero: bool = False  # dS of dropped pairs is 0
    other_mask: str | None = None  # which of out, dv and dp has the next head's mask
    chained: bool = True  # dK and dV of a group of heads in one accumulator; or a sum of each head's


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round to nearest even to a format; the result has x's dtype."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(x)).to(TORCH[dtype]).to(torch.from_numpy(x).dtype).numpy()


def truncated(x: np.ndarray, dtype: str) -> np.ndarray:
    """The number of a format that is next to x toward zero; the result has x's dtype."""
    info = torch.finfo(TORCH[dtype])
    precision = 1 - round(math.log2(info.eps))
    subnormal = round(math.log2(info.smallest_normal)) + 1 - precision
    quantum = np.ldexp(1.0, np.maximum(np.frexp(x.astype(np.float64))[1] - precision, subnormal))
    return (np.trunc(x / quantum) * quantum).astype(x.dtype)


def fitted_exp2(degree: int) -> np.polynomial.Polynomial:
    """2^f on [0, 1] by a polynomial, which a kernel may take for speed: of degree 2 to 3e-3, of 3 to 1.4e-4."""
    fractions = np.linspace(0.0, 1.0, 1001)
    return np.polynomial.Polynomial.fit(fractions, np.exp2(fractions), degree, w=np.exp2(-fractions))


def round_tf32(x: np.ndarray, truncate: bool) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = bits if truncate else bits + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def truncate32(x: np.ndarray) -> np.ndarray:
    """float64 to float32, toward zero."""
    y = x.astype(np.float32)
    return np.where(np.abs(y.astype(np.float64)) > np.abs(x), np.nextafter(y, np.float32(0)), y)


def exponents(x: np.ndarray) -> np.ndarray:
    """floor(log2 |x|), very small for 0."""
    return np.where(x == 0, -2000, np.frexp(x)[1] - 1)


def tensor_core(a: np.ndarray, b: np.ndarray, c: np.ndarray, block: int) -> np.ndarray:
    """a (M, K) times b (K, N) added to c (M, N) float32, in steps of `block` products."""
    a, b, total = a.astype(np.float64), b.astype(np.float64), c.astype(np.float32)
    exponents_a, exponents_b = exponents(a), exponents(b)
    for start in range(0, a.shape[1], block):
        step = slice(start, start + block)
        products = a[:, None, step] * b.T[None, :, step]
        top = (exponents_a[:, None, step] + exponents_b.T[None, :, step]).max(2)
        top = np.maximum(top, np.maximum(exponents(total), -133))
        finer = np.ldexp(1.0, 25 - top)
        aligned = np.trunc(products * finer[..., None]).sum(2) + np.trunc(total * finer)
        total = truncate32(aligned / finer)
    return total


def fma_chain(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a (M, K) times b (K, N) added to c (M, N) float32, product by product, each sum rounded to nearest (float64 between)."""
    total, a, b = c.astype(np.float32), a.astype(np.float64), b.astype(np.float64)
    for index in range(a.shape[1]):
        total = (a[:, index, None] * b[None, index] + total).astype(np.float32)
    return total


SPLITS = {"bf16x6": (8, 3, 16), "tf32x3": (11, 2, 8)}
"""Products of pieces: bits of a piece, pieces of an operand, products in a step of the tensor core."""


def pieces_of(x: np.ndarray, bits: int, parts: int) -> list[np.ndarray]:
    """float32 numbers as sums of shorter ones, each to nearest; what is left after the last is lost."""
    pieces, rest = [], x.astype(np.float64)
    for _ in range(parts):
        scale = np.ldexp(1.0, bits - np.frexp(rest)[1])
        pieces.append(np.rint(rest * scale) / scale)
        rest = rest - pieces[-1]
    return pieces


def split_dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, without: tuple[int, int] | None = None) -> np.ndarray:
    """a times b by products of their pieces, the smaller ones first, then c added; one product may be left out, as a defect."""
    bits, parts, step = SPLITS[kind]
    left, right = pieces_of(a, bits, parts), pieces_of(b, bits, parts)
    if kind == "tf32x3":  # the tensor core reads the last piece as it stands, and drops its lower bits
        left[-1], right[-1] = (round_tf32(x, truncate=True) for x in (a - left[0], b - right[0]))
    pairs = sorted((pair for pair in np.ndindex(parts, parts) if sum(pair) < parts), key=lambda pair: -sum(pair))
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for i, j in pairs:
        if (i, j) != without:
            total = tensor_core(left[i], right[j], total, step)
    return total + c


class Kernel:
    """One simulated kernel for a storage dtype."""

    def __init__(self, dtype: str, options: Options) -> None:
        self.dtype, self.options = dtype, options
        self.work = np.float64 if dtype == "fp64" else np.float32
        self.probability = options.probability or dtype
        self.random = np.random.default_rng(options.noise)
        self.cap: float | None = None
        self.inner = self.work(0)  # what multiplies a product inside a soft cap
        self.kept: dict[str, np.ndarray] | None = None  # which pairs of a head dropout keeps, in out, dv and dp
        self.factor = self.work(1)

    def entering(self, p: np.ndarray, of: str, cut: slice) -> np.ndarray:
        """Weights of a block of keys as they enter a product, rounded: 0 where dropped, times a factor that is folded in."""
        if self.kept is None:
            return self.to_probability(p)
        p = np.where(self.kept[of][:, cut], p, 0).astype(self.work)
        folded = self.options.rescale == "folded" and self.options.unscaled != of
        return self.to_probability((p * self.factor).astype(self.work) if folded else p)

    def rescaled(self, accumulated: np.ndarray, of: str) -> np.ndarray:
        """A finished accumulator times the factor, unless that was folded in before."""
        if self.kept is None or self.options.rescale == "folded" or self.options.unscaled == of:
            return accumulated
        return (accumulated * self.factor).astype(self.work)

    def dot(self, a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> np.ndarray:
        a, b = a.astype(self.work), b.astype(self.work)
        c = np.zeros((a.shape[0], b.shape[1]), self.work) if c is None else c
        kind = self.options.dot
        if kind in SPLITS:
            return split_dot(a, b, c, kind)
        if kind == "fma-chain":
            return fma_chain(a, b, c)
        if kind.startswith("tf32"):
            a, b = (round_tf32(x, kind == "tf32-truncated") for x in (a, b))
            return tensor_core(a, b, c, 8)
        if kind == "tensor-core" and self.work is np.float32:
            return tensor_core(a, b, c, 16)
        return c + a @ b

    def log2(self, x: np.ndarray) -> np.ndarray:
        """log2(x) with noise of one ulp; log2(1) = 0."""
        with np.errstate(divide="ignore"):
            exact = np.log2(x).astype(self.work)
        noise = np.spacing(np.abs(exact)) * self.random.integers(-1, 2, x.shape).astype(self.work)
        return np.where(np.isfinite(exact) & (exact != 0), exact + noise, exact).astype(self.work)

    def exp2(self, x: np.ndarray) -> np.ndarray:
        """2^x with noise of whole ulps; 2^0 = 1; float32 results below the smallest normal are flushed."""
        with np.errstate(over="ignore", under="ignore"):
            wide = x.astype(np.longdouble)
            exact = np.exp2(wide).astype(self.work)
            if self.options.exp2_degree is not None:
                whole = np.where(np.isfinite(wide), np.floor(wide), 0)
                polynomial = fitted_exp2(self.options.exp2_degree)(np.where(np.isfinite(wide), wide - whole, 0)) * np.exp2(
                    whole
                )
                exact = np.where(np.isfinite(wide) & (wide != 0), polynomial, exact).astype(self.work)
            ulps = self.options.exp2_ulps
            noisy = exact + np.spacing(exact) * self.random.integers(-ulps, ulps + 1, x.shape).astype(self.work)
        noisy = np.where(np.isfinite(x) & (x != 0) & np.isfinite(exact), noisy, exact)
        floor = np.finfo(self.work).smallest_normal if self.work is np.float32 else 0.0
        return np.where(noisy < floor, self.work(0), noisy).astype(self.work)

    def to_probability(self, p: np.ndarray) -> np.ndarray:
        if self.options.round_p_bits is not None:
            mantissa, exponent = np.frexp(p)
            scale = 2.0**self.options.round_p_bits
            return np.ldexp(np.round(mantissa * scale) / scale, exponent).astype(self.work)
        return truncated(p, self.probability) if self.options.truncate_p else cast(p, self.probability)

    def exponent(self, s: np.ndarray, c: np.floating, shift: np.ndarray) -> np.ndarray:
        if self.options.exponent == "fused":
            wide = s.astype(np.longdouble) * np.longdouble(c) - shift[:, None].astype(np.longdouble)
            return wide.astype(self.work)
        if self.options.exponent == "shifted":
            return ((s - shift[:, None]).astype(self.work) * c).astype(self.work)
        return s * c - shift[:, None]

    def multiplier(self, scale: float) -> tuple[np.floating, np.floating]:
        factor = self.options.scale_factor
        return self.work(scale * factor * self.options.log2e), self.work(scale)

    def scores(self, q: np.ndarray, k: np.ndarray, c: np.floating) -> tuple[np.ndarray, np.floating]:
        if self.options.prescale:
            return self.dot(cast((q * c).astype(self.work), self.dtype), k.T), self.work(1)
        s = self.dot(q, k.T)
        if self.cap is not None:
            s, self.slope = self.tanh((s * self.inner).astype(self.work))
        return cast(s, self.dtype) if self.options.round_scores else s, c

    def tanh(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tanh by this kernel's own exponential, exact and rounded below 1/2; and its derivative."""
        e = self.exp2((np.abs(x) * self.work(-2.0 * math.log2(math.e))).astype(self.work))
        small = np.abs(x) < 0.5
        t = np.where(small, np.tanh(np.abs(x).astype(np.longdouble)).astype(self.work), (1 - e) / (1 + e))
        plain = small | (self.options.cap_slope == "tanh")
        slope = np.where(plain, 1 - t * t, 4 * e / ((1 + e) * (1 + e))).astype(self.work)
        return np.copysign(t, x).astype(self.work), slope

    def forward(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray, scale: float
    ) -> tuple[np.ndarray, np.ndarray]:
        options, work = self.options, self.work
        shifted = options.exponent == "shifted"
        if shifted and scale < 0.0:
            q, scale = -q, -scale  # a maximum of raw scores wants a positive scale
        c, factor = self.multiplier(scale)
        block = options.block_k or max(seen.shape[1], 1)
        starts = range(0, seen.shape[1], block)
        length = max(-(-len(starts) // options.splits), 1)
        runs = [starts[first : first + length] for first in range(0, len(starts), length)] or [starts]
        runs = [self.walk(q, k, v, seen, c, run if options.direction == "left" else run[::-1], block) for run in runs]
        m, total, acc = runs[0]
        for later, more, numerator in runs[1:]:
            new = np.maximum(m, later)
            with np.errstate(invalid="ignore"):
                first, second = (self.rescaling(x, new, c) for x in (m, later))
            total = (total * first + more * second).astype(work)
            acc = (acc * first[:, None] + numerator * second[:, None]).astype(work)
            m = new
        empty = total == 0
        total = np.where(empty, 1, total)
        if self.kept is not None and self.options.rescaled_out == "factor" and self.rescaled(self.factor, "out") != self.factor:
            out = acc * (self.factor / total).astype(work)[:, None]
        elif self.options.rescaled_out == "product":
            out = self.rescaled(acc, "out") / total[:, None]
        else:
            out = self.rescaled((acc / total[:, None]).astype(work), "out")
        total = np.where(empty, 0, total).astype(work)
        with np.errstate(divide="ignore", invalid="ignore"):
            if shifted:
                natural = (self.log2(total) * work(math.log(2))).astype(work)
                lse = np.where(empty, -np.inf, (m * factor).astype(work) + natural).astype(work)
            else:
                lse2 = np.where(empty, -np.inf, m + self.log2(total)).astype(work)
                lse = lse2 if options.lse_base2 else (lse2 * work(math.log(2))).astype(work)
        lse = (lse + work(options.lse_error)).astype(work)
        return (truncated if options.truncate_out else cast)(out.astype(work), self.dtype), lse

    def rescaling(self, old: np.ndarray, new: np.ndarray, c: np.floating) -> np.ndarray:
        """The factor of what was summed below the maximum `old`; 0 where nothing was."""
        used = self.work(1) if self.options.prescale else c
        shift = np.where(np.isneginf(new), 0, new).astype(self.work)
        distance = np.where(np.isneginf(old), -np.inf, old - shift)
        return self.exp2((distance * (used if self.options.exponent == "shifted" else 1)).astype(self.work))

    def walk(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        seen: np.ndarray,
        c: np.floating,
        starts: range,
        block: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Running maximum, row sum and unnormalised output of one run over blocks of keys."""
        options, work = self.options, self.work
        shifted = options.exponent == "shifted"
        rows = seen.shape[0]
        m = np.full(rows, -np.inf, work)
        total = np.zeros(rows, work)
        acc = np.zeros((rows, v.shape[1]), work)
        for start in starts:
            cut = slice(start, start + block)
            s, used = self.scores(q, k[cut], c)
            s = np.where(seen[:, cut], s, -np.inf if used >= 0 else np.inf).astype(work)
            with np.errstate(invalid="ignore"):
                z = np.where(seen[:, cut], s if shifted else s * used, -np.inf).astype(work)
            new = z.max(1) if options.lose_maximum else np.maximum(m, z.max(1))
            shift = np.where(np.isneginf(new), 0, new).astype(work)
            with np.errstate(invalid="ignore"):
                t = np.where(seen[:, cut], self.exponent(s, used, shift), -np.inf).astype(work)
                p = self.exp2(t)
                alpha = self.rescaling(m, new, c)
            if options.no_rescale or options.lose_maximum:
                alpha = np.ones_like(alpha)
            summed = np.where(self.kept["out"][:, cut], p, 0) if options.sum_of_kept and self.kept else p
            total = (total * alpha + summed.sum(1, dtype=work)).astype(work)
            acc = self.dot(self.entering(p, "out", cut), v[cut], (acc * alpha[:, None]).astype(work))
            total = cast(total, options.row_sum) if options.row_sum else total
            acc = cast(acc, options.accumulator) if options.accumulator else acc
            m = new
        return m, total, acc

    def backward(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        dout: np.ndarray,
        dlse: np.ndarray | None,
        out: np.ndarray,
        lse: np.ndarray,
        seen: np.ndarray,
        scale: float,
        of_queries: np.floating,
        sums: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of one query head: dq, rounded to storage; dk (not yet scaled) and dv of the heads so far (`sums`) and this one.

        `scale` multiplies scores in logits, and `of_queries` dS·K in dq: they differ by a soft cap alone.
        """
        work = self.work
        c, factor = self.multiplier(scale)
        delta = (dout * out).sum(1, dtype=work)
        if dlse is not None:
            delta = (delta - dlse.astype(work)).astype(work)
        if self.options.without_delta:
            delta = np.zeros_like(delta)
        s, used = self.scores(q, k, c)
        finite_lse = np.where(np.isneginf(lse), 0, lse).astype(work)
        log2e = work(self.options.log2e)
        if self.options.exponent == "shifted":
            t = (((s * factor).astype(work) - finite_lse[:, None]).astype(work) * log2e).astype(work)
        else:
            t = self.exponent(s, used, finite_lse * log2e)
        if self.options.cut:
            t = np.minimum(t, 0)
        with np.errstate(over="ignore"):
            p = np.where(seen & ~np.isneginf(lse)[:, None], self.exp2(t), 0).astype(work)
        rounded = truncated if self.options.truncate_ds else cast
        ds = (p * self.difference(self.dot(dout, v.T), delta)).astype(work)
        if self.options.dropped_is_zero and self.kept is not None:
            ds = np.where(self.kept["dp"], ds, 0).astype(work)
        if self.cap is not None and self.options.cap_slope != "none":
            ds = (ds * self.slope).astype(work)
        ds = rounded(ds, self.options.score_gradient or self.dtype)
        dq = cast((self.queries(ds, k) * of_queries).astype(work), self.dtype)
        dk, dv = sums
        p = self.entering(p, "dv", slice(None))
        if self.options.chained:
            return dq, self.dot(ds.T, q, dk), self.dot(p.T, dout, dv)
        return dq, dk + self.dot(ds.T, q), dv + self.dot(p.T, dout)

    def difference(self, dp: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """dP - delta, where dP of pairs that dropout keeps is multiplied by its factor, and of those that it drops is 0."""
        if self.kept is None or self.options.unscaled == "dp":
            return (dp if self.kept is None else np.where(self.kept["dp"], dp, 0)) - delta[:, None]
        dp = np.where(self.kept["dp"], dp, 0).astype(self.work)
        if self.options.fused_difference:
            wide = dp.astype(np.longdouble) * np.longdouble(self.factor) - delta[:, None].astype(np.longdouble)
            return wide.astype(self.work)
        return (dp * self.factor).astype(self.work) - delta[:, None]

    def queries(self, ds: np.ndarray, k: np.ndarray) -> np.ndarray:
        """dS·K, in one chain, or in blocks of keys between which it is rounded."""
        if self.options.dq_accumulator is None:
            return self.dot(ds, k)
        block, dq = self.options.block_k or k.shape[0], np.zeros((ds.shape[0], k.shape[1]), self.work)
        for start in range(0, k.shape[0], block):
            dq = cast(self.dot(ds[:, start : start + block], k[start : start + block], dq), self.options.dq_accumulator)
        return dq


def visible(case: AttentionCase, options: Options | None = None) -> np.ndarray:
    """Visibility (seqlen_q, seqlen_k), with the defects that concern it."""
    options = options or Options()
    i, j = np.arange(case.seqlen_q)[:, None], np.arange(case.seqlen_k)[None, :]
    seen = np.ones((case.seqlen_q, case.seqlen_k), bool)
    if case.mask == "causal":
        seen = j <= i + case.seqlen_k - case.seqlen_q + options.causal_shift
    if options.dropped_key is not None:
        seen = seen & (j != options.dropped_key)
    return seen


def keeps(case: AttentionCase, b: int, h: int, pad: int = 0) -> np.ndarray | None:
    """Which pairs of a query head are kept, (seqlen_q, seqlen_k + pad), or None: there is no dropout."""
    stream = stream_of(case)
    if stream is None:
        return None
    return keep(stream, case.heads_q, b, h, np.arange(case.seqlen_q), np.arange(case.seqlen_k + pad))


def factor_of(case: AttentionCase) -> np.longdouble:
    """Dropout's factor for kept pairs; 0 where everything is dropped."""
    stream = stream_of(case)
    left = 2**32 - (0 if stream is None else stream.threshold)
    return np.longdouble(2**32) / np.longdouble(left) if left else np.longdouble(0)


def simulate(case: AttentionCase, arrays: dict[str, np.ndarray], options: Options) -> dict[str, np.ndarray]:
    """Run a case: arrays q, k, v, dout, dlse (or None) in, out, lse, dq, dk, dv out (float64)."""
    kernel = Kernel(case.dtype, options)
    work, factor = kernel.work, kernel.work(case.softmax_scale)
    scale = case.softmax_scale
    if case.softcap is not None:
        kernel.cap, kernel.inner, scale = case.softcap, work(case.softmax_scale / case.softcap), case.softcap
    result = {name: np.zeros_like(arrays[of]) for name, of in (("out", "q"), ("dq", "q"), ("dk", "k"), ("dv", "v"))}
    result["lse"] = np.zeros(arrays["q"].shape[:3])
    seen = visible(case, options)
    pad = 7 if options.tail_unmasked else 0  # keys of zeros past the end that the kernel does not mask
    wide = np.pad(seen, ((0, 0), (0, pad)), constant_values=True)
    kernel.factor = work(factor_of(case))
    if options.factor is not None:
        kernel.factor = work(cast(np.array([kernel.factor]), options.factor)[0])
    for b in range(case.batch):
        for g in range(case.heads_kv):
            k, v = (np.pad(arrays[x][b, g].astype(work), ((0, pad), (0, 0))) for x in ("k", "v"))
            dk, dv = np.zeros(k.shape, work), np.zeros(v.shape, work)
            for h in range(g * case.group_size, (g + 1) * case.group_size):
                q, dout = arrays["q"][b, h].astype(work), arrays["dout"][b, h].astype(work)
                dlse = None if arrays["dlse"] is None else arrays["dlse"][b, h]
                right = keeps(case, b, h, pad)
                if right is not None:
                    other = keeps(case, b, (h + 1) % case.heads_q, pad)
                    kernel.kept = {of: other if of == options.other_mask else right for of in ("out", "dv", "dp")}
                out, lse = kernel.forward(q, k, v, wide, scale)
                dq, dk, dv = kernel.backward(q, k, v, dout, dlse, out, lse, wide, scale, factor, (dk, dv))
                result["out"][b, h], result["lse"][b, h], result["dq"][b, h] = out, lse, dq
            result["dk"][b, g] = cast((dk * factor).astype(work), case.dtype)[: case.seqlen_k]
            result["dv"][b, g] = cast(kernel.rescaled(dv, "dv"), case.dtype)[: case.seqlen_k]
    return result


def truth(
    case: AttentionCase,
    arrays: dict[str, np.ndarray],
    given: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The definition in long double; `given`: out and lse to form the gradients from (modular mode)."""
    wide = np.longdouble
    result = {name: np.zeros(arrays[of].shape, wide) for name, of in (("out", "q"), ("dq", "q"), ("dk", "k"), ("dv", "v"))}
    result["lse"] = np.zeros(arrays["q"].shape[:3], wide)
    seen = visible(case)
    for b in range(case.batch):
        for h in range(case.heads_q):
            g = h // case.group_size
            q, k, v, dout = (arrays[name][b, head].astype(wide) for name, head in (("q", h), ("k", g), ("v", g), ("dout", h)))
            x, slope = wide(case.softmax_scale) * (q @ k.T), wide(1)
            if case.softcap is not None:
                cap = wide(case.softcap)
                x, slope = cap * np.tanh(x / cap), 1 / np.cosh(np.clip(x / cap, -5000, 5000)) ** 2
            x = np.where(seen, x, -np.inf)
            top = x.max(1, initial=-np.inf)
            top = np.where(np.isneginf(top), 0, top)
            e = np.exp(x - top[:, None])
            total = e.sum(1)
            with np.errstate(divide="ignore"):
                lse = top + np.log(total)
            kept = keeps(case, b, h)
            entering = wide(1) if kept is None else factor_of(case) * kept
            out = ((e * entering) @ v) / np.where(total == 0, 1, total)[:, None]
            result["out"][b, h], result["lse"][b, h] = out, lse
            if given is not None:
                out, lse = given[0][b, h].astype(wide), given[1][b, h].astype(wide)
            with np.errstate(invalid="ignore"):
                p = np.where(np.isneginf(lse)[:, None] | ~seen, 0, np.exp(x - lse[:, None]))
            delta = (dout * out).sum(1)
            if arrays["dlse"] is not None:
                delta = delta - arrays["dlse"][b, h].astype(wide)
            ds = p * (entering * (dout @ v.T) - delta[:, None]) * slope
            result["dq"][b, h] = wide(case.softmax_scale) * (ds @ k)
            result["dk"][b, g] += wide(case.softmax_scale) * (ds.T @ q)
            result["dv"][b, g] += (p * entering).T @ dout
    return result


def with_defect(options: Options, **defect: object) -> Options:
    """The same kernel with a defect."""
    return dataclasses.replace(options, **defect)  # type: ignore[arg-type]
