"""Bring your own kernel: any function with the signature of torch's SDPA is examined as it is."""

import re

import pytest
import torch

from flashverify.adapters import registry
from flashverify.adapters.function import FunctionKernel
from flashverify.campaign.worker import examine_with
from flashverify.cases.case import BIASES, AttentionCase
from flashverify.cases.regimes import draw
from flashverify.records.measurement import Verdict

CPU = torch.device("cpu")
SDPA = "torch.nn.functional:scaled_dot_product_attention"
MINE = "tests.adapters.functions"

TINY = AttentionCase(dtype="fp32", heads_q=2, seqlen_q=5, seqlen_k=5, head_dim=4, mask="causal")


def examine(function, case=TINY):
    path = function if ":" in function else f"{MINE}:{function}"
    return examine_with(FunctionKernel(path, CPU), case, ("accuracy", "function"))


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        TINY.replace(dtype="fp64"),
        TINY.replace(dtype="bf16", mask="full", seqlen_k=19, head_dim=16),
        TINY.replace(dtype="fp16", layout="bnhd", scale=0.75),
        TINY.replace(mask="causal-topleft", seqlen_k=9, heads_kv=2),
        TINY.replace(regime="equal-logits", seqlen_q=1, seqlen_k=1),
        TINY.replace(batch=0),
    ],
    ids=lambda case: case.id,
)
def test_torchs_own_attention_passes(case):
    record = examine(SDPA, case)
    assert (record.verdict, record.reason) == (Verdict.PASS, "")
    assert {m.tensor for result in record.results for m in result.measurements} == {"out", "dq", "dk", "dv"}
    assert record.configuration["contract"] == "assumed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seqlen_k": 6}, "bottom-right causal mask with seqlen_q != seqlen_k"),
        ({"lse_grad": True}, "gradient of lse"),
        *(({"bias": bias}, "biases or masks as tensors") for bias in BIASES),
        ({"sink": True}, "attention sinks"),
    ],
)
def test_what_the_signature_cannot_say_is_unsupported(changes, reason):
    record = examine(SDPA, TINY.replace(**changes))
    assert (record.verdict, record.reason) == (Verdict.UNSUPPORTED, reason)


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_a_function_that_announces_lse_has_it_checked_and_differentiated(dtype):
    record = examine("eager", TINY.replace(dtype=dtype, lse_grad=True))
    assert (record.verdict, record.reason) == (Verdict.PASS, "")
    assert "lse" in {m.tensor for m in record.results[0].measurements}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("unannounced_lse", "got a tuple, but its attribute returns_lse is False"),
        ("announced_but_missing_lse", "got one tensor, but its attribute returns_lse is True"),
    ],
)
def test_an_lse_is_neither_dropped_nor_made_up_in_silence(function, words):
    with pytest.raises(TypeError, match=words):
        examine(function)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("without_gradient", "out: the kernel's result is not differentiable: it has no grad_fn"),
        ("without_gradient_of_key", "dk: the kernel's backward pass gives none"),
        ("broadcast", "out: got shape (1, 1, 5, 4), accepted is (1, 2, 5, 4)"),
        ("nothing", "out: got NoneType, accepted are tensors"),
    ],
)
def test_a_function_that_gives_no_answer_fails(function, reason):
    record = examine(function)
    assert (record.verdict, record.reason) == (Verdict.FAIL, reason)


def test_a_function_that_computes_something_else_fails():
    record = examine("ignores_causal")
    assert record.verdict is Verdict.FAIL
    assert {result.verdict for result in record.results} == {Verdict.FAIL}


def test_a_function_can_decline_a_precision():
    case = TINY.replace(dtype="bf16")
    record = examine("half_only", case)
    assert record.verdict is Verdict.PASS
    assert {result.check: result.reason for result in record.results} == {"accuracy": "", "function": "float64: dtype fp64"}
    assert examine("half_only", TINY.replace(dtype="fp64")).reason == "dtype fp64"


