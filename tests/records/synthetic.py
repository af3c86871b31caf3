"""Certificates made up for tests: plausible numbers, no kernel behind them."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import msgspec

from flashverify.cases.case import DTYPES, AttentionCase
from flashverify.records.axioms import Axiom, Axioms, TensorCoreModel
from flashverify.records.certificate import Certificate, Plan
from flashverify.records.claims import Claim, Claims, Outcome, Series, Table
from flashverify.records.dropout import Bits
from flashverify.records.environment import Environment
from flashverify.records.measurement import CaseRecord, CheckResult, Distribution, Element, Measurement, Sharp, Verdict

REGIMES = (
    "normal", "peaked", "huge-logits", "one-hot", "repeated-maximum", "equal-logits", "cancelling-values",
    "offset-values", "sink", "needle", "identity-values", "tiny", "wide-exponents", "key-offset", "integers",
    "copy", "signed-zeros",
)  # fmt: skip
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 513, 1023, 1024, 1025, 2048, 4096)
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24, "fp64": 2.0**-53}
MODES = (("out", "forward"), ("lse", "forward"), *itertools.product(("dq", "dk", "dv"), ("modular", "end-to-end")))

H200 = Environment(
    platform="nvidia-h200",
    interpreter=False,
    flashverify="0.1.0",
    commit="0123456789abcdef0123456789abcdef01234567",
    dirty=False,
    verifier_sources="ab" * 32,
    kernel_sources="cd" * 32,
    gpu="NVIDIA H200",
    compute_capability="9.0",
    multiprocessors=132,
    gpu_memory_bytes=150_110_011_392,
    driver="580.95.05",
    cuda="13.0",
    torch="2.13.0+cu130",
    triton="3.7.1",
    ptxas="13.0.88",
    python="CPython 3.12.3",
    system="Linux 6.8.0, Ubuntu 24.04.3 LTS",
    cpu="INTEL(R) XEON(R) PLATINUM 8568Y+, 16 logical cores",
    libraries={"numpy": "2.4.6", "mpmath": "1.3.0", "gmpy2": "2.3.2", "python-flint": "0.9.0"},
    precision_flags={"cuda.matmul.allow_tf32": "False", "float32_matmul_precision": "highest"},
    variables={"CUDA_VISIBLE_DEVICES": "0"},
)


AXIOMS = Axioms(
    device="NVIDIA H200",
    lane="gpu",
    tensor_cores={"fp16": TensorCoreModel(16, 2, "truncate", "accumulator")},
    fp32_dot="fma-chain",
    fp64_dot="fma-chain",
    exp2_max_ulps=2.0549839345142245,
    exp2_mean_ulps=-0.62,
    exp2_rms_ulps=0.74,
    exp2_flushes_below=2.0**-126,
    log2_max_ulps=0.71,
    log2_max_absolute=5.5e-08,
    division_max_ulps=2.09,
    division_rms_ulps="NaN",
    casts_round_to_nearest={"fp16": True, "bf16": True},
    fuses=True,
    sum_order="tree",
    default_dot_precision="tf32",
    truncates_tf32=True,
    exhaustive=("exp2", "log2"),
    observations=(
        Axiom("exp2(0) and exp2(-0)", "1", "1 exactly", 2, True),
        Axiom("division, random pairs, largest error", "2.09 ulp", "published: 2.5 ulp", 67_108_864),
    ),
)
"""Arithmetic that is understood."""

ODD = Axiom("tensor core, fp16", "no known model", "0 of 64 models give every bit; tried: | all *of* them", 4096, False, False)

ODD_AXIOMS = msgspec.structs.replace(AXIOMS, observations=(*AXIOMS.observations, ODD))
"""Arithmetic of which one primitive fits no model."""


def measurement(tensor: str = "out", mode: str = "forward", **changes: object) -> Measurement:
    """A measurement within its budget, with some fields changed."""
    element = Element(index=(0, 1, 17, 3), value=0.25, truth=0.2500001, budget=3e-4)
    fields: dict[str, object] = {
        "elements": 1000, "max_error": 1e-7, "max_ulp": 0.5, "rms_error": 1e-8, "rms_ulp": 0.1, "bias_ulp": -0.01,
        "headroom": 0.25, "certain_excess": 0.24, "max_relative": 4e-7, "violations": 0, "worst": element,
        "worst_ulp": element,
    }  # fmt: skip
    return Measurement(tensor=tensor, mode=mode, **(fields | changes))  # type: ignore[arg-type]


def record(
    case: AttentionCase,
    verdict: Verdict = Verdict.PASS,
    measurements: tuple[Measurement, ...] | None = None,
    reason: str = "",
    check: str = "accuracy",
) -> CaseRecord:
    """A case's record with one check, or with none if the kernel declined the case."""
    found = (measurement(),) if measurements is None else measurements
    result = CheckResult(check=check, verdict=verdict, reason=reason, measurements=found)
    return CaseRecord(
        case=case.id,
        kernel="triton",
        verdict=verdict,
        reason=reason,
        dtype=case.dtype,
        features="+".join(case.features),
        regime=case.regime,
        results=() if verdict is Verdict.UNSUPPORTED else (result,),
        contract={"storage": case.dtype, "accumulator": "fp64" if case.dtype == "fp64" else "fp32"},
        configuration={"block_q": "64", "block_k": "64"},
        seconds=0.125,
        peak_bytes=1 << 20,
    )


