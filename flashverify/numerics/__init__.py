"""Numerics: number formats, the arithmetic that a kernel states, and the error that it may make."""
