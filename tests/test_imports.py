"""What an import costs, and that imports run one way."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import densenet_fast

PACKAGE = Path(densenet_fast.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "internals" / "code-and-contract.md"

# Each module may import only from the rows above its own.
LAYERS = [
    {"_version", "uncompiled", "installation"},
    {"cli"},
    {"contract"},
    {"backends"},
    {"stage"},
    {"functional"},
    {"modules"},
    {"conversion"},
    {"checkpoints", "backbone"},
    {"models"},
    {"memory", "configurations"},
    {"torchvision"},
    {"info"},
    {"nets"},
    {"plan", "train"},
    {"analyse"},
    {"__init__"},
    {"__main__"},
]
# Within `stage` and `modules`, too.
ROOMS = {
    "stage": [
        {"spec", "buffer", "alike"},
        {"checks", "mixed", "convolution"},
        {"dropout"},
        {"halves"},
        {"schedule"},
        {"recompute", "operator"},
        {"function"},
        {"__init__"},
    ],
    "modules": [
        {"eligibility", "running_stats"},
        {"snapshot"},
        {"reading"},
        {"views", "staging", "fusable"},
        {"layer"},
        {"block", "transition"},
        {"validation"},
        {"trunk"},
        {"__init__"},
    ],
    "memory": [{"stage"}, {"scratch"}, {"__init__"}],
    "plan": [{"units", "devices", "stock", "floor"}, {"__init__"}, {"report"}, {"picture"}, {"command"}],
    "analyse": [{"__init__"}, {"picture"}, {"command"}],
    "conversion": [{"libraries"}, {"trial"}, {"parts"}, {"__init__"}],
}


def imported(file: Path, root: Path = PACKAGE) -> set[str]:
    """Names of the modules in `root` that a file imports."""
    depth = len(file.relative_to(root).parts)
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("room", [None, *ROOMS])
def test_imports_run_one_way(room):
    root, layers = (PACKAGE, LAYERS) if room is None else (PACKAGE / room, ROOMS[room])
    rank = {name: i for i, layer in enumerate(layers) for name in layer}
    for file in root.rglob("*.py"):
        top = file.relative_to(root).parts[0].removesuffix(".py")
        for name in imported(file, root) & rank.keys() - {top}:
            assert rank[name] < rank[top], f"{file.name} imports {name}"
    assert {f.stem if f.is_file() else f.name for f in root.glob("[!_]*") if f.suffix in ("", ".py")} <= rank.keys()


def test_the_page_has_a_line_for_each_layer_topmost_first():
    section = PAGE.read_text().partition("## Layers of the code\n")[2].partition("\n## ")[0]
    names = re.findall(r"^    (\w+)  ", section, re.MULTILINE)
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer if not name.startswith("_")}
    assert sorted(names) == sorted(rank)
    assert names == sorted(names, key=rank.__getitem__, reverse=True)


def test_backends_import_neither_each_other_nor_the_models():
    for folder in (PACKAGE / "backends").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            for file in folder.glob("*.py"):
                assert imported(file) <= {"contract"}, file


def test_an_import_is_pytorchs_and_ours():
    """`python -m benchmarks.import_time` tells what it takes."""
    program = (
        "import sys, torch; before = {*sys.modules}; import densenet_fast;"
        "print({m.partition('.')[0] for m in {*sys.modules} - before} - {*sys.stdlib_module_names})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'densenet_fast'}"


def test_import_is_light():
    """A fresh interpreter that imports the package and runs a forward has loaded no optional dependency."""
    program = (
        "import sys, densenet_fast, torch; densenet_fast.DenseNet(4, (2,), backend='eager')(torch.randn(2, 3, 8, 8));"
        "print([m for m in ('triton', 'torch._dynamo', 'torchvision', 'densenet_fast._C') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