def sharp(tensor: str = "out", mode: str = "forward", **changes: object) -> Sharp:
    """A measurement within its sharp budget, with some fields changed."""
    element = Element(index=(0, 1, 17, 3), value=0.25, truth=0.2500001, budget=1e-4)
    fields: dict[str, object] = {
        "elements": 1000, "headroom": 0.75, "certain_excess": 0.74, "violations": 0, "worst": element,
    }  # fmt: skip
    return Sharp(tensor=tensor, mode=mode, **(fields | changes))  # type: ignore[arg-type]


def distribution(tensor: str = "out", mode: str = "forward", **changes: object) -> Distribution:
    """Scores within their ranges, with some fields changed."""
    fields: dict[str, object] = {
        "elements": 960, "rows": 64, "rms": 0.98, "smallest_rms": 0.75, "largest_rms": 1.25, "mean": 0.01, "t": 1.5,
        "largest_t": 8.0, "shrinkage": -0.02, "t_sign": -2.5, "largest_t_sign": 8.25,
    }  # fmt: skip
    return Distribution(tensor=tensor, mode=mode, **(fields | changes))  # type: ignore[arg-type]


def tiered(
    case: AttentionCase,
    close: Sharp | None = None,
    scores: Distribution | None = None,
    hard: Measurement | None = None,
) -> CaseRecord:
    """A case's record in all three tiers, each with one measurement; verdicts follow from them, reasons are made up."""
    close, scores, hard = close or sharp(), scores or distribution(), hard or measurement()

    def result(check: str, fails: bool, **found: object) -> CheckResult:
        verdict, reason = (Verdict.FAIL, "made up") if fails else (Verdict.PASS, "")
        return CheckResult(check=check, verdict=verdict, reason=reason, **found)  # type: ignore[arg-type]

    results = (
        result("accuracy", hard.violations > 0, measurements=(hard,)),
        result("distribution", bool(scores.defects), distributions=(scores,)),
        result("sharp", close.violations > 0, sharp=(close,)),
    )
    whole = Verdict.worst([result.verdict for result in results])
    return replace(record(case, whole), results=results, reason="made up" if whole is Verdict.FAIL else "")


def dropped(case: AttentionCase, *bits: Bits, **found: object) -> CaseRecord:
    """A case's record with dropout bits, and what else was found of its mask; it fails if a bit differs."""
    verdict = Verdict.FAIL if any(one.differing for one in bits) else Verdict.PASS
    result = CheckResult(check="mask", verdict=verdict, bits=bits, **found)  # type: ignore[arg-type]
    return replace(record(case, verdict), results=(result,))


