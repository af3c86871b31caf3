"""The two lanes: kernels compiled for a GPU, or run by Triton's interpreter. The choice is made before Triton is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

LaneName = Literal["gpu", "interpreter"]
LANES = ("auto", "gpu", "interpreter")


@dataclass(frozen=True, slots=True)
class Lane:
    """Where kernels run.

    Attributes:
        name: "gpu" or "interpreter".
        device: torch's device of the tensors, "cuda" or "cpu".
        reason: why this lane, for a reader.
    """

    name: LaneName
    device: str
    reason: str


def enter_lane(wanted: str) -> Lane:
    """Choose a lane and set TRITON_INTERPRET for this process and its workers.

    Args:
        wanted: "auto" (a GPU if there is one and TRITON_INTERPRET is not set), "gpu" or "interpreter".

    Raises:
        ValueError: if the lane is unknown, or "gpu" is wanted and torch finds none.
    """
    import torch

    if wanted not in LANES:
        raise ValueError(f"lane: got {wanted!r}, accepted are {', '.join(LANES)}")
    has_gpu = torch.cuda.is_available()
    asked_to_interpret = os.environ.get("TRITON_INTERPRET") == "1"
    if wanted == "gpu" and not has_gpu:
        raise ValueError("lane: got 'gpu', but torch finds no GPU here; accepted are auto and interpreter")
    if wanted == "gpu" or (wanted == "auto" and has_gpu and not asked_to_interpret):
        os.environ["TRITON_INTERPRET"] = "0"
        return Lane("gpu", "cuda", f"compiled kernels on {torch.cuda.get_device_name()}")
    os.environ["TRITON_INTERPRET"] = "1"
    if wanted == "interpreter":
        reason = "asked for"
    else:
        reason = "TRITON_INTERPRET=1 is set" if asked_to_interpret else "torch finds no GPU"
    return Lane("interpreter", "cpu", f"Triton's interpreter ({reason}): it proves the algebra, not the compiled kernel")
