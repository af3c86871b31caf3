"""What our kernels state of their arithmetic, by dtype and device, and how they say that they ran."""

import pytest
import torch

from flashverify.adapters.contracts import TENSOR_CORES, TF32_BLOCK, UNKNOWN_TENSOR_CORE, flash_attention
from flashverify.adapters.registry import PRECISIONS, load
from flashverify.adapters.triton import TritonKernel
from flashverify.campaign.worker import examine_with
from flashverify.cases import dense_bias, layouts, regimes
from flashverify.cases.case import BIASES, DTYPES, AttentionCase
from flashverify.numerics.dots import AnyOrder, SplitProducts, TensorCore
from flashverify.numerics.formats import BF16, FORMATS, FP32, FP64, TF32
from flashverify.numerics.hard import backward_budget, feature_budget, forward_budget
from flashverify.oracles import tiled
from flashverify.records.measurement import Verdict

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def case_of(dtype, **changes):
    return AttentionCase(dtype=dtype, seqlen_q=33, seqlen_k=65, head_dim=64, mask="causal").replace(**changes)


@pytest.fixture(params=[(8, 0), (9, 0), (12, 0)], ids=lambda capability: f"sm{capability[0]}{capability[1]}")
def capability(request, monkeypatch):
    """A machine with a GPU of that compute capability, as far as contracts look."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_formats_follow_the_dtype(dtype):
    contract = TritonKernel(CPU).contract(case_of(dtype))
    half = dtype in {"fp16", "bf16"}
    assert contract.storage is FORMATS[dtype]
    assert contract.accumulator is (FP64 if dtype == "fp64" else FP32)
    assert contract.probability is contract.score_gradient is (FORMATS[dtype] if half else None)
    assert contract.operand is None
    assert contract.flushes_subnormals is (dtype != "fp64")
    assert (contract.log2_absolute == 0.0) is (dtype == "fp64")
    assert contract.scale_roundings == (2 if dtype == "fp64" else 1)
    assert contract.exponent == "shifted"
    assert contract.block_k_exact


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_interpreter_multiplies_as_numpy_does(dtype):
    assert TritonKernel(CPU).contract(case_of(dtype)).dot == AnyOrder()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_cores_multiply_half_precision_alone(dtype, capability):
    dot = flash_attention(dtype, CUDA, block_q=64, block_k=64).dot
    if dtype in {"fp16", "bf16"}:
        assert dot == TENSOR_CORES.get(capability, UNKNOWN_TENSOR_CORE)
    else:
        assert dot == AnyOrder()  # float32 products in float32, not tf32


def test_an_unknown_gpu_gets_the_coarsest_tensor_core():
    for published in TENSOR_CORES.values():
        for length in (1, 16, 64, 256, 4096):
            assert UNKNOWN_TENSOR_CORE.kappa(length) >= published.kappa(length)


def test_tf32_is_stated_where_it_is_asked_for(capability):
    contract = flash_attention("fp32", CUDA, block_q=64, block_k=64, precision="tf32")
    half = TENSOR_CORES.get(capability, UNKNOWN_TENSOR_CORE)
    assert contract.operand is TF32
    assert contract.dot == TensorCore(TF32_BLOCK[half.block], half.extra_bits)
    assert (contract.probability, contract.score_gradient) == (None, None)


@pytest.mark.parametrize(("mask", "head_dim"), [("full", 16), ("causal", 64), ("causal-topleft", 256)])
def test_contract_and_configuration_name_the_tiles_that_run(mask, head_dim):
    kernel = TritonKernel(CPU)
    case = case_of("bf16", mask=mask, head_dim=head_dim)
    contract, configuration = kernel.contract(case), kernel.configuration(case)
    assert configuration.keys() == {"table", "forward", "dkdv", "dq"}
    assert configuration["forward"].split(",")[0].endswith(f"x{contract.block_k}")
    assert configuration["dkdv"].startswith(f"{contract.block_q}x")


def test_a_window_that_reaches_every_key_has_the_tiles_of_no_window(monkeypatch):
    """The kernels drop such a side, and take the table's entry for full visibility."""
    kernel = TritonKernel(CPU)
    monkeypatch.setattr(kernel._tables, "architecture", lambda device: "sm90")
    plain = case_of("bf16", mask="full", seqlen_q=512, seqlen_k=512)
    assert kernel.configuration(plain.replace(window_left=1024)) == kernel.configuration(plain)
    assert kernel.configuration(plain.replace(window_left=1023)) != kernel.configuration(plain)


