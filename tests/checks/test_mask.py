"""The mask check: every bit is read off a faithful kernel, whatever the features; each planted defect is caught where it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.cases.case import AttentionCase
from flashverify.checks import probes
from flashverify.checks.examination import Examination
from flashverify.checks.mask import TENSORS
from flashverify.checks.probes import spread
from flashverify.checks.registry import all_checks
from flashverify.dropout.mask import stream_of
from flashverify.dropout.philox import philox4x32_scalar
from flashverify.records.measurement import Verdict
from tests.checks import dropping
from tests.checks.dropping import Dropping, everywhere, predicted

CASE = AttentionCase(
    dtype="bf16", batch=2, heads_q=4, heads_kv=2, seqlen_q=37, seqlen_k=70, head_dim=16, dropout=0.2, seed=3, mask="causal"
)
PLAIN = CASE.replace(mask="full", heads_kv=4)


@pytest.fixture
def every_block(monkeypatch):
    """All blocks are probed, as on a GPU."""
    monkeypatch.setattr(probes, "FEW_BLOCKS", 16)


def check(kernel, case):
    return all_checks()["mask"](Examination(kernel, case))


def failing(result):
    return {bits.tensor for bits in result.bits if bits.differing}


FEATURES = [
    {},
    {"mask": "full"},
    {"mask": "full", "seqlen_q": 90},
    {"window_left": 9},
    {"mask": "full", "window_left": 5, "window_right": 3},
    {"heads_q": 6, "heads_kv": 1},
    {"head_dim_v": 24},
    {"head_dim": 32, "head_dim_v": 8},
    {"softcap": 15.0},
    {"alibi": "heads"},
    {"alibi": "batch", "window_left": 40},
    *({"bias": bias} for bias in ("full", "heads", "batch", "hidden", "mask")),
    {"sink": True},
    {"lse_grad": True},
    {"lengths": "ragged", "batch": 5},
    {"lengths": "used", "batch": 4, "seed": 1},
    {"layout": "bnhd"},
    {"scale": -0.125},
    {"scale": 3000.0},
    {"scale": 2.0**-9},
    {"mask": "causal-topleft"},
]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("change", FEATURES, ids=str)
def test_every_visible_bit_of_a_faithful_kernel_is_told_and_right(change, dtype):
    result = check(Dropping(), CASE.replace(dtype=dtype, **change))
    assert result.verdict is Verdict.PASS, result.reason
    assert tuple(bits.tensor for bits in result.bits) == TENSORS
    for bits in result.bits:
        assert bits.compared > 0
        assert bits.untold == 0 or "alibi" in change, bits


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("rate", [0.0, 2.0**-32, 0.01, 0.5, 0.9, 0.999, 1 - 2.0**-32, 1.0])
def test_every_rate(rate, dtype):
    result = check(Dropping(), CASE.replace(dtype=dtype, dropout=rate))
    assert result.verdict is Verdict.PASS, result.reason
    assert all(bits.untold == 0 for bits in result.bits)


@given(
    st.sampled_from(["fp16", "bf16", "fp32", "fp64"]),
    st.floats(0.0, 1.0) | st.floats(0.0, 2.0**-28) | st.floats(0.0, 2.0**-28).map(lambda rate: 1.0 - rate),
    st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.integers(4, 24)
    ),
    st.integers(0, 2**64),
)
@settings(deadline=None, max_examples=40)
def test_any_rate_shape_and_seed(dtype, rate, shape, seed):
    batch, heads_kv, group, seqlen_q, seqlen_k, head_dim = shape
    case = AttentionCase(
        dtype=dtype, batch=batch, heads_q=group * heads_kv, heads_kv=heads_kv, seqlen_q=seqlen_q, seqlen_k=seqlen_k,
        head_dim=head_dim, dropout=rate, seed=seed,
    )  # fmt: skip
    result = check(Dropping(), case)
    assert result.verdict is Verdict.PASS, result.reason
    assert all(bits.untold == 0 for bits in result.bits)


def test_rows_that_keep_all_or_nothing_are_told_too():
    """With one visible key dS is 0 whatever the mask, as long as it is that of out; beside delta it is not."""
    one = CASE.replace(mask="full", window_left=0, window_right=0, heads_kv=4)
    for kernel, wrong in (
        (Dropping(), set()),
        (Dropping(of_dq=dropping.nothing), {"dq"}),
        (Dropping(of_dk=dropping.constant_seed), {"dk"}),
    ):
        assert failing(check(kernel, one)) == wrong


def test_cases_without_dropout_or_without_pairs():
    assert check(Dropping(), CASE.replace(dropout=None)) is None
    assert check(Dropping(), CASE.replace(seqlen_k=0)).verdict is Verdict.UNSUPPORTED


@pytest.mark.usefixtures("every_block")
def test_what_underflows_is_not_told_and_not_compared():
    """Keys that a steep linear bias hides are no evidence: neither for the kernel, nor against it."""
    steep = CASE.replace(dtype="fp16", heads_q=8, heads_kv=8, alibi="heads", seqlen_q=200, seqlen_k=200)
    result = check(Dropping(), steep)
    assert result.verdict is Verdict.PASS
    for bits in result.bits:
        assert bits.untold > 0
        assert bits.compared + bits.untold == 2 * 8 * 200 * 201 / 2


PARTS = {"out": "forward", "dq": "of_dq", "dk": "of_dk", "dv": "of_dv"}

DEFECTS = (
    *(dropping.constant_seed, dropping.no_offset, dropping.no_heads, dropping.no_entries, dropping.key_heads),
    *(dropping.transposed, dropping.tiles_of_rows, dropping.no_carry, dropping.eight_bits, dropping.one_bit, dropping.nothing),
)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_wrong_mask_is_caught_where_it_is(defect, tensor):
    result = check(Dropping(**{PARTS[tensor]: defect}), PLAIN if defect is not dropping.key_heads else CASE)
    assert result.verdict is Verdict.FAIL
    assert failing(result) == {tensor}
    assert f"{tensor}: " in result.reason


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_wrong_mask_everywhere_is_caught_everywhere(defect):
    assert failing(check(everywhere(defect), CASE)) == set(TENSORS)


def test_a_gradient_tells_nothing_where_the_probability_underflows():
    """Though its product with the probe's values would not: a GPU flushed probabilities of 1e-40, and 812 bits were misread."""
    steep = CASE.replace(alibi="batch", heads_q=6, heads_kv=2, seqlen_q=257, seqlen_k=300, head_dim=128)
    made = probes.probes(Examination(Dropping(), steep))
    for reading in (*made.of_keys(), *made.of_queries()):
        p = made.probabilities(reading.heads, reading.rows, reading.columns)
        assert not (reading.told & (p < made.floor)).any()


