"""The checks on kernels made up for the purpose: the healthy one passes, and each broken one gets a verdict with its reason."""

import math
import re
from dataclasses import replace

import pytest
import torch

from flashverify.campaign.worker import examine_with
from flashverify.checks.examination import Examination
from flashverify.checks.function import BALL_OPERATIONS
from flashverify.checks.registry import all_checks
from flashverify.records.measurement import Verdict
from tests.checks.fakes import DOUBLE, HALF, SINGLE, FakeKernel, attention, replaced

CHECKS = ("accuracy", "function")


def examine(kernel, case=HALF):
    return examine_with(kernel, case, CHECKS)


def results(record):
    return {result.check: result.verdict for result in record.results}


@pytest.mark.parametrize(
    "case", [HALF, SINGLE, DOUBLE, HALF.replace(lse_grad=True), HALF.replace(seqlen_k=2)], ids=lambda c: c.id
)
def test_the_healthy_kernel_passes(case):
    record = examine(FakeKernel(), case)
    assert (record.verdict, record.reason) == (Verdict.PASS, "")
    expected = {"function"} if case.dtype == "fp64" else {"accuracy", "function"}
    assert results(record).keys() == expected
    assert set(results(record).values()) == {Verdict.PASS}
    measured = {(m.tensor, m.mode) for result in record.results for m in result.measurements}
    backward = {(name, mode) for name in ("dq", "dk", "dv") for mode in ("modular", "end-to-end")}
    enclosed = {(name, "enclosure") for name in ("out", "lse", "dq", "dk", "dv")}
    assert measured == enclosed | (set() if case.dtype == "fp64" else {("out", "forward"), ("lse", "forward")} | backward)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"seqlen_q": 0}, {"seqlen_k": 0, "mask": "full"}], ids=str)
def test_empty_sizes_pass_and_are_held_to_their_shapes(empty):
    case = HALF.replace(**empty)
    assert examine(FakeKernel(), case).verdict is Verdict.PASS
    wrong = examine(replaced("dv", lambda dv: dv.new_zeros(1)), case)
    assert wrong.verdict is Verdict.FAIL
    assert wrong.reason.startswith("dv: got shape (1,)")


WRONG_FORM = [
    ("out", lambda x: x[..., :1], "out: got shape (1, 2, 3, 1), accepted is (1, 2, 3, 2)"),
    ("out", lambda x: x.transpose(1, 2), "out: got shape (1, 3, 2, 2), accepted is (1, 2, 3, 2)"),
    ("dq", lambda x: x[:, :, :1], "dq: got shape (1, 2, 1, 2), accepted is (1, 2, 3, 2)"),
    ("dk", lambda x: x.sum(1), "dk: got shape (1, 4, 2), accepted is (1, 1, 4, 2)"),
    ("lse", lambda x: x[..., None], "lse: got shape (1, 2, 3, 1), accepted is (1, 2, 3)"),
    ("lse", lambda x: x.to(torch.bfloat16), "lse: got torch.bfloat16, accepted is torch.float32 or torch.float64"),
    ("lse", lambda x: None, "lse: the kernel gives none"),
    ("dv", lambda x: None, "dv: the kernel gives none"),
    ("out", lambda x: x.to("meta"), "out: got a tensor on meta, accepted is cpu"),
    ("out", lambda x: x.float(), "out: got torch.float32, accepted is torch.bfloat16"),
    ("dk", lambda x: x.half(), "dk: got torch.float16, accepted is torch.bfloat16"),
]


@pytest.mark.parametrize(("tensor", "change", "reason"), WRONG_FORM, ids=[reason for _, _, reason in WRONG_FORM])
def test_a_tensor_of_the_wrong_form_fails_whatever_it_holds(tensor, change, reason):
    """Some of these would broadcast against truth, and all but the last two hold right values."""
    record = examine(replaced(tensor, change))
    assert record.verdict is Verdict.FAIL
    assert record.reason == reason
    assert results(record)["accuracy"] is Verdict.FAIL
    assert not record.results[0].measurements


def test_lse_of_a_float64_case_is_float64():
    record = examine(replaced("lse", lambda lse: lse.float()), DOUBLE)
    assert (record.verdict, record.reason) == (Verdict.FAIL, "lse: got torch.float32, accepted is torch.float64")