@pytest.mark.parametrize("changes", [{"lengths": "keys"}, {"left_pad": True}, {"window_left": 2}])
def test_parts_are_stated_only_where_all_rows_share_out_the_same_keys(changes):
    """And a batch of no entry at all has a walk too, whatever its lengths and windows."""
    kernel, case = TritonKernel(CPU), case_of("fp32", batch=2, heads_q=1, heads_kv=1, seqlen_q=1, seqlen_k=300, cache="paged")
    assert kernel.contract(case).splits == 3
    assert kernel.contract(case.replace(**changes)).splits is None
    kernel.contract(case.replace(batch=0, window_left=2, lengths="keys", left_pad=True))


def test_fields_can_be_stated_and_wrong_ones_are_refused():
    assert flash_attention("bf16", CPU, block_q=None, block_k=16, prescaled=True).prescaled
    with pytest.raises(TypeError, match="colour"):
        flash_attention("bf16", CPU, block_q=None, block_k=16, colour="red")


def test_contracts_read_as_words():
    described = TritonKernel(CPU).contract(case_of("bf16")).describe()
    assert described["storage"] == described["probability"] == "bf16"
    assert described["accumulator"] == "fp32"
    assert all(isinstance(word, str) for word in described.values())


def test_every_case_of_today_is_taken():
    kernel = TritonKernel(CPU)
    assert kernel.declines(case_of("fp16", lse_grad=True, mask="causal-topleft")) is None
    assert kernel.returns_lse
    assert kernel.saves_outputs
    assert (kernel.sources / "forward.py").is_file()


@pytest.mark.parametrize(
    ("dtype", "scale", "declined"),
    [("bf16", 1e-45, True), ("fp32", 1e67, True), ("fp16", -1e67, True), ("fp64", 1e67, False), ("fp32", 0.0, False)],
)
def test_a_scale_that_the_kernels_refuse_is_declined(dtype, scale, declined):
    """It was inconclusive: the kernel's ValueError looked like a crash."""
    reason = TritonKernel(CPU).declines(case_of(dtype, scale=scale))
    assert (reason is not None) is declined
    assert reason is None or f"scale {scale}" in reason


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "bf16x6"])
def test_what_is_timed_is_what_a_user_calls(causal, precision):
    """`attend` gives the bits of the operator that is certified; the interpreter knows one precision."""
    kernel = TritonKernel(CPU, precision=precision)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 17, 8, generator=generator) for _ in range(3))
    expected, _ = torch.ops.flashverify_kernels.attention(
        q, k, v, 8**-0.5, None, None, None, None, 0 if causal else None, None, "ieee", None
    )
    assert torch.equal(kernel.attend(q, k, v, causal), expected)


def test_products_of_pieces_are_stated_by_precision(capability):
    core = TENSOR_CORES.get(capability, UNKNOWN_TENSOR_CORE)
    short = TensorCore(TF32_BLOCK[core.block], core.extra_bits)
    expected = {
        "ieee": AnyOrder(),
        "tf32": short,
        "tf32x3": SplitProducts(short, TF32, 2),
        "bf16x6": SplitProducts(core, BF16, 3),
    }
    for precision, dot in expected.items():
        contract = flash_attention("fp32", CUDA, block_q=64, block_k=64, precision=precision)
        assert contract.dot == dot
        assert contract.operand is (TF32 if precision == "tf32" else None)
        assert flash_attention("fp64", CUDA, block_q=64, block_k=64, precision=precision).dot == AnyOrder()


def test_the_interpreter_says_that_it_ignores_a_precision():
    for precision in ("bf16x6", "tf32x3", "tf32"):
        kernel = TritonKernel(CPU, precision=precision)
        assert kernel.configuration(case_of("fp32"))["products"] == f"ieee ({precision} is ignored here)"
        assert kernel.contract(case_of("fp32")).operand is None
    assert "products" not in TritonKernel(CPU).configuration(case_of("fp32"))


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_precision_of_float32_declines_other_dtypes(name):
    kernel = load(name, CPU)
    assert kernel.name == name
    assert kernel.declines(case_of("fp32")) is kernel.declines(case_of("fp64")) is None
    for dtype in ("fp16", "bf16"):
        reason = kernel.declines(case_of(dtype))
        assert reason is None if name == "triton" else reason == f"{kernel.precision} is a precision of float32 products"


