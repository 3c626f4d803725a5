"""Where and when figures were measured: a figure without its machine says nothing."""

import ctypes
import datetime
import platform
import subprocess
from pathlib import Path

import torch


def describe(device: torch.device) -> str:
    """One line: processor, torch version, threads, date and commit."""
    parts = [_gpu(device) if device.type == "cuda" else _cpu(), f"torch {torch.__version__}"]
    if device.type == "cpu":
        parts.append(f"{torch.get_num_threads()} threads")
    return ", ".join([*parts, datetime.date.today().isoformat(), f"commit {_commit()}"])


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back to the kernel after every large tensor.

    Without it a step's time is largely page faults, and the more memory a model moves the more it pays: the comparison
    would flatter us. Both sides of a comparison run under it. Does nothing with another C library.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(m_trim_threshold, -1)  # never
        libc.mallopt(m_mmap_max, 0)


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
