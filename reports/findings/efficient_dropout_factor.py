"""Memory-efficient attention rounds 1 / (1 - rate) with P: where weights are equal, out is off. Needs torch and a GPU alone."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "FlashAttention-2": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
TOKENS, COLUMNS = 512, 64


def factor(backend: SDPBackend, rate: float) -> float:
    """What kept weights are multiplied by: equal weights, v = 1, and the number of kept keys counted by the same mask."""
    q = torch.zeros(1, 1, TOKENS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    kept = torch.zeros(TOKENS, device="cuda")

    def attend(v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, q, v, dropout_p=rate)[0, 0].float()

    for first in range(0, TOKENS, COLUMNS):
        v = torch.zeros_like(q)
        v[:, :, range(first, first + COLUMNS), range(COLUMNS)] = 1
        kept += (attend(v) != 0).sum(1)
    return float((attend(torch.ones_like(q))[:, 0] * TOKENS / kept).mean())


print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
for name, backend in BACKENDS.items():
    for rate in (0.01, 0.05, 0.1):
        print(f"{name}: rate {rate}, mean factor {factor(backend, rate):.5f}, wanted {1 / (1 - rate):.5f}")
