"""What is on this machine: the card, the compilers, the packages; and whether the native library runs here."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from densenet_fast import backends

from .. import machine
from . import bundle
from .children import Lost
from .runner import Facts, Job, Run, work_through
from .settings import BUILD, Settings

PACKAGES = ("torch", "torchvision", "triton", "timm", "pytest", "ninja", "numpy")
NEEDED = ("torchvision", "triton", "gcc", "Python.h")  # the last two by Triton, for its launchers
TOOLS = ("nvidia-smi", "gcc", "nvcc", "compute-sanitizer", "ncu")
BUILD_LIMIT = 150.0  # seconds for the library, where none was brought along


def preflight(run: Run) -> None:
    found = software()
    missing = [name for name in NEEDED if not found[name]] if run.settings.on_gpu else []
    verdict = {"verdict": "failed", "error": f"not here: {', '.join(missing)}"} if missing else {"verdict": "measured"}
    run.journal.line("software", **found, **verdict)
    if run.settings.on_gpu and shutil.which("nvidia-smi"):
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=10).stdout
        (run.settings.out / "nvidia-smi.txt").write_text(told)
    library(run)
    child = run.child("machine", lambda pipe: _look(pipe, run.settings))
    try:
        facts = child.receive(run.until)
    except Lost as lost:
        run.journal.line("machine", verdict=lost.verdict, why=lost.why, tail=lost.tail)
        run.over = "this machine has no GPU that works" if run.settings.on_gpu else "this machine cannot be told"
        return
    finally:
        run.end(child)
    run.journal.line("machine", verdict="measured", **facts)
    run.facts["machine"] = facts
    run.journal.tell(f"{facts['model']}, torch {facts['torch']}, commit {facts['commit']}")
    cases = [{"backend": b} for b in run.settings.backends]
    work_through(run, [Job("backend", [case], lambda: partial(_runs, run.settings)) for case in cases], len(cases))
    # One that does not run at all is told once, not by every case.
    told = [line for line in run.journal.lines if line["kind"] == "backend" and line["verdict"] == "right"]
    running = {line["backend"] for line in told}
    run.settings = run.settings._replace(backends=tuple(b for b in run.settings.backends if b in running))


def software() -> Facts:
    """Versions, and where the compilers and tools are; None for what is not there."""
    found: Facts = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found |= {tool: bool(shutil.which(tool)) for tool in TOOLS}
    # Triton compiles a launcher against it for every signature.
    found["Python.h"] = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    return found


def library(run: Run) -> None:
    """Use the library that was brought along if it is of these sources and loads; else the package's, or build one."""
    reason = bundle.use() or _why_not_loaded(run)
    if reason is None:
        run.journal.line("library", verdict="right", why=f"brought along, of commit {bundle.manifest()['commit']}")
        return
    bundle.forget()
    if bundle.is_built():
        run.journal.line("library", verdict="measured", why=f"the package's own: {reason}")
        return
    if not (run.settings.on_gpu and shutil.which("nvcc")):
        run.journal.line("library", verdict="failed", why=f"{reason}; the package has none, and there is no nvcc")
        return
    run.journal.tell(f"{reason}: building the library here")
    begun = time.monotonic()
    try:
        limit = min(BUILD_LIMIT, run.start + run.limit - begun)
        bundle.build(bundle.HERE, BUILD / "log" / "build.txt", timeout=limit, architecture=None)
        reason = bundle.use(bundle.HERE)
        run.journal.line("library", verdict="failed" if reason else "right", why=reason or "built here")
    except (OSError, subprocess.SubprocessError) as error:
        run.journal.line("library", verdict="failed", why=f"{reason}; building it here: {error}")
    run.postpone(time.monotonic() - begun)


def _why_not_loaded(run: Run) -> str | None:
    """Loading a library may end a process: a child tries."""
    child = run.child("library", lambda pipe: pipe.send(_load()))
    try:
        return child.receive(run.until)["why"]
    except Lost as lost:
        return f"loading the library brought along: {lost}"
    finally:
        run.end(child)


def _load() -> Facts:
    try:
        from densenet_fast import _C
    except ImportError as error:
        return {"why": f"the library brought along cannot be loaded: {error}"}
    # Its CUDA kernels need a symbol of PyTorch's that the linker may leave null.
    return {"why": _C.why_not_cuda()}


def _look(pipe: Connection, settings: Settings) -> None:
    """In a child, which may touch CUDA."""
    facts: dict[str, Any] = machine.facts(settings.device)
    if settings.on_gpu:
        card = torch.cuda.get_device_properties(0)
        facts |= {"architecture": card.major * 10 + card.minor, "processors": card.multi_processor_count}
        facts["memory"] = card.total_memory
    pipe.send(facts)


def _runs(settings: Settings, case: Facts) -> Facts:
    """Whether a backend runs here at all; loading the library may end the process."""
    backend = case["backend"]
    reason = backends.why_unavailable(backend, settings.device, settings.dtype)
    if reason is not None:
        return {"verdict": "failed", "error": reason}
    backends.operations(backend, settings.device, settings.dtype)
    return {"verdict": "right"}


if __name__ == "__main__":
    print(*(f"{name}: {value}" for name, value in software().items()), sep="\n", file=sys.stdout)
