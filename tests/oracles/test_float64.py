"""What the float64 oracles promise beyond their values: no lower dtype inside, linear memory, containment of NaN."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashverify.cases.semantics import visible
from flashverify.cases.tensors import TENSORS
from flashverify.oracles import ball, dense, mp, tiled
from tests.oracles.support import PROBLEMS, draw, end_to_end_bound, problem, worst_ratios

both = pytest.mark.parametrize("oracle", [dense, tiled], ids=["dense", "tiled"])
every = pytest.mark.parametrize("oracle", [mp, ball, dense, tiled], ids=["mp", "ball", "dense", "tiled"])


class Watch(TorchDispatchMode):
    """Keeps the largest tensor that any operation returned, and the operations that returned a float below float64."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.leaks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                if tensor.dtype.is_floating_point and tensor.dtype != torch.float64:
                    self.leaks.append(f"{function} -> {tensor.dtype}")
        return result


@both
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("features", [{}, {"softcap": 2.0, "dropout": 0.5}, {"softcap": 2.0, "alibi": "heads"}], ids=str)
def test_nothing_below_float64_inside(oracle, dtype, features):
    example = problem(6, 5, 4, "causal", heads_q=4, heads_kv=2, dtype=dtype, lse_grad=True, **features)
    inputs = draw(example)
    inputs.v[0, 0, 0] = torch.nan
    out, lse = torch.zeros_like(inputs.q), torch.zeros(1, 4, 6)
    with Watch() as watch:
        oracle.attention(example.case, inputs)
        oracle.backward(example.case, inputs, out, lse)
    assert watch.leaks == []


@both
def test_a_planted_leak_is_caught(oracle, monkeypatch):
    exp = torch.exp
    monkeypatch.setattr(torch, "exp", lambda x: exp(x.float()).double())
    monkeypatch.setattr(torch.Tensor, "exp_", lambda x: x.copy_(exp(x.float())))
    example = problem(3, 3, 2, dtype="fp32")
    with Watch() as watch:
        oracle.attention(example.case, draw(example))
    assert any("float32" in leak for leak in watch.leaks)


def largest_tensor(oracle, seqlen: int, features=None, **options) -> int:
    example = problem(seqlen, seqlen, 2, "causal", heads_q=4, heads_kv=2, lse_grad=True, **(features or {}))
    with Watch() as watch:
        oracle.attention(example.case, draw(example), **options)
    return watch.largest


@pytest.mark.parametrize("features", [{}, {"alibi": "heads"}, {"dropout": 0.5}], ids=str)
def test_tiled_memory_is_linear(features):
    tile, heads, head_dim = 2**11, 4, 2
    for seqlen in (64, 128, 256):
        assert largest_tensor(tiled, seqlen, features, tile_elements=tile) <= max(tile, heads * seqlen * head_dim)
    assert largest_tensor(tiled, 32, features, tile_elements=1) == heads * 32 * head_dim


def test_dense_memory_is_not_linear():
    """The test above can fail: the dense oracle, and a tiled one with a huge tile, hold whole matrices."""
    assert largest_tensor(dense, 256) == 4 * 256 * 256
    assert largest_tensor(tiled, 256) == 2 * 256 * 256


def poisoned(example, name: str, index: tuple[int, ...], value: float):
    inputs = draw(example)
    getattr(inputs, name)[index] = value
    return inputs


def depends(example, name: str, row: int) -> dict[str, torch.Tensor]:
    """For a poisoned row of one input: which rows of each output depend on it, by brute force over visible pairs."""
    case = example.case
    pairs = [(i, j) for i in range(case.seqlen_q) for j in range(case.seqlen_k) if visible(case, 0, i, j)]
    queries = {i for i, j in pairs if row == (j if name in ("k", "v") else i)}
    keys = {j for i, j in pairs if i in queries}
    touched = {"out": queries, "lse": queries, "dq": queries, "dk": keys, "dv": keys}
    unread = {"q": (), "k": (), "v": ("lse", "dv"), "dout": ("out", "lse")}[name]
    if name in ("k", "v"):  # a NaN in one key's score or value reaches its row's lse or D, so every key of the row
        touched["dv"] = keys
    sizes = dict.fromkeys(("out", "lse", "dq"), case.seqlen_q) | dict.fromkeys(("dk", "dv"), case.seqlen_k)
    return {t: torch.tensor([r in touched[t] and t not in unread for r in range(sizes[t])]) for t in TENSORS}


