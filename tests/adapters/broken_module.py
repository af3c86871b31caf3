"""A module that can't be imported."""

raise RuntimeError("libattention.so is missing")
