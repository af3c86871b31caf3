"""The operations that are measured, as a protocol: Triton's in `probes`, made-up ones in tests."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Precision = Literal["ieee", "tf32", "tf32x3", "bf16x6"]


class Primitives(Protocol):
    """A device's operations, each as kernels use it. Tensors live on `device`.

    Attributes:
        name: the device, for a reader.
        lane: "gpu" or "interpreter".
        device: torch's device.
    """

    name: str
    lane: str
    device: torch.device

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
        """Products of matrices (G, M, K) and (G, K, N): without an accumulator, and added to one.

        Args:
            left: (G, M, K), fp16, bf16, fp32 or fp64.
            right: (G, K, N), in the same dtype.
            accumulator: (G, M, N), float32 (float64 for fp64).
            precision: input_precision of the dot, None for its default.
            warps: warps of a program, which decide the instruction with M.
            cast_to: dtype that `left` and `right` are cast to inside of the kernel: operands then start in registers.
        """

    def instruction(self) -> str:
        """The matrix instruction of the last `dots`, as the compiled code has it, or "" if that is not known."""

    def exp2(self, x: torch.Tensor) -> torch.Tensor:
        """Powers of 2 of a float32 vector."""

    def log2(self, x: torch.Tensor) -> torch.Tensor:
        """Base-2 logarithms of a float32 vector."""

    def divide(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X / y of float32 vectors."""

    def cast(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A float32 vector cast to float16 or bfloat16."""

    def multiply_add(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, contraction: bool | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """a·b + c and a·b - c of float32 vectors; contraction None leaves the compiler's default."""

    def row_sums(self, x: torch.Tensor) -> torch.Tensor:
        """Sums of the rows of a float32 matrix whose number of columns is a power of two."""

    def maximum(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The larger of two float32 vectors, element by element."""

    def select(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X where x <= y, else y, of float32 vectors."""
