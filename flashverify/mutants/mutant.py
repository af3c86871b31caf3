"""A mutant: a copy of the kernel package with one place of its source changed, under a name of its own."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from flashverify.adapters.triton import PACKAGE, TritonKernel

PREFIX = "mutant:"
"""What is before a mutant's name where kernels are asked for by name."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one file: the text must occur exactly once.

    Attributes:
        file: file name in the kernel package.
        old: the healthy text.
        new: the defect.
    """

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted defect.

    Attributes:
        name: words joined by "-".
        story: the defect in a sentence.
        source: the public thread that it was seen in, or "control".
        edits: how it is planted.
    """

    name: str
    story: str
    source: str
    edits: tuple[Edit, ...]


def plant(mutant: Mutant, folder: Path) -> str:
    """Write the mutant's package into a folder.

    Returns:
        The package's import name.

    Raises:
        ValueError: if an edit's healthy text does not occur exactly once, or begins with spaces but not with all of its line's:
            the kernels have changed since.
    """
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or specification.origin is None:
        raise ValueError(f"kernel package: {PACKAGE} can't be found")
    healthy = Path(specification.origin).parent
    package = _package(mutant)
    target = folder / package
    shutil.copytree(healthy, target, ignore=shutil.ignore_patterns("__pycache__"))
    apply(mutant.edits, target, mutant.name)
    for path in target.glob("*.py"):
        path.write_text(path.read_text().replace(f"{PACKAGE}.", f"{package}."))
    return package


def apply(edits: Iterable[Edit], folder: Path, name: str) -> None:
    """Edit the files of a folder.

    Args:
        edits: the edits.
        folder: what their files are relative to.
        name: the mutant's, for messages.

    Raises:
        ValueError: as `plant` does.
    """
    for edit in edits:
        path = folder / edit.file
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(f"mutant {name}: {edit.file} holds {text.count(edit.old)} times, not once: {edit.old!r}")
        if edit.old.startswith(" ") and f"\n{edit.old}" not in text:
            raise ValueError(f"mutant {name}: {edit.file} holds deeper in a line: {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new))


def load_mutant(mutant: Mutant, device: torch.device) -> TritonKernel:
    """Plant the mutant in a folder of its own, which goes when this process ends, and load it.

    Worker processes spawned later inherit the import path, and load the same copy.
    """
    package = _package(mutant)
    if importlib.util.find_spec(package) is None:
        folder = tempfile.mkdtemp(prefix=f"flashverify-{mutant.name}-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        plant(mutant, Path(folder))
        sys.path.append(folder)
    return TritonKernel(device, name=f"{PREFIX}{mutant.name}", package=package)


def _package(mutant: Mutant) -> str:
    return f"{PACKAGE}_mutant_{mutant.name.replace('-', '_')}"
