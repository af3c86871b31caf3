"""Tiles of the decode kernel, and into how many parts keys are split. No autotuning on a user's path."""

import torch
import triton

from flashverify_kernels.launch import INTERPRETED
from flashverify_kernels.tiles import FEWER_KEYS, TileConfig, architecture, padded_head_dim

MOST_ROWS = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 32, torch.float64: 16}
"""Rows (query, head of the group) of a tile, at most; with more than 128 columns, half as many, but 16."""

_HALF = {16: (128, 2), 32: (128, 2), 64: (128, 2), 128: (64, 2), 256: (32, 2)}
_KEYS_AND_STAGES = {
    torch.float16: _HALF,
    torch.bfloat16: _HALF,
    torch.float32: {16: (64, 2), 32: (64, 2), 64: (64, 2), 128: (32, 2), 256: (16, 2)},
    torch.float64: {16: (32, 1), 32: (32, 1), 64: (32, 1), 128: (16, 1), 256: (16, 1)},
}
"""dtype -> padded head size -> keys of a tile, and stages: 16 to 64 KiB of keys and values on their way to a program."""

HOPPER_STAGES = 3
"""Stages of 16-bit formats where a block may have 227 KiB of shared memory: compute capability 9.0."""

PROGRAMS_OF_A_PROCESSOR = 2
"""Programs that share a multiprocessor: what its shared memory has room for."""

MOST_SPLITS = 128
FEWEST_BLOCKS = 2
"""Key blocks that a part has at least, where the cache is full."""

INTERPRETER_SPLITS = 3
"""The interpreter has no processors to fill; it splits, so that the merge kernel has something to do."""


def decode_tile(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, rows: int, paged: bool = False
) -> TileConfig:
    """The tile that the decode kernel uses.

    Args:
        device: where it runs.
        dtype: of q and the cache.
        head_dim: columns of q and k.
        value_dim: columns of v.
        rows: queries times query heads of a group.
        paged: whether the cache has pages.

    Raises:
        ValueError: if the device is older than every table.
    """
    name = architecture(device)
    padded = padded_head_dim(max(head_dim, value_dim))
    return tile_of(name, dtype, padded, value_dim, rows, paged)


def tile_of(name: str, dtype: torch.dtype, padded: int, value_dim: int, rows: int, paged: bool) -> TileConfig:
    """The tile of an architecture (a name of `tiles.TABLES`) for a padded head size; see `decode_tile`."""
    if name == "interpreter":
        return TileConfig(16, 32)
    most = MOST_ROWS[dtype] if padded <= 128 else max(16, MOST_ROWS[dtype] // 2)
    block_m = min(max(16, triton.next_power_of_2(rows)), most)
    block_n, stages = _KEYS_AND_STAGES[dtype][padded]
    is_half = dtype.itemsize == 2
    if is_half and name == "sm90":
        stages = HOPPER_STAGES
        if value_dim <= FEWER_KEYS:
            block_n = FEWER_KEYS
    # Triton lets as many stages lie between a look into the page table and the load of its keys as between that and their use.
    return TileConfig(block_m, block_n, 4, 2 * stages - 1 if paged else stages)


def number_of_splits(programs: int, blocks: int, processors: int) -> int:
    """Into how many parts the keys are split: the fewest that keep the processors about as busy as any number would.

    Programs run in waves of `PROGRAMS_OF_A_PROCESSOR` a processor; of a last wave that is not full, the rest is idle.

    Args:
        programs: how many there are without a split.
        blocks: key blocks of the longest sequence that the cache has room for.
        processors: multiprocessors of the device.
    """
    places = processors * PROGRAMS_OF_A_PROCESSOR
    most = max(1, min(MOST_SPLITS, blocks // FEWEST_BLOCKS))

    def busy(splits: int) -> float:
        return programs * splits / (-(-programs * splits // places) * places)

    goal = 0.85 * max(busy(splits) for splits in range(1, most + 1))
    return next(splits for splits in range(1, most + 1) if busy(splits) >= goal)


def splits_for(device: torch.device, programs: int, blocks: int) -> int:
    """`number_of_splits` on a device."""
    if programs == 0:
        return 1
    if INTERPRETED:
        return max(1, min(INTERPRETER_SPLITS, blocks))
    return number_of_splits(programs, blocks, torch.cuda.get_device_properties(device).multi_processor_count)
