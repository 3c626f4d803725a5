"""Environments to install the package into that have PyTorch and nothing else, without a download; and stand-ins for
compilers, which take no time. `python -m tests.installing` prints the table of set-ups."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "densenet_fast" / "_C.abi3.so"
SOURCES = ("csrc", "densenet_fast", "tools", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")

# Objects are empty; what is linked is $STAND_IN_LIBRARY. STAND_IN_FAULT is printed and is the end.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "stand-in compiler 1.0"; exit 0; fi
if [ "$STAND_IN_FAULT" ]; then echo "$STAND_IN_FAULT" >&2; exit 1; fi
while [ $# -gt 0 ]; do
  case "$1" in -o) out=$2; shift;; -MF) rule=$2; shift;; -shared) shared=1;; esac
  shift
done
if [ "$shared" ]; then cp "$STAND_IN_LIBRARY" "$out"; else : > "$out"; echo "$out: " > "$rule"; fi
"""
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "release 13.0, V$STAND_IN_CUDA"; exit 0;;
  --dryrun) exit 0;;
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_89\\ncompute_90\\ncompute_100\\n'; exit 0;;
esac
if [ "$STAND_IN_NVCC_FAULT" ]; then echo "$STAND_IN_NVCC_FAULT" >&2; exit 2; fi
echo "$@" >> "$STAND_IN_LOG"
while [ $# -gt 0 ]; do case "$1" in -o) out=$2; shift;; -MF) rule=$2; shift;; esac; shift; done
: > "$out"; echo "$out: " > "$rule"
"""


def executable(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def copy_sources(folder: Path) -> Path:
    """A source tree in which nothing is built."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build.json", "gpucheck")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder


class Environment:
    """A virtual environment with pip, and of this environment the packages that are named with what they require."""

    def __init__(self, folder: Path, packages: Iterable[str] = ("torch",), python: str = sys.executable):
        self.folder = folder
        subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python*/site-packages"))
        self.given = folder / "given"  # not in site-packages, so that pip leaves it alone
        self.given.mkdir()
        (self.site / "given.pth").write_text(f"{self.given}\n")
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        wheel_of("setuptools", self.wheels)
        for package in ("pip", *packages):
            self.give(package)
        self.environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "HOME": str(folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",  # nothing is fetched
            "PIP_FIND_LINKS": self.wheels.as_uri(),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_DEPS": "1",
            "DENSENET_FAST_BUILD_CUDA": "0",
            "OMP_NUM_THREADS": "1",
        }

    def give(self, package: str) -> None:
        """Let the package, and what it requires, be importable."""
        for name in closure(package):
            for top in tops(name):
                link = self.given / top.name
                if not link.exists():
                    link.symlink_to(top)

    def take(self, package: str) -> None:
        for top in tops(package):
            (self.given / top.name).unlink()

    def run(self, *command: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def install(self, *arguments: str | Path, cwd: Path | None = None, **environment: str):
        return self.run(self.python, "-m", "pip", "install", *arguments, cwd=cwd, **environment)

    def type(self, command: str, **environment: str) -> subprocess.CompletedProcess:
        return self.run("/bin/sh", "-c", command, **environment)


def closure(package: str) -> list[str]:
    """An installed package, and those installed that it requires."""
    found, left = [], [package]
    while left:
        name = left.pop()
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.append(name)
        names = {re.split(r"[\s;<>=!~\[(]", r)[0] for r in requirements if "extra ==" not in r}
        left += [n for n in names if n not in found and n not in left]
    return found


def tops(package: str) -> set[Path]:
    """A distribution's files and folders in site-packages."""
    site = Path(sysconfig.get_paths()["purelib"])
    names = {file.parts[0] for file in distribution(package).files or []} - {"..", "__pycache__"}
    return {site / name for name in names}


def wheel_of(package: str, folder: Path) -> None:
    """A wheel of an installed package of pure Python: pip's build isolation installs it."""
    installed = distribution(package)
    with zipfile.ZipFile(folder / f"{package}-{installed.version}-py3-none-any.whl", "w") as archive:
        for file in installed.files or []:
            if file.parts[0] != ".." and file.suffix != ".pyc" and Path(file.locate()).exists():
                archive.write(file.locate(), str(file))


def path_to(installed: Distribution, folder: Path) -> None:
    """A wheel of the same name and version that leads to what is installed."""
    name, site = f"{installed.name}-{installed.version}", Path(str(installed.locate_file("")))
    contents = {
        f"{installed.name}.pth": f"{site}\n",
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {installed.name}\nVersion: {installed.version}\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{name}.dist-info/RECORD"] = "".join(f"{file},,\n" for file in contents)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)


def mending(text: str) -> str:
    """The command of a warning or an error: what stands behind "type:"."""
    return text.partition("type: ")[2].partition("  (")[0].strip()


def model(*options: str) -> str:
    """A program that runs a model twice and prints which backend it took."""
    return (
        "import torch, densenet_fast; from densenet_fast import backends\n"
        f"net = densenet_fast.DenseNet(4, (2,){''.join(f', {o}' for o in options)})\n"
        "for _ in range(2): net(torch.randn(2, 3, 8, 8))\n"
        "print('RUNS ON', backends.choose('auto', torch.device('cpu')))\n"
    )
