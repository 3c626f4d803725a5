import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import densenet_fast

from . import PARTS, Fault
from . import __doc__ as description

ROOT = Path(__file__).parents[2]
BUILT = (".pytest_cache", "build")  # what a build finds done in a copy
# pytest ends with these.
PASSED, FAILED = 0, 1


class Planted(NamedTuple):
    part: str
    fault: Fault


class Copy:
    """A copy of the tree in which faults are planted, one at a time, and tests are run."""

    def __init__(self, root: Path):
        self.root = root
        self.passes: dict[tuple[str, ...], bool] = {}  # tests, without a fault
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        libraries = [str(path.relative_to(ROOT)) for path in (ROOT / "densenet_fast").glob("*.so")]
        for name in {*listed.stdout.splitlines(), *libraries}:
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        for name in BUILT:
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, root / name, symlinks=True)

    def outcome(self, part: str, fault: Fault) -> str:
        """caught, MISSED, or what is wrong with the fault."""
        found = self.found(fault)
        if found != 1:
            return f"TEXT FOUND {found} TIMES"
        if fault.tests not in self.passes:
            if part == "native" and self.build() != PASSED:
                return "BROKEN: the library cannot be built without it"
            self.passes[fault.tests] = self.run("pytest", "-x", "-q", *fault.tests) == PASSED
        if not self.passes[fault.tests]:
            return "BROKEN: its tests do not pass without it"
        file = self.root / fault.file
        text = file.read_text()
        file.write_text(text.replace(fault.before, fault.after))
        try:
            if part == "native" and self.build() != PASSED:
                return "BROKEN: does not compile"
            ended = self.run("pytest", "-x", "-q", *fault.tests)
        finally:
            file.write_text(text)
        return {PASSED: "MISSED", FAILED: "caught"}.get(ended, f"BROKEN: pytest ended with {ended}")

    def found(self, fault: Fault) -> int:
        file = self.root / fault.file
        return file.read_text().count(fault.before) if file.exists() else 0

    def build(self) -> int:
        return self.run(None, "setup.py", "-q", "build_ext", "--inplace")

    def run(self, module: str | None, *arguments: str) -> int:
        environment = os.environ | {"DENSENET_FAST_BUILD_CUDA": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *(["-m", module] if module else []), *arguments]
        with (self.root / "last.log").open("w") as log:
            return subprocess.run(command, cwd=self.root, env=environment, stdout=log, stderr=log).returncode


def chosen(words: list[str]) -> list[Planted]:
    every = [Planted(part, fault) for part in PARTS for fault in import_module(f".{part}", __package__).FAULTS]
    return [p for p in every if all(word in f"{p.part} {p.fault.name} {p.fault.file}" for word in words)]


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m tests.faults", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("words", nargs="*", help="words of a part, a name or a file")
    options.add_argument("--list", action="store_true", help="only say what there is")
    given = options.parse_args()
    assert Path(densenet_fast.__file__).is_relative_to(ROOT), "run it from the root of the repository"
    planted, outcomes = chosen(given.words), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for part, fault in planted:
            begun = time.monotonic()
            if given.list:
                outcomes.append("caught" if copy.found(fault) == 1 else f"TEXT FOUND {copy.found(fault)} TIMES")
                said = "" if outcomes[-1] == "caught" else outcomes[-1]
            else:
                outcomes.append(copy.outcome(part, fault))
                said = f"{outcomes[-1]} ({time.monotonic() - begun:.0f} s)"
            print(f"{part:8s} {fault.name:60s} {fault.file:55s} {said}", flush=True)
    wrong = sum(outcome != "caught" for outcome in outcomes)
    print(f"{len(outcomes)} faults, {wrong} not {'found' if given.list else 'caught'}")
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
