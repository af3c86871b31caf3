"""The acceptance rules by which other projects test attention kernels, with their constants, inputs, and where they stand.

Each is a form of `rival_comparisons` with the project's own constants, references of `rival_formulas`, and inputs of
`rival_inputs`. What is known of a rule is in the docstring below it, with what is left aside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashverify.cases.case import AttentionCase
from flashverify.cases.lengths import lengths
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.mutants import rival_inputs
from flashverify.mutants.rival_comparisons import (
    by_largest_error,
    by_largest_error_or_floor,
    by_mean_error,
    by_root_mean_square,
    close,
    close_in_float32,
)
from flashverify.mutants.rival_formulas import mixed, plain, rounded

ANY_KIND = frozenset({"plain", "causal", "causal-topleft", "gqa", "mqa", "cross-length", "scale", "layout"})
"""Features of a case (`AttentionCase.features`) that are no reason for a rule to say nothing."""

SIXTEEN_BITS = frozenset({"fp16", "bf16"})
FORMATS = SIXTEEN_BITS | {"fp32"}


@dataclass(frozen=True, slots=True)
class Rule:
    """An acceptance rule of another project.

    Attributes:
        name: a short name.
        project: the repository, and the path of the rule in it.
        inputs: the distribution of its inputs, in a line.
        dtypes: short names of the dtypes that it is for.
        features: features of cases that the project's tests have, beyond `ANY_KIND`.
        draw: draws the project's inputs for a case, on a device.
        reference: what is compared with, from case, inputs and the kernel's own out.
        same_precision: the same formula in low precision, from case and inputs, whose error is the measure; None: the rule has
            no such measure.
        accepts: whether outputs are accepted, from them, the reference, and what is in the same precision (or None).
    """

    name: str
    project: str
    inputs: str
    dtypes: frozenset[str]
    features: frozenset[str]
    draw: Callable[[AttentionCase, torch.device | str], Inputs]
    reference: Callable[[AttentionCase, Inputs, torch.Tensor], Outputs]
    same_precision: Callable[[AttentionCase, Inputs], Outputs] | None
    accepts: Callable[[Outputs, Outputs, Outputs | None], bool]

    def says_nothing_of(self, case: AttentionCase) -> bool:
        """Whether the project tests nothing like the case."""
        empty = 0 in (case.batch, case.seqlen_q, case.seqlen_k)
        empty = empty or not all(any(pair[side] for pair in lengths(case)) for side in (0, 1))
        lacking = set(case.features) - ANY_KIND - self.features
        return empty or bool(lacking) or case.cache is not None or case.dtype not in self.dtypes


def _upcast(case: AttentionCase, inputs: Inputs, out: torch.Tensor) -> Outputs:
    """The formula in float32, rounded to the inputs' dtype."""
    del out
    return _math(case, inputs)


def _higher(case: AttentionCase, inputs: Inputs, out: torch.Tensor) -> Outputs:
    """The formula in float32 for 16 bits, in float64 for float32, and not rounded."""
    del out
    return plain(case, inputs, torch.float64 if case.dtype == "fp32" else torch.float32)


def _golden(case: AttentionCase, inputs: Inputs, out: torch.Tensor) -> Outputs:
    """The formula in float64."""
    del out
    return plain(case, inputs, torch.float64)


def _half_softmax(case: AttentionCase, inputs: Inputs, out: torch.Tensor) -> Outputs:
    """The formula in the inputs' dtype, but for the softmax, which is float32's."""
    del out
    return plain(case, inputs, inputs.q.dtype, softmax=torch.float32)


def _of_own_out(case: AttentionCase, inputs: Inputs, out: torch.Tensor) -> Outputs:
    """The formula in float32, rounded; gradients with P and dS rounded, and of the kernel's own out."""
    forward = _math(case, inputs)
    return dataclasses.replace(mixed(case, inputs, out), out=forward.out, lse=forward.lse)


def _low(case: AttentionCase, inputs: Inputs) -> Outputs:
    """The formula in the inputs' dtype, with keys multiplied by the scale."""
    return plain(case, inputs, inputs.q.dtype, scaled_keys=True)


def _math(case: AttentionCase, inputs: Inputs) -> Outputs:
    """What torch's math backend does: the formula in float32, rounded to the inputs' dtype."""
    return rounded(plain(case, inputs, torch.float32), inputs.q.dtype)


