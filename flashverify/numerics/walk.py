"""The walk of a forward pass over the keys: what the running maximum of a row is when each key's weight is formed and cast.

A weight is rounded in units of the running maximum of its moment, so which weights are exactly 1 (and not rounded at all),
and how large a spacing is at the others, follows from the walk: blocks on a grid that starts at the first key, from the left
or from the right, in one run or in several that are merged by their lse (docs/numerics.md, section 12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from flashverify.numerics.contract import Contract


@dataclass(frozen=True, slots=True)
class Walked:
    """A tile's running maxima along a walk, in the unit of the logits.

    Attributes:
        maximum: (c, r, n), the running maximum when a key's weight is formed; -inf where no key was seen by then.
        later: (c, r, n), how many rescalings by a factor other than 1 a key's weight meets after it was formed.
        run: (n,), integer: in which run of the walk a key is. Keys of one run share their later rescalings.
        of_start: (c, r, 1), how many rescalings what the walk began with meets.
    """

    maximum: torch.Tensor
    later: torch.Tensor
    run: torch.Tensor
    of_start: torch.Tensor


def walk(logit: torch.Tensor, contract: Contract, start: torch.Tensor | None = None) -> Walked:
    """Follow the walk that the contract states.

    Args:
        logit: (c, r, n), -inf where a key is not seen.
        contract: its block_k, direction and splits; block_k None: the whole row at once.
        start: (c, r, 1), the running maximum that each run begins with; None: it begins with its first block.

    Raises:
        ValueError: if its splits are not known.
    """
    keys = logit.shape[-1]
    block = min(contract.block_k or keys, keys)
    blocks = math.ceil(keys / block)
    of_a_run = math.ceil(blocks / contract.runs)
    padded = pad(logit, (0, blocks * block - keys), value=-math.inf)
    largest = padded.reshape(*logit.shape[:-1], blocks, block).amax(-1)
    begin = torch.full_like(logit[..., :1], -math.inf) if start is None else start
    runs = [_run(part, contract.direction == "right", begin) for part in torch.split(largest, of_a_run, -1)]
    running, later, last, of_start = (torch.cat(parts, -1) for parts in zip(*runs, strict=True))
    if contract.runs > 1:  # where the runs are merged
        later = later + (last < last.amax(-1, keepdim=True)).double()
    run = torch.arange(keys, device=logit.device) // (of_a_run * block)
    return Walked(_by_key(running, block, keys), _by_key(later, block, keys), run, of_start[..., :1])


def _run(
    largest: torch.Tensor, backwards: bool, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One run over blocks, from their largest logits.

    Returns:
        running maximum, later rescalings, the run's last maximum, and how many rescalings there are (1 column).
    """
    if backwards:
        largest = largest.flip(-1)
    running = torch.maximum(largest.cummax(-1).values, start)
    before = torch.cat([start, running[..., :-1]], -1)
    moved = ((running > before) & before.isfinite()).double()
    later = moved.sum(-1, keepdim=True) - moved.cumsum(-1)
    last = running[..., -1:].expand_as(running)
    count = moved.sum(-1, keepdim=True)
    return (running.flip(-1), later.flip(-1), last, count) if backwards else (running, later, last, count)


def _by_key(values: torch.Tensor, block: int, keys: int) -> torch.Tensor:
    return values.repeat_interleave(block, -1)[..., :keys]
