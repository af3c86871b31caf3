"""The claims that FlashAttention is known for, measured on the device at hand, each with its method."""