def _eager(case: AttentionCase, inputs: Inputs) -> Outputs:
    """What FlexAttention's eager function does: P and dS rounded to the inputs' dtype, and dk and dv of every query head."""
    return mixed(case, inputs, rounded_heads=True)


FLASH_ATTENTION = Rule(
    name="flash-attention",
    project="Dao-AILab/flash-attention, tests/test_flash_attn.py: test_flash_attn_output, test_flash_attn_varlen_output",
    inputs="standard normal q, k, v and dout; q times the soft cap, if there is one (at most 50)",
    dtypes=SIXTEEN_BITS,
    features=frozenset({"window", "softcap", "alibi", "dropout", "varlen"}),
    draw=rival_inputs.normal_capped,
    reference=_upcast,
    same_precision=_low,
    accepts=by_largest_error({"out": 2.0, "dq": 3.0, "dk": 3.0, "dv": 3.0}),
)
"""max|x - reference| <= 2 max|same precision - reference| for out, 3 times for dq, dk and dv, with no absolute term; not lse.

The reference (`attention_ref`) is float32's, rounded to the dtype; the other is all in the dtype, with the scale on k. Left
aside: 2 times and 1e-5 for all in its causal tests, 3 times and 1e-5 with a cache; 2 times for all in the tests of its later
kernels, 3 with a soft cap, and twice the error of adding and subtracting 0.3.
"""

TORCH = Rule(
    name="torch",
    project="pytorch/pytorch, test/test_transformers.py: check_out_and_grad in test_flash_attention_vs_math_ref_grads, "
    "and with a bias or in float32 in test_mem_efficient_attention_attn_mask_vs_math_ref_grads",
    inputs="q, k, v, dout and biases uniform between 0 and 1",
    dtypes=FORMATS,
    features=frozenset({"bias", "mask", "dropout"}),
    draw=rival_inputs.uniform,
    reference=_higher,
    same_precision=_math,
    accepts=by_largest_error_or_floor(
        {"out": 4.0, "dq": 180.0, "dk": 16.0, "dv": 4.0},
        changed_by_bias={"out": 4.0, "dq": 160.0, "dk": 25.0, "dv": 8.0, "dbias": 45.0},
        changed_in_float32={"out": 4.0, "dq": 160.0, "dk": 25.0, "dv": 8.0, "dbias": 45.0},
        pardons_nan=True,
    ),
)
"""max|x - reference| <= max(1e-5, factor max|same precision - reference|): out, dq, dk, dv, and dbias; not lse.

Factors are 4, 180, 16, 4 (5 by default); with a bias, or in float32, which FlashAttention lacks, 4, 160, 25, 8, and 45 for
the bias. Those of AMD's devices are larger. The reference is the math backend's in float32 (for float32: in float64), not
rounded. The other is the same backend in the dtype, which computes in float32 and rounds once (torch 2.13, found by running
it): its errors are one rounding's. The factors of test_mem_efficient_attention_vs_math_ref_grads, which has no bias, were not
found; for float32, those with a bias are taken.
"""

AOTRITON = Rule(
    name="aotriton",
    project="ROCm/aotriton, tritonsrc/_common_test.py (linked from test/): SdpaContext; test/_core_test_backward.py",
    inputs="q, k, v, dout and biases uniform between 0 and 1",
    dtypes=FORMATS,
    features=frozenset({"bias", "dropout", "varlen", "head-dim-v"}),
    draw=rival_inputs.uniform,
    reference=_higher,
    same_precision=_math,
    accepts=by_largest_error_or_floor(
        {"out": 3.0, "dq": 148.0, "dk": 48.0, "dv": 36.0, "dbias": 17.0},
        changed_by_bias={},
        changed_in_float32={"out": 14.0, "dk": 180.0, "dv": 50.0, "dbias": 24.0},
        pardons_nan=False,
    ),
)
"""max|x - reference| <= max(1e-5, factor max|same precision - reference|): out, dq, dk, dv, and dbias; not lse.

Factors are 3, 148, 48, 36, 17 (float32: 14, 148, 180, 50, 24), those without a device's own: gfx90a has larger ones, and so
have references on a CPU. Reference and same precision are torch's math backend, as in `TORCH`.
"""

