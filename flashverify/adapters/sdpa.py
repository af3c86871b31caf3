"""torch's own attention kernels on a GPU: the backends of scaled_dot_product_attention, one at a time.

What is stated of their arithmetic is what their sources show (FlashAttention-2 and CUTLASS's fused attention as shipped in
torch; of cuDNN's, what its results show): P and dS rounded to the inputs' dtype, sums in float32, exponents as one fused
operation. None states its walk over the keys: it is inferred.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashverify.adapters.autograd import differentiate
from flashverify.adapters.contracts import flash_attention
from flashverify.adapters.generator import DeviceGenerator
from flashverify.adapters.packing import PACKED
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.mask import stream_of
from flashverify.numerics.contract import Contract

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

STATED: dict[str, dict[str, Any]] = {
    "flash": {"exponent": "fused"},
    "cudnn": {"exponent": "fused", "score_gradient_scaled": True},
    "efficient": {"exponent": "fused", "score_gradient_of_rounded": True, "score_gradient_scaled": True},
}
"""Fields of each backend's contract beyond those of any FlashAttention kernel."""

SMALLEST_BLOCK = 16
"""Keys of a tile, at least: the finest that tensor cores allow."""

UNALIGNED = "top-left causal mask with seqlen_q != seqlen_k"
"""What torch's FlashAttention, which aligns bottom-right, is not offered."""


class SdpaKernel:
    """One backend of torch.nn.functional.scaled_dot_product_attention; its lse is not returned."""

    returns_lse = False
    saves_outputs = False
    predictable = False

    def __init__(self, backend: str, device: torch.device) -> None:
        """Choose a backend.

        Raises:
            ValueError: if there is no such backend, or the device is no GPU.
        """
        if backend not in BACKENDS:
            raise ValueError(f"kernel: got 'sdpa:{backend}', accepted are {', '.join(f'sdpa:{name}' for name in BACKENDS)}")
        if device.type != "cuda":
            raise ValueError(f"kernel: got 'sdpa:{backend}' without a GPU, where torch has no such backend")
        self.name = f"sdpa:{backend}"
        self.device = device
        self.sources: Path | None = None
        self._backend = backend
        self._generator = DeviceGenerator(device)

    def declines(self, case: AttentionCase) -> str | None:
        """What the backends do not take, or take by way of copies that change the arithmetic."""
        refusals: tuple[tuple[bool, str], ...] = (
            (case.dtype not in ("fp16", "bf16"), case.dtype),
            ("window" in case.features, "sliding window"),
            (case.softcap is not None, "soft cap"),
            (case.alibi is not None, "linear biases"),
            (case.bias is not None, "biases or masks as tensors"),
            (case.sink, "attention sinks"),
            (case.cache is not None, "decoding from a cache"),
            (case.lengths is not None, PACKED),
            ("head-dim-v" in case.features, "head size of v other than that of k"),
            (case.group_size > 1, "grouped heads"),
            (case.lse_grad, "gradient of lse"),
            (case.mask == "causal" and case.seqlen_q != case.seqlen_k, "bottom-right causal mask with seqlen_q != seqlen_k"),
            (self._backend == "flash" and case.mask != "full" and case.seqlen_q != case.seqlen_k, UNALIGNED),
            (case.head_dim % 8 > 0 or case.head_dim > 128, "head size that is no multiple of 8, or above 128"),
            (0 in (case.batch, case.seqlen_q, case.seqlen_k), "empty sizes"),
            (case.softmax_scale <= 0.0, "scale that is not positive"),
            (case.layout not in ("contiguous", "bnhd"), f"layout {case.layout}"),
            (case.dropout == 1.0, "dropout of everything"),
        )
        return next((reason for refused, reason in refusals if refused), None)

    def contract(self, case: AttentionCase) -> Contract:
        """That of a FlashAttention kernel whose walk is not stated."""
        stated = STATED[self._backend]
        return flash_attention(case.dtype, self.device, block_q=None, block_k=SMALLEST_BLOCK, block_k_exact=False, **stated)

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        """The backend, and the version of cuDNN."""
        del case
        version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {"backend": self._backend, "cuDNN": str(version)}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Forward and backward; see `Kernel.run`."""
        return self._run(case, inputs, self._generator.at(stream_of(case)))

    def run_again(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Another call, with dropout from where the last one left the generator; see `Kernel`."""
        return self._run(case, inputs, self._generator.where_it_was_left())

    def _run(self, case: AttentionCase, inputs: Inputs, drawing: AbstractContextManager[None]) -> Outputs:
        call: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        options = {"is_causal": case.mask != "full", "scale": case.scale, "dropout_p": case.dropout or 0.0}

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, None]:
            with sdpa_kernel(BACKENDS[self._backend]), drawing:
                return call(q, k, v, **options), None

        return differentiate(attention, inputs)