@pytest.mark.usefixtures("every_block")
def test_greater_than_the_threshold_is_caught_where_a_word_equals_it():
    b, h, i, j = 1, 2, 20, 41  # I = 12, J = 17, the second word of both halves of keys and the first of queries
    stream = stream_of(PLAIN)
    c = stream.offset // 4 + 17
    word = philox4x32_scalar((c % 2**32, c >> 32, 12, b * PLAIN.heads_q + h), stream.key)[2]
    result = check(everywhere(dropping.greater), PLAIN.replace(dropout=word / 2**32))
    assert failing(result) == set(TENSORS)
    assert all((bits.differing, bits.first) == (1, (b, h, i, j)) for bits in result.bits)


def test_a_kernel_with_its_own_generator_is_compared_with_its_forward_mask():
    result = check(everywhere(dropping.constant_seed, predictable=False), CASE)
    assert result.verdict is Verdict.PASS
    assert [(bits.tensor, bits.mode) for bits in result.bits] == [(name, "forward") for name in ("dq", "dk", "dv")]
    for tensor in ("dq", "dk", "dv"):
        kernel = Dropping(**{PARTS[tensor]: dropping.transposed}, predictable=False)
        assert failing(check(kernel, CASE)) == {tensor}
    assert failing(check(Dropping(forward=dropping.transposed, predictable=False), CASE)) == {"dq", "dk", "dv"}


def test_nan_shows_no_bit():
    def poisoned(case, inputs):
        outputs = Dropping().run(case, inputs)
        outputs.dq[0, 0, 5] = float("nan")
        return outputs

    kernel = Dropping()
    kernel.run = poisoned
    assert failing(check(kernel, PLAIN)) == {"dq"}


def test_a_missing_factor_does_not_hide_the_mask():
    """It is another defect, for the accuracy check: the bits are right."""
    for rate in (0.1, 0.7):
        assert check(Dropping(factor=lambda r: 1.0), CASE.replace(dropout=rate)).verdict is Verdict.PASS


def test_blocks_are_spread_and_include_the_ends():
    assert spread(range(0, 70, 16), 16) == [0, 16, 32, 48, 64]
    assert spread([], 16) == []
    many = spread(range(0, 16_000, 16), 16)
    assert len(many) == 16
    assert (many[0], many[-1]) == (0, 16 * 999)
    assert all(start % 16 == 0 for start in many)
    assert spread(range(5), 2) == [0, 4]


def test_the_masks_of_the_fake_are_what_they_say():
    assert all(not defect(PLAIN).equal(predicted(PLAIN)) for defect in DEFECTS if defect is not dropping.key_heads)
