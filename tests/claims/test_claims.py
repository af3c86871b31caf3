"""Claims: what decides each of them, that it can be found not to hold, and the algorithm that they are compared with."""

import math

import pytest
import torch

from flashverify.cases import regimes
from flashverify.cases.matrices import matrix
from flashverify.claims import exactness, memory, sign_bit, speed, traffic
from flashverify.claims.problems import DROPPING, HEADS, OURS, STANDARD, standard_attention
from flashverify.oracles import dense
from flashverify.records.claims import Series
from flashverify.records.measurement import CaseRecord, Verdict

LENGTHS = (512, 1024, 2048)
SUBJECTS = (STANDARD, OURS, STANDARD + DROPPING, OURS + DROPPING)


def series(subject, values, quantity="q", unit="bytes", lengths=LENGTHS):
    return Series(subject=subject, quantity=quantity, unit=unit, lengths=lengths, values=tuple(map(float, values)))


def memory_series(changes=None):
    changes = changes or {}
    linear = [40_000 * n for n in LENGTHS]
    quadratic = [memory.WHOLE_MATRICES * HEADS * n * n * 2 + 40_000 * n for n in LENGTHS]
    return tuple(series(s, changes.get(s, linear if s.startswith(OURS) else quadratic)) for s in SUBJECTS)


ALLOCATIONS = {(subject, n): 12 for subject in SUBJECTS for n in LENGTHS}


def test_standard_attention_is_attention():
    case = exactness.COMPARED.replace(dtype="fp64", seqlen_q=33, seqlen_k=33)
    drawn = regimes.draw(case, torch.device("cpu"))
    out, _ = dense.forward(case, drawn)
    assert (standard_attention(drawn.q, drawn.k, drawn.v) - out).abs().max() <= 33 * torch.finfo(torch.float64).eps


def test_standard_attention_drops():
    q = torch.zeros(1, 1, 64, 16)
    torch.manual_seed(0)
    out = standard_attention(q, q, torch.eye(64)[None, None], 0.5)
    assert set(out.unique().tolist()) == {0.0, 2.0 / 64}


def test_memory_that_grows_linearly_holds():
    found = memory.judge(memory_series(), ALLOCATIONS)
    assert found.outcome == "holds"
    assert "ours 1.00" in found.finding


def test_memory_that_grows_faster_than_the_length_does_not_hold():
    rounding = memory.GRANULE * 12
    allowed = [40_000 * 512, 40_000 * 1024 + rounding, 2 * (40_000 * 1024 + rounding) + rounding]
    assert memory.judge(memory_series({OURS: allowed}), ALLOCATIONS).outcome == "holds"
    allowed[2] += 1
    found = memory.judge(memory_series({OURS: allowed}), ALLOCATIONS)
    assert found.outcome == "does not hold"
    assert "ours: " in found.finding


def test_a_mask_beside_the_others_does_not_hold():
    with_mask = [40_000 * n + HEADS * n for n in LENGTHS]
    found = memory.judge(memory_series({OURS + DROPPING: with_mask}), ALLOCATIONS)
    assert found.outcome == "does not hold"
    assert "with dropout" in found.finding


def test_standard_attention_without_its_matrices_is_no_comparison():
    assert memory.judge(memory_series({STANDARD: [1, 2, 3]}), ALLOCATIONS).outcome == "does not hold"


def test_memory_of_one_length_decides_nothing():
    short = tuple(series(s.subject, s.values[:1], lengths=LENGTHS[:1]) for s in memory_series())
    assert memory.judge(short, ALLOCATIONS).outcome == "not decided"


def timed(ours):
    return tuple(
        series(
            subject,
            ours if subject == OURS and quantity == speed.BOTH else (1, 2, 4) if OURS in subject else (2, 4, 9),
            quantity,
        )
        for subject in SUBJECTS
        for quantity in (speed.FORWARD, speed.BOTH)
    )


def test_time_holds_only_where_every_length_is_faster():
    assert speed.judge(timed((1, 2, 4))).outcome == "holds"
    found = speed.judge(timed((2, 2, 4)))
    assert found.outcome == "does not hold"
    assert "forward and backward at 512 tokens (1.00)" in found.finding


def test_time_without_a_common_length_is_not_decided():
    without = tuple(dataclasses_replace(s, lengths=(), values=()) if s.subject == STANDARD else s for s in timed((1, 2, 4)))
    assert speed.judge(without).outcome == "not decided"


def dataclasses_replace(one, **changes):
    return Series(**{name: changes.get(name, getattr(one, name)) for name in one.__struct_fields__})


def brute_force_standard(seqlen, dropping):
    """Bytes of a trace: (what, elements a pair, tensors of N x D) of every step."""
    pairs = {
        "S written": 2, "S read": 2, "P written": 2, "P read by PV or dropout": 2,
        "dP written": 2, "dP read": 2, "P read by the softmax": 2, "dS written": 2, "dS for dQ": 2, "dS for dK": 2,
        "P for dV": 2,
    }  # fmt: skip
    if dropping:
        pairs |= {"dropped written": 2, "dropped read": 2, "mask written": 1, "mask read": 1, "dD written": 2, "dD read": 2}
    rows = 16
    return HEADS * (seqlen**2 * sum(pairs.values()) + rows * seqlen * traffic.HEAD_DIM * 2)


