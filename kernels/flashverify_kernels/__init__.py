"""Triton FlashAttention kernels, forward and backward: exact attention in float16, bfloat16, float32 and float64.

`flash_attn_func`, `flash_attn_varlen_func`, their packed forms and `flash_attn_with_kvcache` (forward only) have the layout and
the arguments of flash-attn 2.8, `scaled_dot_product_attention` those of torch.
"""

from flashverify_kernels.api import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    scaled_dot_product_attention,
)
from flashverify_kernels.api_cache import flash_attn_with_kvcache
from flashverify_kernels.api_varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from flashverify_kernels.tiles import TileConfig, Tiles

__all__ = [
    "TileConfig",
    "Tiles",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "scaled_dot_product_attention",
]
