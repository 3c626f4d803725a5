"""Set-ups, each installed into an environment of its own: what was built, what the user was told, and what became of
the command that the user was told to type. A row ends well if the model then runs on compiled kernels."""

import ensurepip
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from . import COMPILER, LIBRARY, Environment, copy_sources, executable, mending, model, path_to

Steps = Callable[["Place"], object]


@dataclass(frozen=True)
class Row:
    """`environment` holds while installing, `mended` while the command is typed; `told` is part of what the user reads,
    "" where kernels are built at once. `before` happens before the installation, `between` before the command."""

    name: str
    told: str = ""
    arguments: tuple[str, ...] = ("{tree}",)
    environment: dict[str, str] = field(default_factory=dict)
    before: Steps = lambda place: None
    after: Steps = lambda place: None
    mended: dict[str, str] = field(default_factory=dict)
    where: str = "{folder}"  # the model runs


BEFORE = (
    "densenet_fast runs on cpu without compiled kernels (same results, less speed): ",
    "densenet_fast: ",
    "the compiled library was not built: ",
)


class Outcome(NamedTuple):
    built: str
    told: str
    typed: str
    runs_on: str

    def reason(self) -> str:
        """What `told` says between what it has in common with others and the command."""
        reason = self.told.partition(self.typed)[0] if self.typed else self.told
        for words in BEFORE:
            reason = reason.removeprefix(words)
        for words in ("type", "then", "To have them"):
            reason = reason.rstrip(" ,.;:").removesuffix(words)
        return reason.rstrip(" ,.;:")


class Place:
    """An environment with PyTorch alone, a tree without builds and stand-ins for compilers."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tree = copy_sources(folder / "tree")
        self.pip = Environment(folder / "env")
        self.stand_in = executable(folder / "bin/stand-in", COMPILER)
        self.pip.environment |= {"CXX": str(self.stand_in), "STAND_IN_LIBRARY": str(LIBRARY)}

    def model(self, where: str) -> tuple[str, str]:
        """What it runs on, and the warning."""
        done = self.pip.run(self.pip.python, "-c", model(), cwd=Path(where.format(folder=self.folder, tree=self.tree)))
        warning = re.search(r"UserWarning: (densenet_fast runs on .*)", done.stdout)
        assert done.stdout.count("densenet_fast runs on") == (warning is not None), done.stdout
        runs_on = re.search(r"^RUNS ON (\w+)$", done.stdout, re.MULTILINE)
        assert runs_on, done.stdout
        return runs_on[1], warning[1] if warning else ""

    def package(self) -> Path:
        return self.pip.site / "densenet_fast"


def run(row: Row) -> Outcome:
    """Install, run a model, type what one is told, run it again.

    Raises:
        AssertionError: the user is told nothing, or something else, or the command does not help.
    """
    with tempfile.TemporaryDirectory(prefix="installing ") as folder:
        place = Place(Path(folder))
        row.before(place)
        arguments = [a.format(tree=place.tree, folder=place.folder) for a in row.arguments]
        done = place.pip.install(*arguments, **row.environment)
        row.after(place)
        if done.returncode:
            built, said, runs_on = "pip stops", done.stdout, ""
            assert "Traceback" not in said, said
        else:
            runs_on, said = place.model(row.where)
            built = "CPU kernels" if runs_on == "native" else "no kernels in use"
        said = next((line.strip() for line in said.splitlines() if row.told in line), "") if row.told else said
        assert bool(said) == bool(row.told), done.stdout
        if not said:
            assert runs_on == "native"
            return Outcome(built, "", "", runs_on)
        command = mending(said)
        assert command, said
        typed = place.pip.type(command, **row.mended)
        assert typed.returncode == 0, typed.stdout
        runs_on, said_again = place.model(row.where)
        assert (runs_on, said_again) == ("native", ""), said_again
        return Outcome(built, *(_without(text, place) for text in (said, command)), runs_on)


def _without(text: str, place: Place) -> str:
    """As the user would read it in the directory of the sources."""
    text = text.replace(f"'{place.pip.python}'", "python")
    for path, name in ((place.pip.folder / "bin/", ""), (place.tree, "."), (place.folder, "")):
        text = text.replace(f"'{path}'", name).replace(f"{path}".rstrip("/") + "/", f"{name}/".lstrip("/"))
        text = text.replace(str(path), name)
    return text


def without_torch(place: Place) -> None:
    """In the way of `pip install torch` a wheel whose contents are a path to the one that is here."""
    place.pip.take("torch")
    path_to(distribution("torch"), place.pip.wheels)


def old_setuptools(place: Place) -> None:
    """The one that virtual environments begin with; from Python 3.12 on they have none."""
    place.pip.take("setuptools")
    for wheel in (Path(ensurepip.__file__).parent / "_bundled").glob("setuptools-*.whl"):
        place.pip.install(wheel)


def no_setuptools(place: Place) -> None:
    place.pip.take("setuptools")


def junk_library(place: Place) -> None:
    (place.package() / "_C.abi3.so").write_text("no library")


def record_without_library(place: Place) -> None:
    (place.package() / "_C.abi3.so").unlink()


# One compiler at a time, so that the same source is always the first to fail.
FAULT = {"STAND_IN_FAULT": "fatal error: Python.h: No such file or directory", "MAX_JOBS": "1"}
ROWS = [
    Row("`pip install .`"),
    Row("`pip install --no-build-isolation .`", arguments=("--no-build-isolation", "{tree}")),
    Row("`pip install --editable .`", arguments=("--editable", "{tree}"), where="{tree}"),
    Row("no setuptools and no wheel in the environment", before=no_setuptools),
    Row(
        "old setuptools, without isolation",
        "setuptools is too old",
        ("--no-build-isolation", "{tree}"),
        before=old_setuptools,
    ),
    Row("old setuptools, `pip install .`", before=old_setuptools),
    Row("no PyTorch", "there is no PyTorch to compile against", before=without_torch),
    Row("no compiler", "no C++ compiler: c++ not found", environment={"CXX": "", "PATH": "/nowhere"}),
    Row('`CXX="ccache g++"`, no ccache', "ccache not found", environment={"CXX": "ccache g++"}),
    Row("a compiler that does not run", "does not run", environment={"CXX": "false"}),
    Row("a compiler that fails, `auto`", "failed on csrc/", environment=FAULT),
    Row(
        "a compiler that fails, `DENSENET_FAST_BUILD_CPU=1`",
        "the CPU kernels cannot be built",
        environment=FAULT | {"DENSENET_FAST_BUILD_CPU": "1"},
    ),
    Row(
        "a compiler whose library does not load",
        "but does not load",
        environment={"STAND_IN_LIBRARY": str(Path(__file__))},
    ),
    Row("left out by `DENSENET_FAST_BUILD_CPU=0`", "BUILD_CPU=0", environment={"DENSENET_FAST_BUILD_CPU": "0"}),
    Row("the library does not load any more", "cannot be loaded", after=junk_library),
    Row("the library was deleted", "is no longer in", after=record_without_library),
    Row("Python runs in the source tree, which hides what was installed", "it hides", where="{tree}"),
]