@pytest.mark.parametrize("dropping", [False, True])
def test_what_standard_attention_moves_is_counted_step_by_step(dropping):
    assert traffic.standard_bytes(1024, dropping) == brute_force_standard(1024, dropping)


def test_blocks_of_all_rows_ask_for_everything_once():
    n = 1024
    assert traffic.our_most_bytes(n, n, n, n) == traffic.our_least_bytes(n)
    again = traffic.our_most_bytes(n, n // 2, n, n) - traffic.our_least_bytes(n)
    assert again == HEADS * 2 * n * traffic.HEAD_DIM * 2  # keys and values, once more


def counted(measured=None):
    profile = traffic.Profile(measured or {}, None if measured else "ncu is not installed")
    return traffic.measure((64, 64, 64), (64, 32, 64), profile)


def moved(factor_ours=1.0):
    most, standard = traffic.our_most_bytes(1024, 64, 64, 64), traffic.standard_bytes(1024, False)
    return {s: {1024: int(most * 0.5 * factor_ours) if OURS in s else standard} for s in SUBJECTS}


def test_bytes_are_judged_by_counts_where_nothing_was_measured():
    found = counted()
    assert found.outcome == "holds"
    assert found.finding.startswith("Counted alone: ncu is not installed")


def test_measured_bytes_decide():
    assert counted(moved()).outcome == "holds"
    found = counted(moved(2.1))
    assert found.outcome == "does not hold"
    assert "more than was counted at 1024" in found.finding


def test_bytes_that_tile_no_better_do_not_hold():
    profile = traffic.Profile(missing="ncu is not installed")
    assert traffic.measure((16, 16, 16), (16, 16, 16), profile).outcome == "does not hold"


def test_sign_bit_memory_is_judged_at_every_length():
    def judged(signed):
        pair = series(sign_bit.SIGNED_TENSOR, signed), series(sign_bit.SEPARATE_TENSORS, (3, 6, 12))
        return sign_bit.judge_bytes(pair)

    assert judged((2, 4, 8)).outcome == "holds"
    assert judged((2, 6, 8)).outcome == "does not hold"


def resources(signed, separate):
    of = {sign_bit.NO_MASK: (100, 0), sign_bit.SIGNED: signed, sign_bit.SEPARATE: separate}
    return {
        ("D=64 full", how, kernel): sign_bit.Resources(registers, spills, 0)
        for how, (registers, spills) in of.items()
        for kernel in sign_bit.KERNELS
    }


@pytest.mark.parametrize(
    ("signed", "separate", "outcome"),
    [
        ((200, 0), (210, 0), "holds"),
        ((255, 0), (255, 4), "holds"),
        ((210, 0), (200, 0), "does not hold"),
        ((200, 0), (200, 0), "does not hold"),
        ((200, 4), (255, 0), "does not hold"),
    ],
)
def test_registers_and_spills_decide(signed, separate, outcome):
    assert sign_bit.judge_resources(resources(signed, separate)).outcome == outcome


def test_time_of_the_signed_tile_has_to_be_shorter_everywhere():
    def judged(*signed):
        seconds = {str(i): {sign_bit.NO_MASK: 0.1, sign_bit.SIGNED: x, sign_bit.SEPARATE: 1.0} for i, x in enumerate(signed)}
        return sign_bit.judge_time(seconds)

    assert judged(0.9, 0.99).outcome == "holds"
    assert judged(0.9, 1.0).outcome == "does not hold"


def test_every_feature_has_a_small_case_in_the_smoke_matrix():
    chosen = exactness.representatives()
    assert tuple(chosen) == exactness.FEATURES
    assert all(feature in case.features for feature, case in chosen.items())
    assert set(chosen.values()) <= set(matrix("smoke"))


def record(verdict):
    return CaseRecord(
        case="fp16_b1_h1x1_n33x33_d16_full_normal_contiguous_s0", kernel="triton", verdict=verdict, reason="why", dtype="fp16",
        features="plain", regime="normal", results=(), contract={}, configuration={}, seconds=1.0, timings={}, peak_bytes=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ((Verdict.PASS, Verdict.PASS), "holds"),
        ((Verdict.PASS, Verdict.FAIL), "does not hold"),
        ((Verdict.PASS, Verdict.INCONCLUSIVE), "not decided"),
        ((Verdict.PASS, Verdict.UNSUPPORTED), "not decided"),
    ],
)
def test_exactness_is_the_verdict_of_the_function_check(verdicts, outcome):
    assert exactness.judge({str(i): record(verdict) for i, verdict in enumerate(verdicts)}).outcome == outcome


def test_errors_are_compared_tensor_by_tensor():
    assert exactness.judge_errors({"out": (1.0, 1.5), "dq": (2.0, 2.0)}).outcome == "holds"
    found = exactness.judge_errors({"out": (1.0, 1.5), "dq": (2.1, 2.0)})
    assert found.outcome == "does not hold"
    assert "Larger: dq" in found.finding


def test_slopes_are_powers_of_the_length():
    assert series(OURS, [n**2 for n in LENGTHS]).slope == pytest.approx(2.0, rel=1e-15)
    assert math.isnan(series(OURS, [1], lengths=(512,)).slope)