@both
@pytest.mark.parametrize(("mask", "alibi"), [("causal", None), ("causal", "heads"), ("causal-topleft", None)])
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
@pytest.mark.parametrize("row", [0, 2, 3])
@pytest.mark.parametrize(("softcap", "dropout"), [(None, None), (2.0, None), (None, 0.5), (None, 1.0)])
def test_nan_reaches_what_depends_on_it_and_nothing_else(oracle, mask, alibi, name, row, softcap, dropout):
    """Through pairs that dropout drops too: a weight of 0 times NaN is NaN."""
    example = problem(5, 4, 3, mask, lse_grad=True, dtype="fp64", softcap=softcap, alibi=alibi, dropout=dropout)
    clean = oracle.attention(example.case, draw(example))
    found = oracle.attention(example.case, poisoned(example, name, (0, 0, row), torch.nan))
    for output, expected in depends(example, name, row).items():
        tensor = getattr(found, output)[0, 0]
        nan = tensor.isnan().reshape(tensor.shape[0], -1).all(-1)
        assert torch.equal(nan, expected), output
        assert torch.equal(tensor[~nan], getattr(clean, output)[0, 0][~nan]), output


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_keys_that_no_row_sees_do_not_matter(oracle, value):
    example = problem(2, 4, 3, "causal-topleft", heads_q=2, lse_grad=True)
    clean, dirty = draw(example), draw(example)
    dirty.k[:, :, 2:], dirty.v[:, :, 2:] = value, value
    expected, found = (oracle.attention(example.case, inputs) for inputs in (clean, dirty))
    if oracle is ball:
        expected, found = expected.mid, found.mid
    for name, tensor in found.items():
        assert torch.equal(tensor, getattr(expected, name)), name


@every
@pytest.mark.parametrize("example", [problem(5, 2, 3, "causal", lse_grad=True), problem(3, 0, 2)], ids=str)
def test_rows_without_keys_are_zero(oracle, example):
    found = oracle.attention(example.case, draw(example))
    found = found.mid if oracle is ball else found
    empty = example.case.seqlen_q - example.case.seqlen_k
    assert (found.lse[..., :empty] == -math.inf).all()
    assert not found.out[:, :, :empty].any()
    assert not found.dq[:, :, :empty].any()
    assert all(not tensor.isnan().any() for _, tensor in found.items())


@every
def test_rows_whose_given_lse_is_minus_infinity_have_no_gradient(oracle):
    """A kernel that says so of a row with keys is wrong, which its lse will show; the backward pass stays defined."""
    example = problem(3, 3, 2)
    inputs = draw(example)
    out, lse = torch.ones(1, 1, 3, 2), torch.tensor([[[-math.inf] * 3]])
    for gradient in oracle.backward(example.case, inputs, out, lse):
        assert not (gradient.mid if oracle is ball else gradient).any()


@every
@pytest.mark.parametrize("name", ["q", "k", "v", "dout", "dlse"])
def test_shapes_are_validated(oracle, name):
    example = problem(3, 4, 2, lse_grad=True)
    inputs = draw(example)
    wrong = dataclasses.replace(inputs, **{name: getattr(inputs, name)[..., :1]})
    with pytest.raises(ValueError, match=rf"{name}: got shape .* accepts"):
        oracle.attention(example.case, wrong)
    with pytest.raises(ValueError, match="lse: got shape"):
        oracle.backward(example.case, inputs, inputs.q, inputs.q)


def test_options_are_validated():
    example = problem(2, 2, 2)
    with pytest.raises(ValueError, match="tile_elements: got 0, accepted"):
        tiled.forward(example.case, draw(example), tile_elements=0)
    with pytest.raises(ValueError, match="dps: got 16, accepted"):
        mp.forward(example.case, draw(example), dps=16)


@both
@pytest.mark.parametrize("example", PROBLEMS, ids=str)
def test_strides_do_not_matter(oracle, example):
    inputs = draw(example)
    transposed = dataclasses.replace(
        inputs, **{name: getattr(inputs, name).mT.contiguous().mT for name in ("q", "k", "v", "dout")}
    )
    exact = ball.attention(example.case, inputs)
    bound = end_to_end_bound(example.case, inputs, exact.mid)
    assert max(worst_ratios(oracle.attention(example.case, transposed), exact, bound).values()) <= 1
