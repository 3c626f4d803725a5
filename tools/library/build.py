"""The whole library: what is built and what is left out, decided by parts, compiled, linked, loaded, written down."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from . import architectures, surroundings
from .compiling import Job, number_of_jobs, run, run_all
from .surroundings import Missing, Torch

ROOT = Path(__file__).parents[2]
SETUPTOOLS = "setuptools>=77"  # reads pyproject.toml's licence
# Instruction sets and types of the activations of the kernels in csrc/cpu, each pair compiled into a namespace of its
# own; csrc/dispatch.cpp chooses.
_PAIRS = "-DDENSENET_FAST_PAIRS"  # products of pairs of bfloat16
_TILES = "-DDENSENET_FAST_TILES"  # and these by tiles
_BF16, _AMX = "-mavx512bf16", ["-mamx-tile", "-mamx-bf16"]  # which older compilers do not know
INSTRUCTION_SETS: dict[str, list[str]] = {
    "portable": [],
    "portable_bf16": [_PAIRS],
    "portable_amx_bf16": [_PAIRS, _TILES],
}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"),
        "-mprefer-vector-width=512",
    ]
    INSTRUCTION_SETS["avx512_bf16"] = [*INSTRUCTION_SETS["avx512"], _BF16, _PAIRS]
    INSTRUCTION_SETS["amx_bf16"] = [*INSTRUCTION_SETS["avx512_bf16"], *_AMX, _TILES]
ELEMENTS = {
    name: ["float", "bfloat16", "float16"] if _PAIRS not in flags else ["float"] * (_TILES in flags) + ["bfloat16"]
    for name, flags in INSTRUCTION_SETS.items()
}
# No errno and no traps from square roots and comparisons; products and sums may fuse. Nothing that loses NaN or Inf.
FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
CXX_FLAGS = ["-std=c++17", "-DNDEBUG", "-fwrapv", "-fPIC", "-Wall", *FLAGS]
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CXX_GIB, NVCC_GIB = 0.5, 0.75  # of a compiler at its peak: more than twice what was seen, with gcc 12 and CUDA 13


class Cuda(NamedTuple):
    nvcc: str
    version: str
    architectures: list[str]


class NoTorch(Missing):
    """There is nothing to compile against, whatever is asked for but to do without."""


def build(library: Path, temporary: Path) -> dict[str, Any]:
    """Build `library`, if it can be, with objects in `temporary`; returns the record.

    Ends the process if a part cannot be built that is demanded, and if there is no PyTorch to compile against: whoever
    installs then has a command to type, and no package without kernels.
    """
    record = Record()
    try:
        torch, version = _look()
        cuda = _look_for_cuda(record, torch)
        record.tell(
            f"building CPU kernels ({', '.join(instruction_sets())}) with {version}, against torch {torch.version}"
        )
        objects = _compile_cpu(version, temporary)
        if cuda is not None:
            try:
                objects += _compile_cuda(torch, cuda, version, temporary / "cuda")
            except Missing as missing:
                record.leave_out("CUDA", missing)
                cuda = None
        objects += _compile_rest(torch, version, cuda, temporary)
        _link(torch, cuda, objects, library)
        _load(torch, library)
    except NoTorch as missing:
        sys.exit(_stop(missing))
    except Missing as missing:
        library.unlink(missing_ok=True)
        record.leave_out("CPU", missing)
        beside = f"they are part of the library with the CPU kernels, which is not built: {missing.why}"
        record.leave_out("CUDA", Missing(beside, missing.first, missing.said))
        return record.facts
    record.facts["built"] = {"compiler": version, "torch": torch.version}
    if cuda is not None:
        record.facts["built"] |= {"nvcc": cuda.version, "architectures": cuda.architectures}
    return record.facts


class Record:
    """`facts` goes into the package as JSON: "built", facts of the library or None; "left_out", for each part that was,
    why, what to do first, and the compiler's last lines."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"built": None, "left_out": {}}

    def tell(self, line: str) -> None:
        print(f"densenet_fast: {line}", flush=True)

    def leave_out(self, part: str, missing: Missing) -> None:
        """Write it down; an end to the build if the part is demanded."""
        if _switch(part) == "1":
            sys.exit(
                f"densenet_fast: DENSENET_FAST_BUILD_{part}=1, but the {part} kernels cannot be built: {missing.why}"
                + (f"; {missing.first}, then type: {_again()}" if missing.first else "")
                + (f"\n{missing.said}" if missing.said else "")
            )
        self.facts["left_out"][part] = {"why": missing.why, "first": missing.first, "said": missing.said.splitlines()}
        self.tell(f"building no {part} kernels: {missing.why}")
        if missing.said:
            print(missing.said, flush=True)


