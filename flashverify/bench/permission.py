"""No speed without a certificate: which certificate allows a kernel's speed to be shown."""

from __future__ import annotations

from flashverify.records.certificate import Certificate
from flashverify.records.environment import Environment
from flashverify.records.summary import CERTIFIED, exit_code

SAME = ("platform", "gpu", "driver", "torch", "triton", "ptxas", "kernel_sources")
"""What has to be the same here as where the certificate was made."""


def refusal(certificate: Certificate, here: Environment, kernel: str, cases: tuple[str, ...]) -> str | None:
    """Why a certificate allows no speed to be shown, or None.

    Args:
        certificate: the certificate.
        here: the environment that the speed would hold for.
        kernel: the kernel that is timed.
        cases: ids of cases that have to be among those that passed.
    """
    if certificate.plan.kernel != kernel:
        return f"the certificate is of {certificate.plan.kernel}, not of {kernel}"
    if certificate.environment.interpreter:
        return "the certificate is of Triton's interpreter, not of a GPU"
    for name in SAME:
        there, now = getattr(certificate.environment, name), getattr(here, name)
        if there != now:
            return f"the certificate holds for another {name}: {there}, here {now}"
    code = exit_code(certificate)
    if code != CERTIFIED:
        return f"the kernel is not certified: the certificate's exit code is {code}"
    passed = {record.case for record in certificate.records if record.verdict.value == "pass"}
    missing = [case for case in cases if case not in passed]
    if missing:
        return f"the certificate lacks cases like those that are timed: {', '.join(missing)}"
    return None
