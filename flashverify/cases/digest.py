"""A number that a text gives, the same everywhere: for choices that are to depend on a name, and on nothing else."""

from __future__ import annotations

import hashlib


def number(text: str) -> int:
    """64 bits of the text's SHA-256 (FIPS 180-4): the first eight bytes, the lowest first."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
