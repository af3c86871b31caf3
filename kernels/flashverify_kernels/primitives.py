"""Building blocks of the kernels: the scale, tiles in and out of memory, and exact bfloat16 where the platform has none.

Triton's interpreter multiplies the raw bit patterns of bfloat16 blocks, and truncates casts to bfloat16. There
(`EMULATE_BF16`), tiles are held in float32 and rounded to bfloat16's grid, to nearest even, by integer arithmetic: the same
values that the hardware has.
"""

import math

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
LN2: tl.constexpr = tl.constexpr(math.log(2.0))
QUIET_NAN_BF16: tl.constexpr = tl.constexpr(0x7FC0)
ADDITIVE: tl.constexpr = tl.constexpr(1)  # kinds of bias; none is 0
BOOLEAN: tl.constexpr = tl.constexpr(2)


@triton.jit
def unpack_scale(scale_bits, ACCUMULATOR: tl.constexpr):
    """The softmax scale, from the bits of a float64 (a float argument would be rounded to float32 on the way).

    Returns sign, magnitude, and magnitude·log2(e), in ACCUMULATOR, with sign·magnitude = scale. The sign (-1, 0, 1) goes
    into q, which is exact; so the kernels only see positive scales, a row's maximum is that of its raw scores, and
    -inf·scale is never 0·inf.
    """
    scale = tl.cast(scale_bits, tl.int64).to(tl.float64, bitcast=True)  # small values arrive as int32
    sign = tl.where(scale < 0.0, -1.0, tl.where(scale > 0.0, 1.0, 0.0))
    magnitude = tl.where(scale == 0.0, 1.0, tl.abs(scale))
    return sign.to(ACCUMULATOR), magnitude.to(ACCUMULATOR), (magnitude * LOG2E).to(ACCUMULATOR)


@triton.jit
def unpack_softcap(scale_bits, softcap_bits, ACCUMULATOR: tl.constexpr):
    """Of logits that are capped: what multiplies scores inside tanh, what multiplies tanh, and the latter times log2(e).

    The first is |scale| / cap, the second the cap: logits are cap·tanh(scores·|scale| / cap).
    """
    scale = tl.cast(scale_bits, tl.int64).to(tl.float64, bitcast=True)
    cap = tl.cast(softcap_bits, tl.int64).to(tl.float64, bitcast=True)
    magnitude = tl.where(scale == 0.0, 1.0, tl.abs(scale))
    return (magnitude / cap).to(ACCUMULATOR), cap.to(ACCUMULATOR), (cap * LOG2E).to(ACCUMULATOR)


@triton.jit
def tanh_and_slope(x, ACCUMULATOR: tl.constexpr):
    """The hyperbolic tangent t and its derivative, to a few units in the last place (docs/numerics.md, lemmas 11 and 12).

    From 1/2 on t = (1 - e) / (1 + e) with e = exp(-2|x|), and the derivative 4e / (1 + e)², since 1 - t² would cancel. Below,
    where 1 - e would, t = sinh(x) / cosh(x) by power series, whose first term left out is below a hundredth of a rounding.
    """
    TERMS: tl.constexpr = 4 if ACCUMULATOR.primitive_bitwidth == 32 else 7
    magnitude = tl.abs(x)
    square = x * x
    sinh = tl.full(x.shape, 1.0, ACCUMULATOR)  # over x
    cosh = tl.full(x.shape, 1.0, ACCUMULATOR)
    for done in tl.static_range(TERMS):  # Horner's scheme, from the last term on: term n is x²/2n(2n±1) times the one before
        sinh = sinh * (square * (0.5 / ((TERMS - done) * (2 * (TERMS - done) + 1)))) + 1.0
        cosh = cosh * (square * (0.5 / ((TERMS - done) * (2 * (TERMS - done) - 1)))) + 1.0
    decay = tl.exp2(magnitude * (-2.0 * LOG2E))
    is_small = magnitude < 0.5
    grown = 1.0 + decay
    ratio = tl.where(is_small, magnitude * sinh, 1.0 - decay) / tl.where(is_small, cosh, grown)
    slope = tl.where(is_small, 1.0 - ratio * ratio, 4.0 * decay / (grown * grown))
    return tl.where(x < 0.0, -ratio, ratio), slope


