"""A kernel's machine code: instructions with what schedules them, loops, and which of it a program executes.

From Volta on, an instruction's 128 bits say how many cycles its warp waits before the next one, which of six barriers
it sets when its result is there or its operands are read, and for which it waits: ptxas has done the scheduling, and
bits 105 to 125 hold it (Jia et al. 2018, arXiv:1804.06826, section 2.1).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
SECOND_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"\s*([.$][\w$]+):")
PREDICATE = re.compile(r"@(!?U?P\w+)\s+")
BRANCH = re.compile(r"BRA(?:\.\w+)?\s+(.*)`\((\.L_x_\d+)\)")
NO_BARRIER = 7


class Instruction(NamedTuple):
    text: str  # without the predicate
    conditional: bool  # behind a predicate
    stall: int  # cycles to the warp's next instruction
    written: int  # the barrier set while the result is not there; NO_BARRIER if none
    read: int  # while operands are still read
    waits: int  # mask of barriers
    target: int | None = None  # of a branch: an instruction's place
    guard: str = ""  # its predicate

    @property
    def name(self) -> str:
        return self.text.partition(" ")[0]

    @property
    def kind(self) -> str:
        """Its name without modifiers."""
        return self.name.partition(".")[0]


class Loop(NamedTuple):
    first: int  # places of its first instruction and of the branch back
    last: int


Trips = Mapping[Loop, int]  # how often a program goes through a loop


class Code(NamedTuple):
    instructions: list[Instruction]
    loops: list[Loop]  # in the order in which they lie there
    labels: Mapping[str, int] = MappingProxyType({})  # places by name


def parse(text: str) -> Code:
    """What `sass.disassemble` says with encodings."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    targets: dict[int, str] = {}
    pending = ""
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := LINE.match(line):
            pending = instruction[1]
        elif pending and (half := SECOND_HALF.match(line)):
            if branch := BRANCH.search(pending):
                targets[len(found)] = branch[2]
            found.append(_instruction(pending, int(half[1], 16) >> 41))
            pending = ""
    for i, name in targets.items():
        found[i] = found[i]._replace(target=labels[name])
    backward = ((i.target, last) for last, i in enumerate(found) if i.target is not None and i.target < last)
    return Code(found, sorted(Loop(first, last) for first, last in backward if first is not None), labels)


def _instruction(text: str, control: int) -> Instruction:
    guard = PREDICATE.match(text)
    body = text[guard.end() :] if guard else text
    branch = BRANCH.search(body)
    conditional = body != text or bool(branch and branch[1].strip())  # a uniform predicate is an operand
    fields = control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    name = "NOP" if text.startswith("@!PT ") else body
    return Instruction(name, conditional, *fields, None, guard[1] if guard else "")


def trace(code: Code, trips: Trips) -> list[int]:
    """The places of the instructions that a program executes in order, which goes through each loop of `trips` so many
    times. Of other branches it takes what leads to those loops; and else what is behind the branch, unless a loop or an
    atomic is: those are of other programs, or of the last to arrive."""
    instructions = code.instructions
    left = {loop.first for loop in trips}
    again = {loop.last: times - 1 for loop, times in trips.items()}
    done: list[int] = []
    i = 0
    while i < len(instructions):
        instruction = instructions[i]
        left.discard(i)
        done.append(i)
        if instruction.name == "EXIT" and not left:
            if not instruction.conditional or _is_rare(code, trips, i + 1, len(instructions)):
                return done
        elif instruction.target is not None and instruction.target <= i:
            if again.get(i, 0) > 0:
                again[i] -= 1
                i = instruction.target
                continue
        elif instruction.target is not None and _is_taken(code, trips, i, left):
            i = instruction.target
            continue
        i += 1
    raise ValueError("the program does not end")


def _is_taken(code: Code, trips: Trips, i: int, left: set[int]) -> bool:
    """Whether the branch forward at i is."""
    instruction = code.instructions[i]
    assert instruction.target is not None
    if not instruction.conditional:
        return True
    taken, behind = (len(left & _reached(code, place)) for place in (instruction.target, i + 1))
    if taken != behind:
        return taken > behind
    return _is_rare(code, trips, i + 1, instruction.target)


def _is_rare(code: Code, trips: Trips, begin: int, end: int) -> bool:
    """Whether in a range there is a loop that is not asked for, or an atomic."""
    loops = any(begin <= loop.first < end and loop not in trips for loop in code.loops)
    return loops or any(i.name.startswith("ATOM") for i in code.instructions[begin:end])


def _reached(code: Code, begin: int) -> set[int]:
    """Every place that can be reached from one on."""
    found: set[int] = set()
    waiting = [begin]
    while waiting:
        i = waiting.pop()
        while i < len(code.instructions) and i not in found:
            found.add(i)
            instruction = code.instructions[i]
            if instruction.target is not None:
                waiting.append(instruction.target)
            if not instruction.conditional and (instruction.target is not None or instruction.name == "EXIT"):
                break
            i += 1
    return found
