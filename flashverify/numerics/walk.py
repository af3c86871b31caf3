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
    """

    maximum: torch.Tensor
    later: torch.Tensor


def walk(logit: torch.Tensor, contract: Contract) -> Walked:
    """Follow the walk that the contract states.

    Args:
        logit: (c, r, n), -inf where a key is not seen.
        contract: its block_k, direction and splits; block_k None: the whole row at once.
    """
    keys = logit.shape[-1]
    block = min(contract.block_k or keys, keys)
    blocks = math.ceil(keys / block)
    padded = pad(logit, (0, blocks * block - keys), value=-math.inf)
    in_blocks = padded.reshape(*logit.shape[:-1], blocks, block)
    largest = in_blocks.amax(-1)
    if contract.direction == "right":
        largest = largest.flip(-1)
    run = math.ceil(blocks / contract.splits)
    running = torch.cat([part.cummax(-1).values for part in torch.split(largest, run, -1)], -1)
    before = torch.cat([pad(part, (1, 0), value=-math.inf)[..., :-1] for part in torch.split(running, run, -1)], -1)
    moved = ((running > before) & before.isfinite()).double()
    # what moves after a block: within its run, and once more where the runs are merged
    later = torch.cat([part.sum(-1, keepdim=True) - part.cumsum(-1) for part in torch.split(moved, run, -1)], -1)
    if contract.splits > 1:
        last = torch.cat([part[..., -1:].expand_as(part) for part in torch.split(running, run, -1)], -1)
        later = later + (last < running.amax(-1, keepdim=True)).double()
    if contract.direction == "right":
        running, later = running.flip(-1), later.flip(-1)
    return Walked(_by_key(running, block, keys), _by_key(later, block, keys))


def _by_key(values: torch.Tensor, block: int, keys: int) -> torch.Tensor:
    return values.repeat_interleave(block, -1)[..., :keys]