WRONG_VALUES = [
    pytest.param("out", lambda x: x * math.nan, "out (", id="NaN everywhere"),
    pytest.param("out", lambda x: x.index_fill(2, torch.tensor([1]), math.inf), "out (", id="a row overflows"),
    pytest.param("out", lambda x: x * 1.1, "", id="10 % too large: the backward pass as a function of it looks worse"),
    pytest.param("lse", lambda x: torch.full_like(x, -math.inf), "lse (", id="lse says that no key is seen"),
    pytest.param("lse", lambda x: x * math.nan, "lse (", id="lse is NaN"),
    pytest.param("dq", lambda x: -x, "dq (", id="sign of dq"),
    pytest.param("dk", torch.zeros_like, "dk (", id="dk is never written"),
    pytest.param("dv", lambda x: x.flip(-1), "dv (", id="columns of dv change places"),
]


@pytest.mark.parametrize("case", [HALF, SINGLE, DOUBLE], ids=lambda c: c.dtype)
@pytest.mark.parametrize(("tensor", "change", "reason"), WRONG_VALUES)
def test_wrong_values_fail_in_every_precision(tensor, change, reason, case):
    record = examine(replaced(tensor, change), case)
    assert record.verdict is Verdict.FAIL
    assert set(results(record).values()) == {Verdict.FAIL}
    assert record.reason.startswith(reason)
    for result in record.results:
        assert tensor in {m.tensor for m in result.measurements if m.violations}


def test_overflow_of_fp16_fails_where_truth_is_in_range():
    def through_squares(case, inputs, outputs):
        return replace(outputs, out=outputs.out * 1e6 / 1e6)

    record = examine(FakeKernel(through_squares), HALF.replace(dtype="fp16"))
    assert results(record) == {"accuracy": Verdict.FAIL, "function": Verdict.PASS}
    assert record.reason.startswith("out (forward): ")
    assert ": value inf" in record.reason or ": value -inf" in record.reason


def test_a_case_beyond_the_range_of_its_dtype_is_unsupported_and_says_so():
    case = HALF.replace(dtype="fp16", scale=1e7)
    accuracy, function = examine(FakeKernel(), case).results
    assert accuracy.verdict is Verdict.UNSUPPORTED
    assert re.fullmatch(r"range: d[qk] may reach .*, the largest fp16 is 6.55e\+04", accuracy.reason)
    assert function.verdict is Verdict.PASS


def overwrite(case, inputs, outputs):
    inputs.k[0, 0, 0, 0] += 1.0


def overwrite_with_equal_value(case, inputs, outputs):
    inputs.q[inputs.q == 0.0] = -0.0


def scribble_behind_dout(case, inputs, outputs):
    buffer = inputs.dout.as_strided((1,), (1,), inputs.dout.storage_offset() + inputs.dout.numel())
    assert buffer.isnan()
    buffer.fill_(0.0)


def zero_k(case, inputs, outputs):
    inputs.k.zero_()


def scale_dlse(case, inputs, outputs):
    inputs.dlse.mul_(2.0)


@pytest.mark.parametrize(
    ("change", "tensor", "case"),
    [
        (overwrite, "k", HALF),
        (overwrite, "k", DOUBLE),
        (overwrite, "q", HALF.replace(seqlen_q=4, layout="packed-qkv")),
        (overwrite_with_equal_value, "q", HALF.replace(regime="signed-zeros")),
        (scribble_behind_dout, "dout", HALF),
        (scale_dlse, "dlse", HALF.replace(lse_grad=True)),
    ],
)
def test_a_kernel_that_writes_into_its_inputs_fails(change, tensor, case):
    """Bits decide: also a zero that changes its sign, a guard band, and one buffer behind q, k and v."""
    record = examine(FakeKernel(change), case)
    assert (record.verdict, record.reason) == (Verdict.FAIL, f"{tensor}: the kernel wrote into the memory of its input")
    assert set(results(record).values()) == {Verdict.FAIL}


def test_a_write_that_does_nothing_the_second_time_is_seen_by_every_check():
    record = examine(FakeKernel(zero_k))
    assert set(results(record).values()) == {Verdict.FAIL}


def test_a_kernel_without_lse_is_checked_in_all_else():
    kernel = FakeKernel(lambda case, inputs, outputs: replace(outputs, lse=None), returns_lse=False)
    record = examine(kernel)
    assert record.verdict is Verdict.PASS
    accuracy, function = record.results
    assert [(m.tensor, m.mode) for m in accuracy.measurements] == [
        ("out", "forward"), ("dq", "end-to-end"), ("dk", "end-to-end"), ("dv", "end-to-end"),
    ]  # fmt: skip
    assert [m.tensor for m in function.measurements] == ["out", "dq", "dk", "dv"]


