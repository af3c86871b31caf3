"""Tile tables by architecture, dtype, head size and causal: no autotuning on a user's path.

Entries come from `benchmarks/tune_tiles.py`. One is trusted once its cases are certified on that architecture:
`flashverify certify --matrix standard` runs every entry of the machine that it runs on.
"""

from dataclasses import dataclass, fields, replace

import torch
import triton

from flashverify_kernels.launch import INTERPRETED


@dataclass(frozen=True)
class TileConfig:
    """Block sizes and launch options of one kernel.

    Attributes:
        block_m: query rows of a tile, a power of two from 16 to 1024.
        block_n: keys of a tile, a power of two from 16 to 1024.
        num_warps: warps of a program, a power of two up to 32.
        num_stages: stages of the software pipeline.

    Raises:
        ValueError: if a field is out of range.
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 1

    def __post_init__(self) -> None:
        smallest = {"block_m": 16, "block_n": 16, "num_warps": 1, "num_stages": 1}
        largest = {"block_m": 1024, "block_n": 1024, "num_warps": 32}  # Triton's largest tensor; CUDA's largest block
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{field.name}: got {value!r} of type {type(value).__name__}, accepted are integers")
            if value < smallest[field.name]:
                raise ValueError(f"{field.name}: got {value}, accepted are integers of at least {smallest[field.name]}")
            if value > largest.get(field.name, value):
                raise ValueError(f"{field.name}: got {value}, accepted are integers of at most {largest[field.name]}")
            if field.name != "num_stages" and value & (value - 1):
                raise ValueError(f"{field.name}: got {value}, accepted are powers of two")


@dataclass(frozen=True)
class Tiles:
    """Tile configurations of the three tiled kernels.

    Attributes:
        forward: out and lse; a program owns block_m query rows.
        dkdv: dK and dV; a program owns block_n keys.
        dq: dQ; a program owns block_m query rows.

    Raises:
        TypeError: if a field is no `TileConfig`.
    """

    forward: TileConfig
    dkdv: TileConfig
    dq: TileConfig

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, TileConfig):
                raise TypeError(f"{field.name}: got {value!r} of type {type(value).__name__}, accepted are TileConfigs")

    def flatten(self) -> list[int]:
        """Twelve integers, for an operator's schema; `unflatten` gives the tiles back."""
        return [getattr(tile, field.name) for tile in (self.forward, self.dkdv, self.dq) for field in fields(tile)]

    @classmethod
    def unflatten(cls, values: list[int]) -> "Tiles":
        """The tiles whose `flatten` gave these twelve integers."""
        width = len(fields(TileConfig))
        return cls(*(TileConfig(*values[start : start + width]) for start in range(0, 3 * width, width)))


def _tiles(forward: tuple[int, ...], dkdv: tuple[int, ...], dq: tuple[int, ...]) -> Tiles:
    return Tiles(TileConfig(*forward), TileConfig(*dkdv), TileConfig(*dq))


HEAD_DIMS = (16, 32, 64, 128, 256)
"""Padded head sizes: with causal, the columns of every table."""