def write(record: dict[str, Any], folder: Path) -> None:
    """As a file of the package."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "_build.json.new"
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.replace(folder / "_build.json")


def _switch(part: str) -> str:
    name = f"DENSENET_FAST_BUILD_{part}"
    wanted = os.environ.get(name, "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"{name}: got {wanted!r}, expected auto, 0 or 1")
    return wanted


def _refuse(part: str) -> None:
    if _switch(part) == "0":
        raise Missing(f"DENSENET_FAST_BUILD_{part}=0 when it was built")


def _look() -> tuple[Torch, str]:
    """PyTorch, and the compiler's version."""
    _switch("CUDA")  # a wrong value is told whatever is built
    _refuse("CPU")
    if sys.platform != "linux":
        raise Missing(f"there are kernels for Linux only, this is {sys.platform}")
    try:
        torch = surroundings.find_torch()
    except Missing as missing:
        raise NoTorch(missing.why, missing.first) from None
    return torch, surroundings.compiler_version()


def _look_for_cuda(record: Record, torch: Torch) -> Cuda | None:
    try:
        _refuse("CUDA")
        nvcc, version = surroundings.check_cuda(torch)
    except Missing as missing:
        record.leave_out("CUDA", missing)
        return None
    chosen, left_out = architectures.chosen(nvcc)
    for line in left_out:
        record.tell(f"building no CUDA kernels for architecture {line}")
    record.tell(f"building CUDA kernels ({', '.join(chosen)}) with nvcc {version}")
    return Cuda(nvcc, version, chosen)


def _cxx(*flags: str) -> tuple[str, ...]:
    """The compiler with our flags and those of the environment."""
    asked = (word for name in ("CPPFLAGS", "CFLAGS", "CXXFLAGS") for word in shlex.split(os.environ.get(name, "")))
    return (*surroundings.compiler(), *CXX_FLAGS, *asked, *flags)


def instruction_sets() -> dict[str, list[str]]:
    """Those that the compiler knows: g++ has AVX512-BF16 since version 10, AMX since 11."""
    unknown = {flag for flag in (_BF16, *_AMX) if not _takes(flag)} if "avx512" in INSTRUCTION_SETS else set()
    return {name: flags for name, flags in INSTRUCTION_SETS.items() if unknown.isdisjoint(flags)}


@cache
def _takes(flag: str) -> bool:
    command = [*surroundings.compiler(), flag, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def _compile(jobs: list[Job], gib_each: float, what: str) -> list[Path]:
    count = number_of_jobs(gib_each)
    print(f"densenet_fast: compiling {len(jobs)} files of {what}, {count} at a time (MAX_JOBS)", flush=True)
    run_all(jobs, gib_each)
    return [job.built for job in jobs]


def _sources(pattern: str) -> list[Path]:
    return sorted(source.relative_to(ROOT) for source in ROOT.glob(pattern))


def _compile_cpu(version: str, folder: Path) -> list[Path]:
    jobs = [
        Job(
            ROOT,
            source,
            folder / name / element / f"{source.stem}.o",
            _cxx(*flags, f"-DDENSENET_FAST_ISA={name}", f"-DDENSENET_FAST_ELEMENT={element}"),
            version,
        )
        for name, flags in instruction_sets().items()
        for element in ELEMENTS[name]
        for source in _sources("csrc/cpu/*.cpp")
    ]
    return _compile(jobs, CXX_GIB, "CPU kernels")


def _compile_cuda(torch: Torch, cuda: Cuda, version: str, folder: Path) -> list[Path]:
    """Also resources.inc, a C++ initialiser of what ptxas told of each kernel."""
    flags = (
        *NVCC_FLAGS,
        *surroundings.host_compiler(),
        *(flag for a in cuda.architectures for flag in architectures.gencode(a)),
        f"-I{torch.folder / 'include'}",
    )
    jobs = [
        Job(ROOT, source, folder / f"{source.stem}.o", (cuda.nvcc, *flags), f"{cuda.version}, {version}")
        for source in _sources("csrc/cuda/*.cu")
    ]
    objects = _compile(jobs, NVCC_GIB, "CUDA kernels")
    (folder / "resources.inc").write_text("\n".join(resources(objects)))
    return objects


def resources(objects: list[Path]) -> list[str]:
    """A C++ initialiser {kernel, architecture, registers, static shared memory, bytes spilled} for every kernel."""
    entry = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
        re.DOTALL,
    )
    rows = []
    for built in objects:
        for found in entry.finditer(Path(f"{built}.said").read_text()):
            numbers = (found["registers"], found["shared"] or "0", str(int(found["stores"]) + int(found["loads"])))
            names = (json.dumps(found[key]) for key in ("kernel", "architecture"))
            rows.append(f"{{{', '.join((*names, *numbers))}}},")
    return rows


