"""The CUDA backend on a machine without a GPU: the entries and launches of csrc on CPU tensors, with the PTX that nvcc
emitted run by `tools.gpucheck`. `Machine().operations` are those of the contract, for any backend's caller.

    python -m tests.cuda.device     # compile what that takes beforehand, two minutes of processor time
"""

import ctypes
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from densenet_fast.contract import DECLARATIONS
from tools.gpucheck.cuda import SOURCES, launches

from ..opcheck import opcheck

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
NINJA = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
INCLUDE = Path(torch.__file__).parent / "include"
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{INCLUDE}")
ENTRIES = ("arguments", "batch_norm", "block", "head", "stem", "transition")
# Paths relative to the folder that is built in, so that a copy of the tree finds its copy of the folder done.
BUILD = ROOT / ".pytest_cache/d/densenet_fast_cuda"
UP = Path(os.path.relpath(ROOT, BUILD))
NVCC = f"nvcc -std=c++17 -O3 --expt-relaxed-constexpr -arch=compute_80 -code=compute_80 -I{INCLUDE} -Xcompiler=-fPIC"
CXX = (
    f"c++ -std=c++17 -O1 -fPIC -fvisibility=hidden -DDENSENET_FAST_CUDA -DUSE_CUDA -I{INCLUDE} -I{UP / 'csrc'} "
    f"-I{sysconfig.get_path('include')} -I{UP / SOURCES.relative_to(ROOT)}"
)
TORCH_CPU = f"-L{INCLUDE.parent / 'lib'} -ltorch_cpu"
TORCH = f"{TORCH_CPU} -Wl,--no-as-needed -ltorch"


def why_not() -> str | None:
    """Why there is nothing to run, as a clause."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc to compile the CUDA kernels"
    if shutil.which("c++") is None or NINJA is None:
        return "there is no C++ compiler, or no ninja"
    return None if kernels() else "there are no sources of CUDA kernels here"


def kernels() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def build() -> Path:
    """The folder with the PTX of every kernel file, for one architecture, and libraries of entries and launches: on the
    PTX machine; on csrc's own context (context.so); that without libtorch (alone.so). And the stub runtime. What has
    changed since the last time is compiled, by one process at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    here, sources = UP / HERE.relative_to(ROOT), UP / SOURCES.relative_to(ROOT)
    lines = [
        "rule nvcc",
        f"  command = mkdir -p $out.d && {NVCC} -MD -MF $out.depends -keep -keep-dir $out.d -c $in -o $out",
        "  depfile = $out.depends",
        "  deps = gcc",
        "rule cxx",
        f"  command = {CXX} $flags -MMD -MF $out.depends -c $in -o $out",
        "  depfile = $out.depends",
        "  deps = gcc",
        "rule link",
        "  command = c++ -shared $in $flags -o $out",
    ]
    objects = []
    for source in kernels():
        lines.append(f"build {source.stem}.cu.o: nvcc {UP / source.relative_to(ROOT)}")
        objects.append(f"{source.stem}.cu.o")
    for name in ENTRIES:
        lines += [f"build {name}.o: cxx {UP / 'csrc' / name}.cpp", f"  flags = -include {here / 'ptx_device.h'}"]
        objects.append(f"{name}.o")
    lines += [
        f"build launches.o: cxx {sources / 'launches.cpp'}",
        f"build operands.o: cxx {here / 'operands.cpp'}",
        f"build library.so: link {shlex.join(objects)} operands.o launches.o",
        f"  flags = {TORCH_CPU}",
        f"build context.o: cxx {UP / 'csrc/cuda_context.cpp'}",
        f"build tf32.o: cxx {here / 'tf32.cpp'}",
        f"build context.so: link {shlex.join(objects)} context.o tf32.o",
        f"  flags = {TORCH}",
        f"build alone.so: link {shlex.join(objects)} context.o tf32.o",
        f"  flags = {TORCH_CPU}",
        f"build runtime.o: nvcc {sources / 'runtime.cpp'}",
        "build libcuda.so.1: link runtime.o",
        "  flags = -Wl,-soname,libcuda.so.1",
        "",
    ]
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (BUILD / "build.ninja").write_text("\n".join(lines))
        done = subprocess.run([NINJA, "-C", BUILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD


def define(checked: Callable[[Callable], Callable] = lambda operator: operator) -> tuple[torch.library.Library, Any]:
    """The operators that a library of `build` registers: their schemas, which last as long as the library returned, and
    they as operations of the contract, each made of `checked(operator)`."""
    schemas = torch.library.Library("densenet_fast_ptx", "FRAGMENT")
    operations = SimpleNamespace()
    for name, declared in DECLARATIONS.items():
        schemas.define(f"{name}.native{declared.schema}")
        schemas.impl(f"{name}.native", lambda *_: None, "Meta")
        operator = getattr(torch.ops.densenet_fast_ptx, name).native
        setattr(operations, name, declared.flattening(checked(operator)))
    return schemas, operations


class Machine(launches.Machine):
    """`device`: multiprocessors and shared memory of the GPU that `set` makes the present one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = [file for source in kernels() for file in (folder / f"{source.stem}.cu.o.d").glob("*.ptx")]
        super().__init__(ctypes.CDLL(str(folder / "library.so")), self.files)
        self.library.counter_left.restype = ctypes.c_bool
        self._schemas, self.operations = define(self._checked)

    def reset(self) -> None:
        super().reset()
        self.device = (4, 232448)
        self.set(tf32=False)

    def set(self, tf32: bool) -> None:
        self.set_device(*self.device)
        self.library.set_tf32(tf32)

    def opcheck(self, operation, args) -> None:
        """Its calls of the operation run no kernel that could raise in a callback unseen."""
        self.fault = None
        opcheck(operation, args)
        self.raise_fault()

    def _checked(self, operator):
        def call(*args):
            self.fault = None
            operator(*args)
            left = self.library.counter_left()
            self.raise_fault()
            assert not left, "a counter is not zero for the next launch"

        return call


if __name__ == "__main__":
    if (reason := why_not()) is None:
        build()
    else:
        print(f"The CUDA kernels cannot be run as PTX: {reason}")
