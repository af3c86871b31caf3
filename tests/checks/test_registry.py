"""Checks are found without being listed anywhere, in one order, and no name is taken twice."""

import pkgutil

import pytest

import flashverify.checks
from flashverify.adapters.kernel import KernelDefectError
from flashverify.campaign.worker import examine_with
from flashverify.checks import registry
from flashverify.records.measurement import CheckResult, Verdict
from tests.checks.fakes import HALF, FakeKernel

TOOLS = {"comparison", "examination", "inference", "probes", "rates", "reference", "registry", "views", "stopwatch"}
"""Modules of the package that hold no check."""


def test_every_module_but_the_tools_registers_the_check_of_its_name():
    modules = {module.name for module in pkgutil.iter_modules(flashverify.checks.__path__)}
    assert set(registry.all_checks()) == modules - TOOLS
    assert modules >= TOOLS


def test_checks_come_in_the_order_of_their_names():
    names = list(registry.all_checks())
    assert names == sorted(names)
    assert "accuracy" in names
    assert registry.all_checks() is not registry.all_checks()  # a caller can't spoil the registry


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="check: got 'accuracy', which is registered already"):
        registry.register("accuracy")(lambda examination: None)


def test_unknown_names_are_refused_before_anything_runs():
    kernel = FakeKernel()
    with pytest.raises(ValueError, match="checks: got speed, taste, accepted are accuracy, distribution, "):
        examine_with(kernel, HALF, ("accuracy", "speed", "taste"))
    assert kernel.runs == 0


def test_no_checks_are_no_pass():
    record = examine_with(FakeKernel(), HALF, ())
    assert (record.verdict, record.reason) == (Verdict.UNSUPPORTED, "no check applies")


@pytest.fixture
def temporary_check(monkeypatch):
    monkeypatch.setattr(registry, "_CHECKS", dict(registry.all_checks()))
    return registry.register("temporary")


def test_a_defect_of_the_kernel_is_a_failure_of_every_check_that_meets_it(temporary_check):
    @temporary_check
    def check(examination):
        raise KernelDefectError("q: eaten")

    assert registry.all_checks()["temporary"](None) == CheckResult(check="temporary", verdict=Verdict.FAIL, reason="q: eaten")


def test_any_other_error_is_not_swallowed(temporary_check):
    @temporary_check
    def check(examination):
        raise ArithmeticError("no luck")

    with pytest.raises(ArithmeticError):
        registry.all_checks()["temporary"](None)