def _compile_rest(torch: Torch, version: str, cuda: Cuda | None, folder: Path) -> list[Path]:
    """The operators and the module."""
    facts = {"COMPILER": version, "FLAGS": " ".join(FLAGS), "TORCH": torch.version}
    if cuda is not None:
        facts |= {"CUDA": cuda.version, "ARCHITECTURES": " ".join(cuda.architectures)}
        facts["RESOURCES"] = str((folder / "cuda" / "resources.inc").absolute())
    command = _cxx(
        *(f'-DDENSENET_FAST_{name}="{fact}"' for name, fact in facts.items()),
        "-DPy_LIMITED_API=0x030A0000",  # csrc/module.cpp keeps to that of Python 3.10
        *(f"-DDENSENET_FAST_{name.upper()}" for name in ("avx512_bf16", "amx_bf16") if name in instruction_sets()),
        *(["-DUSE_CUDA"] if cuda is not None else []),  # PyTorch's own name: the stable ABI shows its CUDA part
        *("-isystem", str(torch.folder / "include"), f"-I{surroundings.python_headers()}"),
    )
    sources = sorted(_sources("csrc/*.cpp"), key=lambda s: s.stem != "module")  # Python.h is missed soonest
    if cuda is None:
        sources.remove(Path("csrc/cuda_context.cpp"))
    built = folder / ("with_cuda" if cuda is not None else "without_cuda")
    return _compile([Job(ROOT, s, built / f"{s.stem}.o", command, version) for s in sources], CXX_GIB, "operators")


def _link(torch: Torch, cuda: Cuda | None, objects: list[Path], library: Path) -> None:
    """
    Raises:
        Missing: the linker failed.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [*surroundings.compiler(), "-shared", *map(str, objects), "-o", str(library)]
    command += [f"-L{torch.folder / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]
    if cuda is not None:
        # The static runtime: the library then loads wherever it was built, and finds the driver by itself.
        root = surroundings.toolkit(cuda.nvcc)
        command += [f"-L{os.path.join(root, lib)}" for lib in ("lib64", "lib")]
        command += ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
        # The stream is libtorch_cuda's, and libtorch needs that where PyTorch has CUDA. Nothing is called of libtorch
        # itself: the linker must be told to keep it.
        command += ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"]
    run([*command, *shlex.split(os.environ.get("LDFLAGS", ""))], "the linker failed")


def _load(torch: Torch, library: Path) -> None:
    """Load it as the package will, in a process of its own; not if PyTorch itself cannot be imported here.

    Raises:
        Missing: it does not load.
    """
    code = (
        "import sys\ntry:\n import torch\nexcept Exception:\n sys.exit(0)\n"
        "from importlib.machinery import ExtensionFileLoader as Loader\n"
        "from importlib.util import module_from_spec, spec_from_loader\n"
        "loader = Loader('densenet_fast._C', sys.argv[1])\n"
        "module_from_spec(spec_from_loader(loader.name, loader))\n"
    )
    command = [sys.executable, *torch.options, "-c", code, str(library.absolute())]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise Missing(
            f"the library was built but does not load: {said[-1]}",
            f"see to the compiler, {shlex.join(surroundings.compiler())} (CXX chooses another)",
        )


def _stop(missing: Missing) -> str:
    """One sentence with the commands."""
    return (
        f"densenet_fast: {missing.why} ({sys.prefix}), and the kernels are compiled against it; type: "
        f'{_pip()} install {missing.first} "{SETUPTOOLS}" && {_again("--no-build-isolation ")}  '
        "(or set DENSENET_FAST_BUILD_CPU=0 to do without compiled kernels)"
    )


def _again(isolation: str = "") -> str:
    """The command that installs the same again, as far as it is known from here."""
    unpacked = "pip-" in f"{ROOT.parent.name}/{ROOT.name}" and ROOT.is_relative_to(
        Path(tempfile.gettempdir()).resolve()
    )
    return f"{_pip()} install {isolation}{'<what you gave to it>' if unpacked else shlex.quote(str(ROOT))}"


def _pip() -> str:
    """uv and others build in an environment of their own, which knows nothing of the one that is installed into."""
    if "UV" in os.environ:
        return "uv pip"
    temporary = Path(sys.prefix).is_relative_to(tempfile.gettempdir())
    return f"{'python' if temporary else shlex.quote(sys.executable)} -m pip"
