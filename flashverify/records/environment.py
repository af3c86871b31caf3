"""The environment that a certificate holds for: sources, device, driver, compilers and libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import flashverify
from flashverify.records.sources import checkout_state, source_hash

LIBRARIES = ("numpy", "mpmath", "gmpy2", "python-flint")
"""What the oracles compute with."""

_PREFIXES = ("TRITON_", "CUDA_", "CUBLAS_", "PYTORCH_", "TORCH_ALLOW_", "NVIDIA_TF32", "PTXAS_", "DISABLE_PTXAS")
_PRIVATE_NAME = re.compile(r"HOST|REDIS|REMOTE|USER|TOKEN|KEY|SECRET|PASS|URL")


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the results of a campaign depend on. It holds no path, no host name and no user name.

    Attributes:
        platform: a slug: of the GPU's name ("nvidia-h200"), or "interpreter-" and the processor's architecture.
        interpreter: whether Triton's interpreter ran the kernels, not a GPU.
        flashverify: version of the verifier.
        commit: git commit of the checkout that the verifier is from, or None if there is none.
        dirty: whether the checkout's code differs from that commit, or None if there is no checkout.
        verifier_sources: sha256 over the verifier's Python files.
        kernel_sources: sha256 over the examined kernels' Python files, or None if their package was not named.
        gpu: name of the GPU, or None on a machine without one.
        compute_capability: such as "9.0", or None.
        multiprocessors: streaming multiprocessors of the GPU, or None.
        gpu_memory_bytes: total memory of the GPU, or None.
        driver: version of the GPU's driver, or None.
        cuda: version of CUDA (or ROCm) that torch was built for, or None.
        torch: version of PyTorch.
        triton: version of Triton, or None if it is not installed.
        ptxas: version of the assembler that Triton calls, or None if it is not used.
        python: implementation and version.
        system: operating system.
        cpu: processor and its number of logical cores.
        libraries: versions of the libraries that the oracles compute with.
        precision_flags: torch's switches for reduced precision, as words.
        variables: environment variables that Triton, CUDA and torch read; paths and identifiers are left out.
    """

    platform: str
    interpreter: bool
    flashverify: str
    commit: str | None
    dirty: bool | None
    verifier_sources: str
    kernel_sources: str | None
    gpu: str | None
    compute_capability: str | None
    multiprocessors: int | None
    gpu_memory_bytes: int | None
    driver: str | None
    cuda: str | None
    torch: str
    triton: str | None
    ptxas: str | None
    python: str
    system: str
    cpu: str
    libraries: dict[str, str]
    precision_flags: dict[str, str]
    variables: dict[str, str]

    @classmethod
    def capture(cls, interpreter: bool, kernel_package: Path | None = None) -> Environment:
        """The environment of this process and, unless the interpreter runs the kernels, of its current GPU.

        Args:
            interpreter: whether Triton's interpreter runs the kernels.
            kernel_package: folder of the package that holds the examined kernels, to be hashed.

        Raises:
            ValueError: if `kernel_package` holds no Python file.
            RuntimeError: if `interpreter` is false and torch finds no GPU.
        """
        import torch

        if not interpreter and not torch.cuda.is_available():
            raise RuntimeError("interpreter: got False, but torch finds no GPU; accepted is True on such a machine")
        gpu = None if interpreter else torch.cuda.get_device_properties(torch.cuda.current_device())
        package = Path(flashverify.__file__).parent
        commit, dirty = checkout_state(package)
        return cls(
            platform=f"interpreter-{platform.machine().lower()}" if gpu is None else slug(gpu.name),
            interpreter=interpreter,
            flashverify=flashverify.__version__,
            commit=commit,
            dirty=dirty,
            verifier_sources=source_hash(package),
            kernel_sources=None if kernel_package is None else source_hash(kernel_package),
            gpu=None if gpu is None else gpu.name,
            compute_capability=None if gpu is None else f"{gpu.major}.{gpu.minor}",
            multiprocessors=None if gpu is None else gpu.multi_processor_count,
            gpu_memory_bytes=None if gpu is None else gpu.total_memory,
            driver=None if gpu is None else _driver_version(),
            cuda=torch.version.cuda or torch.version.hip,
            torch=str(torch.__version__),
            triton=_version("triton"),
            ptxas=None if gpu is None else _ptxas_version(gpu.major),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            system=_system(),
            cpu=_cpu(),
            libraries={name: version for name in LIBRARIES if (version := _version(name)) is not None},
            precision_flags=_precision_flags(),
            variables=relevant_variables(dict(os.environ)),
        )

    def describe(self) -> dict[str, str]:
        """The environment as words, for tables: one entry a fact, in the order in which a reader asks for them."""
        memory = None if self.gpu_memory_bytes is None else f"{self.gpu_memory_bytes / 2**30:.1f} GiB"
        commit = None if self.commit is None else self.commit + (" (with local changes)" if self.dirty else "")
        described = {
            "platform": self.platform,
            "lane": "Triton's interpreter" if self.interpreter else "compiled for the GPU",
            "GPU": self.gpu,
            "compute capability": self.compute_capability,
            "multiprocessors": None if self.multiprocessors is None else str(self.multiprocessors),
            "GPU memory": memory,
            "driver": self.driver,
            "CUDA": self.cuda,
            "torch": self.torch,
            "Triton": self.triton,
            "ptxas": self.ptxas,
            "flashverify": self.flashverify,
            "commit": commit,
            "kernel sources, sha256": self.kernel_sources,
            "verifier sources, sha256": self.verifier_sources,
            "Python": self.python,
            "system": self.system,
            "CPU": self.cpu,
            **self.libraries,
            **self.precision_flags,
            **self.variables,
        }
        return {name: value for name, value in described.items() if value is not None}