def test_a_function_can_state_its_contract():
    kernel = FunctionKernel(f"{MINE}:stated", CPU)
    assert kernel.contract(TINY).block_k == 32
    assert kernel.configuration(TINY) == {"contract": "stated"}
    assumed = FunctionKernel(f"{MINE}:only_out", CPU).contract(TINY)
    assert (assumed.block_k, assumed.block_k_exact, assumed.block_q) == (16, False, None)


DROPPED = TINY.replace(mask="full", dropout=0.3, seqlen_q=40, seqlen_k=64, head_dim=16)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_dropout_of_torchs_own_attention_is_one_mask_of_the_right_rate(dtype):
    """Its mask is not ours: it is held to itself, and no oracle knows it."""
    case = DROPPED.replace(dtype=dtype, heads_q=4, batch=4, seqlen_q=256, seqlen_k=256)
    record = examine_with(FunctionKernel(SDPA, CPU), case, ("accuracy", "function", "mask", "effective_rate", "statistics"))
    verdicts = {result.check: result.verdict for result in record.results}
    assert {verdicts[name] for name in ("mask", "effective_rate", "statistics")} == {Verdict.PASS}, record.reason
    assert verdicts.get("accuracy", verdicts.get("function")) is Verdict.UNSUPPORTED
    (mask,) = (result for result in record.results if result.check == "mask")
    assert [(bits.tensor, bits.mode, bits.compared) for bits in mask.bits] == [
        (name, "forward", 4 * 4 * 256 * 256) for name in ("dq", "dk", "dv")
    ]


def test_runs_of_a_case_drop_the_same_pairs_and_further_calls_others():
    kernel, outside = FunctionKernel(SDPA, CPU), torch.get_rng_state()
    inputs = draw(DROPPED)
    first, again, same = (call(DROPPED, inputs) for call in (kernel.run, kernel.run_again, kernel.run))
    assert torch.equal(first.out, same.out)
    assert torch.equal(first.dq, same.dq)
    assert not torch.equal(first.out, again.out)
    assert not torch.equal(first.out, kernel.run(DROPPED.replace(seed=1), inputs).out)
    assert torch.equal(torch.get_rng_state(), outside)  # and nobody else's numbers change


def test_a_further_call_needs_a_first_one():
    with pytest.raises(RuntimeError, match="no call has drawn from the generator yet"):
        FunctionKernel(SDPA, CPU).run_again(DROPPED, draw(DROPPED))


def test_a_function_without_dropout_declines_it():
    assert examine("only_out", DROPPED).reason == "dropout"
    assert FunctionKernel(f"{MINE}:dropping", CPU).declines(DROPPED) is None


BAD_PATHS = {
    "no_such_package:f": "module 'no_such_package' can't be imported: ModuleNotFoundError: No module named 'no_such_package'",
    f"{MINE}:no_such_function": f"'{MINE}' has no function 'no_such_function'",
    f"{MINE}:NOT_A_FUNCTION": f"'{MINE}' has no function 'NOT_A_FUNCTION'",
    "tests.adapters.broken_module:f": "can't be imported: RuntimeError: libattention.so is missing",
    ":f": "accepted are paths such as package.module:function",
    "torch:": "accepted are paths such as package.module:function",
    ".relative:f": "accepted are paths such as package.module:function",
    "torch:nn:functional": "'torch' has no function 'nn:functional'",
}


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_nowhere_is_an_error_that_says_which_part(path):
    with pytest.raises(ValueError, match=re.escape(f"kernel: got {path!r}")) as caught:
        registry.load(path, CPU)
    assert BAD_PATHS[path] in str(caught.value)


def test_the_registry_knows_ours_and_paths_and_nothing_else():
    assert registry.load("triton", CPU).name == "triton"
    assert registry.load(SDPA, CPU).name == SDPA
    with pytest.raises(ValueError, match=r"kernel: got 'cutlass', accepted are triton, .*, and package\.module:function"):
        registry.load("cutlass", CPU)
