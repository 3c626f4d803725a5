"""The longer work, never in the way of `first`: the whole suite on the card, tuning, every peer, scaling.

Each runs in a copy of the tree in build/gpu/tree, with the library inside the package: whatever it starts finds it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import densenet_fast

from .. import machine
from .runner import Facts, Job, Run, work_through
from .settings import BUILD, Settings

TREE = BUILD / "tree"
TOPS = ("densenet_fast", "benchmarks", "tests", "tools", "csrc", "docs", "README.md", "pyproject.toml", "setup.py")

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# By name, and for some what a rehearsal runs instead.
COMMANDS = {
    "suite": (*PYTEST, "tests"),
    "tune": ("-m", "benchmarks.tune"),
    "peers": ("benchmarks/bench_model.py", "-k", "not allocator", "--peers", "all", "--compile-limit", "400"),
    "scaling": ("benchmarks/bench_scaling.py",),
    "blocks": ("benchmarks/bench_block.py",),
    "largest": ("benchmarks/bench_memory.py",),
}


def more(run: Run, name: str) -> None:
    job = Job("more", [{"what": name}], partial(_start, run.settings))
    seen = len(run.journal.lines)
    work_through(run, [job], silence=run.left)
    if all(line["verdict"] != "not run" for line in run.journal.lines[seen:]):
        for path in sorted((TREE / "results").glob("*/*.json")):
            run.journal.line("results", folder=path.parent.name, file=path.name, contents=json.loads(path.read_text()))


def _start(settings: Settings) -> Callable[[Facts], Facts]:
    copy_tree()
    environment = os.environ | {"TRITON_CACHE_DIR": str(BUILD / "triton")}
    if settings.on_gpu:
        environment["DENSENET_FAST_REQUIRE"] = ",".join(b for b in settings.backends if b != "eager")

    def measure(case: Facts) -> Facts:
        command = [sys.executable, *arguments(case["what"], settings)]
        print(" ".join(command), flush=True)
        result = subprocess.run(
            command, cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(result.stdout, flush=True)
        last = next((line for line in reversed(result.stdout.splitlines()) if line.strip()), "")
        if result.returncode:
            return {
                "verdict": "failed",
                "error": f"exit code {result.returncode}: {last}",
                "tail": result.stdout[-3000:],
            }
        return {"verdict": "measured", "why": last}

    return measure


REHEARSED = {
    "suite": (*PYTEST, "tests/test_exact_and_repeatable.py", "-k", "test_two_training_steps"),
    "tune": ("-m", "benchmarks.tune", "--dry-run"),
    "peers": ("benchmarks/bench_model.py", "-k", "not allocator", "--rounds", "1", "--seconds", "0"),
}


def arguments(name: str, settings: Settings) -> Sequence[str]:
    """Of Python."""
    command = COMMANDS[name] if settings.on_gpu else REHEARSED.get(name, COMMANDS[name])
    if not command[0].startswith("benchmarks/"):
        return command
    options = {"device": settings.device.type, "model": settings.model, "image": settings.image}
    options |= settings.describe(settings.large, 0)
    named = ("device", "model", "image", "batch", "dtype")
    return (*PYTEST, *command, "--results", str(TREE / "results"), *(f"--{key}={options[key]}" for key in named))


def copy_tree() -> None:
    """The tree as the suite wants it: the library in the package, and the commit beside it."""
    shutil.rmtree(TREE, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.so")
    for name in TOPS:
        source = machine.ROOT / name
        if source.is_dir():
            shutil.copytree(source, TREE / name, ignore=ignored)
        elif source.exists():
            TREE.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, TREE / name)
    for folder in map(Path, densenet_fast.__path__):  # the first library found is the one in use
        for library in sorted(folder.glob("_C*.so")):
            shutil.copy2(library, TREE / "densenet_fast" / library.name)
            break
        else:
            continue
        break
    if machine.CARRIED.exists():
        target = TREE / machine.CARRIED.relative_to(machine.ROOT)
        target.parent.mkdir(parents=True)
        shutil.copy2(machine.CARRIED, target)
