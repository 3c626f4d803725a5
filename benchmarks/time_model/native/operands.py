"""The operands of an instruction: which are its results, which registers they name, and the values that they stand for
in a thread."""

import re
from collections.abc import Callable

from ..machine_code import Instruction
from .thread import MASK, NOWHERE, UP, UR, Get, P, R, Thread, Value

REGISTER = re.compile(r"(?<![\w.])(UR|R|UP|P)(\d+)\b")
PREDICATE = re.compile(r"U?P[\dT]")
RESULT = re.compile(r"U?R(\d+|Z)")
CONSTANT = re.compile(r"c\[0x0\]\[(.*)\]")
CARRYING = ("IADD3", "LEA", "IMAD")  # predicates behind their result are carries, results too


def operands(instruction: Instruction) -> list[str]:
    _, _, rest = instruction.text.partition(" ")
    return [operand.strip() for operand in rest.split(",")] if rest else []


def split(instruction: Instruction) -> tuple[list[int], list[str]]:
    """Places of an instruction's results, registers before predicates, and the operands that it reads."""
    found = operands(instruction)
    count = _results(instruction.kind, found)
    registers, predicates = [], []
    for name in found[:count]:
        match = REGISTER.fullmatch(name)
        if PREDICATE.fullmatch(name):
            predicates.append(_place(match) if match else NOWHERE)
        else:
            registers += [_place(match) + k if match else NOWHERE for k in range(_width(instruction.name))]
    return registers + predicates, found[count:]


def _results(kind: str, operands: list[str]) -> int:
    """How many of the operands, the first, are results."""
    if kind.endswith(("SETP", "PLOP3")):
        return 2
    if kind == "FCHK":
        return 1
    letters = ("P" if PREDICATE.fullmatch(o) else "R" if RESULT.fullmatch(o) else "-" for o in operands)
    found = re.match("P*(RP*)?" if kind.endswith(CARRYING) else "P*R?", "".join(letters))
    assert found is not None
    return found.end()


def _width(name: str) -> int:
    """Registers of a result."""
    kind, *modifiers = name.split(".")
    if kind == "HMMA" or "128" in modifiers or (kind == "LDSM" and modifiers[-1] == "4"):
        return 4
    wide = {"64", "WIDE"} & {*modifiers} or (kind == "LDSM" and modifiers[-1] == "2")
    wide = wide or (kind == "CS2R" and "32" not in modifiers) or (kind == "F2I" and "U64" in modifiers)
    return 2 if wide or kind in ("DADD", "DMUL", "DFMA") else 1


def registers(text: str, width: int = 1) -> int:
    """All that a text names, a bit of each by its place; of a register as many as `width`."""
    found = 0
    for match in REGISTER.finditer(text):
        for k in range(1 if "P" in match[1] else width):
            found |= 1 << _place(match) + k
    return found


def _place(found: re.Match[str]) -> int:
    return {"R": R, "UR": UR, "P": P, "UP": UP}[found[1]] + int(found[2])


def value_of(operand: str) -> Get:
    """32 bits, or a predicate."""
    operand = operand.replace(".reuse", "")
    if operand[:1] == "!":
        return _applied(value_of(operand[1:]), lambda value: 1 - value)
    if operand[:1] == "~":
        return _applied(value_of(operand[1:]), lambda value: value ^ MASK)
    if operand[:1] == "|":
        return _applied(value_of(operand[1:-1]), lambda value: abs(signed(value)))
    if operand in ("RZ", "URZ", "SRZ"):
        return lambda t: 0
    if operand in ("PT", "UPT"):
        return lambda t: 1
    if found := REGISTER.fullmatch(operand):
        place = _place(found)
        return lambda t: t.registers[place]
    if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", operand):
        number = int(operand, 16 if "x" in operand else 10) & MASK
        return lambda t: number
    if operand[:1] == "-":
        # One more than all bits turned, not cut off: 0 then carries, as the machine has it.
        return _applied(value_of(operand[1:]), lambda value: (value ^ MASK) + 1)
    if found := CONSTANT.fullmatch(operand):
        address = address_of(found[1])
        return lambda t: t.constant(address(t))
    return lambda t: None


def address_of(text: str) -> Get:
    """A sum of registers and a number."""
    parts = [value_of(part) for part in text.split("+")]

    def address(t: Thread) -> Value:
        values = [part(t) for part in parts]
        return None if None in values else sum(v for v in values if v is not None) & MASK

    return address


def pair_of(operand: str) -> Get:
    """64 bits: of a register and the one behind it, or of eight bytes."""
    operand = operand.replace(".reuse", "")
    if operand[:1] == "-":
        return _applied(pair_of(operand[1:]), lambda value: -value & (1 << 64) - 1)
    if found := REGISTER.fullmatch(operand):
        place = _place(found)

        def pair(t: Thread) -> Value:
            low, high = t.registers[place], t.registers[place + 1]
            return None if low is None or high is None else high << 32 | low

        return pair
    if found := CONSTANT.fullmatch(operand):
        address = address_of(found[1])
        return lambda t: t.constant(address(t), 8)
    return value_of(operand)


def _applied(get: Get, function: Callable[[int], int]) -> Get:
    return lambda t: None if (value := get(t)) is None else function(value)


def signed(value: int, bits: int = 32) -> int:
    top = 1 << bits - 1
    return (value & 2 * top - 1 ^ top) - top
