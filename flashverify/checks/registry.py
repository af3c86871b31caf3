"""The registry of checks: name -> function from an examination to a result."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable

from flashverify.adapters.kernel import KernelDefectError
from flashverify.checks.examination import Examination
from flashverify.records.measurement import CheckResult, Verdict

Check = Callable[[Examination], CheckResult | None]
"""A check; None means that it does not apply to the case."""

_CHECKS: dict[str, Check] = {}


def register(name: str) -> Callable[[Check], Check]:
    """Register a check under a name (a decorator). Where the kernel gives no answer to compare, the registered check fails.

    Raises:
        ValueError: if the name is taken.
    """

    def add(check: Check) -> Check:
        if name in _CHECKS:
            raise ValueError(f"check: got {name!r}, which is registered already")

        @functools.wraps(check)
        def guarded(examination: Examination) -> CheckResult | None:
            try:
                return check(examination)
            except KernelDefectError as defect:
                return CheckResult(check=name, verdict=Verdict.FAIL, reason=str(defect))

        _CHECKS[name] = guarded
        return check

    return add


def all_checks() -> dict[str, Check]:
    """Every check of this package by name, sorted; importing its modules registers them."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_CHECKS.items()))
