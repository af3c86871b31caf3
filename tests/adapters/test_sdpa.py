"""torch's own attention backends: what they decline, what is stated of their arithmetic, and that they fit it on a GPU."""

import pytest
import torch

from flashverify.adapters import registry
from flashverify.adapters.sdpa import BACKENDS, SdpaKernel
from flashverify.campaign.worker import examine_with
from flashverify.cases.case import BIASES, AttentionCase
from flashverify.numerics.formats import BF16, FP32
from flashverify.records.measurement import Verdict

CASE = AttentionCase(dtype="bf16", seqlen_q=512, seqlen_k=512, head_dim=64)
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"mask": "causal-topleft"}, None),
        ({"mask": "causal-topleft", "seqlen_k": 513}, "top-left causal mask with seqlen_q != seqlen_k"),
        ({"dtype": "fp32"}, "fp32"),
        ({"heads_q": 4, "heads_kv": 2}, "grouped heads"),
        ({"lse_grad": True}, "gradient of lse"),
        ({"mask": "causal", "seqlen_k": 513}, "bottom-right causal mask with seqlen_q != seqlen_k"),
        ({"head_dim": 60}, "head size that is no multiple of 8, or above 128"),
        ({"seqlen_q": 0}, "empty sizes"),
        ({"scale": -1.0}, "scale that is not positive"),
        ({"layout": "offset"}, "layout offset"),
        *(({"bias": bias}, "biases or masks as tensors") for bias in BIASES),
        ({"sink": True}, "attention sinks"),
        ({"dropout": 0.5}, None),
        ({"dropout": 1.0}, "dropout of everything"),
    ],
)
def test_what_backends_decline(changes, reason):
    assert SdpaKernel("flash", CUDA).declines(CASE.replace(**changes)) == reason


def test_other_backends_than_flash_take_top_left_masks_of_any_lengths():
    case = CASE.replace(mask="causal-topleft", seqlen_k=513)
    assert all(SdpaKernel(backend, CUDA).declines(case) is None for backend in ("efficient", "cudnn"))


def test_the_contract_leaves_the_walk_open(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for backend in BACKENDS:
        contract = SdpaKernel(backend, CUDA).contract(CASE)
        assert (contract.storage, contract.probability, contract.accumulator) == (BF16, BF16, FP32)
        assert (contract.block_k, contract.block_k_exact, contract.exponent) == (16, False, "fused")
        assert contract.score_gradient_of_rounded is (backend == "efficient")
        assert contract.score_gradient_scaled is (backend != "flash")


def test_bad_names_and_machines_are_refused():
    with pytest.raises(ValueError, match="kernel: got 'sdpa:math', accepted are sdpa:flash, sdpa:cudnn, sdpa:efficient"):
        registry.load("sdpa:math", CUDA)
    with pytest.raises(ValueError, match="kernel: got 'sdpa:flash' without a GPU"):
        registry.load("sdpa:flash", torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_fits_its_contract(backend):
    kernel = SdpaKernel(backend, CUDA)
    record = examine_with(kernel, CASE, ("accuracy", "sharp", "distribution"))
    assert record.verdict is Verdict.PASS, record.reason
    assert "inferred" in record.configuration["walk"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "efficient"])
def test_backward_passes_of_a_backend_drop_what_its_forward_pass_drops(backend):
    case = CASE.replace(dropout=0.2, heads_q=2, heads_kv=2)
    record = examine_with(SdpaKernel(backend, CUDA), case, ("mask",))
    assert record.verdict is Verdict.PASS, record.reason
