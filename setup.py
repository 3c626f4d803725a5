"""Build of the compiled library densenet_fast._C by tools/library; everything declarative is in pyproject.toml.

    pip install .        # against the PyTorch of the environment

Environment:
    DENSENET_FAST_BUILD_CPU=auto|0|1   The library with its CPU kernels: if it can be built (default), never, or
                                       else fail.
    DENSENET_FAST_BUILD_CUDA=auto|0|1  Its CUDA kernels: if torch has CUDA and there is an nvcc (default), never, or
                                       else fail.
    TORCH_CUDA_ARCH_LIST               Their architectures as PyTorch reads them, "8.0;9.0+PTX", "Ampere" or "native"
                                       for instance; by default tools/library/architectures.py's.
    CUDA_HOME, CXX, CC                 Where nvcc is, and the C++ compiler, nvcc's host compiler too.
    CPPFLAGS, CFLAGS, CXXFLAGS, LDFLAGS
    DENSENET_FAST_BUILD_OBJECTS        Where objects are kept for later builds, of other checkouts, too, which compile
                                       what differs in content; by default setuptools' build/temp.*.
    MAX_JOBS                           How many compilers run beside each other; by default as many as there are
                                       processors and memory for.

A line on stdout for each part says what is built and why. What was left out is written into the package
(_build.json), for the warning that a model gives which then runs without, and for `python -m densenet_fast.info`.
"""

import os
import shlex
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.partition(".")[0]) < 77:
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    sys.exit(
        f"densenet_fast: setuptools is too old: got {setuptools.__version__}, expected 77 or newer; type: "
        f'{pip} --upgrade "setuptools>=77" && {pip} --no-build-isolation {shlex.quote(str(Path.cwd()))}  '
        "(or leave out --no-build-isolation)"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # not there under PEP 517

from tools.library import build


class BuildLibrary(build_ext):
    """Builds the library, or leaves it out, and writes the record beside it."""

    def build_extension(self, ext):
        library = Path(self.get_ext_fullpath(ext.name))
        remove_libraries(library.parent)
        objects = Path(os.environ.get("DENSENET_FAST_BUILD_OBJECTS") or self.build_temp).absolute()
        build.write(build.build(library, objects), library.parent)

    def copy_extensions_to_source(self):
        """For editable installs, and --inplace."""
        source = Path("densenet_fast")
        remove_libraries(source)
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "densenet_fast", "_build.json")
        (source / "_build.json").write_text(built.read_text())


class Wheel(bdist_wheel):
    """Of this platform if it holds the library, else of any."""

    def get_tag(self):
        package = Path(self.bdist_dir, "densenet_fast")
        self.root_is_pure = package.exists() and not any(package.glob("_C*.so"))
        return ("py3", "none", "any") if self.root_is_pure else super().get_tag()


def remove_libraries(folder):
    """Those of earlier builds: none must stay that this one leaves out, nor one that is named for a single Python."""
    for older in folder.glob("_C*.so"):
        older.unlink()


setup(
    # Optional: it need not be there when all is copied.
    ext_modules=[Extension("densenet_fast._C", sources=[], py_limited_api=True, optional=True)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
