"""The compiled library for a machine without a network: `make gpu-bundle` here, taken along in build/gpu-bundle.

It is built for sm_90 alone, and for every Python from 3.10 on. A manifest beside it names the commit and holds digests
of the sources: there it is used only if they are those of the tree that runs, which need not be a git checkout.
"""

import json
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

import densenet_fast
from densenet_fast import installation

from .. import machine
from ..machine import ROOT

FOLDER = ROOT / "build" / "gpu-bundle"
HERE = ROOT / "build" / "gpu-built"  # built on the GPU machine itself
LIMIT = 64 * 2**20  # bytes of tree and bundle together
SOURCES = ("csrc", "setup.py", "tools/library")


def use(folder: Path = FOLDER) -> str | None:
    """Let the package find the library of a bundle; why it cannot be used, None if it can."""
    if not (folder / "manifest.json").exists():
        return f"no library was brought along in {folder.relative_to(ROOT)} (make gpu-bundle)"
    told = manifest(folder)
    if told["sources"] != machine.digest(*SOURCES):
        return f"the library brought along, of commit {told['commit']}, is of other sources"
    path = str(folder / "densenet_fast")
    if path not in densenet_fast.__path__:
        densenet_fast.__path__.insert(0, path)
        installation.record.cache_clear()
    return None


def forget() -> None:
    """Undo `use`."""
    densenet_fast.__path__[:] = [path for path in densenet_fast.__path__ if "gpu-bu" not in path]
    installation.record.cache_clear()


def is_built() -> bool:
    """Whether the package has a library."""
    return PathFinder.find_spec("densenet_fast._C", densenet_fast.__path__) is not None  # as `backends` looks for it


def manifest(folder: Path = FOLDER) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def build(
    folder: Path, log: Path | None = None, timeout: float | None = None, architecture: str | None = "9.0"
) -> None:
    """Build the library into `folder`, with its manifest; for one architecture, or None: that of the card here.

    Raises:
        subprocess.SubprocessError: it cannot be built; `log` says why.
    """
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder), "--build-temp", f"{folder}-objects"]
    switches = {"DENSENET_FAST_BUILD_CPU": "1", "DENSENET_FAST_BUILD_CUDA": "1"}
    switches["TORCH_CUDA_ARCH_LIST"] = architecture or machine.compute_capability()
    output = log.open("w") if log else None
    try:
        subprocess.run(
            command, cwd=ROOT, env=os.environ | switches, check=True, timeout=timeout, stdout=output, stderr=output
        )
    finally:
        if output:
            output.close()
    facts = {
        "commit": machine.commit(),
        "package": machine.digest(*machine.MEASURED),
        "sources": machine.digest(*SOURCES),
        "torch": torch.__version__,
    }
    (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n")


def travelling() -> int:
    """Bytes of the tree, tracked and not ignored, and of the bundle."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name] + list(FOLDER.rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> int:
    build(FOLDER)
    size = travelling()
    print(f"{FOLDER.relative_to(ROOT)}: commit {manifest()['commit']}, {size / 2**20:.1f} MiB with the tree")
    if size > LIMIT:
        print(f"too large: got {size} bytes of tree and bundle, expected at most {LIMIT}", file=sys.stderr)
    return size > LIMIT


if __name__ == "__main__":
    sys.exit(main())
