"""The instruction table: the first word of an opcode -> the function that compiles it, and the forms that one knows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .faults import Unsupported
from .numerics import TYPES
from .parser import Instruction
from .registers import Registers

Execute = Callable[[Any, np.ndarray | None], None]  # of a wave and a mask over its lanes, None for all of them
Build = Callable[[Instruction, Registers], Execute]

TABLE: dict[str, tuple[Build, frozenset[str]]] = {}


def family(names: str, modifiers: str = "") -> Callable[[Build], Build]:
    """Register a function for opcodes; a word of the opcode that is no type and not among `modifiers` is refused."""

    def register(build: Build) -> Build:
        for name in names.split():
            TABLE[name] = build, frozenset(modifiers.split())
        return build

    return register


def check_known(instruction: Instruction) -> Build:
    name, *words = instruction.parts
    if name not in TABLE:
        raise Unsupported(f"instruction {instruction.op}")
    build, modifiers = TABLE[name]
    unknown = [w for w in words if w not in modifiers and w not in TYPES and w != "pred"]
    if unknown:
        raise Unsupported(f"instruction {instruction.op}: .{unknown[0]}")
    return build
