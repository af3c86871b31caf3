"""Checks: each module examines one property of one kernel on one case. They register themselves; `registry.py` finds them."""
