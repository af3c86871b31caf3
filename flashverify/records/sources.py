"""Which sources ran: hashes of packages, and the commit of the checkout that they are from."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

CODE = ("flashverify", "kernels", "pyproject.toml", "constraints")
"""What makes a checkout dirty when it differs from its commit; a new report does not."""


def source_hash(package: Path) -> str:
    """sha256 over the names (relative to the package) and contents of its Python files, in the order of their names.

    Raises:
        ValueError: if the folder holds no Python file.
    """
    files = sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix())
    if not files:
        raise ValueError(f"package: got the folder {package.name!r} without Python files, accepted are package folders")
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def checkout_state(package: Path) -> tuple[str | None, bool | None]:
    """The commit that a package's sources are from, and whether the checkout's code differs from that commit.

    A checkout counts if it tracks a package of the same name with the same sources: the folder around the package (an
    editable installation), or else the working directory (a wheel built from it, as tox does).

    Returns:
        (commit, dirty), or (None, None) if no checkout holds these sources.
    """
    for folder in (package.parent, Path.cwd()):
        candidate = folder / package.name
        tracked = _git(folder, "ls-files", "--", f"{package.name}/__init__.py")
        if not tracked or (candidate != package and source_hash(candidate) != source_hash(package)):
            continue
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", *CODE)
        if commit and changes is not None:
            return commit, bool(changes)
    return None, None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None if there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