def slug(name: str) -> str:
    """A device's name in lower-case letters, digits and dashes: "NVIDIA H200" becomes "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def relevant_variables(variables: dict[str, str]) -> dict[str, str]:
    """Variables that Triton, CUDA or torch read, sorted by name; values that name a place or a person are left out."""
    return {
        name: "(set)" if _PRIVATE_NAME.search(name) else _without_places(value)
        for name, value in sorted(variables.items())
        if name.startswith(_PREFIXES)
    }


def _without_places(value: str) -> str:
    if "/" in value or "\\" in value or value.startswith("~"):
        return "(a path)"
    return "(a device identifier)" if re.search(r"GPU-|MIG-", value) else value


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _printed(*command: str) -> str:
    """What a command prints, or nothing if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _driver_version() -> str | None:
    printed = _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    if printed:
        return printed[0]
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group(1) if found else None


def _ptxas_version(capability_major: int) -> str | None:
    """Version of the assembler that Triton calls for a GPU; Blackwell and newer have one of their own."""
    try:
        from triton import knobs

        tool: Any = knobs.nvidia.ptxas_blackwell if capability_major >= 10 else knobs.nvidia.ptxas
        printed = _printed(tool.path, "--version")
    except (ImportError, AttributeError, RuntimeError):
        return None
    found = re.search(r"release [\d.]+, V([\d.]+)", printed)
    return found.group(1) if found else None


def _precision_flags() -> dict[str, str]:
    import torch

    matmul = torch.backends.cuda.matmul
    flags: dict[str, Callable[[], object]] = {
        "cuda.matmul.allow_tf32": lambda: matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "cuda.matmul.allow_fp16_reduced_precision_reduction": lambda: matmul.allow_fp16_reduced_precision_reduction,
        "cuda.matmul.allow_bf16_reduced_precision_reduction": lambda: matmul.allow_bf16_reduced_precision_reduction,
    }
    described = {}
    for name, read in flags.items():
        try:
            described[name] = str(read())
        except RuntimeError:  # torch refuses to answer after its old and new switches were mixed
            described[name] = "set through torch's newer switches"
    return described


def _system() -> str:
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        distribution = ""
    return ", ".join(part for part in (f"{platform.system()} {platform.release()}", distribution) if part)


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical cores"
