"""The case: one attention problem, fully determined, with a readable id from which it can be rebuilt."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
from dataclasses import dataclass

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
"""Short names (used in ids) of the dtypes that a case can have, with torch's names."""

MASKS = ("full", "causal", "causal-topleft")
"""Visibility rules; `causal` is aligned bottom-right, `causal-topleft` top-left (see `semantics.py`)."""

ALIBIS = ("heads", "batch")
"""Linear biases: with one slope for each query head, or for each batch entry and query head (`semantics.alibi_slopes`)."""

BIASES = ("full", "heads", "batch", "hidden", "mask")
"""Tensors that are added to logits, or hide pairs, by what they are broadcast over (`dense_bias.shape`)."""

LENGTHS = ("ragged", "used", "keys")
"""Sequences of different lengths (`lengths.py`): packed in stretches as long as they are, or in equal ones that they use in
part; or, in a cache, with as many keys as it holds of each."""

CACHES = ("contiguous", "paged", "shared")
"""How keys and values lie in a cache that is decoded from (`adapters/cached.py`); "shared": in pages, some of which several
sequences have, or one has twice (`caches.py`)."""

ROTARIES = ("half", "interleaved")
"""Which columns rotary embedding turns together (`rotary.py`): those half of the turned ones apart, or neighbours."""

SMALLEST_ROTARY = 16
"""Columns that rotary embedding turns are a multiple of this."""

MAX_HEAD_DIM = 256

SOFTCAP_RANGE = (2.0**-20, 2.0**40)
"""Smallest and largest softcap: beyond it, all logits would be equal or none would be changed."""

LONGEST_ID = 1000
"""Characters of an id: far beyond any real case, and below what Python converts to an integer at once."""

_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"

_ID = re.compile(
    r"(?P<dtype>[a-z0-9]+)_b(?P<batch>\d+)_h(?P<heads_q>\d+)x(?P<heads_kv>\d+)"
    r"_n(?P<seqlen_q>\d+)x(?P<seqlen_k>\d+)_d(?P<head_dim>\d+)(?:x(?P<head_dim_v>\d+))?"
    rf"_(?P<mask>{_NAME})_(?P<regime>{_NAME})_(?P<layout>{_NAME})"
    r"(?:_left(?P<window_left>\d+))?(?:_right(?P<window_right>\d+))?"
    r"(?:_scale(?P<scale>-?\d+(?:\.\d+)?(?:e[-+]\d+)?))?"
    rf"(?:_cap(?P<softcap>\d+(?:\.\d+)?(?:e[-+]\d+)?))?(?:_alibi-(?P<alibi>{_NAME}))?(?:_bias-(?P<bias>{_NAME}))?"
    rf"(?P<sink>_sink)?(?:_lengths-(?P<lengths>{_NAME}))?(?:_cache-(?P<cache>{_NAME}))?"
    rf"(?P<left_pad>_leftpad)?(?:_rotary-(?P<rotary>{_NAME}))?"
    r"(?:_drop(?P<dropout>\d+(?:\.\d+)?(?:e-\d+)?))?(?P<lse_grad>_dlse)?_s(?P<seed>\d+)",
    re.ASCII,
)

_INTEGERS = {"batch": 0, "heads_q": 1, "heads_kv": 1, "seqlen_q": 0, "seqlen_k": 0, "head_dim": 1, "seed": 0}
"""The integer fields, with the smallest value of each."""

