"""Where dropout's seed and offset come from: torch's generator of the device, or whoever calls."""

import torch

from flashverify_kernels.dropout import words_used
from flashverify_kernels.ops import NAMESPACE, on_device_of
from flashverify_kernels.validation import shown

RngState = tuple[int, int] | torch.Tensor | None
"""Seed and offset of a generator, as integers or as a tensor of their bits, or None: torch's own."""

SEEDS = (-(2**63), 2**64 - 1)
OFFSETS = (0, 2**64 - 4)


@torch.library.custom_op(f"{NAMESPACE}::dropout_state", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def dropout_state(like: torch.Tensor, words: int) -> torch.Tensor:
    """The state that a call starts from, int64 (2,) on the device of `like`: the seed, and the offset in words.

    On a GPU they are its generator's own, whose offset is advanced by `words`, so that no later call and no kernel of torch's
    reads these words. While a CUDA graph is captured the host does not know them, and on a CPU the generator is no Philox: then
    the seed is drawn from the generator, anew each time the graph is replayed.
    """
    device = like.device
    with on_device_of(like):
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            seed, offset = generator.initial_seed(), generator.get_offset()
            generator.set_offset(offset + words)
            return state_of(seed, offset, device)
        state = torch.zeros(2, dtype=torch.int64, device=device)
        state[:1].random_()
        return state


@dropout_state.register_fake
def _(like: torch.Tensor, words: int) -> torch.Tensor:
    return torch.empty(2, dtype=torch.int64, device=like.device)


def state_of(seed: int, offset: int, device: torch.device) -> torch.Tensor:
    """Seed and offset, as 64 bits each, in a tensor on a device."""
    bits = [(value + 2**63) % 2**64 - 2**63 for value in (seed, offset)]
    return torch.tensor(bits, dtype=torch.int64).to(device, non_blocking=True)


def resolve_state(name: str, value: object, q: torch.Tensor, keys: int, dropout_p: float) -> torch.Tensor | None:
    """The state that dropout starts from, or None where there is none.

    Args:
        name: the argument's name.
        value: (seed, offset), int64 (2,) of them, or None: torch's generator has it.
        q: queries, on whose device it has to be.
        keys: the largest number of keys, which decides by how much the generator is advanced.
        dropout_p: the drop rate, checked.

    Raises:
        TypeError: if it is neither two integers nor a tensor of int64.
        ValueError: if an integer is out of range, or a tensor has another shape or device.
    """
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"{name}: got a tensor of {value.dtype}, accepted are tensors of torch.int64")
        if tuple(value.shape) != (2,) or value.device != q.device:
            got = f"shape {tuple(value.shape)} on {value.device}"
            raise ValueError(f"{name}: got {got}, accepted are shape (2,) and q's device, {q.device}")
    elif value is not None:
        _check_pair(name, value)
    if not dropout_p:
        return None
    if value is None:
        return dropout_state(q, words_used(keys))
    return value if isinstance(value, torch.Tensor) else state_of(*value, q.device)  # type: ignore[misc]


def _check_pair(name: str, value: object) -> None:
    """Raise unless the value is a seed and an offset."""
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not is_pair or any(not isinstance(x, int) or isinstance(x, bool) for x in value):
        accepted = "a seed and an offset as two integers, a tensor of torch.int64 and None"
        raise TypeError(f"{name}: got {shown(value)}, accepted are {accepted}")
    seed, offset = value
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"{name}: got the seed {seed}, accepted are integers from -2^63 to 2^64 - 1")
    if not OFFSETS[0] <= offset <= OFFSETS[1] or offset % 4:
        raise ValueError(f"{name}: got the offset {offset}, accepted are multiples of 4 from 0 to 2^64 - 4")
