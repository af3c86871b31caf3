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
def tile_offsets(stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Element offsets (ROWS, COLUMNS) inside a tile, in 64 bits: a stride may be of any size."""
    rows = tl.arange(0, ROWS).to(tl.int64)
    columns = tl.arange(0, COLUMNS).to(tl.int64)
    return rows[:, None] * stride_row + columns[None, :] * stride_column


@triton.jit
def load_tile(
    pointer,
    offsets,
    rows_left,
    columns_left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Tile (ROWS, COLUMNS) at `pointer`; what lies beyond rows_left or columns_left is not read, and 0."""
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
    pointer,
    offsets,
    tile,
    rows_left,
    columns_left,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EMULATE_BF16: tl.constexpr,
):
    """Round a tile (ROWS, COLUMNS) to the pointer's dtype and store the part within rows_left and columns_left."""
    inside = (tl.arange(0, ROWS)[:, None] < rows_left) & (tl.arange(0, COLUMNS)[None, :] < columns_left)
    if EMULATE_BF16:
        rounded = fp32_to_bf16_bits(tile).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + offsets, rounded, mask=inside)
