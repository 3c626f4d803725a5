"""Where and when figures were measured: a figure without its machine says nothing."""

import ctypes
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MEASURED = ("csrc", "densenet_fast")  # what decides a figure
FOR_GPUS = ("csrc/cuda", "csrc/cuda_context.cpp", "densenet_fast/backends/triton")  # of it, none of a CPU's
CARRIED = ROOT / "build" / "gpu-bundle" / "manifest.json"  # names the commit where there is no git (gpu/bundle.py)


def describe(device: torch.device) -> str:
    """One line: processor or card, torch version, threads, date and commit."""
    parts = [model(device), f"torch {torch.__version__}"]
    if device.type == "cpu":
        parts.append(f"{torch.get_num_threads()} threads")
    return ", ".join([*parts, datetime.date.today().isoformat(), f"commit {commit()}"])


def facts(device: torch.device) -> dict[str, object]:
    """Everything that may explain a figure and is not secret: no host name, no path."""
    found: dict[str, object] = {
        "model": model(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instructions": None if device.type == "cuda" else _instructions(),
        "load": round(os.getloadavg()[0], 2),
        "clocks": _gpu_query("clocks.sm,clocks.mem,driver_version,power.limit")
        if device.type == "cuda"
        else _cpu_clock(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }
    for package in ("torch", "torchvision", "timm", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _instructions() -> str:
    """Of the processor: "AVX512 AMX"."""
    amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.backends.cpu.get_cpu_capability() + " AMX" * amx


def model(device: torch.device) -> str:
    """The card's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


def slug(facts: dict[str, object]) -> str:
    """A directory's name for this kind of machine: "nvidia-h200", "amd-epyc-avx512-2-threads"."""
    name = f"{facts['model']}"
    if facts["device"] != "cuda":
        name = f"{name} {facts.get('instructions') or ''} {facts['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """The commit at hand, "-dirty" where the kernels or the package have uncommitted changes."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain", "--", *MEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return _carried_commit()


def _carried_commit() -> str:
    if not CARRIED.exists():
        return "unknown"
    told = json.loads(CARRIED.read_text())
    return told["commit"] + ("" if told["package"] == digest(*MEASURED) else "-dirty")


def digest(*names: str) -> str:
    """Of the sources in files and folders of the tree: what tells without git whether they are the same."""
    found = hashlib.sha256()
    for top in (ROOT / name for name in names):
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            if path.is_file() and path.suffix not in (".so", ".pyc"):
                content = path.read_bytes()
                found.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def changed_since(measured: str, device: str) -> bool | None:
    """Whether what decides a device's ("cpu", "cuda") figures differs between a measured commit and HEAD; None if git
    cannot tell."""
    if measured.endswith("-dirty"):
        return True
    others = [f":(exclude){name}" for name in FOR_GPUS] if device == "cpu" else []
    try:
        return bool(_git("diff", "--name-only", measured, "HEAD", "--", *MEASURED, *others))
    except (OSError, subprocess.CalledProcessError):
        return None


def compute_capability() -> str:
    """Of the first card, without touching CUDA: "9.0"."""
    return _gpu_query("compute_cap") or "9.0"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back to the kernel after every large tensor.

    Without it a step's time is largely page faults, and the more memory a model moves the more it pays: the comparison
    would flatter us. Both sides of a comparison run under it. Does the same as MALLOC_TRIM_THRESHOLD_ and
    MALLOC_MMAP_MAX_ in the environment; nothing with another C library.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_trim_threshold, -1)  # never
        libc.mallopt(m_mmap_max, 0)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_clock() -> str | None:
    megahertz = _cpuinfo("cpu MHz")
    return megahertz and f"{megahertz} MHz"


def _cpuinfo(field: str) -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    return None


def _gpu_query(fields: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().partition("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return None
