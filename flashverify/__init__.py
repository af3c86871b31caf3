"""flashverify: certifies that an attention kernel computes exact attention, and that its rounding is as good as its arithmetic allows.

Importing this package imports neither Triton nor CUDA.
"""

__version__ = "0.1.0"
