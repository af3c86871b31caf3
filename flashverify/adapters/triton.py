"""Our Triton kernels, through their public function where it returns lse, else through the operator behind both."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from flashverify.adapters.autograd import differentiate
from flashverify.adapters.contracts import Precision, flash_attention
from flashverify.adapters.packing import run_packed
from flashverify.adapters.schedules import other_tiles
from flashverify.adapters.triton_decoder import TritonDecoder
from flashverify.cases.case import AttentionCase
from flashverify.cases.semantics import alibi_slope_tensor, causal_offset, first_offset, limited
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.mask import stream_of
from flashverify.numerics.contract import Contract
from flashverify.numerics.formats import TORCH_DTYPES

PACKAGE = "flashverify_kernels"


class TritonKernel:
    """The package `flashverify_kernels`, or a copy of it under another name."""

    returns_lse = True
    saves_outputs = True
    predictable = True

    def __init__(
        self, device: torch.device, name: str = "triton", package: str = PACKAGE, precision: Precision = "ieee"
    ) -> None:
        """Import the package.

        Args:
            device: a CUDA device, or cpu if TRITON_INTERPRET=1 was set before the package is first imported.
            name: what reports call it.
            package: the package's import name.
            precision: of float32 products; with another one than "ieee", cases of other dtypes are declined.
        """
        self.name = name
        self.device = device
        self.precision = precision
        self._package: ModuleType = importlib.import_module(package)
        self.sources: Path | None = None if self._package.__file__ is None else Path(self._package.__file__).parent
        self._tables: ModuleType = importlib.import_module(f"{package}.tiles")
        self._generator: ModuleType = importlib.import_module(f"{package}.generator")
        self._operators: ModuleType = importlib.import_module(f"{package}.ops")
        self._decoder = TritonDecoder(self._package, device)
        self._validation: ModuleType = importlib.import_module(f"{package}.validation")
        self._forced: Any = None  # tiles that take the place of the table's

    def declines(self, case: AttentionCase) -> str | None:
        """Scales beyond the accumulator's format, head sizes without shared memory, and dtypes that a precision is not of."""
        if self.precision != "ieee" and case.dtype not in ("fp32", "fp64"):
            return f"{self.precision} is a precision of float32 products"
        largest = max(case.head_dim, case.value_dim)
        refusal: str | None = self._tables.unavailable(self.device, TORCH_DTYPES[case.dtype], largest)
        if refusal is not None:
            return refusal
        smallest, largest = self._validation.SCALE_RANGE[TORCH_DTYPES[case.dtype]]
        if case.softmax_scale == 0.0 or smallest <= abs(case.softmax_scale) <= largest:
            return None
        return f"scale {case.softmax_scale} beyond the range of the accumulator's format"

    def contract(self, case: AttentionCase) -> Contract:
        """Sums in float32 (float64), P and dS rounded to the inputs' dtype, scores shifted before they are scaled."""
        if case.cache is None:
            tiles = self._tiles(case)
            walk = {"block_q": tiles.dkdv.block_m, "block_k": tiles.forward.block_n}
        else:
            walk = self._decoder.walk(case)
        return flash_attention(
            case.dtype,
            self.device,
            **walk,
            precision=self.precision,
            exponent="shifted",
            cap_slope="sech",
            cuts_probability=True,
            scale_roundings=2 if case.dtype == "fp64" else 1,  # formed in float64
        )

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        """Architecture and tile configurations."""
        described = {"table": self._tables.architecture(self.device)}
        if self.precision != "ieee":
            ignored = self.device.type != "cuda" or case.dtype != "fp32"
            described["products"] = f"ieee ({self.precision} is ignored here)" if ignored else self.precision
        if case.cache is not None:
            return described | self._decoder.configuration(case)
        tiles = self._tiles(case)
        for kernel in ("forward", "dkdv", "dq"):
            tile = getattr(tiles, kernel)
            described[kernel] = f"{tile.block_m}x{tile.block_n}, {tile.num_warps} warps, {tile.num_stages} stages"
        return described

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Forward and backward; see `Kernel.run`."""
        options = self._options(case)
        if case.cache is not None:
            return self._decoder.run(case, inputs, **options)
        if case.lengths is not None:
            return run_packed(self._package.flash_attn_varlen_func, case, inputs, **options)
        state = self._state(case)

        def through_function(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            bias: torch.Tensor | None = None,
            sink: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            out, lse, _ = self._package.flash_attn_func(
                *(x.transpose(1, 2) for x in (q, k, v)),
                return_attn_probs=True,
                attn_bias=bias,
                learnable_sink=None if sink is None else sink.flatten(),
                **options,
            )
            return out.transpose(1, 2), lse

        def through_operator(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            bias: torch.Tensor | None = None,
            sink: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # The SDPA drop-in, which aligns top-left, returns no lse; with dropout the others return probabilities beside it.
            flat = None if sink is None else sink.flatten()
            features = case.softcap, self._slopes(case), bias, flat, causal_offset(case), first_offset(case)
            tiles = None if self._forced is None else self._forced.flatten()
            out, lse = self._operators.attention(q, k, v, case.softmax_scale, *features, self.precision, tiles, *state)
            return out, lse

        by_operator = case.mask == "causal-topleft" or case.dropout is not None or self._forced is not None
        return differentiate(through_operator if by_operator else through_function, inputs)

    def schedules(self, case: AttentionCase) -> dict[str, TritonKernel]:
        """The same kernels with other tiles of the table, and with other warps and stages; see `Kernel`."""
        if case.lengths is not None or case.cache is not None:
            return {}
        found = {}
        for tiles in other_tiles(self._tables, self._tiles(case), case, self.device, self.precision):
            kernels = (tiles.forward, tiles.dkdv, tiles.dq)
            if max(size for tile in kernels for size in (tile.block_m, tile.block_n)) >= min(case.seqlen_q, case.seqlen_k):
                continue
            other = copy.copy(self)
            other._forced = tiles
            label = ", ".join(f"{t.block_m}x{t.block_n} {t.num_warps} warps {t.num_stages} stages" for t in kernels)
            found[label] = other
        return found

    def signed_probabilities(self, case: AttentionCase, inputs: Inputs) -> torch.Tensor | None:
        """Probabilities with the dropout mask in their sign bits; see `Kernel`. None where the functions return none."""
        if not case.dropout or case.mask == "causal-topleft" or case.lengths is not None:
            return None
        probabilities: torch.Tensor = self._package.flash_attn_func(
            *(x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v)),
            return_attn_probs=True,
            attn_bias=inputs.bias,
            learnable_sink=None if inputs.sink is None else inputs.sink.flatten(),
            **self._options(case),
        )[2]
        return probabilities

    def _options(self, case: AttentionCase) -> dict[str, object]:
        """Arguments that the public functions share."""
        slopes = self._slopes(case)
        if slopes is not None and case.alibi == "heads" and case.batch:
            slopes = slopes[0]
        options: dict[str, object] = {
            "softmax_scale": case.scale,
            "causal": case.mask == "causal",
            "softcap": case.softcap or 0.0,
            "alibi_slopes": slopes,
            "window_size": tuple(-1 if side is None else side for side in (case.window_left, case.window_right)),
            "input_precision": self.precision,
        }
        stream = stream_of(case)
        return options if stream is None else options | {"dropout_p": stream.rate, "rng_state": (stream.seed, stream.offset)}

    def _state(self, case: AttentionCase) -> tuple[float, torch.Tensor | None]:
        """Drop rate, and the generator's state as operators take it."""
        stream = stream_of(case)
        if stream is None:
            return 0.0, None
        return stream.rate, self._generator.state_of(stream.seed, stream.offset, self.device)

    def unrounded(self, case: AttentionCase, inputs: Inputs) -> Outputs | None:
        """Outputs in float32, before the final rounding; None for dtypes that have none, packed sequences, and decoding."""
        if case.dtype not in ("fp16", "bf16") or case.lengths is not None or case.cache is not None:
            return None
        tensors = (inputs.q, inputs.k, inputs.v, inputs.dout, inputs.dlse)
        attention = importlib.import_module(f"{self._package.__name__}.unrounded").unrounded_attention
        visible = causal_offset(case), first_offset(case)
        sink = None if inputs.sink is None else inputs.sink.flatten()
        rate, state = self._state(case)
        features = {"softcap": case.softcap, "alibi": self._slopes(case), "bias": inputs.bias, "sink": sink}
        features |= {"dropout_p": rate, "rng_state": state}
        out, lse, dq, dk, dv, dbias, dsink = attention(*tensors, case.softmax_scale, *visible, **features)
        shaped = None if dsink is None else dsink[None, :, None]
        return Outputs(out=out, lse=lse, dq=dq, dk=dk, dv=dv, dbias=dbias, dsink=shaped)

    def blocks(self, case: AttentionCase) -> tuple[int, int, int]:
        """Query rows of a block of the forward kernel, keys of one of the dK/dV kernel, query rows of one of the dQ kernel."""
        tiles = self._tiles(case)
        return tiles.forward.block_m, tiles.dkdv.block_n, tiles.dq.block_m

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, dropout_p: float = 0.0) -> torch.Tensor:
        """Out (B, H, N, D) of the public function that stands in for torch's, as a user calls it: for timing."""
        out: torch.Tensor = self._package.scaled_dot_product_attention(
            q, k, v, is_causal=causal, dropout_p=dropout_p, input_precision=self.precision
        )
        return out

    def _slopes(self, case: AttentionCase) -> torch.Tensor | None:
        """Slopes of linear biases, (B, Hq), or None."""
        return None if case.alibi is None else alibi_slope_tensor(case, self.device).float()

    def _tiles(self, case: AttentionCase):  # type: ignore[no-untyped-def]  # the package is imported late
        if self._forced is not None:
            return self._forced
        dtype = TORCH_DTYPES[case.dtype]
        sizes = case.head_dim, case.value_dim
        drops = bool(case.dropout)
        return self._tables.tiles_for(self.device, dtype, *sizes, limited(case), self.precision, drops)