def certificate(
    *records: CaseRecord, planned: int | None = None, environment: Environment = H200, axioms: Axioms | None = None
) -> Certificate:
    """A certificate of these records; as many cases were planned, unless said otherwise."""
    return Certificate(
        created="2026-01-31T12:00:00Z",
        environment=environment,
        plan=Plan(
            kernel="triton",
            matrix="standard",
            cases=len(records) if planned is None else planned,
            checks=("accuracy", "function"),
            lane="interpreter" if environment.interpreter else "gpu",
        ),
        records=records,
        seconds=123.5,
        axioms=axioms,
    )


def case(**changes: object) -> AttentionCase:
    """A small case, with some fields changed."""
    return AttentionCase(**({"dtype": "bf16", "seqlen_q": 64, "seqlen_k": 64, "head_dim": 64} | changes))  # type: ignore[arg-type]


def plausible_cases(count: int) -> list[AttentionCase]:
    """Cases of every dtype, length, mask and regime."""
    draw = random.Random(count)
    cases = []
    for i in range(count):
        heads_kv = draw.choice((1, 2, 4))
        length = LENGTHS[(i * 5) % len(LENGTHS)]
        cases.append(
            AttentionCase(
                dtype=tuple(DTYPES)[i % len(DTYPES)],
                batch=draw.choice((1, 2)),
                heads_q=4,
                heads_kv=heads_kv,
                seqlen_q=length,
                seqlen_k=length if draw.random() < 0.7 else draw.choice(LENGTHS),
                head_dim=draw.choice((16, 64, 80, 128, 256)),
                mask=draw.choice(("full", "causal", "causal-topleft")),
                regime=REGIMES[i % len(REGIMES)],
                layout=draw.choice(("contiguous", "contiguous", "bnhd")),
                scale=draw.choice((None, None, None, 0.0, -0.37, 8.0)),
                lse_grad=draw.random() < 0.2,
                seed=i,
            )
        )
    return cases


def plausible(
    count: int = 200, environment: Environment = H200, failures: int = 0, inconclusive: int = 0, unsupported: int = 0
) -> Certificate:
    """A certificate with plausible errors: growing with the length, larger in hard regimes, exact in some.

    The last records are failures (one of them not finite), then inconclusive, then declined cases.
    """
    draw = random.Random(7)
    records = [_plausible_record(case, draw) for case in plausible_cases(count)]
    position = count
    for verdict, number, reason in (
        (Verdict.UNSUPPORTED, unsupported, "head_dim 256 in fp64 needs more shared memory than this device has"),
        (Verdict.INCONCLUSIVE, inconclusive, "the worker died: CUDA error: an illegal memory access was encountered"),
        (Verdict.FAIL, failures, ""),
    ):
        for i in range(number):
            position -= 1
            old = records[position]
            if verdict is Verdict.FAIL:
                records[position] = _failing(old, math.nan if i == 0 else 4.0 + i)
            else:
                records[position] = record(AttentionCase.from_id(old.case), verdict, (), reason)
    return certificate(*records, environment=environment)


