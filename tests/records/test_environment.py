"""What is kept of the environment, and what is not."""

from __future__ import annotations

import getpass
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import flashverify
from flashverify.records.environment import Environment, relevant_variables, slug
from flashverify.records.sources import checkout_state, source_hash

PACKAGE = Path(flashverify.__file__).parent


def test_capture_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(Path.home() / "cache"))
    environment = Environment.capture(True, PACKAGE / "records")
    assert environment.platform == f"interpreter-{platform.machine().lower()}"
    assert environment.gpu is environment.ptxas is environment.driver is None
    assert environment.kernel_sources == source_hash(PACKAGE / "records")
    assert environment.libraries["mpmath"]
    text = msgspec.json.encode(environment).decode()
    for private in (str(Path.home()), str(PACKAGE), sys.prefix, platform.node()):
        assert private not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert msgspec.json.decode(text, type=Environment) == environment


def test_a_gpu_is_not_made_up() -> None:
    import torch

    if torch.cuda.is_available():
        assert Environment.capture(False).gpu == torch.cuda.get_device_name()
    else:
        with pytest.raises(RuntimeError, match="no GPU"):
            Environment.capture(False)


def test_importing_records_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys, flashverify.records.summary, flashverify.records.schema, flashverify.report.render;"
        "sys.exit(str([name for name in ('torch', 'triton') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_slugs() -> None:
    assert slug("NVIDIA H200") == "nvidia-h200"
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("???") == "unknown"


def test_variables_tell_no_place_and_no_person() -> None:
    kept = relevant_variables(
        {
            "TRITON_INTERPRET": "1",
            "TRITON_CACHE_DIR": "/home/somebody/cache",
            "TRITON_REDIS_HOST": "machine.example",
            "CUDA_VISIBLE_DEVICES": "GPU-8c1f",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "HOME": "/home/somebody",
        }
    )
    assert kept == {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_VISIBLE_DEVICES": "(a device identifier)",
        "TRITON_CACHE_DIR": "(a path)",
        "TRITON_INTERPRET": "1",
        "TRITON_REDIS_HOST": "(set)",
    }


def make_package(root: Path, text: str = "x = 1\n") -> Path:
    package = root / "flashverify"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    return package


def test_source_hashes_see_names_and_contents(tmp_path: Path) -> None:
    first = make_package(tmp_path / "a")
    assert source_hash(first) == source_hash(make_package(tmp_path / "b"))
    assert source_hash(first) != source_hash(make_package(tmp_path / "c", "x = 2\n"))
    (first / "other.py").write_text("")
    assert source_hash(first) != source_hash(tmp_path / "b" / "flashverify")
    with pytest.raises(ValueError, match="package"):
        source_hash(tmp_path / "nothing")


def test_the_commit_is_that_of_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, installed, other = tmp_path / "checkout", tmp_path / "site-packages", tmp_path / "other"
    package = make_package(checkout)
    monkeypatch.chdir(tmp_path)
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    assert checkout_state(package) == (None, None)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit, dirty = checkout_state(package)
    assert commit is not None
    assert dirty is False
    monkeypatch.chdir(checkout)
    assert checkout_state(make_package(installed)) == (commit, False)
    assert checkout_state(make_package(other, "x = 3\n")) == (None, None)
    (checkout / "report.md").write_text("new")
    assert checkout_state(package) == (commit, False)
    (package / "new.py").write_text("")
    assert checkout_state(package) == (commit, True)
