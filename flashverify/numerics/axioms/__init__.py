"""The device's own arithmetic, measured before any kernel is judged: the ground that budgets stand on (docs/axioms.md).

`arithmetic` holds what was found; `measure` finds it. Only `probes` runs Triton, on kernels of its own.
"""
