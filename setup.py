"""Build of the compiled library densenet_fast._C; everything declarative is in pyproject.toml.

    pip install --no-build-isolation .        # torch must be importable: the library is compiled against it

Environment:
    DENSENET_FAST_BUILD_CPU=auto|0|1   The library with its CPU kernels: if it can be built (default), never, or
                                       else fail.
    DENSENET_FAST_BUILD_CUDA=auto|0|1  Its CUDA kernels: if torch has CUDA and there is an nvcc (default), never, or
                                       else fail.
    TORCH_CUDA_ARCH_LIST               Their architectures, for instance "8.0;9.0+PTX"; by default ARCHITECTURES.
    CUDA_HOME, CXX                     Where nvcc and the C++ compiler are.

A line on stdout for each part says what is built and why. Without the library the package runs on its other backends.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from glob import glob

from setuptools import setup

# Instruction sets of the kernels in csrc/cpu, each compiled into a namespace of its own; csrc/dispatch.cpp chooses.
INSTRUCTION_SETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        *("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"),
        "-mprefer-vector-width=512",
    ]
# No errno and no traps from square roots and comparisons; products and sums may fuse. Nothing that loses NaN or Inf.
FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]

# Compute capabilities of the CUDA kernels, whatever GPU is here; PTX serves those to come.
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0+PTX"
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def compiler_version() -> str | None:
    """First line of `$CXX --version`, None if there is no compiler."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]


def why_not_cpu() -> str | None:
    """Why the CPU kernels cannot be built here, None if they can."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch is not importable while building ({error}); install it and use --no-build-isolation"
    if sys.platform != "linux":
        return f"only Linux is supported, this is {sys.platform}"
    if compiler_version() is None:
        return f"no C++ compiler: {os.environ.get('CXX', 'c++')} not found"
    return None


def find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home:
            return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_ninja() -> str | None:
    """Also where it is installed beside this Python and PATH does not tell."""
    return shutil.which("ninja") or shutil.which("ninja", path=os.path.dirname(sys.executable))


def nvcc_version() -> str:
    told = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", told)
    return match[1] if match else "unknown"


def toolkit() -> str:
    """The folder of nvcc's toolkit, also where nvcc is a wrapper."""
    told = subprocess.run([find_nvcc(), "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    match = re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE)
    return os.path.realpath(match[1]) if match else os.path.dirname(os.path.dirname(os.path.realpath(find_nvcc())))


def why_not_cuda() -> str | None:
    """Why the CUDA kernels cannot be built here, None if they can. That there is a GPU is not needed."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if find_nvcc() is None:
        return "no nvcc in CUDA_HOME, PATH or /usr/local/cuda"
    if find_ninja() is None:
        return "no ninja"
    if nvcc_version().partition(".")[0] != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {nvcc_version()}, torch of CUDA {torch.version.cuda}"
    return None


def architectures() -> list[str]:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    for name in (names := listed.replace(";", " ").split()):
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            sys.exit(f"TORCH_CUDA_ARCH_LIST: got {name!r}, expected compute capabilities as in {ARCHITECTURES!r}")
    return names


def gencode(architecture: str) -> list[str]:
    """nvcc's flags for one of `architectures`."""
    number = architecture.removesuffix("+PTX").replace(".", "")
    kinds = ["sm", "compute"] if architecture.endswith("+PTX") else ["sm"]
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]


def decide(part: str, why_not: Callable[[], str | None]) -> str | None:
    """Why a part of the library is not built, None if it is; an end to the build if it is demanded and cannot be."""
    switch = f"DENSENET_FAST_BUILD_{part}"
    wanted = os.environ.get(switch, "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"{switch}: got {wanted!r}, expected auto, 0 or 1")
    reason = f"{switch}=0" if wanted == "0" else why_not()
    if wanted == "1" and reason is not None:
        sys.exit(f"{switch}=1, but the {part} kernels cannot be built: {reason}")
    return reason


def library() -> dict[str, object]:
    """Arguments of `setup` that build the library, or none."""
    reason = decide("CPU", why_not_cpu)
    if reason is not None:
        decide("CUDA", lambda: f"they are part of the library with the CPU kernels, which is not built: {reason}")
        print(f"densenet_fast: building pure Python, without native kernels: {reason}")
        return {}
    print(f"densenet_fast: building CPU kernels ({', '.join(INSTRUCTION_SETS)}) with {compiler_version()}")
    reason = decide("CUDA", why_not_cuda)
    if reason is None:
        print(f"densenet_fast: building CUDA kernels ({', '.join(architectures())}) with nvcc {nvcc_version()}")
    else:
        print(f"densenet_fast: building no CUDA kernels: {reason}")
    return extension(cuda=reason is None)


def compile_cuda(folder: str, include_dirs: list[str]) -> list[str]:
    """Objects of csrc/cuda, compiled by ninja; what ptxas told of each kernel stays beside its object."""
    sources = sorted(glob("csrc/cuda/*.cu"))
    flags = [*NVCC_FLAGS, *(f for a in architectures() for f in gencode(a)), *(f"-I{path}" for path in include_dirs)]
    objects = [os.path.join(folder, os.path.basename(source) + ".o") for source in sources]
    rules = [
        f"nvcc = {find_nvcc()} {shlex.join(flags)}",
        "rule nvcc",
        "  command = $nvcc -MD -MF $out.d -c $in -o $out 2> $out.ptxas || { cat $out.ptxas; exit 1; }",
        "  depfile = $out.d",
        *(f"build {built}: nvcc {os.path.abspath(s)}" for built, s in zip(objects, sources, strict=True)),
        "",
    ]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "build.ninja"), "w") as file:
        file.write("\n".join(rules))
    subprocess.run([find_ninja(), "-C", folder], check=True)
    with open(os.path.join(folder, "resources.inc"), "w") as file:
        file.write("\n".join(resources(objects)))
    return objects


