"""What was installed: which copy of the package is imported, what was built of it, what was left out and why, and the
command that mends it. tools/library writes _build.json beside the library, which with `pip install --editable` is in
the source tree.
"""

import json
import shlex
import sys
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).parent
_NAME = __package__ or "densenet_fast"


@cache
def record() -> dict[str, Any] | None:
    """What tools/library/build.py wrote; None where nothing has been built. It is looked for where the library is."""
    for folder in map(Path, sys.modules[_NAME].__path__):
        try:
            return json.loads((folder / "_build.json").read_text())
        except (OSError, ValueError):  # none here, or a damaged one
            continue
    return None


def is_source_tree() -> bool:
    return (PACKAGE.parent / "csrc").is_dir()


def other_copies() -> list[Path]:
    """Those that Python would import if this one were not found first."""
    candidates = [Path(entry) for entry in sys.path]
    for installed in distributions(name=_NAME):
        direct = json.loads(installed.read_text("direct_url.json") or "{}")
        if direct.get("dir_info", {}).get("editable"):
            candidates.append(Path(unquote(urlsplit(direct["url"]).path)))
    found: list[Path] = []
    for entry in candidates:
        folder = (entry / _NAME).absolute()
        if (folder / "__init__.py").exists() and folder.resolve() != PACKAGE.resolve() and folder not in found:
            found.append(folder)
    return found


def has_library(folder: Path) -> bool:
    return any(folder.glob("_C*.so"))


def why_left_out(part: str) -> str:
    """Why the "CPU" or the "CUDA" kernels of this copy were not built, as a clause; why it is not known."""
    known = record()
    if known is None:
        hidden = [copy for copy in other_copies() if has_library(copy)]
        also = f"; it hides {hidden[0]}, which has them" if hidden else ""
        where = "the source tree, where nothing was built" if is_source_tree() else "of no known build"
        return f"{PACKAGE} is {where}{also}"
    if part not in known["left_out"]:
        return f"the library that was built is no longer in {PACKAGE}"
    return known["left_out"][part]["why"]


def said(part: str) -> list[str]:
    """The last lines of the compiler that failed."""
    known = record()
    return known["left_out"].get(part, {}).get("said", []) if known else []


def to_mend(part: str) -> str:
    """What to type, and what to do before, to have the kernels of a part; the command fails if they cannot be built."""
    known = record()
    first = known["left_out"].get(part, {}).get("first", "") if known else ""
    if known is None and is_source_tree() and any(map(has_library, other_copies())):
        first = f"run Python in another directory than {PACKAGE.parent}, or"
        return f"{first} build there, too: type: {command(part)}"
    return f"{first}, then type: {command(part)}" if first else f"type: {command(part)}"


def command(part: str) -> str:
    """Installs the same again, and fails where `part` cannot be built."""
    source, options = _source()
    here = _has_setuptools()
    if PathFinder.find_spec("pip") is not None:
        # Against what is there, if it is enough, without the network; else pip brings what builds.
        tool = shlex.join([sys.executable, "-m", "pip", "install"]) + (" --no-build-isolation" if here else "")
        before = ""
    else:
        uv = shlex.join(["uv", "pip", "install", "--python", sys.executable])
        tool, before = f"{uv} --no-build-isolation", "" if here else f'{uv} "setuptools>=77" && '
    return f"{before}DENSENET_FAST_BUILD_{part}=1 {' '.join([tool, *options, source])}"


def _has_setuptools() -> bool:
    try:
        return int(version("setuptools").partition(".")[0]) >= 77
    except (PackageNotFoundError, ValueError):
        return False


def _source() -> tuple[str, list[str]]:
    """What pip was given (PEP 610), quoted, and the options with which it builds that again."""
    again = ["--force-reinstall", "--no-deps", "--no-cache-dir"]
    if is_source_tree():
        return shlex.quote(str(PACKAGE.parent)), ["--editable"]
    try:
        told = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        told = None
    if told is None:
        return _NAME, [*again, "--no-binary", _NAME]
    direct = json.loads(told)
    url = urlsplit(direct["url"])
    if "vcs_info" in direct:
        vcs = direct["vcs_info"]
        return shlex.quote(f"{_NAME} @ {vcs['vcs']}+{direct['url']}@{vcs['commit_id']}"), again
    if url.path.endswith(".whl"):
        return "<a checkout of densenet_fast>", again
    return shlex.quote(unquote(url.path) if url.scheme == "file" else direct["url"]), again


def built_against() -> str:
    """ " (built against torch 2.11.0)", or nothing where it is not known."""
    known = record()
    return f" (built against torch {known['built']['torch']})" if known and known["built"] else ""


def install(package: str) -> str:
    """The command that installs a package here."""
    if PathFinder.find_spec("pip") is not None:
        return shlex.join([sys.executable, "-m", "pip", "install", package])
    return shlex.join(["uv", "pip", "install", "--python", sys.executable, package])
