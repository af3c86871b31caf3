"""flashverify certifies that an attention kernel computes exact attention, and how well it rounds.

Importing this package imports neither Triton nor CUDA.
"""

__version__ = "0.1.0"
