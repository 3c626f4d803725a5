"""What a checkout launches in a training step, and the machine code of it."""

import os
import pickle
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = Path(__file__).with_name("recorded.py")


class Operand(NamedTuple):
    """A tensor among a kernel's arguments."""

    shape: tuple[int, ...]
    itemsize: int  # bytes of an element


class Compiled(NamedTuple):
    cubin: bytes
    shared: int  # bytes of shared memory that are asked for at the launch
    warps: int


class Planned(NamedTuple):
    """A launch. `arguments` are the kernel's, in its order, tensors as operands."""

    kernel: str
    operation: str  # of the contract, that makes it
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    variant: int  # its place among those compiled

    @property
    def programs(self) -> int:
        return prod(self.grid)


class Step(NamedTuple):
    launches: list[Planned]
    variants: list[Compiled]


def step(tree: Path, model: str, image: int, batch: int, dtype: str) -> Step:
    """Planned and compiled by the checkout itself, in a process of its own."""
    launches, variants = pickle.loads(run(tree, SCRIPT, model, str(image), str(batch), dtype))
    return Step(
        [Planned(*about, operands(arguments), variant) for *about, arguments, variant in launches],
        [Compiled(*variant) for variant in variants],
    )


def run(tree: Path, script: Path, *arguments: str) -> bytes:
    """What a script prints, of this checkout, that is run in another."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True).stdout


def operands(value: Any) -> Any:
    """An argument as recorded.py gives it, or several."""
    if isinstance(value, dict):
        whole = value.keys() == {"shape", "itemsize"}
        return Operand(**value) if whole else {name: operands(each) for name, each in value.items()}
    return tuple(map(operands, value)) if isinstance(value, tuple) else value
