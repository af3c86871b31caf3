"""No speed without a certificate: which certificate allows a kernel's speed to be shown."""

from __future__ import annotations

from flashverify.bench.problems import kinds, large_kind
from flashverify.cases.case import AttentionCase
from flashverify.records.certificate import Certificate
from flashverify.records.environment import Environment
from flashverify.records.measurement import Verdict
from flashverify.records.summary import CERTIFIED, exit_code

SAME = ("platform", "gpu", "driver", "torch", "triton", "ptxas", "kernel_sources")
"""What has to be the same here as where the certificate was made."""


def refusal(certificate: Certificate, here: Environment, kernel: str) -> str | None:
    """Why a certificate allows no speed to be shown, or None: nothing failed, and a large case of each timed kind passed.

    Args:
        certificate: the certificate.
        here: the environment that the speed would hold for.
        kernel: the kernel that is timed.
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
    passed = {
        large_kind(AttentionCase.from_id(record.case)) for record in certificate.records if record.verdict is Verdict.PASS
    }
    missing = [" ".join(map(str, kind)) for kind in kinds(kernel) if kind not in passed]
    if missing:
        return f"the certificate lacks large cases of what is timed: {', '.join(missing)}"
    return None
