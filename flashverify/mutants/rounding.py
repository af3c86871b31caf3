"""Planted defects of rounding: the function stays the same, and every element stays within the hard budget, or nearly.

They are what the sharp budget and the distribution of errors are for. Those that need bfloat16 leave other dtypes as they are.
"""

from __future__ import annotations

from textwrap import indent

from flashverify.mutants.mutant import Edit, Mutant

P = "        p = tl.exp2((scores - shift[:, None]) * exponent_scale)\n"
P_V = "        accumulator = tl.dot(as_operand(p, STORAGE, BF16), v,"
RESCALED = "        accumulator = accumulator * rescale[:, None]\n"
ROW_SUM = "        running_sum = running_sum * rescale + tl.sum(p, 1)\n"
SIGNED_Q = "    if SIGNED:\n        q = (q * sign).to(q.dtype)\n    k_base ="
DS_OF_KEYS = "            if BIAS:\n                ds = tl.where(p == 0.0, 0.0, ds)\n"
DS_OF_QUERIES = "        if BIAS:\n            ds = tl.where(p == 0.0, 0.0, ds)\n"
DQ = "        dq = tl.dot(as_operand(ds, STORAGE, BF16), k, dq, input_precision=PRECISION, out_dtype=ACCUMULATOR)\n"
STORED_DELTA = "    tl.store(rows_delta_ptr + padded_offsets, delta)\n"
STORED_LSE = "    tl.store(rows_lse_ptr + padded_offsets, lse)\n"

CUBIC = (1.0, 0.695556856, 0.226173572, 0.078269572)
"""Coefficients of a cubic that is within 1e-4 of 2^f on [0, 1], and exact at both ends."""


def _truncated(name: str) -> str:
    """Code that cuts a float32 tile to the bits of STORAGE, toward zero."""
    cut = f"{name} = ({name}.to(tl.uint32, bitcast=True) & {{mask}}).to(tl.float32, bitcast=True)"
    return (
        f"        if STORAGE == tl.bfloat16:\n            {cut.format(mask='0xFFFF0000')}\n"
        f"        elif STORAGE == tl.float16:\n            {cut.format(mask='0xFFFFE000')}\n"
    )


def _in_bfloat16(name: str) -> str:
    """Code that rounds a float32 tile to bfloat16's grid where the inputs are bfloat16."""
    return f"        if STORAGE == tl.bfloat16:\n            {name} = as_operand({name}, STORAGE, True)\n"


_HALF_DS = "        if STORAGE == tl.bfloat16:\n            ds = ds.to(tl.float16).to(tl.float32)\n"
_PRESCALED = (
    "    if SIGNED:\n        q = (q * sign).to(q.dtype)\n"
    "    if STORAGE == tl.bfloat16:\n"
    "        q = as_operand(q.to(tl.float32) * exponent_scale, STORAGE, BF16)\n"
    "        exponent_scale = exponent_scale * 0.0 + 1.0\n"
    "        scale = scale * 0.0 + LN2\n"
    "    k_base ="
)
_CUBIC = (
    "        argument = tl.maximum((scores - shift[:, None]) * exponent_scale, -150.0)\n"
    "        whole = tl.floor(argument)\n"
    "        part = argument - whole\n"
    f"        p = tl.exp2(whole) * ({CUBIC[0]} + part * ({CUBIC[1]} + part * ({CUBIC[2]} + part * {CUBIC[3]})))\n"
    "        p = tl.where(argument == -150.0, 0.0, p)\n"
)

ROUNDING = (
    Mutant(
        "p-truncated",
        "P is truncated, not rounded, before it meets V.",
        "ROCm/aiter#5151",
        (Edit("forward.py", P_V, _truncated("p") + P_V),),
    ),
    Mutant(
        "out-accumulated-in-bf16",
        "The output's accumulator is rounded to bfloat16 at every key block.",
        "zhuzilin/ring-flash-attention#22",
        (Edit("forward.py", RESCALED, RESCALED + _in_bfloat16("accumulator")),),
    ),
    Mutant(
        "row-sum-in-bf16",
        "The row sum is kept in bfloat16.",
        "control",
        (Edit("forward.py", ROW_SUM, ROW_SUM + _in_bfloat16("running_sum")),),
    ),
    Mutant(
        "q-prescaled-in-bf16",
        "q is multiplied by the scale and log2(e), and rounded to bfloat16, before the product with k.",
        "ROCm/aotriton#43",
        (Edit("forward.py", SIGNED_Q, _PRESCALED),),
    ),
    Mutant(
        "log2e-typed",
        "log2(e) is typed as 1.44.",
        "control",
        (Edit("primitives.py", "tl.constexpr(math.log2(math.e))", "tl.constexpr(1.44)"),),
    ),
    Mutant(
        "exp2-cubic",
        "The exponential of the forward pass is a cubic polynomial, within 1e-4.",
        "control",
        (Edit("forward.py", P, _CUBIC),),
    ),
    Mutant(
        "ds-truncated",
        "dS is truncated, not rounded, before it meets K and Q.",
        "ROCm/aiter#5151",
        (
            Edit("dkdv.py", DS_OF_KEYS, DS_OF_KEYS + indent(_truncated("ds"), "    ")),
            Edit("dq.py", DS_OF_QUERIES, DS_OF_QUERIES + _truncated("ds")),
        ),
    ),
    Mutant(
        "lse-off",
        "The backward pass works from an lse that is 2^-10 too large.",
        "control",
        (Edit("delta.py", STORED_LSE, STORED_LSE.replace("lse)", f"lse + {2.0**-10!r})")),),
    ),
    Mutant(
        "delta-missing-in-a-row",
        "delta is left out for one row in a thousand.",
        "control",
        (Edit("delta.py", STORED_DELTA, STORED_DELTA.replace("delta)", "tl.where(rows % 1000 == 5, 0.0, delta))")),),
    ),
    Mutant(
        "ds-in-fp16",
        "dS of bfloat16 inputs is rounded to float16.",
        "triton-lang/triton#4469",
        (
            Edit("dkdv.py", DS_OF_KEYS, DS_OF_KEYS + indent(_HALF_DS, "    ")),
            Edit("dq.py", DS_OF_QUERIES, DS_OF_QUERIES + _HALF_DS),
        ),
    ),
    Mutant(
        "dq-accumulated-in-bf16",
        "dq's accumulator is rounded to bfloat16 at every key block.",
        "AMD-AGI/Primus-Turbo#480",
        (Edit("dq.py", DQ, DQ + _in_bfloat16("dq")),),
    ),
)
"""What sees each of them is stated in `tests/meta/test_detection.py`."""
