"""Planted defects of the verifier itself: what it would miss, or cry out at, if it were wrong in one place.

A defect is an edit of a copy of this package. The copy examines a few kernels, healthy ones and ones with planted defects; the
defect is caught if any verdict differs from what the sound verifier says of the same. It shows that these trials would tell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import flashverify
from flashverify.adapters.registry import OURS
from flashverify.mutants.mutant import Edit, apply
from flashverify.mutants.trials import ALIBI, CACHE, CAUSAL, DROPPED, ROUNDED, TAIL
from flashverify.records.detection import VerifierTrial

HEALTHY = OURS
LARGE_DOUBLE = "fp64_b1_h1x1_n128x144_d64_full_normal_contiguous_s0"
"""Too large for enclosures: the float64 oracle with its own bound is what it is held to."""

LONGEST = 300.0
"""Seconds that the trials of one defect may take."""

Pair = tuple[str, str]
"""Name of a kernel, and id of a case."""

Verdicts = dict[str, dict[str, str]]
"""Kernel and case, joined by a space -> check -> verdict."""


@dataclass(frozen=True, slots=True)
class VerifierMutant:
    """A planted defect of the verifier.

    Attributes:
        name: words joined by "-".
        story: the defect in a sentence.
        edits: how it is planted; files are relative to the package.
        pairs: kernels and cases that are to tell.
    """

    name: str
    story: str
    edits: tuple[Edit, ...]
    pairs: tuple[Pair, ...]


VERIFIER_MUTANTS = (
    VerifierMutant(
        "definition-top-left",
        "Causal masks are aligned top-left where they ought to be bottom-right.",
        (Edit("cases/semantics.py", "return None if right is None else _position(case, batch) + right", "return right"),),
        ((HEALTHY, CAUSAL),),
    ),
    VerifierMutant(
        "definition-of-biases-signed",
        "Linear biases raise scores with the distance.",
        (Edit("cases/semantics.py", "    return -slopes * (rows[:, None]", "    return slopes * (rows[:, None]"),),
        ((HEALTHY, ALIBI),),
    ),
    VerifierMutant(
        "budgets-ten-times-too-wide",
        "Every error is held against ten times its budget.",
        (Edit("checks/comparison.py", "error / self.budget)", "error / (10.0 * self.budget))"),),
        tuple((f"mutant:{name}", ROUNDED) for name in ("row-sum-in-bf16", "q-prescaled-in-bf16", "out-accumulated-in-bf16")),
    ),
    VerifierMutant(
        "nan-is-equal",
        "A NaN is as good as the truth.",
        (
            Edit(
                "checks/comparison.py",
                "        return torch.where(value == self.truth, 0.0, value - self.truth)",
                "        return torch.where(value == self.truth, 0.0, value - self.truth).nan_to_num(nan=0.0)",
            ),
            Edit(
                "checks/comparison.py",
                "torch.where(self.value.isnan() & ~self.truth.isnan(), torch.inf, excess)",
                "excess",
            ),
        ),
        (("mutant:cache-read-beyond-the-length", CACHE),),
    ),
    VerifierMutant(
        "lse-not-compared",
        "Accuracy looks at out alone.",
        (Edit("checks/accuracy.py", "FORWARD if has_lse else FORWARD[:1])", "FORWARD[:1])"),),
        (("mutant:lse-of-the-first-part", CACHE),),
    ),
    VerifierMutant(
        "gradients-not-compared",
        "Accuracy and function look at forward tensors alone.",
        (
            Edit("checks/accuracy.py", "    if examination.case.forward_only:\n        return\n", "    return\n"),
            Edit("checks/function.py", "name, mid in mids.items():\n", "name, mid in list(mids.items())[:2]:\n"),
        ),
        (("mutant:delta-missing", CAUSAL),),
    ),
    VerifierMutant(
        "passes-outweigh-failures",
        "A case passes if any of its checks does.",
        (
            Edit(
                "records/measurement.py",
                "for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):",
                "for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE):",
            ),
        ),
        (("mutant:tf32-for-fp32", TAIL),),
    ),
    VerifierMutant(
        "mask-never-checked",
        "The check of masks says nothing.",
        (Edit("checks/mask.py", "    if case.dropout is None:\n        return None\n", "    return None\n"),),
        (("mutant:dropout-halves-swapped-in-dq", DROPPED),),
    ),
    VerifierMutant(
        "signs-read-by-value",
        "Signs are read by comparison with 0, so that -0 counts as kept.",
        (Edit("dropout/signbit.py", ".view(signed.dtype), bits >= 0  #", ".view(signed.dtype), signed >= 0  #"),),
        ((HEALTHY, DROPPED), ("mutant:dropout-signs-of-zeros-lost", DROPPED)),
    ),
    VerifierMutant(
        "host-philox-of-seven-rounds",
        "The host's generator stops after seven rounds.",
        (Edit("dropout/philox.py", "ROUNDS = 10\n", "ROUNDS = 7\n"),),
        ((HEALTHY, DROPPED),),
    ),
    VerifierMutant(
        "sharp-budgets-ten-times-too-wide",
        "The sharp tier allows ten times what independent roundings do.",
        (Edit("checks/sharp.py", "budget=allowed.masked_fill", "budget=(10.0 * allowed).masked_fill"),),
        (("mutant:out-accumulated-in-bf16", ROUNDED),),
    ),
    VerifierMutant(
        "directions-ignored",
        "Errors may all point one way.",
        (
            Edit("records/measurement.py", "        if not abs(self.t) <= self.largest_t:\n", "        if False:\n"),
            Edit("records/measurement.py", "        if not abs(self.t_sign) <= self.largest_t_sign:\n", "        if False:\n"),
        ),
        (("mutant:p-truncated", ROUNDED), ("mutant:lse-off", ROUNDED)),
    ),
    VerifierMutant(
        "oracle-in-float32",
        "The float64 oracle multiplies Q and K in float32.",
        (
            Edit(
                "oracles/tiled.py",
                "scores = capped(case, (stacked_q[rows] @ k[b, g].T).mul_(case.softmax_scale))",
                "scores = capped(case, (stacked_q[rows].float() @ k[b, g].float().T).double().mul_(case.softmax_scale))",
            ),
        ),
        ((HEALTHY, LARGE_DOUBLE),),
    ),
)
"""Every planted defect of the verifier."""


def examine_verifiers(mutants: Sequence[VerifierMutant], device: str, workers: int) -> tuple[VerifierTrial, ...]:
    """Let every defect's copy of the verifier examine its trials, and compare with what the sound verifier says.

    Args:
        mutants: the defects.
        device: "cuda" or "cpu".
        workers: how many copies run at once.

    Raises:
        ValueError: if a defect can't be planted: the verifier has changed since.
        RuntimeError: if the sound verifier cannot examine the trials.
    """
    home = Path(flashverify.__file__).parent
    with tempfile.TemporaryDirectory(prefix="flashverify-verifiers-") as folder, ThreadPoolExecutor(workers) as pool:
        copies = [(mutant, plant(mutant, home, Path(folder) / mutant.name)) for mutant in mutants]
        sound = [pool.submit(_verdicts, home.parent, mutant.pairs, device) for mutant in mutants]
        planted = [pool.submit(_verdicts, copy, mutant.pairs, device) for mutant, copy in copies]
        found = []
        for mutant, healthy, wrong in zip(mutants, sound, planted, strict=True):
            said = healthy.result()
            if isinstance(said, str):
                raise RuntimeError(f"the sound verifier did not finish: {said}")
            differing = _differences(said, wrong.result())
            found.append(VerifierTrial(name=mutant.name, story=mutant.story, differing=differing))
    return tuple(found)


def plant(mutant: VerifierMutant, home: Path, folder: Path) -> Path:
    """Write a copy of the verifier with the defect into a folder, which is returned.

    Raises:
        ValueError: if an edit's healthy text does not occur exactly once: the verifier has changed since.
    """
    target = folder / home.name
    shutil.copytree(home, target, ignore=shutil.ignore_patterns("__pycache__"))
    apply(mutant.edits, target, mutant.name)
    return folder


def _verdicts(folder: Path, pairs: Sequence[Pair], device: str) -> Verdicts | str:
    """Verdicts of all checks, by a verifier of its own in a process of its own; or what went wrong."""
    path = os.pathsep.join((str(folder), *(entry for entry in sys.path if entry)))
    command = [sys.executable, "-m", "flashverify.mutants.selftest", device, json.dumps(pairs)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return f"more than {LONGEST:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    verdicts: Verdicts = json.loads(done.stdout.splitlines()[-1])
    return verdicts


def _differences(sound: Verdicts, wrong: Verdicts | str) -> tuple[str, ...]:
    if isinstance(wrong, str):
        return (f"it ended: {wrong}",)
    return tuple(
        f"{pair}: {check} {said[check]}, now {wrong.get(pair, {}).get(check, 'nothing')}"
        for pair, said in sound.items()
        for check in said
        if said[check] != wrong.get(pair, {}).get(check)
    )