_HALF_SMALL = {
    (16, False): _tiles((128, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (16, True): _tiles((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (32, False): _tiles((128, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (32, True): _tiles((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (64, False): _tiles((128, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2)),
    (64, True): _tiles((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2)),
    (128, False): _tiles((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    (128, True): _tiles((64, 64, 4, 3), (64, 64, 8, 2), (64, 64, 8, 2)),
    (256, False): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (256, True): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
}
_HALF_HOPPER = {
    # Up to 32 columns the forward kernel takes 32 keys: see FEWER_KEYS.
    (16, False): _tiles((128, 32, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (16, True): _tiles((128, 32, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (32, False): _tiles((128, 32, 4, 3), (128, 64, 4, 3), (64, 64, 4, 3)),
    (32, True): _tiles((128, 32, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)),
    (64, False): _tiles((64, 128, 4, 2), (64, 64, 4, 3), (128, 64, 8, 3)),
    (64, True): _tiles((64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2)),
    (128, False): _tiles((128, 64, 4, 2), (64, 64, 4, 2), (128, 64, 8, 3)),
    (128, True): _tiles((64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 8, 3)),
    (256, False): _tiles((128, 64, 8, 2), (64, 64, 8, 2), (128, 32, 8, 3)),
    (256, True): _tiles((128, 64, 8, 2), (64, 64, 8, 2), (128, 32, 8, 3)),
}
FEWER_KEYS = 32
"""Keys of a forward tile on Hopper in 16-bit formats where V has at most so many columns.

With more, tiles of K and V may have different swizzles, and ptxas 12.8 miscompiles that where rows of one of them are not
loaded as a whole: it forms a descriptor from a register that nothing has written (tests/kernels/test_compiles.py).
"""

DROPPING = {
    (64, False): {"dq": TileConfig(64, 64, 4, 3)},
    (64, True): {"forward": TileConfig(64, 64, 4, 3)},
    (128, False): {"forward": TileConfig(64, 64, 4, 3), "dkdv": TileConfig(32, 64, 4, 3)},
    (128, True): {"dkdv": TileConfig(32, 64, 4, 2)},
}
"""(padded head size, masked) -> other tiles on Hopper in 16-bit formats with dropout, whose words take registers.

Forward tiles keep their number of keys, which lse is summed by: it has the same bits with and without dropout.
"""

_SINGLE = {
    (16, False): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (16, True): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (32, False): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (32, True): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (64, False): _tiles((64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (64, True): _tiles((32, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    (128, False): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (128, True): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (256, False): _tiles((32, 32, 8, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    (256, True): _tiles((32, 32, 8, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
}
_SINGLE_HOPPER = {
    **_SINGLE,
    (16, False): _tiles((128, 32, 4, 1), (64, 32, 4, 1), (32, 32, 4, 1)),
    (32, False): _tiles((128, 32, 4, 1), (64, 32, 4, 1), (32, 32, 4, 1)),
    (64, False): _tiles((64, 64, 4, 1), (32, 64, 4, 1), (32, 32, 4, 1)),
    (64, True): _tiles((64, 64, 4, 1), (32, 64, 4, 1), (64, 32, 4, 1)),
    (128, False): _tiles((64, 64, 8, 1), (32, 32, 8, 1), (32, 32, 4, 1)),
    (128, True): _tiles((32, 64, 4, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    (256, False): _tiles((32, 32, 8, 1), (32, 16, 8, 1), (16, 16, 4, 1)),
}
_DOUBLE = {
    (16, False): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (16, True): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (32, False): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (32, True): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (64, False): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (64, True): _tiles((32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    (128, False): _tiles((32, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    (128, True): _tiles((32, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    (256, False): _tiles((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    (256, True): _tiles((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
}
_DOUBLE_HOPPER = {
    **_DOUBLE,
    **dict.fromkeys([(16, False), (16, True)], _tiles((64, 16, 4, 1), (32, 16, 4, 1), (64, 16, 4, 1))),
    **dict.fromkeys([(32, False), (32, True)], _tiles((64, 16, 4, 1), (32, 16, 4, 1), (64, 16, 4, 1))),
    **dict.fromkeys([(64, False), (64, True)], _tiles((64, 32, 4, 1), (32, 32, 4, 1), (64, 16, 4, 1))),
    **dict.fromkeys([(128, False), (128, True)], _tiles((32, 32, 4, 1), (32, 32, 4, 1), (64, 32, 4, 1))),
}
_SPLIT_64 = _tiles((128, 32, 4, 2), (16, 64, 4, 1), (64, 32, 4, 1))
_SPLIT_128 = _tiles((64, 32, 4, 2), (32, 64, 8, 1), (64, 32, 8, 1))
_SPLIT_256 = _tiles((64, 32, 4, 1), (16, 32, 8, 1), (32, 32, 8, 1))
_SPLIT = {
    (head_dim, causal): tiles
    for head_dim, tiles in zip(HEAD_DIMS, (_SPLIT_64, _SPLIT_64, _SPLIT_64, _SPLIT_128, _SPLIT_256), strict=True)
    for causal in (False, True)
}
"""float32 whose products are made of several products of shorter formats."""

_SMALL = {torch.float16: _HALF_SMALL, torch.bfloat16: _HALF_SMALL, torch.float32: _SINGLE, torch.float64: _DOUBLE}
_HOPPER = {
    **_SMALL,
    torch.float16: _HALF_HOPPER,
    torch.bfloat16: _HALF_HOPPER,
    torch.float32: _SINGLE_HOPPER,
    torch.float64: _DOUBLE_HOPPER,
}
_INTERPRETER = {(head_dim, causal): _tiles((32, 32), (32, 32), (32, 32)) for head_dim, causal in _SINGLE}

LARGEST_DOUBLE_BYTES = 165_888
"""Shared memory of the dK/dV kernel in float64 at the largest head size (as compiled: tests/kernels/test_compiles.py)."""

TABLES: dict[str, dict[torch.dtype, dict[tuple[int, bool], Tiles]]] = {
    "interpreter": dict.fromkeys(_SMALL, _INTERPRETER),
    "sm80": _SMALL,
    "sm90": _HOPPER,
    "sm120": _SMALL,
}
"""architecture -> dtype -> (padded head size, causal) -> tiles. 8.0 and 12.0 begin families with 99 KiB of shared memory."""

SPLIT_TABLES: dict[str, dict[tuple[int, bool], Tiles]] = {**dict.fromkeys(TABLES, _SPLIT), "interpreter": _INTERPRETER}
"""architecture -> (padded head size, causal) -> tiles, of float32 in precisions other than "ieee"."""


def padded_head_dim(head_dim: int) -> int:
    """The power of two, at least 16, that a head is padded to inside a tile."""
    return max(HEAD_DIMS[0], triton.next_power_of_2(head_dim))


def architecture(device: torch.device) -> str:
    """The table for a device: its own, or that of the newest architecture before it.

    Raises:
        ValueError: if the device is older than every table.
    """
    if INTERPRETED:
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    known = sorted(int(name.removeprefix("sm")) for name in TABLES if name.startswith("sm"))
    older = [number for number in known if number <= capability]
    if not older:
        raise ValueError(f"device: got compute capability {major}.{minor}, accepted are {known[0] / 10} and newer")
    return f"sm{older[-1]}"


def is_masked(causal_offset: int | None, first_offset: int | None) -> bool:
    """Whether visibility is limited, so that tables' entries for causal masks are taken."""
    return causal_offset is not None or first_offset is not None


def entry(
    name: str,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    masked: bool,
    precision: str = "ieee",
    dropout: bool = False,
) -> Tiles:
    """The tiles of an architecture; see `tiles_for`. The larger of the two head sizes chooses the table's entry."""
    table = SPLIT_TABLES[name] if dtype == torch.float32 and precision != "ieee" else TABLES[name][dtype]
    padded = padded_head_dim(max(head_dim, value_dim))
    tiles = table[padded, masked]
    if table is _HALF_HOPPER and dropout:
        tiles = replace(tiles, **DROPPING.get((padded, masked), {}))
    if table is _HALF_HOPPER and value_dim <= FEWER_KEYS:
        tiles = replace(tiles, forward=replace(tiles.forward, block_n=FEWER_KEYS))
    return tiles


def tiles_for(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    masked: bool,
    precision: str = "ieee",
    dropout: bool = False,
) -> Tiles:
    """The tiles that the kernels use.

    Args:
        device: where they run.
        dtype: of q, k and v.
        head_dim: columns of q and k.
        value_dim: columns of v.
        masked: whether visibility is limited (`is_masked`).
        precision: of float32 products.
        dropout: whether pairs are dropped.

    Raises:
        ValueError: if the device is older than every table.
        NotImplementedError: if the device's blocks have too little shared memory.
    """
    refusal = unavailable(device, dtype, max(head_dim, value_dim))
    if refusal is not None:
        raise NotImplementedError(refusal)
    return entry(architecture(device), dtype, head_dim, value_dim, masked, precision, dropout)


BIASED_STAGES = 2
"""Pipeline stages of a kernel that loads a bias too, at most: a tile of it takes shared memory in each of them."""


def stages_of(tile: TileConfig, bias: torch.Tensor | None) -> int:
    """How many stages a kernel's loop over tiles is pipelined in."""
    return tile.num_stages if bias is None else min(tile.num_stages, BIASED_STAGES)


def unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a device has no tiles for a dtype and head size, or None.

    Every entry fits the devices that its table is for, with 99 KiB of shared memory (9.0 and 10.0: 227 KiB), but one: four
    float64 tiles of 16 x 256 do not.
    """
    if INTERPRETED or dtype != torch.float64 or padded_head_dim(head_dim) < HEAD_DIMS[-1]:
        return None
    available = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if available >= LARGEST_DOUBLE_BYTES:
        return None
    return (
        f"head size: got {head_dim} in float64, which takes {LARGEST_DOUBLE_BYTES} bytes of shared memory a block; this device "
        f"has {available}; accepted are head sizes up to {HEAD_DIMS[-2]}"
    )
