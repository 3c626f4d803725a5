"""Which PyTorch and which compilers there are. What is not there is told as a `Missing`: why, and what to do first."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

OLDEST_TORCH = (2, 10)
LAUNCHERS = {"ccache", "sccache", "distcc", "icecc"}
INSTALL_COMPILER = (
    "install a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev; Fedora: dnf install gcc-c++ python3-devel; "
    "conda: conda install -c conda-forge cxx-compiler)"
)


class Missing(Exception):
    """Something that a part of the library needs. `first` says what to do before building again, "" for nothing."""

    def __init__(self, why: str, first: str = "", said: str = ""):
        super().__init__(why)
        self.why, self.first, self.said = why, first, said


class Torch(NamedTuple):
    """A PyTorch that can be compiled against; it is not imported."""

    version: str
    cuda: str | None  # the version of CUDA that it was built with
    folder: Path  # of the package
    options: tuple[str, ...]  # of this Python, with which it is found


def find_torch() -> Torch:
    """The PyTorch that this Python imports, or would if pip did not isolate the build from it.

    pip's isolation is a PYTHONPATH for the same interpreter: the environment that is installed into is one call away.
    Any PyTorch from `OLDEST_TORCH` on will do: csrc/ keeps to its stable ABI.

    Raises:
        Missing: there is none, or it is too old.
    """
    spec, options = find_spec("torch"), ()
    origin = spec.origin if spec is not None else None
    if origin is None:
        options = ("-E",)  # without pip's PYTHONPATH
        look = "from importlib.util import find_spec; s = find_spec('torch'); print(s and s.origin or '')"
        done = subprocess.run([sys.executable, *options, "-c", look], cwd="/", capture_output=True, text=True)
        origin = done.stdout.strip()
    if not origin:
        raise Missing("there is no PyTorch to compile against in the environment that is built in", "torch")
    folder = Path(origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    version = str(facts["__version__"])
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise Missing(f"PyTorch is too old: got {version}, expected {oldest} or newer", f'--upgrade "torch>={oldest}"')
    return Torch(version, facts.get("cuda"), folder, options)


def compiler() -> list[str]:
    """The C++ compiler's command: CXX, or the companion of CC, or c++."""
    if command := _words("CXX"):
        return command
    if command := _words("CC"):
        for c, cxx in (("clang", "clang++"), ("gcc", "g++"), ("icx", "icpx")):
            if c in (name := os.path.basename(command[-1])):
                found = os.path.join(os.path.dirname(command[-1]), name.replace(c, cxx))
                if shutil.which(found):
                    return [*command[:-1], found]
    return ["c++"]


def _words(name: str) -> list[str]:
    """A command in the environment, which may be a file whose name has blanks."""
    value = os.environ.get(name, "")
    return [value] if shutil.which(value) else shlex.split(value)


def compiler_version() -> str:
    """First line of what the C++ compiler says of itself.

    Raises:
        Missing: there is no compiler, or it does not run.
    """
    command = compiler()
    named = next((f"{name}={value!r}" for name in ("CXX", "CC") if (value := os.environ.get(name))), None)
    if shutil.which(command[0]) is None:
        why = f"no C++ compiler: {command[0]} not found" + (f", which {named} asks for" if named else "")
        raise Missing(why, f"install {command[0]} or unset {named.partition('=')[0]}" if named else INSTALL_COMPILER)
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Missing(
            f"the C++ compiler does not run: {shlex.join(command)} --version ended with {done.returncode}",
            f"let {named or 'c++'} be a compiler that runs",
            done.stdout + done.stderr,
        )
    return done.stdout.partition("\n")[0]


def host_compiler() -> list[str]:
    """nvcc's options for the compiler of its host code: the one that CXX or CC names, without what launches it."""
    if not (os.environ.get("CXX") or os.environ.get("CC")):
        return []
    word = next((w for w in compiler() if os.path.basename(w) not in LAUNCHERS), None)
    return ["-ccbin", word] if word else []


def find_nvcc() -> str:
    """
    Raises:
        Missing: there is no nvcc.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            if found := shutil.which("nvcc", path=os.path.join(home, "bin")):
                return found
            raise Missing(f"no nvcc in {name}={home!r}", f"let {name} be the folder of a CUDA toolkit")
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise Missing("no nvcc in CUDA_HOME, PATH or /usr/local/cuda", "install the CUDA toolkit, or set CUDA_HOME")
    return found


def nvcc_version(nvcc: str) -> str:
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", told)
    return match[1] if match else "unknown"


def toolkit(nvcc: str) -> str:
    """The folder of nvcc's toolkit, also where nvcc is a wrapper."""
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    match = re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE)
    return os.path.realpath(match[1]) if match else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def check_cuda(torch: Torch) -> tuple[str, str]:
    """nvcc and its version. That there is a GPU is not needed.

    Raises:
        Missing: CUDA kernels cannot be built here.
    """
    if torch.cuda is None:
        raise Missing(f"torch {torch.version} has no CUDA")
    nvcc = find_nvcc()
    version = nvcc_version(nvcc)
    if version.partition(".")[0] != torch.cuda.partition(".")[0]:
        raise Missing(
            f"nvcc is of CUDA {version}, torch of CUDA {torch.cuda}",
            f"let CUDA_HOME be the folder of a toolkit of CUDA {torch.cuda.partition('.')[0]}",
        )
    return nvcc, version


def python_headers() -> str:
    return sysconfig.get_paths()["include"]
