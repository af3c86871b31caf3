"""Mutants: our kernels with one planted defect each. What the suite catches of them is its detection power."""
