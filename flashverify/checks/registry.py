"""The registry of checks: name -> function from an examination to a result."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from flashverify.checks.examination import Examination
from flashverify.records.measurement import CheckResult

Check = Callable[[Examination], CheckResult | None]
"""A check; None means that it does not apply to the case."""

_CHECKS: dict[str, Check] = {}


def register(name: str) -> Callable[[Check], Check]:
    """Register a check under a name (a decorator)."""

    def add(check: Check) -> Check:
        _CHECKS[name] = check
        return check

    return add


def all_checks() -> dict[str, Check]:
    """Every check of this package by name, sorted; importing its modules registers them."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_CHECKS.items()))