@triton.jit
def alibi_slope(slopes_ptr, batch, head, stride_batch, stride_head, multiplier, ACCUMULATOR: tl.constexpr):
    """The slope of a query head's linear bias in units of its scores: logits are multiplier·(scores - this·distance)."""
    offset = batch.to(tl.int64) * stride_batch + head.to(tl.int64) * stride_head
    return tl.load(slopes_ptr + offset).to(ACCUMULATOR) / multiplier


@triton.jit
def biased(scores, slope, query_places, keys, ACCUMULATOR: tl.constexpr):
    """Scores less slope·|distance|; query_places (the keys at which queries stand) and keys broadcast against them."""
    return scores - tl.abs(query_places - keys).to(ACCUMULATOR) * slope


@triton.jit
def logit_at(source, place, ACCUMULATOR: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """One logit, such as a head's sink, as an ACCUMULATOR."""
    logit = tl.load(source + place)
    if EMULATE_BF16 and source.dtype.element_ty == tl.bfloat16:
        logit = bf16_to_fp32(logit)
    return logit.to(ACCUMULATOR)


@triton.jit
def with_bias(
    scores,
    source,
    first_row,
    first_column,
    stride_row,
    stride_column,
    rows_left,
    columns_left,
    inverse,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Scores (ROWS, COLUMNS) with what a bias says of them: ADDITIVE adds inverse·bias, BOOLEAN makes them -inf where it is 0.

    `source` points to the bias of one head, and `inverse` is one over what multiplies scores. Hidden scores are -inf
    whatever they were: adding -inf to a NaN or to +inf would not hide it.
    """
    pointer = source + tl.cast(first_column, tl.int64) * stride_column
    if EMULATE_BF16 and source.dtype.element_ty == tl.bfloat16:
        bias = load_tile(
            pointer, 0, 0, first_row, stride_row, stride_column, rows_left, columns_left,
            ROWS, COLUMNS, CHECK_ROWS, CHECK_COLUMNS, WIDE, False, True,
        )  # fmt: skip
    else:
        bias = load_tile(
            pointer, 0, 0, first_row, stride_row, stride_column, rows_left, columns_left,
            ROWS, COLUMNS, CHECK_ROWS, CHECK_COLUMNS, WIDE, False, False,
        )  # fmt: skip
    if BIAS == BOOLEAN:
        return tl.where(bias != 0, scores, float("-inf"))
    else:
        bias = bias.to(ACCUMULATOR)
        return tl.where(bias == float("-inf"), float("-inf"), scores + bias * inverse)


@triton.jit
def probabilities(scores, lse, scale):
    """P = exp(scale·S - lse); lse = +inf (padding rows) gives 0.

    Never above 1: a score that is summed in another order than forward's may exceed lse by ulps, which are large for
    large logits. NaN stays NaN.
    """
    exponent = tl.minimum(scores * scale - lse, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(exponent * LOG2E)


@triton.jit
def bf16_to_fp32(x):
    """Exact, by bits: bfloat16 is the upper half of a float32."""
    upper = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    return upper.to(tl.float32, bitcast=True)


@triton.jit
def fp32_to_bf16_bits(x):
    """The upper half of a float32, rounded to nearest even; NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    half_minus_one_or_half = 0x7FFF + ((bits >> 16) & 1)
    rounded = (bits + half_minus_one_or_half) >> 16
    return tl.where(x != x, QUIET_NAN_BF16, rounded)


@triton.jit
def as_operand(x, STORAGE: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """A tile of ACCUMULATOR values rounded to STORAGE, ready to be an operand of a dot with stored tiles."""
    if EMULATE_BF16:
        return (fp32_to_bf16_bits(x) << 16).to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        return x.to(STORAGE)


@triton.jit
def as_stored(x, dtype: tl.constexpr, EMULATE_BF16: tl.constexpr):
    """A tile of ACCUMULATOR values rounded to a dtype, ready to be stored."""
    if EMULATE_BF16 and dtype == tl.bfloat16:
        return fp32_to_bf16_bits(x).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def block_and_head(blocks, section):
    """The block, and the head (counted over all batches), that this program owns.

    Heads come in sections that fit the cache together; in a section, the first blocks of all heads come before the second.
    """
    heads = tl.num_programs(0) // blocks
    program = tl.program_id(0)
    first_head = program // (section * blocks) * section
    place = program % (section * blocks)
    heads_here = tl.minimum(section, heads - first_head)
    return place // heads_here, first_head + place % heads_here


@triton.jit
def key_limits(
    first_row,
    seqlen_k,
    causal_offset,
    first_offset,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Which keys BLOCK_M query rows see: none before `begin` or from `end` on, every row all of `full_begin` .. `full_end`.

    All but `end` are multiples of BLOCK_N. Row i sees no key after i + causal_offset, and none before i + first_offset.
    """
    begin = 0
    full_begin = 0
    full_end = seqlen_k
    end = seqlen_k
    if CAUSAL:
        full_end = tl.minimum(seqlen_k, tl.maximum(0, first_row + causal_offset + 1))
        end = tl.minimum(seqlen_k, tl.maximum(0, first_row + BLOCK_M + causal_offset))
    full_end = full_end // BLOCK_N * BLOCK_N
    if WINDOW:
        begin = tl.maximum(0, first_row + first_offset) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(0, first_row + BLOCK_M - 1 + first_offset), BLOCK_N) * BLOCK_N
        full_end = tl.maximum(full_begin, full_end)
    return begin, full_begin, full_end, end


@triton.jit
def head_base(source, batch, head, stride_batch, stride_head, DESCRIPTORS: tl.constexpr):
    """Where one head begins; a tensor descriptor knows that by itself."""
    if DESCRIPTORS:
        return source
    else:
        return source + (batch.to(tl.int64) * stride_batch + head.to(tl.int64) * stride_head)


@triton.jit
def tile_offsets(stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Element offsets (ROWS, COLUMNS) inside a tile, in 64 bits if WIDE: else the launcher has seen that 32 hold them."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    if WIDE:
        rows = rows.to(tl.int64)
        columns = columns.to(tl.int64)
    return rows[:, None] * stride_row + columns[None, :] * stride_column


@triton.jit
def load_tile(
    source,
    batch,
    head,
    first_row,
    stride_row,
    stride_column,
    rows_left,
    columns_left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Tile (ROWS, COLUMNS) from `first_row` on of a head; what lies beyond rows_left or columns_left is not read, and 0.

    `source` is what `head_base` returned: a pointer to the head, or a descriptor of the whole tensor (B, H, N, D).
    """
    if DESCRIPTORS:
        tile = source.load([batch, head, first_row, 0]).reshape(ROWS, COLUMNS)
    else:
        pointer = source + tl.cast(first_row, tl.int64) * stride_row
        offsets = tile_offsets(stride_row, stride_column, ROWS, COLUMNS, WIDE)
        if CHECK_ROWS or CHECK_COLUMNS:
            rows = tl.arange(0, ROWS)[:, None] < (rows_left if CHECK_ROWS else ROWS)
            columns = tl.arange(0, COLUMNS)[None, :] < (columns_left if CHECK_COLUMNS else COLUMNS)
            tile = tl.load(pointer + offsets, mask=rows & columns, other=0.0)
        else:
            tile = tl.load(pointer + offsets)
    if EMULATE_BF16:
        tile = bf16_to_fp32(tile)
    return tile


@triton.jit
def store_tile(
    base,
    tile,
    first_row,
    stride_row,
    stride_column,
    rows_left,
    columns_left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Round a tile (ROWS, COLUMNS) to the pointer's dtype and store the part within rows_left and columns_left."""
    inside = (tl.arange(0, ROWS)[:, None] < rows_left) & (tl.arange(0, COLUMNS)[None, :] < columns_left)
    pointer = base + tl.cast(first_row, tl.int64) * stride_row
    rounded = as_stored(tile, base.dtype.element_ty, EMULATE_BF16)
    tl.store(pointer + tile_offsets(stride_row, stride_column, ROWS, COLUMNS, WIDE), rounded, mask=inside)