FLEX_ATTENTION = Rule(
    name="flex-attention",
    project="pytorch/pytorch, test/inductor/test_flex_attention.py: TestFlexAttention._check_equal, _check_out_and_grad",
    inputs="standard normal q, k, v and dout",
    dtypes=FORMATS,
    features=frozenset({"window", "softcap", "alibi", "bias", "mask", "varlen", "head-dim-v", "dlse"}),
    draw=rival_inputs.normal,
    reference=_golden,
    same_precision=_eager,
    accepts=by_mean_error(1.1, in_float32=10.0),
)
"""mean|x - reference| <= 1.1 mean|same precision - reference| for out, dq, dk and dv (10 times in float32); not lse; no NaN.

The reference is the eager function in float64, the other the eager function in the dtype: scores and softmax in float32, P,
dS, and dk and dv of every query head rounded to the dtype (torch/_higher_order_ops/flex_attention.py, torch 2.13). Its tests
run with TF32 products where there are any, which is not imitated.
"""

CUDNN_FRONTEND = Rule(
    name="cudnn-frontend",
    project="NVIDIA/cudnn-frontend, test/python/sdpa/fp16.py: compute_and_compare_reference; helpers.py: approx_equal",
    inputs="q, k, v, dout and biases integers from -2 to 2, 80 % and more of them 0; then keys shifted, a few rows far below",
    dtypes=SIXTEEN_BITS,
    features=frozenset({"window", "alibi", "bias", "sink", "dropout", "varlen", "head-dim-v"}),
    draw=rival_inputs.sparse_integers,
    reference=_of_own_out,
    same_precision=None,
    accepts=close_in_float32(2e-2, 2e-2, changed={"dsink": 4e-2}, changed_in_bfloat16={"dk": 7e-2, "dv": 7e-2}),
)
"""|x - reference| <= 2e-2 + 2e-2 |reference| everywhere: out, lse, dq, dk, dv, dbias and dsink; both may be NaN.

The absolute part is 7e-2 for dk and dv in bfloat16, 4e-2 for dsink. The reference is float32's, with P and scale·dS rounded to
the dtype, rounded at the end; its gradients are those of the kernel's own out. Here, its out has unrounded P. Its inputs were
standard normal less 0.5, and dout a tenth of that, in test/python/test_mhas.py, which had 2e-2 too.
"""

TRITON_TUTORIAL = Rule(
    name="triton-tutorial",
    project="triton-lang/triton, python/tutorials/06-fused-attention.py: test_op",
    inputs="q, k and v normal of standard deviation 1/2, dout standard normal",
    dtypes=SIXTEEN_BITS,
    features=frozenset(),
    draw=rival_inputs.half_normal,
    reference=_half_softmax,
    same_precision=None,
    accepts=close(1e-2, 0.0),
)
"""|x - reference| <= 1e-2 everywhere, with no relative part (1e-2 on gfx90a): out, dv, dk and dq; not lse; no NaN.

The reference is itself in float16, with a softmax in float32. The test is of float16 alone (and float8, forward); here the rule
is also put to bfloat16.
"""

FLASH_LINEAR_ATTENTION = Rule(
    name="flash-linear-attention",
    project="fla-org/flash-linear-attention, tests/ops/test_attn.py; fla/utils.py: assert_close, get_err_ratio",
    inputs="standard normal q, k, v and dout",
    dtypes=SIXTEEN_BITS,
    features=frozenset({"window", "sink", "varlen"}),
    draw=rival_inputs.normal,
    reference=_upcast,
    same_precision=None,
    accepts=by_root_mean_square(0.005),
)
"""rms(reference - x) / (rms(reference) + 1e-8) < 0.005, or max|reference - x| <= 1e-6: out, dq, dk, dv and dsink; no NaN.

The reference is float32's, rounded to the dtype, and squares and means are taken in the dtype: in float16 the square of an
error of at most 2^-12.5 is 0. Left aside: where the variable FLA_CI_ENV is 1, a ratio below 0.01 or an error up to 0.3 only
warns. Its attention is causal and its test in float16; here the rule is also put to full masks and bfloat16.
"""

RULES = {
    rule.name: rule
    for rule in (
        FLASH_ATTENTION,
        TORCH,
        AOTRITON,
        FLEX_ATTENTION,
        CUDNN_FRONTEND,
        TRITON_TUTORIAL,
        FLASH_LINEAR_ATTENTION,
    )
}
"""Every rule by name, in a fixed order."""
