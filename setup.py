"""Build of the compiled library densenet_fast._C; everything declarative is in pyproject.toml.

    pip install --no-build-isolation .        # torch must be importable: the library is compiled against it

Environment:
    DENSENET_FAST_BUILD_CPU=auto|0|1   CPU kernels: if they can be built (default), never, or else fail.

One line on stdout says what is built and why. Without the library the package runs on its other backends.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
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


def library() -> dict[str, object]:
    """Arguments of `setup` that build the library, or none."""
    wanted = os.environ.get("DENSENET_FAST_BUILD_CPU", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"DENSENET_FAST_BUILD_CPU: got {wanted!r}, expected auto, 0 or 1")
    reason = "DENSENET_FAST_BUILD_CPU=0" if wanted == "0" else why_not_cpu()
    if wanted == "1" and reason is not None:
        sys.exit(f"DENSENET_FAST_BUILD_CPU=1, but the CPU kernels cannot be built: {reason}")
    if reason is not None:
        print(f"densenet_fast: building pure Python, without native kernels: {reason}")
        return {}
    print(f"densenet_fast: building CPU kernels ({', '.join(INSTRUCTION_SETS)}) with {compiler_version()}")
    return extension()


def extension() -> dict[str, object]:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        """Compiles the kernels once per instruction set, then the rest of the library."""

        def build_extension(self, ext):
            for name, flags in INSTRUCTION_SETS.items():
                ext.extra_objects += self.compiler.compile(
                    sorted(glob("csrc/cpu/*.cpp")),
                    output_dir=os.path.join(self.build_temp, name),
                    extra_postargs={"cxx": ["-std=c++17", *FLAGS, *flags, f"-DDENSENET_FAST_ISA={name}"]},
                    depends=ext.depends,
                )
            super().build_extension(ext)

    facts = {"COMPILER": compiler_version(), "FLAGS": " ".join(FLAGS), "TORCH": torch.__version__}
    module = CppExtension(
        "densenet_fast._C",
        sorted(glob("csrc/*.cpp")),
        define_macros=[(f"DENSENET_FAST_{name}", f'"{value}"') for name, value in facts.items()],
        extra_compile_args={"cxx": FLAGS},
        depends=glob("csrc/*.h") + glob("csrc/cpu/*.h"),
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


setup(**library())
