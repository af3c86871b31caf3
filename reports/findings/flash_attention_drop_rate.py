"""FlashAttention-2 in torch compares 8 random bits: a drop rate of 0.001 drops 0.0039. Needs torch and a GPU alone."""

import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
BATCH, HEADS, TOKENS, COLUMNS = 4, 8, 512, 64


def dropped(backend: SDPBackend, rate: float) -> tuple[int, int]:
    """How many pairs are dropped, of how many: v is a block of the identity, so out shows the dropped P of its keys."""
    q = torch.zeros(BATCH, HEADS, TOKENS, COLUMNS, device="cuda", dtype=torch.float16)
    zeros = 0
    for first in range(0, TOKENS, COLUMNS):
        v = torch.zeros_like(q)
        v[:, :, range(first, first + COLUMNS), range(COLUMNS)] = 1
        torch.manual_seed(0)
        with sdpa_kernel(backend):
            zeros += int((scaled_dot_product_attention(q, q, v, dropout_p=rate) == 0).sum())
    return zeros, BATCH * HEADS * TOKENS * TOKENS


print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
for name, backend in BACKENDS.items():
    for rate in (0.001, 0.01, 0.1, 0.17, 0.5):
        zeros, pairs = dropped(backend, rate)
        deviations = (zeros - rate * pairs) / math.sqrt(rate * (1 - rate) * pairs)
        print(f"{name}: asked {rate}, dropped {zeros / pairs:.6f} ({zeros:,} of {pairs:,}), {deviations:+.1f} deviations")
