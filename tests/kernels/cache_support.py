"""Generated calls of the function that decodes with a cache: every argument at once, and NaN where nothing is to be read."""

from __future__ import annotations

import math
import random

import torch
from flashverify_kernels import flash_attn_with_kvcache
from flashverify_kernels.rotary import rotate

from tests.kernels import cache_reference
from tests.kernels.cache_reference import Cache
from tests.kernels.support import DTYPES  # noqa: F401  (handed on)

GARBAGE = (-1, 2**31 - 1, -(2**31), 10**6)
"""What elements of a page table hold that stand for no key."""


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, so that NaN equals itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


class Inputs:
    """A cache with sequences in it, and new keys for it."""

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        lengths: list[int],
        queries: int = 1,
        tokens: int = 0,
        heads: int = 4,
        heads_kv: int = 2,
        head_dim: int = 16,
        value_dim: int | None = None,
        capacity: int = 64,
        page_size: int = 0,
        entries: list[int] | None = None,
        leftpad: list[int] | None = None,
        layout: str = "contiguous",
        seed: int = 0,
    ) -> None:
        self.random, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        batch, value_dim = len(lengths), head_dim if value_dim is None else value_dim
        self.dtype, self.device, self.lengths, self.capacity, self.tokens = dtype, device, lengths, capacity, tokens
        self.leftpad = leftpad

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        self.q = draw(batch, queries, heads, head_dim)
        self.k, self.v = draw(batch, tokens, heads_kv, head_dim), draw(batch, tokens, heads_kv, value_dim)
        if page_size:
            pages_each = capacity // page_size
            pages = self.random.sample(range(pages_each * batch + 3), pages_each * batch)
            table = [pages[b * pages_each : (b + 1) * pages_each] for b in range(batch)]
            for row, length in zip(table, lengths, strict=True):
                for page in range(-(-min(length + tokens, capacity) // page_size), pages_each):
                    row[page] = self.random.choice(GARBAGE)
            self.where, places = Cache([], table, page_size), (pages_each * batch + 3, page_size)
        else:
            self.where = Cache(list(range(batch)) if entries is None else entries)
            places = (max(self.where.entries) + 2, capacity)
        self.entries = entries
        self.k_cache = _empty_cache((*places, heads_kv, head_dim), layout, dtype, device)
        self.v_cache = _empty_cache((*places, heads_kv, value_dim), layout, dtype, device)
        for b, length in enumerate(lengths):
            for key in range(0 if leftpad is None else leftpad[b], min(length, capacity)):
                place = self.where.place(b, key)
                self.k_cache[place], self.v_cache[place] = draw(heads_kv, head_dim), draw(heads_kv, value_dim)

    def integers(self, values: list[int] | list[list[int]] | None) -> torch.Tensor | None:
        """An int32 tensor on the device, or None."""
        return None if values is None else torch.tensor(values, dtype=torch.int32, device=self.device)

    def arguments(self, **others: object) -> dict[str, object]:
        """The arguments of a call."""
        new = {"k": self.k, "v": self.v} if self.tokens else {}
        places = {
            "cache_seqlens": self.integers(self.lengths),
            "cache_batch_idx": self.integers(self.entries),
            "cache_leftpad": self.integers(self.leftpad),
            "block_table": self.integers(self.where.table),
        }
        return {"q": self.q, "k_cache": self.k_cache, "v_cache": self.v_cache, **new, **places, **others}

    def run(self, **others: object) -> tuple[torch.Tensor, torch.Tensor]:
        """out and lse of the public function."""
        return flash_attn_with_kvcache(**self.arguments(return_softmax_lse=True, **others))

    def written(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of k_cache and v_cache new keys belong to, as masks of their first two axes."""
        mask = torch.zeros(self.k_cache.shape[:2], dtype=torch.bool, device=self.device)
        for b, length in enumerate(self.lengths):
            for key in range(length, min(length + self.tokens, self.capacity)):
                mask[self.where.place(b, key)] = True
        return mask


def _empty_cache(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A cache of NaN: contiguous, heads outside of rows, or every other column of a wider one."""
    first, rows, heads, columns = shape
    if layout == "heads-outside":
        return torch.full((first, heads, rows, columns), math.nan, dtype=dtype, device=device).transpose(1, 2)
    if layout == "every-other":
        return torch.full((first, rows, heads, 2 * columns), math.nan, dtype=dtype, device=device)[..., ::2]
    assert layout == "contiguous"
    return torch.full(shape, math.nan, dtype=dtype, device=device)


def angles(positions: int, rotary_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (positions, rotary_dim / 2), of the usual frequencies."""
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * 10000.0 ** (-2.0 * pairs / rotary_dim)
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


class Call:
    """A call whose every argument is drawn, and its results from the definition."""

    def __init__(self, number: int, dtype: torch.dtype, device: torch.device) -> None:
        self.random = random.Random(number)
        pick = self.random.choice
        batch, heads_kv, queries = pick((1, 2, 3)), pick((1, 2)), pick((1, 1, 2, 5, 17))
        page_size = pick((0, 0, 16, 32, 48))
        capacity = pick((1, 2, 3)) * (page_size or 33)
        self.rotary = pick((None, False, True))
        tokens = pick((1, 3)) if self.rotary is not None else pick((0, 0, 1, 4, queries))
        tokens = min(tokens, capacity)
        edges = {0, 1, capacity, 16, 32, 31, 33, page_size, page_size - 1}
        fitting = [x for x in edges if 0 <= x <= capacity - tokens] + [self.random.randint(0, capacity - tokens)] * 4
        self.is_integer = pick((False, False, True))
        lengths = [pick(fitting)] * batch if self.is_integer else [pick(fitting) for _ in range(batch)]
        is_padded = pick((False, False, True))
        head_dim = pick((16, 24, 32)) if self.rotary is not None else pick((5, 16, 24, 64))
        self.inputs = Inputs(
            dtype, device,
            lengths=lengths,
            queries=queries,
            tokens=tokens,
            heads=heads_kv * pick((1, 3, 4)),
            heads_kv=heads_kv,
            head_dim=head_dim,
            value_dim=pick((None, 8, 20)),
            capacity=capacity,
            page_size=page_size,
            entries=None if page_size else pick((None, self.random.sample(range(batch + 2), batch))),
            leftpad=[self.random.randint(0, length) for length in lengths] if is_padded else None,
            layout=pick(("contiguous", "heads-outside", "every-other")),
            seed=number,
        )  # fmt: skip
        self.causal, self.interleaved = pick((False, True)), pick((False, True))
        self.window = pick(((-1, -1), (-1, -1), (3, -1), (-1, 4), (5, 2)))
        self.scale, self.softcap = pick((None, 0.7, -0.3)), pick((0.0, 0.0, 1.5))
        heads = self.inputs.q.shape[2]
        slopes = torch.tensor([[self.random.uniform(-1, 1) for _ in range(heads)] for _ in range(batch)], device=device)
        self.slopes = pick((None, slopes, slopes[0]))
        self.splits = pick((0, 1, 2, 3, 7))
        self.angles: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.rotary is not None:
            angle_dtype = torch.float32 if self.rotary else dtype
            self.angles = angles(capacity + queries, 32 if head_dim == 32 and pick((False, True)) else 16, angle_dtype, device)

    @property
    def options(self) -> dict[str, object]:
        """The arguments behind the tensors."""
        cos, sin = self.angles or (None, None)
        lengths = {"cache_seqlens": self.inputs.lengths[0]} if self.is_integer else {}
        return {
            **lengths, "rotary_cos": cos, "rotary_sin": sin, "softmax_scale": self.scale, "causal": self.causal,
            "window_size": self.window, "softcap": self.softcap, "rotary_interleaved": self.interleaved,
            "alibi_slopes": self.slopes, "num_splits": self.splits,
        }  # fmt: skip

    def check(self) -> None:
        """Make the call, and fail unless cache, out and lse are those of the definition."""
        inputs, (cos, sin) = self.inputs, self.angles or (None, None)
        before = inputs.k_cache.clone(), inputs.v_cache.clone()
        out, lse = inputs.run(**self.options)
        expected_k = cache_reference.appended(
            before[0], inputs.k, inputs.where, inputs.lengths, inputs.capacity, cos, sin, self.interleaved
        )
        expected_v = cache_reference.appended(before[1], inputs.v, inputs.where, inputs.lengths, inputs.capacity)
        check_written(inputs, before, (expected_k, expected_v), is_turned=cos is not None)

        batch, _, heads, _ = inputs.q.shape
        q = inputs.q
        if cos is not None and sin is not None:
            advance = self.causal or self.window != (-1, -1)
            if inputs.dtype == torch.float64:
                q = cache_reference.turned_queries(q, inputs.lengths, cos, sin, advance, self.interleaved)
            else:  # rounded as the kernel rounds, which test_rotary examines
                q = torch.empty_like(q)
                seqlens = inputs.integers(inputs.lengths)
                rotate(inputs.q, q, cos, sin, seqlens, 0, inputs.capacity, advance, self.interleaved)
        left, right = (None if side == -1 else side for side in self.window)
        totals = [length + inputs.tokens for length in inputs.lengths]
        expected = cache_reference.attention(
            q, inputs.k_cache, inputs.v_cache, inputs.where, totals, inputs.capacity, inputs.dtype,
            scale=self.scale,
            leftpad=inputs.leftpad,
            left=left,
            right=0 if self.causal else right,
            softcap=self.softcap,
            slopes=None if self.slopes is None else self.slopes.expand(batch, heads),
        )  # fmt: skip
        assert expected.worst(out, lse) <= 1.0


def check_written(
    inputs: Inputs,
    before: tuple[torch.Tensor, torch.Tensor],
    expected: tuple[torch.Tensor, torch.Tensor],
    is_turned: bool,
) -> None:
    """Fail unless the caches are as before, bit for bit, but for new rows, and these as expected: turned ones if rounded."""
    written = inputs.written()
    for found, old, new in zip((inputs.k_cache, inputs.v_cache), before, expected, strict=True):
        assert torch.equal(bits(found)[~written], bits(old)[~written])
        if found is inputs.v_cache or not is_turned:
            assert torch.equal(bits(found)[written], bits(new.to(inputs.dtype))[written])
        else:
            allowed = rotary_allowed(new[written], inputs.dtype, inputs.k.abs().max().item())
            assert ((found[written].double() - new[written]).abs() <= allowed).all()


def rotary_allowed(exact: torch.Tensor, dtype: torch.dtype, largest: float) -> torch.Tensor:
    """How far a turned row may be from the exact one: two products and a sum in the accumulator, and one rounding."""
    storage = torch.finfo(dtype).eps / 2
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    return storage * exact.abs() + 4 * unit * 2 * largest + torch.finfo(dtype).tiny * storage