_WINDOW = ("window_left", "window_right")
_OPTIONAL = {"head_dim_v": 1, **dict.fromkeys(_WINDOW, 0)}
"""Integer fields that may be None, with the smallest value of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """One attention problem: shapes, heads, dtype, mask, scale, softcap, biases, lengths, dropout, layout, regime and seed.

    Tensors are written B,H,N,D throughout the verifier: q and dO are (batch, heads_q, seqlen_q, head_dim), k and v are
    (batch, heads_kv, seqlen_k, head_dim); v and dO have head_dim_v columns, if that is given. Query head h reads key head
    h // (heads_q / heads_kv).

    Attributes:
        dtype: short name from `DTYPES`.
        head_dim_v: columns of v, out and dO if they are others than those of q and k; None, and never the same number.
        mask: one of `MASKS`.
        window_left: how many keys before its own position a query sees at most, or None: all of them. Query i stands at key
            i + seqlen_k - seqlen_q (at key i under `causal-topleft`).
        window_right: how many keys after its own position it sees at most, or None; causal masks have 0 by themselves.
        regime: name of an input distribution (`regimes.py`).
        layout: name of a memory layout of q, k, v and dO (`layouts.py`).
        scale: softmax scale as an exact float64, or None for 1/sqrt(head_dim) as Python computes it
            (`head_dim ** -0.5`).
        softcap: cap of the logits (cap·tanh(logit / cap), see `semantics.py`) as an exact float64, or None: no cap.
        alibi: linear biases of the logits, one of `ALIBIS`, or None; aligned bottom-right, so not with `causal-topleft`.
        bias: a tensor of biases of the logits, or of pairs that take part, one of `BIASES`, or None.
        sink: whether the softmax of each query head has one more logit, in its denominator alone.
        lengths: how sequences with lengths of their own lie, one of `LENGTHS`, or None: all have seqlen_q and seqlen_k.
            With it these are the largest lengths; tensors are padded, a batch entry's sequence comes first in them
            (`lengths.lengths`), and its query i stands at key i + its number of keys - its number of queries.
        cache: keys and values come from a cache, one of `CACHES`, and there is no backward pass; or None. A cache has no biases
            as tensors, no sinks, no dropout, a layout of its own, and its masks are aligned bottom-right.
        left_pad: whether keys at the front of a cache are seen by nobody, of each batch entry as many as `caches.left_pads`
            says.
        rotary: which columns of queries, and of keys that the call appends to a cache, are turned together by angles of their
            positions, one of `ROTARIES`, or None (`rotary.py`). head_dim is then 16 at least.
        dropout: rate at which pairs are dropped, from 0 to 1, as an exact float64, or None: no dropout. 0.0 drops nothing, but
            is drawn for. Which pairs are dropped follows from the seed (docs/adr/0016). Not with a cache.
        lse_grad: whether lse receives a cotangent too (dlse), or only out.
        seed: seed of the inputs and of what dropout drops, >= 0.

    Raises:
        TypeError: if a field has the wrong type (a bool is no integer, an integer is no bool).
        ValueError: if a field is out of range. Either message names the field, the value and what is accepted.
    """

    dtype: str
    batch: int = 1
    heads_q: int = 1
    heads_kv: int = 1
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    head_dim_v: int | None = None
    mask: str = "full"
    window_left: int | None = None
    window_right: int | None = None
    regime: str = "normal"
    layout: str = "contiguous"
    scale: float | None = None
    softcap: float | None = None
    alibi: str | None = None
    bias: str | None = None
    sink: bool = False
    lengths: str | None = None
    cache: str | None = None
    left_pad: bool = False
    rotary: str | None = None
    dropout: float | None = None
    lse_grad: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dtype", "mask", "regime", "layout"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, accepted are strings")
        for name, smallest in _INTEGERS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: got {value!r}, accepted are integers >= {smallest}")
            if value < smallest:
                raise ValueError(f"{name}: got {value}, accepted are integers >= {smallest}")
        for name, smallest in _OPTIONAL.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{name}: got {value!r}, accepted are integers >= {smallest} and None")
            if value is not None and value < smallest:
                raise ValueError(f"{name}: got {value}, accepted are integers >= {smallest} and None")
        for name in ("sink", "left_pad", "lse_grad"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, accepted are True and False")
        if self.bias is not None and not isinstance(self.bias, str):
            raise TypeError(f"bias: got {self.bias!r}, accepted are {', '.join(BIASES)} and None")
        if self.bias is not None and self.bias not in BIASES:
            raise ValueError(f"bias: got {self.bias!r}, accepted are {', '.join(BIASES)} and None")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, accepted are {', '.join(DTYPES)}")
        if self.mask not in MASKS:
            raise ValueError(f"mask: got {self.mask!r}, accepted are {', '.join(MASKS)}")
        if self.mask != "full" and self.window_right is not None:
            raise ValueError(
                f"window_right: got {self.window_right}, accepted with mask {self.mask} is None: it sees no key after"
            )
        if self.alibi is not None:
            if not isinstance(self.alibi, str):
                raise TypeError(f"alibi: got {self.alibi!r}, accepted are {', '.join(ALIBIS)} and None")
            if self.alibi not in ALIBIS:
                raise ValueError(f"alibi: got {self.alibi!r}, accepted are {', '.join(ALIBIS)} and None")
            if self.mask == "causal-topleft":
                raise ValueError(
                    f"alibi: got {self.alibi!r}, accepted with mask {self.mask} is None: biases are aligned bottom-right"
                )
        if self.lengths is not None:
            if not isinstance(self.lengths, str):
                raise TypeError(f"lengths: got {self.lengths!r}, accepted are {', '.join(LENGTHS)} and None")
            if self.lengths not in LENGTHS:
                raise ValueError(f"lengths: got {self.lengths!r}, accepted are {', '.join(LENGTHS)} and None")
            for name, refused, why in (
                ("mask", self.mask == "causal-topleft", "sequences are aligned bottom-right"),
                ("bias", self.bias is not None, "packed sequences have no bias as a tensor"),
                ("layout", self.layout != "contiguous", "packed sequences have a layout of their own"),
                ("cache", self.lengths == "keys" and self.cache is None, "a cache alone has numbers of keys"),
            ):
                if refused:
                    raise ValueError(
                        f"lengths: got {self.lengths!r}, accepted with {name} {getattr(self, name)} is None: {why}"
                    )
        if self.cache is not None:
            self._require_cache()
        self._require_of_cache()
        if self.heads_q % self.heads_kv:
            raise ValueError(f"heads_q: got {self.heads_q}, accepted are multiples of heads_kv = {self.heads_kv}")
        for name in ("head_dim", "head_dim_v"):
            if (getattr(self, name) or 0) > MAX_HEAD_DIM:
                raise ValueError(f"{name}: got {getattr(self, name)}, accepted are integers from 1 to {MAX_HEAD_DIM}")
        if self.head_dim_v == self.head_dim:
            object.__setattr__(self, "head_dim_v", None)  # one id a value
        for name in ("regime", "layout"):
            if not re.fullmatch(_NAME, getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, accepted are lower-case words joined by '-'")
        if self.scale is not None:
            if not isinstance(self.scale, (int, float)) or isinstance(self.scale, bool):
                raise TypeError(f"scale: got {self.scale!r}, accepted are finite numbers and None")
            if not abs(self.scale) <= sys.float_info.max:
                raise ValueError(f"scale: got {self.scale}, accepted are finite numbers and None")
            # One id a value: 2, 2.0 and numpy.float64(2) are the same scale.
            object.__setattr__(self, "scale", float(self.scale))
        if self.softcap is not None:
            if not isinstance(self.softcap, (int, float)) or isinstance(self.softcap, bool):
                raise TypeError(f"softcap: got {self.softcap!r}, accepted are numbers from 2**-20 to 2**40 and None")
            if not SOFTCAP_RANGE[0] <= self.softcap <= SOFTCAP_RANGE[1]:
                raise ValueError(f"softcap: got {self.softcap}, accepted are numbers from 2**-20 to 2**40 and None")
            object.__setattr__(self, "softcap", float(self.softcap))
        if self.dropout is not None:
            if not isinstance(self.dropout, (int, float)) or isinstance(self.dropout, bool):
                raise TypeError(f"dropout: got {self.dropout!r}, accepted are numbers from 0 to 1 and None")
            if not 0 <= self.dropout <= 1:
                raise ValueError(f"dropout: got {self.dropout}, accepted are numbers from 0 to 1 and None")
            object.__setattr__(self, "dropout", abs(float(self.dropout)))  # -0.0 drops what 0.0 does

    def _require_cache(self) -> None:
        """Raise unless the cache is one of `CACHES`, and no field has a value that a cache does not take."""
        if not isinstance(self.cache, str):
            raise TypeError(f"cache: got {self.cache!r}, accepted are {', '.join(CACHES)} and None")
        if self.cache not in CACHES:
            raise ValueError(f"cache: got {self.cache!r}, accepted are {', '.join(CACHES)} and None")
        taken = {
            "bias": (None,),
            "sink": (False,),
            "lengths": (None, "keys"),
            "dropout": (None,),
            "lse_grad": (False,),
            "layout": ("contiguous",),
            "mask": ("full", "causal"),
        }
        for name, accepted in taken.items():
            value = getattr(self, name)
            if value not in accepted:
                raise ValueError(f"{name}: got {value!r}, accepted with a cache is {' or '.join(map(repr, accepted))}")

    def _require_of_cache(self) -> None:
        """Raise unless `left_pad` and `rotary` are there with a cache alone, and `rotary` is one of `ROTARIES`."""
        if self.rotary is not None:
            if not isinstance(self.rotary, str):
                raise TypeError(f"rotary: got {self.rotary!r}, accepted are {', '.join(ROTARIES)} and None")
            if self.rotary not in ROTARIES:
                raise ValueError(f"rotary: got {self.rotary!r}, accepted are {', '.join(ROTARIES)} and None")
            if self.head_dim < SMALLEST_ROTARY:
                raise ValueError(
                    f"rotary: got {self.rotary!r}, accepted with head_dim {self.head_dim} is None: at least {SMALLEST_ROTARY} "
                    "columns are turned"
                )
        for name, absent in (("left_pad", False), ("rotary", None)):
            if self.cache is None and getattr(self, name) != absent:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, accepted without a cache is {absent}")

    @property
    def id(self) -> str:
        """The readable id; `AttentionCase.from_id` gives the case back."""
        parts = [
            self.dtype,
            f"b{self.batch}",
            f"h{self.heads_q}x{self.heads_kv}",
            f"n{self.seqlen_q}x{self.seqlen_k}",
            f"d{self.head_dim}" if self.head_dim_v is None else f"d{self.head_dim}x{self.head_dim_v}",
            self.mask,
            self.regime,
            self.layout,
        ]
        parts += [f"{name.removeprefix('window_')}{getattr(self, name)}" for name in _WINDOW if getattr(self, name) is not None]
        if self.scale is not None:
            parts.append(f"scale{self.scale!r}")
        if self.softcap is not None:
            parts.append(f"cap{self.softcap!r}")
        if self.alibi is not None:
            parts.append(f"alibi-{self.alibi}")
        if self.bias is not None:
            parts.append(f"bias-{self.bias}")
        if self.sink:
            parts.append("sink")
        if self.lengths is not None:
            parts.append(f"lengths-{self.lengths}")
        if self.cache is not None:
            parts.append(f"cache-{self.cache}")
        if self.left_pad:
            parts.append("leftpad")
        if self.rotary is not None:
            parts.append(f"rotary-{self.rotary}")
        if self.dropout is not None:
            parts.append(f"drop{self.dropout!r}")
        if self.lse_grad:
            parts.append("dlse")
        parts.append(f"s{self.seed}")
        return "_".join(parts)

    @classmethod
    def from_id(cls, case_id: str) -> AttentionCase:
        """Rebuild the case from its id.

        Raises:
            ValueError: if the text is not a case id as `id` writes it (no leading zeros, numbers as Python repeats them).
        """
        example = cls(dtype="bf16", seqlen_q=128, seqlen_k=130, head_dim=64, mask="causal").id
        match = _ID.fullmatch(case_id) if len(case_id) <= LONGEST_ID else None
        if match is None:
            raise ValueError(f"case id: got {reprlib.repr(case_id)}, accepted are ids such as {example}")
        fields: dict[str, str | None] = match.groupdict()
        words = {
            name: text
            for name in ("dtype", "mask", "regime", "layout", "alibi", "bias", "lengths", "cache", "rotary")
            if (text := fields[name]) is not None
        }
        numbers = {name: int(text) for name in (*_INTEGERS, *_OPTIONAL) if (text := fields[name]) is not None}
        factors = {name: float(text) for name in ("scale", "softcap", "dropout") if (text := fields[name]) is not None}
        flags = {name: fields[name] is not None for name in ("sink", "left_pad", "lse_grad")}
        case = cls(**words, **numbers, **factors, **flags)  # type: ignore[arg-type]
        if case.id != case_id:
            raise ValueError(f"case id: got {case_id!r}, accepted is its canonical form {case.id}")
        return case

    @property
    def group_size(self) -> int:
        """Query heads that share one key head (1: MHA, heads_q: MQA)."""
        return self.heads_q // self.heads_kv

    @property
    def value_dim(self) -> int:
        """Columns of v, out and dO."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @property
    def forward_only(self) -> bool:
        """Whether there is no backward pass: decoding from a cache has none."""
        return self.cache is not None

    @property
    def is_biased(self) -> bool:
        """Whether anything is added to logits, or to the softmax's denominator."""
        return self.alibi is not None or self.bias not in {None, "mask"} or self.sink

    @property
    def softmax_scale(self) -> float:
        """The scale that multiplies QKᵀ, before any softcap; an exact float64."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the case uses, sorted: the key by which errors are aggregated in reports."""
        found = set()
        if self.mask != "full":
            found.add(self.mask)
        if self.window_left is not None or self.window_right is not None:
            found.add("window")
        if self.head_dim_v is not None:
            found.add("head-dim-v")
        if self.group_size > 1:
            found.add("mqa" if self.heads_kv == 1 else "gqa")
        if self.seqlen_q != self.seqlen_k:
            found.add("cross-length")
        if self.scale is not None:
            found.add("scale")
        if self.softcap is not None:
            found.add("softcap")
        if self.alibi is not None:
            found.add("alibi")
        if self.bias is not None:
            found.add("mask" if self.bias == "mask" else "bias")
        if self.sink:
            found.add("sink")
        if self.lengths is not None:
            found.add("varlen" if self.cache is None else "cache-lengths")
        if self.cache is not None:
            found.add({"contiguous": "cache", "paged": "paged-cache", "shared": "shared-pages"}[self.cache])
        if self.left_pad:
            found.add("leftpad")
        if self.rotary is not None:
            found.add("rotary")
        if self.dropout is not None:
            found.add("dropout")
        if self.lse_grad:
            found.add("dlse")
        if self.layout != "contiguous":
            found.add("layout")
        return tuple(sorted(found)) or ("plain",)

    def replace(self, **changes: object) -> AttentionCase:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
