"""cuDNN's attention drops the same keys for queries i, i + 2, i + 4 and i + 6 of every eight. Needs torch and a GPU alone."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TOKENS = COLUMNS = 64
RATE = 0.5


def kept(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Which pairs of a query and a key are kept, bool (TOKENS, TOKENS): v is the identity, so out is the dropped P itself."""
    v = torch.eye(TOKENS, COLUMNS, device="cuda", dtype=q.dtype)[None, None]
    torch.manual_seed(0)
    with sdpa_kernel(backend):
        return (scaled_dot_product_attention(q, k, v, dropout_p=RATE) != 0)[0, 0]


print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
torch.manual_seed(1)
q, k = (torch.randn(1, 1, TOKENS, COLUMNS, device="cuda").half() for _ in range(2))
for name, backend in BACKENDS.items():
    mask = kept(backend, q, k)
    rows = len({tuple(row.tolist()) for row in mask})
    same = sum(torch.equal(mask[i], mask[i + 2]) for i in range(TOKENS - 2))
    print(f"{name}: {rows} different rows of {TOKENS}; row i is row i + 2 in {same} of {TOKENS - 2}")
    print("\n".join("".join("#" if bit else "." for bit in row) for row in mask[:8].tolist()))