def resources(objects: list[str]) -> list[str]:
    """A C++ initialiser {kernel, architecture, registers, static shared memory, bytes spilled} for every kernel."""
    entry = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
        re.DOTALL,
    )
    rows = []
    for built in objects:
        with open(f"{built}.ptxas") as file:
            for found in entry.finditer(file.read()):
                numbers = (found["registers"], found["shared"] or "0", str(int(found["stores"]) + int(found["loads"])))
                names = (json.dumps(found[key]) for key in ("kernel", "architecture"))
                rows.append(f"{{{', '.join((*names, *numbers))}}},")
    return rows


def remove_libraries(folder: str) -> None:
    """Those of earlier builds: Python takes one named for itself alone before one for all."""
    for older in glob(os.path.join(folder, "_C.*.so")):
        os.remove(older)


def extension(cuda: bool) -> dict[str, object]:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        """Compiles the kernels, once per instruction set and for CUDA, then the rest of the library."""

        def build_extension(self, ext):
            ext.extra_objects = []  # one command line may build twice
            for name, flags in INSTRUCTION_SETS.items():
                ext.extra_objects += self.compiler.compile(
                    sorted(glob("csrc/cpu/*.cpp")),
                    output_dir=os.path.join(self.build_temp, name),
                    extra_postargs={"cxx": ["-std=c++17", *FLAGS, *flags, f"-DDENSENET_FAST_ISA={name}"]},
                    depends=ext.depends,
                )
            if cuda:
                folder = os.path.abspath(os.path.join(self.build_temp, "cuda"))
                ext.extra_objects += compile_cuda(folder, ext.include_dirs)
                ext.define_macros.append(("DENSENET_FAST_RESOURCES", f'"{folder}/resources.inc"'))
            remove_libraries(os.path.dirname(self.get_ext_fullpath(ext.name)))
            super().build_extension(ext)

        def copy_extensions_to_source(self):
            remove_libraries("densenet_fast")
            super().copy_extensions_to_source()

    facts = {"COMPILER": compiler_version(), "FLAGS": " ".join(FLAGS), "TORCH": torch.__version__}
    sources = set(glob("csrc/*.cpp"))
    macros = [("USE_CUDA", None)] if cuda else []  # PyTorch's own name: the stable ABI shows its CUDA part
    if cuda:
        facts |= {"CUDA": nvcc_version(), "ARCHITECTURES": " ".join(architectures())}
    else:
        sources -= {"csrc/cuda_context.cpp"}
    module = CppExtension(
        "densenet_fast._C",
        sorted(sources),
        define_macros=[*macros, *((f"DENSENET_FAST_{name}", f'"{value}"') for name, value in facts.items())],
        extra_compile_args={"cxx": FLAGS},
        depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*.h"), *glob("csrc/cuda/*.h")],
        py_limited_api=True,  # csrc/module.cpp keeps to it; PyTorch's build says which: that of Python 3.10
        # The static runtime: the library then loads wherever it was built, and finds the driver by itself.
        libraries=["cudart_static", "rt", "dl", "pthread"] if cuda else [],
        library_dirs=[os.path.join(toolkit(), lib) for lib in ("lib64", "lib")] if cuda else [],
        # The stream is libtorch_cuda's, and libtorch needs that where PyTorch has CUDA. Nothing is called of libtorch
        # itself: the linker must be told to keep it.
        extra_link_args=["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"] if cuda else [],
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**library())
