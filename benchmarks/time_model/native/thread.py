"""A thread of a block: the launch that it belongs to, its registers, and the memory it shares with its block."""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

Value = int | None  # 32 bits, or a predicate's 0 or 1; None if it is unknown
Get = Callable[["Thread"], Value]
Execute = Callable[["Thread"], None]
MASK = 0xFFFFFFFF
PARAMETERS = 0x210  # where they begin among the constants, on sm_90
# Places of R0, UR0, P0 and UP0 among all registers, and of RZ and PT, which keep no result.
R, UR, P, UP, NOWHERE = 0, 256, 320, 328, 336


class Block(NamedTuple):
    """What the threads of a block know."""

    parameters: bytes
    grid: tuple[int, int, int]
    threads: int
    place: tuple[int, int, int]
    last: bool  # to arrive where blocks are counted


class Thread:
    def __init__(self, block: Block, number: int, shared: dict[int, Value]):
        self.block, self.number, self.shared = block, number, shared
        self.registers: list[Value] = [None] * NOWHERE
        sizes = struct.pack("<6I", block.threads, 1, 1, *block.grid)
        self.constants = sizes.ljust(PARAMETERS, b"\0") + block.parameters.ljust(8, b"\0")
        self.next: int | None = None  # where a jump goes

    def keep(self, places: Sequence[int], values: Sequence[Value]) -> None:
        for place, value in zip(places, values, strict=False):
            if place != NOWHERE:
                self.registers[place] = value

    def constant(self, at: Value, size: int = 4) -> Value:
        if at is None or at + size > len(self.constants):
            return None
        return int.from_bytes(self.constants[at : at + size], "little")