def _plausible_record(case: AttentionCase, draw: random.Random) -> CaseRecord:
    unit = ROUNDOFF[case.dtype]
    hard = 3.0 if case.regime in ("cancelling-values", "huge-logits", "key-offset") else 1.0
    exact = case.regime in ("integers", "signed-zeros")
    accuracy = []
    for tensor, mode in MODES:
        elements = max(1, case.batch * case.heads_q * case.seqlen_q * (1 if tensor == "lse" else case.head_dim))
        ulp = 0.5 if exact else hard * (0.5 + draw.lognormvariate(-0.5, 0.6) * max(1, case.seqlen_k) ** 0.25)
        truth = draw.gauss(0, 1) / math.sqrt(max(1, case.seqlen_k))
        budget = ulp * unit * abs(truth) / draw.uniform(0.02, 0.6)
        worst = Element(
            index=(case.batch - 1, 1, case.seqlen_q // 2, *(() if tensor == "lse" else (case.head_dim - 1,))),
            value=truth * (1 + ulp * unit), truth=truth, budget=budget,
        )  # fmt: skip
        headroom = ulp * unit * abs(truth) / budget
        accuracy.append(
            Measurement(
                tensor=tensor, mode=mode, elements=elements, max_error=abs(worst.value - truth), max_ulp=ulp,
                rms_error=ulp * unit * abs(truth) / 7, rms_ulp=ulp / 6.3, bias_ulp=draw.gauss(0, ulp / 300),
                headroom=headroom, certain_excess=headroom * 0.999, max_relative=ulp * unit * 1.7, violations=0,
                worst=worst, worst_ulp=worst if draw.random() < 0.4 else Element(
                    index=(0, *worst.index[1:]), value=truth * 1.3, truth=truth * 1.29, budget=budget * 1.1),
            )
        )  # fmt: skip
    results = [CheckResult(check="accuracy", verdict=Verdict.PASS, measurements=tuple(accuracy))]
    if max(case.seqlen_q, case.seqlen_k) <= 129:
        distances = tuple(
            measurement(tensor, "enclosure", max_relative=draw.lognormvariate(-34, 1), headroom=draw.uniform(0.01, 0.3))
            for tensor, mode in MODES
            if mode != "end-to-end"
        )
        results.append(CheckResult(check="function", verdict=Verdict.PASS, measurements=distances))
    blocks = "128" if case.head_dim <= 128 else "64"
    return CaseRecord(
        case=case.id, kernel="triton", verdict=Verdict.PASS, dtype=case.dtype, features="+".join(case.features),
        regime=case.regime, results=tuple(results),
        contract={
            "storage": case.dtype, "accumulator": "fp64" if case.dtype == "fp64" else "fp32",
            "dot": "TensorCore(block=16, extra_bits=2)" if case.dtype in ("fp16", "bf16") else "AnyOrder()",
            "operand": "None", "probability": case.dtype, "score_gradient": case.dtype, "exp2_ulps": "2.0",
            "log2_ulps": "1.0", "log2_absolute": "0.0", "division_ulps": "2.0", "fused": "False", "block_k": blocks,
        },
        configuration={"block_q": blocks, "block_k": blocks, "warps": "4", "stages": "2"},
        seconds=draw.uniform(0.05, 0.4), peak_bytes=draw.randrange(1 << 20, 1 << 28),
    )  # fmt: skip


def _failing(old: CaseRecord, excess: float) -> CaseRecord:
    first, *others = old.results[0].measurements
    bad = Element(index=(0, 3, 63, 0), value=excess, truth=0.0123, budget=3e-4)
    fields = {name: getattr(first, name) for name in Measurement.__dataclass_fields__ if name not in ("tensor", "mode")}
    fields |= {
        "max_error": excess, "max_ulp": excess, "headroom": excess, "certain_excess": excess, "violations": 12,
        "worst": bad, "worst_ulp": bad,
    }  # fmt: skip
    broken = measurement(first.tensor, first.mode, **fields)
    return record(AttentionCase.from_id(old.case), Verdict.FAIL, (broken, *others), "12 elements of out exceed their budget")


def claims(outcomes: tuple[Outcome, ...] = ("holds",), **changes: object) -> Claims:
    """Claims of these outcomes, measured on an H200."""
    series = Series(subject="ours", quantity="peak memory", unit="bytes", lengths=(1, 2), values=(1.5, 3.0))
    table = Table(columns=("a", "b"), rows=(("x", 1),))
    made = tuple(
        Claim(
            name=f"claim-{i}",
            statement="It is so.",
            method="By looking.",
            outcome=outcome,
            finding="It was seen.",
            series=(series,),
            table=table,
        )
        for i, outcome in enumerate(outcomes)
    )
    found = Claims(
        created="2026-01-31T12:00:00Z", environment=H200, kernel="triton", problem="1 sequence", seconds=1.0, claims=made
    )
    return msgspec.structs.replace(found, **changes)