@pytest.mark.parametrize("bias", [*BIASES, None])
@pytest.mark.parametrize("mask", ["causal", "causal-topleft"])
def test_biases_and_sinks_run_and_have_gradients_of_their_shapes(bias, mask, device):
    """Both ways, through the function and through the operator; a mask has no gradient, and a sink always one."""
    case = case_of("fp16", batch=2, heads_q=2, seqlen_q=9, seqlen_k=20, head_dim=16, mask=mask, bias=bias, sink=True)
    kernel = TritonKernel(device)
    assert kernel.declines(case) is None
    inputs = layouts.apply(case, regimes.draw(case, device))
    outputs, truth = kernel.run(case, inputs), tiled.attention(case, inputs)
    assert outputs.dsink.shape == (1, 2, 1)
    assert outputs.dsink.dtype == torch.float32
    if bias in (None, "mask"):
        assert outputs.dbias is None
    else:
        assert outputs.dbias.shape == dense_bias.shape(case)
        assert outputs.dbias.dtype == torch.float16
    contract = kernel.contract(case)
    forward = forward_budget(case, inputs, truth.out, truth.lse, contract)
    budgets = feature_budget(case, inputs, truth.out, truth.lse, contract, forward)
    allowed = {"out": forward.out, "lse": forward.lse, "dbias": budgets[0], "dsink": budgets[1]}
    for name, budget in allowed.items():
        if budget is not None:
            assert ((getattr(outputs, name).double() - getattr(truth, name)).abs() <= budget).all(), name
    exact = kernel.unrounded(case, inputs)
    assert exact.dsink.shape == (1, 2, 1)
    assert (exact.dbias is None) == (outputs.dbias is None)


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "changes", [{}, {"mask": "causal-topleft"}, {"lengths": "ragged", "batch": 4}, {"bias": "full", "dtype": "bf16"}], ids=str
)
def test_what_kernels_drop_is_what_the_host_predicts(changes, seed, device):
    """Through the function, the operator and packed sequences; the seeds' offsets are of every kind that there is."""
    case = case_of("fp16", batch=2, heads_q=4, heads_kv=2, seqlen_q=21, seqlen_k=40, head_dim=16, dropout=0.4, seed=seed)
    case = case.replace(**changes)
    kernel = TritonKernel(device)
    assert kernel.declines(case) is None
    inputs = layouts.apply(case, regimes.draw(case, device))
    contract, outputs = kernel.contract(case), kernel.run(case, inputs)
    truth, other = (tiled.attention(one, inputs) for one in (case, case.replace(dropout=None)))
    forward = forward_budget(case, inputs, truth.out, truth.lse, contract)
    gradients = backward_budget(case, inputs, truth.out, truth.lse, contract, forward)
    allowed = {"out": forward.out, "lse": forward.lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    kernels = [outputs] if case.lengths is not None else [outputs, kernel.unrounded(case, inputs)]
    for found in kernels:
        for name, budget in allowed.items():
            value = getattr(found, name).double()
            error = torch.where(value == getattr(truth, name), 0.0, value - getattr(truth, name)).abs()
            assert (error <= budget).all(), name
            assert name == "lse" or ((value - getattr(other, name)).abs() > budget).any(), name


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_nothing_or_everything_is_dropped(dropout, device):
    case = case_of("fp32", heads_q=2, seqlen_q=9, seqlen_k=20, head_dim=16, dropout=dropout, lse_grad=True)
    inputs = layouts.apply(case, regimes.draw(case, device))
    outputs, plain = (TritonKernel(device).run(one, inputs) for one in (case, case.replace(dropout=None)))
    assert torch.equal(outputs.lse, plain.lse)
    if dropout == 0.0:
        assert all(torch.equal(getattr(outputs, name), x) for name, x in plain.items())
    else:
        assert not outputs.out.any()
        assert not outputs.dv.any()
        assert outputs.dq.any()


def test_cases_without_biases_and_sinks_have_no_gradients_of_them(device):
    case = case_of("fp32", seqlen_q=5, seqlen_k=7, head_dim=16)
    outputs = TritonKernel(device).run(case, layouts.apply(case, regimes.draw(case, device)))
    assert outputs.dbias is None
    assert outputs.dsink is None


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "fp32", "heads_q": 2},
        {"dtype": "bf16", "mask": "causal-topleft"},
        {"dtype": "fp16", "lengths": "ragged", "batch": 3},
        {"dtype": "fp64", "bias": "hidden", "dropout": 0.9},
        {"dtype": "fp16", "mask": "full", "dropout": 1.0},
    ],
    ids=str,
)
def test_dropout_is_drawn_from_the_cases_stream(changes, device):
    """The host's prediction, read off every tensor; seed 3 has an offset that overflows the counter's low word."""
    case = case_of(**({"dtype": "fp32", "seqlen_q": 20, "seqlen_k": 36, "head_dim": 32, "dropout": 0.3, "seed": 3} | changes))
    record = examine_with(TritonKernel(device), case, ("mask", "sign_bit", "effective_rate"))
    assert record.verdict is Verdict.PASS, record.reason
    assert {bits.tensor for bits in record.results[0].bits} == {"out", "dq", "dk", "dv"}


def test_probabilities_are_returned_where_the_functions_do():
    kernel = TritonKernel(CPU)
    for changes in ({}, {"dropout": 0.0}, {"dropout": 0.5, "mask": "causal-topleft"}, {"dropout": 0.5, "lengths": "used"}):
        case = case_of("fp32", **changes)
        assert kernel.signed_probabilities(case, regimes.draw(case)) is None
