"""The tools' README: its code runs, and its first sentence about them is true: they know nothing of this package."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import gpucheck

TOOLS = Path(gpucheck.__file__).parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (TOOLS / "README.md").read_text(), re.DOTALL)


def check(example: str, folder: Path) -> None:
    """The example prints what its comment says, "..." standing for anything and the PTX's lines for any."""
    file = folder / "example.py"
    file.write_text(example)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(TOOLS.parents[1])
    command = [sys.executable, file]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (said,) = re.findall(r"print\(fault\)  # (.*)", example)
    said, printed = (re.sub(r"line \d+", "line", text) for text in (said, result.stdout.strip()))
    assert re.fullmatch(".*".join(map(re.escape, said.split("..."))), printed), printed


def test_the_triton_kernel(tmp_path):
    pytest.importorskip("triton")
    check(EXAMPLES[0], tmp_path)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_cuda_kernel(tmp_path):
    check(EXAMPLES[1], tmp_path)


def test_the_tools_know_nothing_of_the_package():
    for file in TOOLS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not {name.split(".")[0] for name in names} & {"densenet_fast", "tests", "benchmarks"}, file