@pytest.mark.parametrize("parameter", ["exp2_ulps", "log2_absolute"])
@pytest.mark.parametrize("bound", [math.inf, math.nan])
def test_a_contract_that_allows_everything_certifies_nothing(parameter, bound):
    kernel = FakeKernel(stated={parameter: bound})
    assert examine(kernel).verdict in {Verdict.INCONCLUSIVE, Verdict.UNSUPPORTED}


def test_a_kernel_with_digits_of_its_own_is_not_held_to_the_modular_budget():
    """Its gradients are better than those of the rounded out that it returned, and so are none of these."""
    case = HALF.replace(dtype="bf16")

    def from_exact_out(case, inputs, outputs):
        exact = attention(case.replace(dtype="fp64"), inputs)
        return replace(outputs, dq=exact.dq.bfloat16(), dk=exact.dk.bfloat16()) if case.dtype == "bf16" else None

    strict = examine(FakeKernel(from_exact_out), case)
    assert {m.mode for result in strict.results for m in result.measurements if m.violations} == {"modular"}
    free = examine(FakeKernel(from_exact_out, saves_outputs=False), case)
    assert free.verdict is Verdict.PASS
    assert "modular" not in {m.mode for result in free.results for m in result.measurements}


def test_the_kernel_runs_once_a_precision():
    kernel = FakeKernel()
    examine(kernel)
    assert kernel.runs == 2  # bf16, and its float64 instantiation
    kernel = FakeKernel()
    examine(kernel, DOUBLE)
    assert kernel.runs == 1


def test_large_cases_of_lower_precision_skip_the_function_check():
    case = HALF.replace(heads_q=1, seqlen_q=2, seqlen_k=BALL_OPERATIONS // 4)
    checks = all_checks()
    small = Examination(FakeKernel(), case)
    large = Examination(FakeKernel(), case.replace(seqlen_k=case.seqlen_k + 1))
    small.doubled.__dict__["outputs"] = large.__dict__["outputs"] = None  # nothing runs here
    assert checks["function"](large) is None
    assert checks["accuracy"](Examination(FakeKernel(), DOUBLE)) is None


def test_the_float64_instantiation_gets_the_same_values_in_the_same_layout():
    examination = Examination(FakeKernel(), HALF.replace(layout="strided-d"))
    double = examination.doubled
    assert double.case == examination.case.replace(dtype="fp64")
    for name in ("q", "k", "v", "dout"):
        mine, theirs = getattr(examination.inputs, name), getattr(double.inputs, name)
        assert theirs.dtype == torch.float64
        assert torch.equal(mine.double(), theirs)
        assert mine.stride() == theirs.stride()
    assert Examination(FakeKernel(), DOUBLE).doubled.case == DOUBLE


def test_a_declined_case_is_not_run():
    kernel = FakeKernel()
    record = examine(kernel, HALF.replace(head_dim=7))
    assert (record.verdict, record.reason, record.results) == (Verdict.UNSUPPORTED, "head size 7", ())
    assert kernel.runs == 0


def test_a_kernel_without_float64_is_unsupported_in_the_function_check_alone():
    class HalfKernel(FakeKernel):
        def declines(self, case):
            return "dtype fp64" if case.dtype == "fp64" else None

    record = examine(HalfKernel())
    assert results(record) == {"accuracy": Verdict.PASS, "function": Verdict.UNSUPPORTED}
    assert record.results[1].reason == "float64: dtype fp64"
    assert record.verdict is Verdict.PASS


def test_a_kernel_that_raises_is_no_verdict_here():
    """The worker turns it into an inconclusive record; see tests/campaign."""

    def give_up(case, inputs, outputs):
        raise ArithmeticError("no luck")

    with pytest.raises(ArithmeticError, match="no luck"):
        examine(FakeKernel(give_up))


def test_records_tell_how_the_case_ran():
    record = examine(FakeKernel(), HALF)
    assert record.case == HALF.id
    assert (record.kernel, record.dtype, record.regime) == ("fake", "bf16", "normal")
    assert record.features == "causal+cross-length+mqa"
    assert record.contract["storage"] == "bf16"
    assert record.configuration == {"case": "bf16"}
    assert record.peak_bytes is None
    assert record.seconds > 0.0
