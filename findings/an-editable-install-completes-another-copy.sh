#!/usr/bin/env bash
# setuptools 80.9.0, Python 3.11. A project whose packages do not lie beside pyproject.toml alone is installed editable
# by a finder on sys.meta_path that maps the package's name to its folder. Where Python imports another copy of the
# package first, from PYTHONPATH or the current directory, one would guess that a submodule which that copy lacks is not
# there: Python looks for it in the copy's __path__. The finder answers for it all the same, with the file of the
# installed tree, so that one package is put together from two. A package that asks whether its compiled part is there
# is told yes, and loads that of another version. importlib.machinery.PathFinder, given the __path__, is right.
# Seen 2026-11-29:
#
#   the package is of: copy
#   find_spec of a submodule that the copy lacks: tree
#   imported: tree
#   PathFinder: None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet setuptools==80.9.0
mkdir -p "$folder/tree/sample" "$folder/tree/tools" "$folder/copy/sample"
cat > "$folder/tree/pyproject.toml" <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "sample"
version = "1"

[tool.setuptools]
packages = ["sample"]
TOML
touch "$folder/tree/sample/__init__.py" "$folder/copy/sample/__init__.py"
echo 'place = __file__' > "$folder/tree/sample/compiled.py"
"$folder/venv/bin/pip" install --quiet --no-build-isolation --no-deps --editable "$folder/tree"
cd "$folder"
PYTHONPATH="$folder/copy" "$folder/venv/bin/python" - <<'PYTHON'
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import sample


def of(file):
    return Path(file).parents[1].name


def shown(name, seen):
    print(f"{name}: {seen}")
    return seen


assert shown("the package is of", of(sample.__file__)) == "copy"
spec = find_spec("sample.compiled")
assert shown("find_spec of a submodule that the copy lacks", None if spec is None else of(spec.origin)) == "tree"
from sample import compiled

assert shown("imported", of(compiled.place)) == "tree"
assert shown("PathFinder", PathFinder.find_spec("sample.compiled", sample.__path__)) is None
PYTHON
