"""The way that a thread goes through a kernel's machine code, which its integers decide: the launch's parameters, the
place of the block and of the thread. They are executed; loads from global memory and floats are unknown.

Only what a branch, a loop or an address of shared memory depends on is executed (`needed`). Where a branch depends on
what is unknown it is not taken: nvcc branches around work, and what lies there is done in most cases.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property

from ..machine_code import Code, Instruction
from .instructions import execution, maker
from .operands import operands, registers, split, value_of
from .thread import NOWHERE, Block, Execute, P, Thread, Value

JUMPS = ("BRA", "EXIT", "CALL", "RET", "BRX")
END = -1  # where EXIT goes
MOST = 4_000_000  # instructions of a thread: beyond, it runs in circles
Run = tuple[int, int]  # instructions in a row: the first and the last


class Control:
    """A kernel's code, ready to be gone through."""

    def __init__(self, code: Code):
        self.code = code

    @cached_property
    def steps(self) -> list[Execute | None]:
        """By instruction what it does; None for one that decides nothing."""
        deciding = needed(self.code)
        return [
            (_jump(self.code, each) if each.kind in JUMPS else execution(each)) if i in deciding else None
            for i, each in enumerate(self.code.instructions)
        ]

    @cached_property
    def _following(self) -> list[int]:
        """The next instruction at or behind each that decides something."""
        found = [len(self.steps)] * (len(self.steps) + 1)
        for i in reversed(range(len(self.steps))):
            found[i] = i if self.steps[i] is not None else found[i + 1]
        return found

    def way(self, block: Block, threads: Sequence[int]) -> list[list[Run]]:
        """Of each of the threads, which see what those before them have left in shared memory."""
        shared: dict[int, Value] = {}
        return [self._way(Thread(block, number, shared)) for number in threads]

    def _way(self, thread: Thread) -> list[Run]:
        runs: list[Run] = []
        begin = i = done = 0
        while done < MOST:
            i = self._following[i]
            execute = self.steps[i]
            assert execute is not None, "code ends with a branch"
            execute(thread)
            if thread.next is not None:
                runs.append((begin, i))
                done += i + 1 - begin
                if thread.next == END:
                    return runs
                begin = i = thread.next
                thread.next = None
            else:
                i += 1
        raise ValueError("the program does not end")


def _jump(code: Code, instruction: Instruction) -> Execute:
    conditions = [value_of(instruction.guard)] if instruction.guard else []
    if instruction.kind == "BRA" and len(operands(instruction)) > 1:
        conditions.append(value_of(operands(instruction)[0]))
    to = _destination(code, instruction)

    def jump(t: Thread) -> None:
        if all(condition(t) for condition in conditions):
            t.next = to(t)

    return jump


def _destination(code: Code, instruction: Instruction) -> Callable[[Thread], int | None]:
    """Of a jump through a table (BRX), which nvcc makes of a switch, none: the case behind it is gone through."""
    if instruction.kind == "RET":
        back = value_of(operands(instruction)[0].split(" ")[0])

        def caller(t: Thread) -> int:
            address = back(t)
            assert address is not None, "a function does not know where it was called"
            return address // 16

        return caller
    place = END if instruction.kind == "EXIT" else _target(code, instruction)
    return lambda t: place


def _target(code: Code, instruction: Instruction) -> int | None:
    """Of a branch or a call."""
    if instruction.kind != "CALL":
        return instruction.target
    found = re.search(r"`\((.*)\)", instruction.text)
    assert found is not None
    return code.labels[found[1]]


def needed(code: Code) -> set[int]:
    """Places of the instructions on whose results jumps and shared memory's addresses depend, and of those."""
    instructions = code.instructions
    following = _followers(code)
    effects = [_effects(instruction) for instruction in instructions]
    before = [0] * len(instructions)  # registers that matter there, a bit of each
    changed = True
    found: set[int] = set()
    while changed:
        changed = False
        for i in reversed(range(len(instructions))):
            after = 0
            for place in following[i]:
                after |= before[place]
            guard, (reads, writes, decides) = instructions[i].guard, effects[i]
            matters = after
            if decides or writes & after:
                found.add(i)
                matters = (after if guard else after & ~writes) | reads | registers(guard)
            if matters | before[i] != before[i]:
                before[i] |= matters
                changed = True
    return found


def _followers(code: Code) -> list[list[int]]:
    """Where a thread may be after each instruction: after a function, behind any of its calls."""
    instructions = code.instructions
    returns = [i + 1 for i, instruction in enumerate(instructions) if instruction.kind == "CALL"]
    found = []
    for i, instruction in enumerate(instructions):
        target = _target(code, instruction)
        places = returns if instruction.kind == "RET" else [] if target is None else [target]
        leaves = instruction.kind in ("EXIT", "RET") or target is not None
        behind = [i + 1] if i + 1 < len(instructions) and (instruction.conditional or not leaves) else []
        found.append([*places, *behind])
    return found


def _effects(instruction: Instruction) -> tuple[int, int, bool]:
    """Registers read and written, a bit of each, and whether it is needed in any case."""
    if instruction.kind in JUMPS:
        return registers(instruction.text), 0, True
    results, rest = split(instruction)
    written = sum(1 << place for place in {*results} - {NOWHERE})
    reads = int(rest[2], 16) << P if instruction.kind == "P2R" else 0
    if instruction.kind == "ATOMG":  # its address is of no interest
        rest = rest[1:]
    if maker(instruction) is not None:
        for place, operand in enumerate(rest):
            pair = place == 2 and (".WIDE" in instruction.name or ".HI" in instruction.name)
            reads |= registers(operand, 2 if pair or "64" in instruction.name else 1)
    flag = instruction.name == "STS.U8"  # that a block leaves for all its threads
    return reads, written, flag
