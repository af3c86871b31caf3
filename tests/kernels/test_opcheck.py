"""torch's own checks of every operator that is registered: schema, fakes, derivatives, and tracing, with every feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from flashverify_kernels.ops import NAMESPACE, attention
from flashverify_kernels.ops_packed import packed_attention

from tests.kernels.cache_support import Inputs, angles
from tests.kernels.support import draw

SHAPE = (1, 2, 1, 3, 5, 4)

FEATURES: dict[str, dict[str, object]] = {
    "plain": {},
    "causal window": {"causal_offset": 1, "first_offset": -1},
    "soft cap": {"softcap": 1.5},
    "slopes": {"alibi": (1, 2)},
    "bias": {"bias": (1, 2, 1, 5)},
    "sink": {"sink": (2,)},
    "dropout": {"dropout_p": 0.5},
    "everything": {
        "softcap": 1.5,
        "causal_offset": 2,
        "alibi": (1, 2),
        "bias": (1, 1, 3, 5),
        "sink": (2,),
        "dropout_p": 0.25,
    },
}
"""Of the dense operators; shapes stand for tensors."""


def _arguments(feature: str, device: torch.device) -> dict[str, object]:
    """The arguments of the forward operator."""
    q, k, v, _ = draw(SHAPE, torch.float32, device)
    absent = dict.fromkeys(("softcap", "alibi", "bias", "sink", "causal_offset", "first_offset", "tiles"))
    given = {
        name: torch.linspace(-1.0, 1.0, torch.Size(value).numel(), device=device).reshape(value)
        if isinstance(value, tuple)
        else value
        for name, value in FEATURES[feature].items()
    }
    given["rng_state"] = torch.tensor([5, 8], device=device) if "dropout_p" in given else None
    return {"q": q, "k": k, "v": v, "scale": 0.5, "precision": "ieee", "dropout_p": 0.0, **absent, **given}


def _attention(device: torch.device) -> Iterator[dict[str, object]]:
    for feature in FEATURES:
        arguments = _arguments(feature, device)
        for name in ("q", "k", "v", "bias", "sink"):
            if arguments[name] is not None:
                arguments[name] = arguments[name].requires_grad_()
        yield arguments
    yield _arguments("plain", device) | {"bias": torch.ones(1, 1, 3, 5, dtype=torch.bool, device=device).tril()}


def _attention_backward(device: torch.device) -> Iterator[dict[str, object]]:
    for feature in FEATURES:
        arguments = _arguments(feature, device)
        out, lse = attention(**arguments)
        needs = {"needs_bias_grad": arguments["bias"] is not None, "needs_sink_grad": arguments["sink"] is not None}
        for dlse in (None, torch.ones_like(lse)):
            yield {**arguments, "out": out, "lse": lse, "dout": torch.ones_like(out), "dlse": dlse, **needs}


CACHES = {"plain": {}, "paged": {"page_size": 16}, "indexed and padded": {"entries": [2, 0], "leftpad": [1, 3]}}


def _caches(device: torch.device) -> Iterator[tuple[Inputs, dict[str, object]]]:
    """Inputs, and the arguments that the two operators on a cache share."""
    for kind in CACHES.values():
        for is_rotary in (False, True):
            inputs = Inputs(torch.float32, device, lengths=[5, 20], tokens=2, queries=2, capacity=32, value_dim=8, **kind)
            cos, sin = angles(40, 16, torch.float32, device) if is_rotary else (None, None)
            k_cache, v_cache = (x.nan_to_num(nan=0.0) for x in (inputs.k_cache, inputs.v_cache))
            entries, table = inputs.integers(inputs.entries), inputs.integers(inputs.where.table)
            yield (
                inputs,
                {
                    "k_cache": k_cache, "v_cache": v_cache, "rotary_cos": cos, "rotary_sin": sin, "interleaved": True,
                    "seqlens": inputs.integers(inputs.lengths), "seqlen": 0, "entries": entries, "table": table,
                },
            )  # fmt: skip


def _append_to_cache(device: torch.device) -> Iterator[dict[str, object]]:
    for inputs, shared in _caches(device):
        yield {**shared, "k": inputs.k, "v": inputs.v}


def _cached_attention(device: torch.device) -> Iterator[dict[str, object]]:
    for inputs, shared in _caches(device):
        yield {
            **shared, "q": inputs.q, "seqlen_new": 2, "leftpad": inputs.integers(inputs.leftpad), "scale": 0.5, "softcap": 3.0,
            "alibi": torch.ones(2, 4, device=device), "right": 0, "left": 9, "advance": False, "splits": 2,
            "precision": "ieee", "tile": [16, 16, 4, 1],
        }  # fmt: skip


def _packed(device: torch.device) -> Iterator[dict[str, object]]:
    """Arguments of the forward operator on two sequences, used in whole or in part."""
    q, k, v, _ = draw((1, 2, 1, 6, 7, 4), torch.float32, device)
    starts_q, starts_k = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 2, 5], [0, 4, 7]))
    used = torch.tensor([2, 1], dtype=torch.int32, device=device)
    plain = {
        "q": q, "k": k, "v": v, "sink": None, "starts_q": starts_q, "starts_k": starts_k, "used_q": None, "used_k": None,
        "scale": 0.5, "softcap": None, "alibi": None, "last_offset": None, "first_offset": None, "precision": "ieee",
        "tiles": None, "dropout_p": 0.0, "rng_state": None,
    }  # fmt: skip
    features = {"sink": torch.ones(2, device=device), "alibi": torch.ones(2, 2, device=device), "softcap": 2.0}
    features |= {"dropout_p": 0.5, "rng_state": torch.tensor([5, 8], device=device)}
    yield plain
    yield {**plain, **features, "used_q": used, "used_k": used, "last_offset": 0, "first_offset": -3}


def _packed_attention(device: torch.device) -> Iterator[dict[str, object]]:
    for arguments in _packed(device):
        for name in ("q", "k", "v", "sink"):
            if arguments[name] is not None:
                arguments[name] = arguments[name].detach().requires_grad_()
        yield arguments


def _packed_attention_backward(device: torch.device) -> Iterator[dict[str, object]]:
    for arguments in _packed(device):
        out, lse = packed_attention(**arguments)
        for dlse in (None, torch.ones_like(lse)):
            given = {"out": out, "lse": lse, "dout": torch.ones_like(out), "dlse": dlse}
            yield {**arguments, **given, "needs_sink_grad": arguments["sink"] is not None}


def _attention_probabilities(device: torch.device) -> Iterator[dict[str, object]]:
    for feature in FEATURES:
        arguments = _arguments(feature, device)
        _, lse = attention(**arguments)
        yield {name: x for name, x in arguments.items() if name not in ("v", "sink", "tiles")} | {"lse": lse}


def _packed_attention_probabilities(device: torch.device) -> Iterator[dict[str, object]]:
    for arguments in _packed(device):
        _, lse = packed_attention(**arguments)
        given = {name: x for name, x in arguments.items() if name not in ("v", "sink", "tiles")}
        yield given | {"lse": lse, "longest_q": 3, "longest_k": 4}


def _dropout_state(device: torch.device) -> Iterator[dict[str, object]]:
    yield {"like": torch.ones(2, device=device), "words": 64}


OPERATORS: dict[str, Callable[[torch.device], Iterator[dict[str, object]]]] = {
    "attention": _attention,
    "attention_backward": _attention_backward,
    "attention_probabilities": _attention_probabilities,
    "packed_attention": _packed_attention,
    "packed_attention_backward": _packed_attention_backward,
    "packed_attention_probabilities": _packed_attention_probabilities,
    "dropout_state": _dropout_state,
    "append_to_cache": _append_to_cache,
    "cached_attention": _cached_attention,
}
"""Operator -> arguments of calls that torch checks."""


CHECKS = ("test_aot_dispatch_dynamic", "test_schema", "test_autograd_registration", "test_faketensor")
"""torch's own; the first compares two calls, which draw two states."""


def test_every_registered_operator_is_here() -> None:
    prefix = f"{NAMESPACE}::"
    registered = {name.removeprefix(prefix) for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)}
    assert registered == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_finds_nothing_wrong(name: str, device: torch.device) -> None:
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    for arguments in OPERATORS[name](device):
        torch.library.opcheck(operator, (), arguments, test_utils=CHECKS[name == "dropout_state" :])
