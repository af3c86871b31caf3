"""Bring your own kernel: any differentiable function with the signature of torch's scaled_dot_product_attention."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from flashverify.adapters.autograd import differentiate
from flashverify.adapters.contracts import flash_attention
from flashverify.adapters.generator import DeviceGenerator
from flashverify.adapters.packing import PACKED
from flashverify.cases.case import AttentionCase
from flashverify.cases.tensors import Inputs, Outputs
from flashverify.dropout.mask import stream_of
from flashverify.numerics.contract import Contract


class FunctionKernel:
    """A function `f(query, key, value, *, is_causal, scale, enable_gqa)` on (B,H,N,D) tensors, aligned top-left if causal.

    It returns out, or (out, lse) with lse (B,H,N) in natural units. If it has a parameter `dropout_p`, it takes cases with
    dropout and draws from torch's generator of the device. What else is to be known are attributes, each optional:

    - `returns_lse = True`: it returns (out, lse).
    - `saves_outputs = True`: its backward pass works from the out and lse that it returned; see `Kernel`.
    - `predictable = True`: its dropout mask is the host's; see `Kernel`.
    - `declines(case)`: why it does not take a case (a dtype, a head size), or None.
    - `numerical_contract(case, device)`: its `Contract`; otherwise that of a FlashAttention kernel with tiles of at least 16
      keys is assumed, the finest that tensor cores allow.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        """Import the function.

        Args:
            path: "package.module:function".
            device: where it runs.

        Raises:
            ValueError: if there is no such function; the message says which part is missing.
        """
        module_name, _, attribute = path.partition(":")
        if not module_name or module_name.startswith(".") or not attribute:
            raise ValueError(f"kernel: got {path!r}, accepted are paths such as package.module:function")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # importing runs the module: anything may be raised
            words = f"{type(error).__name__}: {error}"
            raise ValueError(f"kernel: got {path!r}; module {module_name!r} can't be imported: {words}") from error
        function = getattr(module, attribute, None)
        if not callable(function):
            raise ValueError(f"kernel: got {path!r}; {module_name!r} has no function {attribute!r}")
        self.name = path
        self.device = device
        self.sources: Path | None = None
        self.returns_lse = bool(getattr(function, "returns_lse", False))
        self.saves_outputs = bool(getattr(function, "saves_outputs", False))
        self.predictable = bool(getattr(function, "predictable", False))
        self._function: Callable[..., Any] = function
        self._takes_dropout = _takes_dropout(function)
        self._generator = DeviceGenerator(device)

    def declines(self, case: AttentionCase) -> str | None:
        """What the signature lacks (windows, caps, biases, dropout, bottom-right masks if Nq != Nk), dlse without lse."""
        lacking: tuple[tuple[bool, str], ...] = (
            ("window" in case.features, "sliding window"),
            (case.softcap is not None, "soft cap"),
            (case.alibi is not None, "linear biases"),
            (case.bias is not None, "biases or masks as tensors"),
            (case.sink, "attention sinks"),
            (case.cache is not None, "decoding from a cache"),
            (case.lengths is not None, PACKED),
            (case.mask == "causal" and case.seqlen_q != case.seqlen_k, "bottom-right causal mask with seqlen_q != seqlen_k"),
            (case.lse_grad and not self.returns_lse, "gradient of lse"),
            (case.dropout is not None and not self._takes_dropout, "dropout"),
        )
        for lacks, reason in lacking:
            if lacks:
                return reason
        own = getattr(self._function, "declines", None)
        refusal: str | None = None if own is None else own(case)
        return refusal

    def contract(self, case: AttentionCase) -> Contract:
        """The function's own `numerical_contract`, or the assumed one."""
        stated = getattr(self._function, "numerical_contract", None)
        if stated is not None:
            contract: Contract = stated(case, self.device)
            return contract
        return flash_attention(case.dtype, self.device, block_q=None, block_k=16, block_k_exact=False)

    def configuration(self, case: AttentionCase) -> dict[str, str]:
        """Whether the contract is the function's own or assumed."""
        del case
        return {"contract": "stated" if hasattr(self._function, "numerical_contract") else "assumed"}

    def run(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Forward and backward; see `Kernel.run`."""
        return self._run(case, inputs, self._generator.at(stream_of(case)))

    def run_again(self, case: AttentionCase, inputs: Inputs) -> Outputs:
        """Another call, with dropout from where the last one left the generator; see `Kernel`."""
        return self._run(case, inputs, self._generator.where_it_was_left())

    def _run(self, case: AttentionCase, inputs: Inputs, drawing: AbstractContextManager[None]) -> Outputs:
        options = {"is_causal": case.mask != "full", "scale": case.scale, "enable_gqa": case.group_size > 1}
        if case.dropout is not None:
            options["dropout_p"] = case.dropout

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            with drawing:
                returned = self._function(q, k, v, **options)
            if isinstance(returned, tuple) != self.returns_lse:
                what = "one tensor" if self.returns_lse else "a tuple"
                raise TypeError(f"{self.name}: got {what}, but its attribute returns_lse is {self.returns_lse}")
            return returned if self.returns_lse else (returned, None)

        return differentiate(attention, inputs)


def _takes_dropout(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter `dropout_p`; torch's own, which is built in, has."""
    if function is torch.nn.functional.scaled_dot_product_attention:
        return True
    try:
        return "dropout_p" in inspect.signature(function).parameters
    except ValueError:  # built in
        return False
