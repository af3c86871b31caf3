"""Functions that a user might bring."""

import torch

from flashverify.adapters.contracts import flash_attention


def eager(query, key, value, *, is_causal, scale, enable_gqa):
    """Attention from its definition in float64: out and lse."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    group = query.shape[1] // key.shape[1]
    assert enable_gqa is (group > 1)
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = scale * query.double() @ key.mT
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    lse = torch.logsumexp(scores, -1)
    out = torch.exp(scores - lse[..., None]) @ value
    return out.to(query.dtype), lse.to(torch.promote_types(query.dtype, torch.float32))


eager.returns_lse = True


def only_out(query, key, value, **options):
    return eager(query, key, value, **options)[0]


def unannounced_lse(query, key, value, **options):
    return eager(query, key, value, **options)


def announced_but_missing_lse(query, key, value, **options):
    return only_out(query, key, value, **options)


announced_but_missing_lse.returns_lse = True


def half_only(query, key, value, **options):
    if query.dtype == torch.float64:
        raise RuntimeError("float64 is not built in")
    return only_out(query, key, value, **options)


half_only.declines = lambda case: "dtype fp64" if case.dtype == "fp64" else None


def stated(query, key, value, **options):
    return only_out(query, key, value, **options)


def _contract(case, device):
    return flash_attention(case.dtype, device, block_q=32, block_k=32)


stated.numerical_contract = _contract


def without_gradient(query, key, value, **options):
    with torch.no_grad():
        return only_out(query, key, value, **options)


def without_gradient_of_key(query, key, value, **options):
    return only_out(query, key.detach(), value, **options)


def broadcast(query, key, value, **options):
    return only_out(query, key, value, **options)[:, :1]


def ignores_causal(query, key, value, *, is_causal, scale, enable_gqa):
    return only_out(query, key, value, is_causal=False, scale=scale, enable_gqa=enable_gqa)


def nothing(query, key, value, **options):
    return None


def dropping(query, key, value, *, dropout_p=0.0, **options):
    return torch.dropout(only_out(query, key, value, **options), dropout_p, train=True)


NOT_A_FUNCTION = 3
