"""Triton kernels that do one operation each, as kernels of this world do it, and `TritonPrimitives`, which launches them.

The only module of the verifier's own mathematics that imports Triton; it imports no kernel that is examined.
"""

from __future__ import annotations

import re

import torch
import triton
import triton.language as tl

from flashverify.numerics.axioms.primitives import Precision

_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}
_INSTRUCTIONS = re.compile(r"(wgmma|tcgen05|mma)\.\S*?(m\d+n\d+k\d+)|\b(tcgen05\.mma)|\b(fma\.rn\.f(?:32|64))\b")


@triton.jit
def _dots(
    left, right, accumulator, plain, chained,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(left + group * M * K + rows[:, None] * K + inner[None, :])
    b = tl.load(right + group * K * N + inner[:, None] * N + columns[None, :])
    if CAST is not None:
        a = a.to(CAST)
        b = b.to(CAST)
    out = group * M * N + rows[:, None] * N + columns[None, :]
    c = tl.load(accumulator + out)
    tl.store(plain + out, tl.dot(a, b, input_precision=PRECISION, out_dtype=OUT))
    tl.store(chained + out, tl.dot(a, b, c, input_precision=PRECISION, out_dtype=OUT))


@triton.jit
def _exp2(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.exp2(tl.load(x + place, mask=place < length, other=0.0)), mask=place < length)


@triton.jit
def _log2(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.log2(tl.load(x + place, mask=place < length, other=1.0)), mask=place < length)


@triton.jit
def _cast(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place, mask=place < length, other=0.0).to(out.dtype.element_ty), mask=place < length)


@triton.jit
def _divide(x, y, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dividend, divisor = tl.load(x + place, mask=place < length, other=1.0), tl.load(y + place, mask=place < length, other=1.0)
    tl.store(out + place, dividend / divisor, mask=place < length)


@triton.jit
def _compare(x, y, larger, chosen, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first, second = tl.load(x + place, mask=place < length, other=0.0), tl.load(y + place, mask=place < length, other=0.0)
    tl.store(larger + place, tl.maximum(first, second), mask=place < length)
    tl.store(chosen + place, tl.where(first <= second, first, second), mask=place < length)


@triton.jit
def _multiply_add(x, y, z, added, subtracted, length, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b = tl.load(x + place, mask=place < length, other=0.0), tl.load(y + place, mask=place < length, other=0.0)
    c = tl.load(z + place, mask=place < length, other=0.0)
    tl.store(added + place, a * b + c, mask=place < length)
    tl.store(subtracted + place, a * b - c, mask=place < length)


@triton.jit
def _row_sums(x, out, length, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = tl.load(x + rows[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], mask=rows[:, None] < length, other=0.0)
    tl.store(out + rows, tl.sum(tile, 1), mask=rows < length)


class TritonPrimitives:
    """Triton's operations on one device, or in its interpreter; see `Primitives`."""

    def __init__(self, device: torch.device) -> None:
        """The operations on that device.

        Args:
            device: a CUDA device, or cpu if TRITON_INTERPRET=1 was set before Triton was first imported.

        Raises:
            ValueError: if Triton was imported for the other lane.
        """
        interpreted = bool(triton.knobs.runtime.interpret)
        if interpreted != (device.type == "cpu"):
            lane = "the interpreter" if interpreted else "a GPU"
            raise ValueError(f"device: got {device}, but Triton was imported for {lane}; accepted is its device")
        self.device = device
        self.lane = "interpreter" if interpreted else "gpu"
        self.name = "Triton's interpreter" if interpreted else torch.cuda.get_device_name(device)
        self._compiled: object = None

    def dots(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
        accumulator: torch.Tensor,
        *,
        precision: Precision | None = None,
        warps: int = 4,
        cast_to: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Products without and with an accumulator; see `Primitives.dots`."""
        left, right, accumulator = left.contiguous(), right.contiguous(), accumulator.contiguous()
        groups, rows, inner = left.shape
        columns = right.shape[2]
        plain, chained = torch.empty_like(accumulator), torch.empty_like(accumulator)
        cast = None if cast_to is None else _TRITON_DTYPES[cast_to]
        out = _TRITON_DTYPES[accumulator.dtype]
        arguments = (left, right, accumulator, plain, chained)
        self._compiled = _dots[(groups,)](*arguments, rows, columns, inner, precision, cast, out, num_warps=warps)
        return plain, chained

    def instruction(self) -> str:
        """The matrix instructions in the PTX of the last `dots`."""
        ptx = str(getattr(self._compiled, "asm", {}).get("ptx", ""))
        found = ("".join(filter(None, (a and f"{a} {b}", c, d))) for a, b, c, d in _INSTRUCTIONS.findall(ptx))
        return ", ".join(sorted(set(found)))

    def exp2(self, x: torch.Tensor) -> torch.Tensor:
        """tl.exp2."""
        out = torch.empty_like(x)
        _exp2[self._grid(x)](x, out, x.numel(), self._block)
        return out

    def log2(self, x: torch.Tensor) -> torch.Tensor:
        """tl.log2."""
        out = torch.empty_like(x)
        _log2[self._grid(x)](x, out, x.numel(), self._block)
        return out

    def divide(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The operator /."""
        out = torch.empty_like(x)
        _divide[self._grid(x)](x, y, out, x.numel(), self._block)
        return out

    def cast(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Tensor.to."""
        out = torch.empty_like(x, dtype=dtype)
        _cast[self._grid(x)](x, out, x.numel(), self._block)
        return out

    def multiply_add(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, contraction: bool | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The operators, with enable_fp_fusion as said."""
        added, subtracted = torch.empty_like(a), torch.empty_like(a)
        options = {} if contraction is None else {"enable_fp_fusion": contraction}
        _multiply_add[self._grid(a)](a, b, c, added, subtracted, a.numel(), self._block, **options)
        return added, subtracted

    def row_sums(self, x: torch.Tensor) -> torch.Tensor:
        """tl.sum along axis 1."""
        rows, columns = x.shape
        tile = triton.next_power_of_2(rows) if self.lane == "interpreter" else 16
        out = torch.empty(rows, dtype=x.dtype, device=x.device)
        _row_sums[(triton.cdiv(rows, tile),)](x.contiguous(), out, rows, tile, columns)
        return out

    def maximum(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """tl.maximum."""
        return self._compared(x, y)[0]

    def select(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """tl.where."""
        return self._compared(x, y)[1]

    def _compared(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        larger, chosen = torch.empty_like(x), torch.empty_like(x)
        _compare[self._grid(x)](x, y, larger, chosen, x.numel(), self._block)
        return larger, chosen

    @property
    def _block(self) -> int:
        return 2**18 if self.lane == "interpreter" else 1024

    def _grid(self, x: torch.Tensor) -> tuple[int]:
        return (triton.cdiv(x.numel(), self._block),)
