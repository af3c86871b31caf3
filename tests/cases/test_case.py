"""Ids name cases exactly, and bad fields are refused with an error that names them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings

from flashverify.cases.case import BIASES, AttentionCase
from flashverify.cases.strategies import any_scales, any_softcaps, cases

PLAIN = AttentionCase(dtype="bf16", seqlen_q=128, seqlen_k=130, head_dim=64)


@settings(deadline=None)
@given(cases(scales=any_scales(), softcaps=any_softcaps()))
@example(PLAIN.replace(scale=5e-324))
@example(PLAIN.replace(scale=-1.7976931348623157e308, lse_grad=True))
@example(PLAIN.replace(scale=1e-05))
@example(PLAIN.replace(scale=1e300, seed=2**70))
@example(PLAIN.replace(softcap=2.0**-20))
@example(PLAIN.replace(scale=-1e-05, softcap=2.0**40, lse_grad=True))
@example(PLAIN.replace(softcap=30.0, alibi="batch", lse_grad=True))
@example(PLAIN.replace(bias="full"))
@example(PLAIN.replace(bias="hidden", sink=True, lse_grad=True))
@example(PLAIN.replace(scale=-1.0, softcap=30.0, alibi="heads", bias="mask", sink=True, lse_grad=True))
@example(PLAIN.replace(mask="causal-topleft", bias="batch", sink=True))
@example(PLAIN.replace(alibi="heads", sink=True, lengths="ragged", lse_grad=True))
@example(PLAIN.replace(lengths="used"))
@example(PLAIN.replace(dropout=0.0))
@example(PLAIN.replace(dropout=1.0, sink=True, lengths="used", lse_grad=True))
@example(PLAIN.replace(dropout=5e-324))
@example(PLAIN.replace(dropout=1 - 2.0**-53))
@example(PLAIN.replace(dropout=1e-05, softcap=30.0))
def test_id_round_trip(case: AttentionCase) -> None:
    again = AttentionCase.from_id(case.id)
    assert again == case
    assert again.id == case.id
    assert hash(again) == hash(case)


def test_id_keeps_the_sign_of_a_zero_scale() -> None:
    again = AttentionCase.from_id(PLAIN.replace(scale=-0.0).id)
    assert again.scale is not None
    assert math.copysign(1, again.scale) == -1


def test_id_is_readable() -> None:
    case = PLAIN.replace(heads_q=4, heads_kv=2, mask="causal", scale=0.5, lse_grad=True, seed=7)
    assert case.id == "bf16_b1_h4x2_n128x130_d64_causal_normal_contiguous_scale0.5_dlse_s7"
    assert case.replace(softcap=30).id == "bf16_b1_h4x2_n128x130_d64_causal_normal_contiguous_scale0.5_cap30.0_dlse_s7"
    biased = case.replace(scale=None, softcap=30, alibi="batch")
    assert biased.id == "bf16_b1_h4x2_n128x130_d64_causal_normal_contiguous_cap30.0_alibi-batch_dlse_s7"
    tensors = biased.replace(bias="heads", sink=True)
    assert tensors.id == "bf16_b1_h4x2_n128x130_d64_causal_normal_contiguous_cap30.0_alibi-batch_bias-heads_sink_dlse_s7"
    assert PLAIN.replace(sink=True).id == "bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_sink_s0"
    assert PLAIN.replace(bias="mask").id == "bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_bias-mask_s0"
    assert PLAIN.replace(alibi="heads").id == "bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_alibi-heads_s0"


@pytest.mark.parametrize("bias", [*BIASES, None])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("regime", ["normal", "sink"])
def test_ids_tell_biases_and_sinks_apart(bias: str | None, sink: bool, regime: str) -> None:
    case = PLAIN.replace(bias=bias, sink=sink, regime=regime, lse_grad=True)
    assert AttentionCase.from_id(case.id) == case
    others = [PLAIN.replace(bias=b, sink=s, regime=regime, lse_grad=True) for b in (*BIASES, None) for s in (False, True)]
    assert sum(other.id == case.id for other in others) == 1


def test_the_id_of_a_case_with_lengths() -> None:
    case = PLAIN.replace(batch=4, sink=True, lengths="ragged", lse_grad=True)
    assert case.id == "bf16_b4_h1x1_n128x130_d64_full_normal_contiguous_sink_lengths-ragged_dlse_s0"
    assert len({case.id, case.replace(lengths="used").id, case.replace(lengths=None).id}) == 3
    assert case.features == ("cross-length", "dlse", "sink", "varlen")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": "causal-topleft"}, "lengths: got 'used', accepted with mask causal-topleft is None"),
        ({"bias": "mask"}, "lengths: got 'used', accepted with bias mask is None"),
        ({"layout": "bnhd"}, "lengths: got 'used', accepted with layout bnhd is None"),
        ({"lengths": "padded"}, "lengths: got 'padded', accepted are ragged, used, keys and None"),
    ],
)
def test_what_lengths_do_not_go_with(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PLAIN.replace(**{"lengths": "used"} | changes)


def test_the_id_of_a_case_with_dropout() -> None:
    case = PLAIN.replace(sink=True, lengths="ragged", dropout=0.17, lse_grad=True)
    assert case.id == "bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_sink_lengths-ragged_drop0.17_dlse_s0"
    assert case.features == ("cross-length", "dlse", "dropout", "sink", "varlen")
    assert len({PLAIN.replace(dropout=rate).id for rate in (None, 0.0, 0.1, 0.2)}) == 4
    assert PLAIN.replace(dropout=0.0).features == ("cross-length", "dropout")


def test_equal_dropouts_have_one_id() -> None:
    assert {PLAIN.replace(dropout=rate).id for rate in (1, 1.0, np.float64(1))} == {PLAIN.replace(dropout=1.0).id}
    assert PLAIN.replace(dropout=-0.0).id == "bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_drop0.0_s0"


def test_a_cache_has_no_dropout() -> None:
    with pytest.raises(ValueError, match=r"^dropout: got 0.1, accepted with a cache is None"):
        PLAIN.replace(cache="paged", dropout=0.1)


def test_equal_scales_have_one_id() -> None:
    ids = {PLAIN.replace(scale=scale).id for scale in (2, 2.0, np.float64(2))}
    assert ids == {"bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_scale2.0_s0"}


def test_equal_softcaps_have_one_id() -> None:
    ids = {PLAIN.replace(softcap=softcap).id for softcap in (30, 30.0, np.float64(30))}
    assert ids == {"bf16_b1_h1x1_n128x130_d64_full_normal_contiguous_cap30.0_s0"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bf16",
        PLAIN.id + "\n",
        PLAIN.id.replace("_s0", "_s00"),
        PLAIN.id.replace("n128", "n0128"),
        PLAIN.id.replace("n128", "n١٢٨"),
        PLAIN.id.replace("_s0", "_scale0.50_s0"),
        PLAIN.id.replace("_s0", "_scaleinf_s0"),
        PLAIN.id.replace("_s0", "_scale1.2.3_s0"),
        PLAIN.id.replace("_s0", "_scale1e999_s0"),
        PLAIN.id.replace("_s0", "_cap30_s0"),
        PLAIN.id.replace("_s0", "_cap-30.0_s0"),
        PLAIN.id.replace("_s0", "_cap0.0_s0"),
        PLAIN.id.replace("_s0", "_capnan_s0"),
        PLAIN.id.replace("_s0", "_cap1e999_s0"),
        PLAIN.id.replace("_s0", "_cap30.0_scale2.0_s0"),
        PLAIN.id.replace("_s0", "_dlse_cap30.0_s0"),
        PLAIN.id.replace("_s0", "_alibi_s0"),
        PLAIN.id.replace("_s0", "_alibi-none_s0"),
        PLAIN.id.replace("_s0", "_alibi-heads_cap30.0_s0"),
        PLAIN.id.replace("_s0", "_dlse_alibi-heads_s0"),
        PLAIN.id.replace("full", "causal-topleft").replace("_s0", "_alibi-heads_s0"),
        PLAIN.id.replace("_s0", "_bias_s0"),
        PLAIN.id.replace("_s0", "_bias-none_s0"),
        PLAIN.id.replace("_s0", "_bias-FULL_s0"),
        PLAIN.id.replace("_s0", "_bias-full_alibi-heads_s0"),
        PLAIN.id.replace("_s0", "_bias-full_bias-full_s0"),
        PLAIN.id.replace("_s0", "_sink_bias-full_s0"),
        PLAIN.id.replace("_s0", "_dlse_sink_s0"),
        PLAIN.id.replace("_s0", "_sink_sink_s0"),
        PLAIN.id.replace("_s0", "_sink-1_s0"),
        PLAIN.id.replace("_s0", "_lengths_s0"),
        PLAIN.id.replace("_s0", "_lengths-padded_s0"),
        PLAIN.id.replace("_s0", "_lengths-used_sink_s0"),
        PLAIN.id.replace("_s0", "_dlse_lengths-used_s0"),
        PLAIN.id.replace("full", "causal-topleft").replace("_s0", "_lengths-used_s0"),
        PLAIN.id.replace("contiguous", "bnhd").replace("_s0", "_lengths-used_s0"),
        PLAIN.id.replace("_s0", "_drop0_s0"),
        PLAIN.id.replace("_s0", "_drop0.10_s0"),
        PLAIN.id.replace("_s0", "_drop1.5_s0"),
        PLAIN.id.replace("_s0", "_drop-0.0_s0"),
        PLAIN.id.replace("_s0", "_dropnan_s0"),
        PLAIN.id.replace("_s0", "_dlse_drop0.1_s0"),
        PLAIN.id.replace("_s0", "_drop0.1_sink_s0"),
        PLAIN.id.replace("_s0", "_s-1"),
        PLAIN.id.replace("d64", "d257"),
        PLAIN.id.replace("bf16", "fp8"),
        PLAIN.id.replace("full", "window"),
        PLAIN.id.replace("normal", "normal--large"),
        PLAIN.id.replace("_s0", "_s" + "9" * 5000),
    ],
)
def test_other_texts_are_no_ids(text: str) -> None:
    with pytest.raises(ValueError, match="accepted"):
        AttentionCase.from_id(text)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("dtype", "float16", ValueError),
        ("dtype", ["fp16"], TypeError),
        ("mask", "window", ValueError),
        ("lengths", 5, TypeError),
        ("lengths", True, TypeError),
        ("mask", None, TypeError),
        ("batch", -1, ValueError),
        ("batch", True, TypeError),
        ("heads_q", 0, ValueError),
        ("heads_kv", 0, ValueError),
        ("heads_q", 3, ValueError),
        ("seqlen_q", 1.0, TypeError),
        ("seqlen_k", "5", TypeError),
        ("seqlen_k", -5, ValueError),
        ("head_dim", 0, ValueError),
        ("head_dim", 257, ValueError),
        ("seed", True, TypeError),
        ("seed", -1, ValueError),
        ("seed", None, TypeError),
        ("scale", math.nan, ValueError),
        ("scale", -math.inf, ValueError),
        ("scale", 10**400, ValueError),
        ("scale", "1", TypeError),
        ("scale", True, TypeError),
        ("softcap", 0.0, ValueError),
        ("softcap", -30.0, ValueError),
        ("softcap", math.nan, ValueError),
        ("softcap", math.inf, ValueError),
        ("softcap", 2.0**-21, ValueError),
        ("softcap", math.nextafter(2.0**40, math.inf), ValueError),
        ("softcap", 10**400, ValueError),
        ("softcap", "30", TypeError),
        ("softcap", True, TypeError),
        ("dropout", -0.1, ValueError),
        ("dropout", math.nextafter(1, 2), ValueError),
        ("dropout", math.nan, ValueError),
        ("dropout", math.inf, ValueError),
        ("dropout", 10**400, ValueError),
        ("dropout", "0.1", TypeError),
        ("dropout", True, TypeError),
        ("alibi", "slopes", ValueError),
        ("alibi", "", ValueError),
        ("alibi", True, TypeError),
        ("alibi", ["heads"], TypeError),
        ("bias", "heads-batch", ValueError),
        ("bias", "", ValueError),
        ("bias", True, TypeError),
        ("bias", ["full"], TypeError),
        ("sink", 1, TypeError),
        ("sink", None, TypeError),
        ("sink", "yes", TypeError),
        ("lse_grad", 1, TypeError),
        ("regime", "Normal", ValueError),
        ("regime", "a_b", ValueError),
        ("regime", "-a", ValueError),
        ("layout", "", ValueError),
        ("layout", 3, TypeError),
    ],
)
def test_bad_fields_are_named(field: str, value: object, error: type[Exception]) -> None:
    case = PLAIN.replace(heads_q=2, heads_kv=2)
    with pytest.raises(error, match=rf"^{field}: got .*accepted"):
        case.replace(**{field: value})


@pytest.mark.parametrize("alibi", ["heads", "batch"])
def test_biases_are_aligned_bottom_right(alibi: str) -> None:
    with pytest.raises(ValueError, match=rf"^alibi: got '{alibi}', accepted with mask causal-topleft is None"):
        PLAIN.replace(mask="causal-topleft", alibi=alibi)


def test_features() -> None:
    assert PLAIN.replace(seqlen_k=128).features == ("plain",)
    case = PLAIN.replace(heads_q=4, heads_kv=2, mask="causal", scale=0.5, lse_grad=True, layout="bnhd")
    assert case.features == ("causal", "cross-length", "dlse", "gqa", "layout", "scale")
    assert PLAIN.replace(heads_q=4).features == ("cross-length", "mqa")
    assert PLAIN.replace(seqlen_k=128, softcap=30.0).features == ("softcap",)
    assert PLAIN.replace(seqlen_k=128, softcap=30.0, alibi="heads").features == ("alibi", "softcap")
    for bias in BIASES:
        assert PLAIN.replace(seqlen_k=128, bias=bias).features == ("mask" if bias == "mask" else "bias",)
    assert PLAIN.replace(seqlen_k=128, sink=True, bias="hidden").features == ("bias", "sink")
