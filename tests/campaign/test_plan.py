"""The plan loses no case, adds none, and starts with what differs most."""

from hypothesis import given, settings
from hypothesis import strategies as st

from flashverify.campaign.campaign import MOST_WORKERS
from flashverify.campaign.plan import select, spread
from flashverify.cases.case import DTYPES, MASKS, AttentionCase
from flashverify.cases.matrices import matrix
from flashverify.cases.semantics import sides


def case_of(lengths, **fields):
    """A case, without the fields that lengths do not go with where there are any."""
    return AttentionCase(
        lengths=lengths, **fields | ({"bias": None, "layout": "contiguous", "mask": "full"} if lengths else {})
    )


cases = st.lists(
    st.builds(
        case_of,
        dtype=st.sampled_from(list(DTYPES)),
        batch=st.integers(0, 2),
        seqlen_q=st.integers(0, 5),
        seqlen_k=st.integers(0, 5),
        head_dim=st.sampled_from([1, 64]),
        mask=st.sampled_from(MASKS),
        window_left=st.sampled_from([None, 1]),
        head_dim_v=st.sampled_from([None, 8]),
        softcap=st.sampled_from([None, 2.0]),
        bias=st.sampled_from([None, "full"]),
        sink=st.booleans(),
        lengths=st.sampled_from([None, None, "ragged", "used"]),
        seed=st.integers(0, 3),
    ),
    max_size=30,
)


def work(case):
    return case.batch * case.heads_q * case.seqlen_q * case.seqlen_k * (case.head_dim + case.value_dim)


def source(case):
    """What is compiled, but for the dtype."""
    limits = tuple(side is None for side in sides(case))
    of_scores = case.softcap is None, case.alibi is None, case.bias, case.sink, case.lengths
    return case.head_dim, case.value_dim, *limits, *of_scores, case.layout


def instance(case):
    return case.dtype, *source(case)


@settings(deadline=None, derandomize=True)
@given(cases)
def test_spreading_is_a_permutation_that_does_not_depend_on_ties_alone(drawn):
    planned = spread(drawn)
    assert sorted(case.id for case in planned) == sorted(case.id for case in drawn)
    assert spread(drawn) == planned


@settings(deadline=None, derandomize=True)
@given(cases)
def test_the_first_cases_are_one_of_each_kernel_instance_and_the_largest_of_it(drawn):
    planned = spread(drawn)
    instances = {instance(case) for case in drawn}
    first = planned[: len(instances)]
    assert {instance(case) for case in first} == instances
    for case in first:
        assert work(case) == max(work(other) for other in drawn if instance(other) == instance(case))


def test_workers_that_start_together_share_no_float64_kernel():
    """Neighbours that differ in their dtype alone would each compile the same float64 instantiation."""
    planned = spread(matrix("standard"))
    first_round = [source(case) for case in planned[: len({instance(case) for case in planned})]]
    for start in range(len(first_round) - MOST_WORKERS):
        together = first_round[start : start + MOST_WORKERS]
        assert len(set(together)) >= MOST_WORKERS - 1  # two dtypes meet where one ends and the next begins


@settings(deadline=None, derandomize=True)
@given(cases, st.lists(st.sampled_from(["bf16", "_d64_", "causal", "cross-length", "layout", "nothing"]), max_size=2))
def test_selecting_keeps_the_order_and_exactly_those_that_hold_every_word(drawn, words):
    chosen = select(drawn, words)
    assert list(chosen) == [c for c in drawn if all(w in c.id or w in c.features for w in words)]
    if not words:
        assert chosen == tuple(drawn)
    if "nothing" in words:
        assert chosen == ()


def test_a_feature_is_selected_as_a_whole_word():
    plain = AttentionCase(dtype="bf16", seqlen_q=4, seqlen_k=5, head_dim=8)
    assert select([plain], ["cross-length"]) == (plain,)
    assert select([plain], ["cross"]) == ()
    assert select([plain], ["n4x5"]) == (plain,)
