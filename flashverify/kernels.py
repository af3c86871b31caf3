"""Every kernel that can be asked for by name: adapters, and mutants."""

from __future__ import annotations

import torch

from flashverify.adapters import registry
from flashverify.adapters.kernel import Kernel
from flashverify.mutants import catalogue
from flashverify.mutants.mutant import PREFIX


def load(name: str, device: torch.device) -> Kernel:
    """The kernel of that name; "mutant:NAME" is ours with a planted defect.

    Raises:
        ValueError: if there is none.
    """
    if name.startswith(PREFIX):
        return catalogue.load(name.removeprefix(PREFIX), device)
    if name not in registry.NAMES and (":" not in name or name.startswith(f"{registry.OURS}:")):
        raise ValueError(f"kernel: got {name!r}, accepted are {PREFIX}NAME, {registry.ACCEPTED}")
    return registry.load(name, device)
