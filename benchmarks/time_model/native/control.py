"""The way that a thread goes through a kernel's machine code, which its integers decide: the launch's parameters, the
place of the block and of the thread. They are executed; loads from global memory and floats are unknown.

Only what a branch, a loop or an address of shared memory depends on is executed (`_needed`). Where a branch depends on
what is unknown it is not taken: nvcc branches around work, and what lies there is done in most cases.
"""

import re
import struct
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..machine_code import Code, Instruction

Value = int | None  # 32 bits, or a predicate
Registers = list[Value]
Get = Callable[["_Thread"], Value]
Execute = Callable[["_Thread"], None]
MASK = 0xFFFFFFFF
PARAMETERS = 0x210  # where they begin among the constants, on sm_90
# Places of R0, UR0, P0 and UP0 among all registers.
R, UR, P, UP, NOWHERE = 0, 256, 320, 328, 336
JUMPS = ("BRA", "EXIT", "CALL", "RET", "BRX")
CARRY = ("IADD3", "LEA", "IMAD")  # may have one more result, a predicate
PREDICATE = re.compile(r"U?P[\dT]")
REGISTER = re.compile(r"(?<![\w.])(UR|R|UP|P)(\d+)\b")
MOST = 4_000_000  # instructions of a thread: beyond, it runs in circles
Run = tuple[int, int]  # instructions in a row: the first and the last


class Block(NamedTuple):
    """What the threads of a block know."""

    parameters: bytes
    grid: tuple[int, int, int]
    threads: int
    place: tuple[int, int, int]
    last: bool  # to arrive where blocks are counted


class _Thread:
    def __init__(self, block: Block, number: int, shared: dict[int, Value]):
        self.block, self.number, self.shared = block, number, shared
        self.registers: Registers = [None] * NOWHERE
        around = struct.pack("<6I", block.threads, 1, 1, *block.grid)
        self.constants = around.ljust(PARAMETERS, b"\0") + block.parameters.ljust(8, b"\0")
        self.next: int | None = None  # where a jump goes

    def forget(self, places: Sequence[int]) -> None:
        for place in places:
            if place != NOWHERE:
                self.registers[place] = None

    def constant(self, at: Value, size: int = 4) -> Value:
        if at is None or at + size > len(self.constants):
            return None
        return int.from_bytes(self.constants[at : at + size], "little")


class Control:
    """A kernel's code, ready to be gone through."""

    def __init__(self, code: Code):
        self.code = code

    @cached_property
    def steps(self) -> list[tuple[Callable[["_Thread"], bool] | None, Execute] | None]:
        """By instruction what it does and under which condition; None for one that decides nothing."""
        needed = _needed(self.code)
        return [_step(self.code, i) if i in needed else None for i in range(len(self.code.instructions))]

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
        return [self._way(_Thread(block, number, shared)) for number in threads]

    def _way(self, thread: _Thread) -> list[Run]:
        runs: list[Run] = []
        begin = i = done = 0
        while done < MOST:
            i = self._following[i]
            step = self.steps[i]
            assert step is not None, "code ends with a branch"
            condition, execute = step
            if condition is None or condition(thread):
                execute(thread)
            if thread.next is not None:
                runs.append((begin, i))
                done += i + 1 - begin
                if thread.next < 0:
                    return runs
                begin = i = thread.next
                thread.next = None
            else:
                i += 1
        raise ValueError("the program does not end")


def _needed(code: Code) -> set[int]:
    """Places of the instructions on whose results jumps and shared memory's addresses depend, and of those."""
    instructions = code.instructions
    returns = [i + 1 for i, instruction in enumerate(instructions) if instruction.name.startswith("CALL")]
    behind: list[list[int]] = []
    for i, instruction in enumerate(instructions):
        jumps = [instruction.target] if instruction.target is not None else []
        name = instruction.name.partition(".")[0]
        if name == "CALL":
            jumps = [_callee(code, instruction)]
        elif name == "RET":
            jumps = returns
        ends = name in ("EXIT", "CALL", "RET") or instruction.target is not None
        if i + 1 < len(instructions) and not (ends and not instruction.conditional):
            jumps = [*jumps, i + 1]
        behind.append([place for place in jumps if place is not None])
    effects = [_effects(instruction) for instruction in instructions]
    before = [0] * len(instructions)  # registers that matter there, a bit of each
    changed = True
    needed: set[int] = set()
    while changed:
        changed = False
        for i in reversed(range(len(instructions))):
            after = 0
            for place in behind[i]:
                after |= before[place]
            instruction, (reads, writes, decides) = instructions[i], effects[i]
            own = _bits(instruction.guard)
            matters = after
            if decides or writes & after:
                needed.add(i)
                matters = (after if instruction.guard else after & ~writes) | reads | own
            if matters | before[i] != before[i]:
                before[i] |= matters
                changed = True
    return needed


def _effects(instruction: Instruction) -> tuple[int, int, bool]:
    """Registers read and written, a bit of each, and whether it is needed in any case."""
    kind, operands = instruction.name.partition(".")[0], _operands(instruction)
    if kind in JUMPS:
        return sum(map(_bits, operands)), 0, True
    results, rest = _split(kind, operands)
    written = sum(_bits(name, _width(instruction.name)) for name in results)
    flags = instruction.name == "STS.U8"  # that a block leaves for all its threads
    if kind == "ATOMG":
        rest = rest[1:]
    elif not flags and kind not in KINDS and kind.removeprefix("U") not in KINDS:
        rest = []
    reads = int(rest[2], 16) << P if kind == "P2R" else 0
    for place, operand in enumerate(rest):
        pair = place == 2 and (".WIDE" in instruction.name or ".HI" in instruction.name)
        reads |= _bits(operand, 2 if pair or "64" in instruction.name else 1)
    return reads, written, flags


def _place(found: re.Match[str]) -> int:
    return {"R": R, "UR": UR, "P": P, "UP": UP}[found[1]] + int(found[2])


def _bits(operand: str, width: int = 1) -> int:
    found = 0
    for match in REGISTER.finditer(operand):
        found |= sum(1 << _place(match) + k for k in range(width if "P" not in match[1] else 1))
    return found


def _operands(instruction: Instruction) -> list[str]:
    _, _, rest = instruction.text.partition(" ")
    return [operand.strip() for operand in rest.split(",")] if rest else []


def _callee(code: Code, instruction: Instruction) -> int:
    found = re.search(r"`\((.*)\)", instruction.text)
    assert found is not None
    return code.labels[found[1]]


# What operands stand for.


def _get(operand: str) -> Get:
    """A value of 32 bits, or a predicate."""
    operand = operand.replace(".reuse", "")
    if operand[:1] == "!":
        inner = _get(operand[1:])
        return lambda t: None if (value := inner(t)) is None else 1 - value
    if operand[:1] == "~":
        inner = _get(operand[1:])
        return lambda t: None if (value := inner(t)) is None else value ^ MASK
    if operand[:1] == "-" and not re.fullmatch(r"-(0x[0-9a-f]+|\d+)", operand):
        inner = _get(operand[1:])
        # One more than all bits turned, not cut off: 0 then carries, as the machine has it.
        return lambda t: None if (value := inner(t)) is None else (value ^ MASK) + 1
    if operand[:1] == "|":
        inner = _get(operand[1:-1])
        return lambda t: None if (value := inner(t)) is None else abs(_signed(value))
    if operand in ("RZ", "URZ", "SRZ"):
        return lambda t: 0
    if operand in ("PT", "UPT"):
        return lambda t: 1
    if found := REGISTER.fullmatch(operand):
        place = _place(found)
        return lambda t: t.registers[place]
    if re.fullmatch(r"-?0x[0-9a-f]+", operand):
        number = int(operand, 16) & MASK
        return lambda t: number
    if re.fullmatch(r"-?\d+", operand):
        number = int(operand) & MASK
        return lambda t: number
    if found := re.fullmatch(r"c\[0x0\]\[(.*)\]", operand):
        address = _address(found[1])
        return lambda t: t.constant(address(t))
    return lambda t: None


def _address(text: str) -> Get:
    """A sum of registers and a number."""
    parts = [_get(part.removesuffix(".64").removesuffix(".X4")) for part in text.replace("+-", "+ -").split("+")]

    def address(t: _Thread) -> Value:
        values = [part(t) for part in parts]
        return None if None in values else sum(v for v in values if v is not None) & MASK

    return address


def _pair(operand: str) -> Get:
    """64 bits."""
    operand = operand.replace(".reuse", "")
    if operand[:1] == "-":
        inner = _pair(operand[1:])
        return lambda t: None if (value := inner(t)) is None else -value & (1 << 64) - 1
    if found := REGISTER.fullmatch(operand):
        place = _place(found)

        def pair(t: _Thread) -> Value:
            low, high = t.registers[place], t.registers[place + 1]
            return None if low is None or high is None else high << 32 | low

        return pair
    if found := re.fullmatch(r"c\[0x0\]\[(.*)\]", operand):
        address = _address(found[1])
        return lambda t: t.constant(address(t), 8)
    return _get(operand)


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 32) if value >> 31 else value


def _float(value: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", value & MASK))[0])


def _bits_of(value: np.float32) -> int:
    return int(value.view(np.uint32))


# What instructions do.

Compute = Callable[["_Thread"], Sequence[Value]]
Maker = Callable[[list[str], list[str]], Compute]  # of what follows its name, and of what it reads
KINDS: dict[str, Maker] = {}


def _kind(*names: str) -> Callable[[Maker], Maker]:
    def register(function: Maker) -> Maker:
        KINDS.update(dict.fromkeys(names, function))
        return function

    return register


def _step(code: Code, place: int) -> tuple[Callable[[_Thread], bool] | None, Execute]:
    instruction = code.instructions[place]
    guard = _get(instruction.guard) if instruction.guard else None
    if instruction.name.partition(".")[0] in JUMPS:
        return _jump(code, instruction, guard)
    execute = _execution(instruction)
    if guard is None:
        return None, execute
    targets = _targets(instruction)

    def maybe(t: _Thread) -> None:
        value = guard(t)
        if value is None:  # either result
            t.forget(targets)
        elif value:
            execute(t)

    return None, maybe


def _jump(code: Code, instruction: Instruction, guard: Get | None) -> tuple[Callable[[_Thread], bool] | None, Execute]:
    kind, operands = instruction.name.partition(".")[0], _operands(instruction)
    conditions = [guard] if guard is not None else []
    if kind == "BRA" and len(operands) > 1:
        conditions.append(_get(operands[0]))
    to: int | None = instruction.target
    if kind == "CALL":
        to = _callee(code, instruction)
    elif kind == "EXIT":
        to = -1
    back = _get(operands[0].split(" ")[0]) if kind == "RET" else None

    def jump(t: _Thread) -> None:
        if back is None:
            t.next = to
        else:
            address = back(t)
            assert address is not None, "a function does not know where it was called"
            t.next = address // 16

    return (lambda t: all(condition(t) for condition in conditions)) if conditions else None, jump


def _targets(instruction: Instruction) -> list[int]:
    """Places of an instruction's results, registers first."""
    results, _ = _split(instruction.name.partition(".")[0], _operands(instruction))
    found = []
    for name in sorted(results, key=lambda name: "P" in name):
        match = REGISTER.fullmatch(name)
        wide = _width(instruction.name) if "P" not in name else 1
        found += [_place(match) + k if match else NOWHERE for k in range(wide)]
    return found


def _width(name: str) -> int:
    """Registers of a result."""
    kind, *modifiers = name.split(".")
    if kind in ("HMMA",) or "128" in modifiers or (kind == "LDSM" and modifiers[-1] == "4"):
        return 4
    wide = {"64", "WIDE"} & {*modifiers} or (kind == "LDSM" and modifiers[-1] == "2")
    wide = wide or (kind == "CS2R" and "32" not in modifiers) or (kind == "F2I" and "U64" in modifiers)
    return 2 if wide or kind in ("DADD", "DMUL", "DFMA") else 1


def _split(kind: str, operands: list[str]) -> tuple[list[str], list[str]]:
    """Results, and what is read."""
    rest = list(operands)
    if kind.endswith(("SETP", "PLOP3")):
        return rest[:2], rest[2:]
    if kind == "FCHK":
        return rest[:1], rest[1:]
    results: list[str] = []
    while rest and PREDICATE.fullmatch(rest[0]):
        results.append(rest.pop(0))
    if rest and re.fullmatch(r"(U?R\d+|U?RZ)(\.reuse)?", rest[0]):
        results.append(rest.pop(0))
        while rest and kind.endswith(CARRY) and PREDICATE.fullmatch(rest[0]):
            results.append(rest.pop(0))
    return results, rest


def _execution(instruction: Instruction) -> Execute:
    kind, *modifiers = instruction.name.split(".")
    operands, targets = _operands(instruction), _targets(instruction)
    _, rest = _split(kind, operands)
    if kind == "STS":
        return _store(operands)
    if kind == "ATOMG":
        new, place = _get(rest[1]), targets[0]

        def count(t: _Thread) -> None:
            t.registers[place] = new(t) if t.block.last else MASK  # no block is that many

        return count
    maker = KINDS.get(kind) or KINDS.get(kind.removeprefix("U"))
    if maker is None:
        return lambda t: t.forget(targets)
    compute = maker(modifiers, rest)

    def execute(t: _Thread) -> None:
        for place, value in zip(targets, compute(t), strict=False):
            if place != NOWHERE:
                t.registers[place] = value

    return execute


def _store(operands: list[str]) -> Execute:
    address, value = _address(operands[0].strip("[]")), _get(operands[1])

    def store(t: _Thread) -> None:
        at = address(t)
        if at is not None:
            t.shared[at] = value(t)

    return store


def _of(getters: Sequence[Get], function: Callable[..., Sequence[int]]) -> Compute:
    """A function of values that are all known."""
    unknown = (None,) * 3

    def compute(t: _Thread) -> Sequence[Value]:
        values = [get(t) for get in getters]
        return function(*values) if None not in values else unknown

    return compute


@_kind("MOV", "S2R", "S2UR", "CS2R", "R2UR")
def _mov(modifiers: list[str], rest: list[str]) -> Compute:
    special: dict[str, Get] = {"SR_TID.X": lambda t: t.number, "SR_CgaCtaId": lambda t: 0}
    special |= {"SR_CTAID.X": lambda t: t.block.place[0], "SR_CTAID.Y": lambda t: t.block.place[1]}
    special |= {"SR_CTAID.Z": lambda t: t.block.place[2]}
    get = special.get(rest[0]) or _get(rest[0])
    return lambda t: (value := get(t), value)  # of CS2R the upper half, too: it is only asked for zeros


@_kind("LDC")
def _ldc(modifiers: list[str], rest: list[str]) -> Compute:
    found = re.fullmatch(r"c\[0x0\]\[(.*)\]", rest[0])
    address: Get = _address(found[1]) if found else lambda t: None
    size = 1 if "U8" in modifiers else 2 if "U16" in modifiers else 4
    if "64" not in modifiers:
        return lambda t: (t.constant(address(t), size),)
    return lambda t: (t.constant(at := address(t)), t.constant(None if at is None else at + 4))


@_kind("LDS")
def _lds(modifiers: list[str], rest: list[str]) -> Compute:
    address = _address(rest[0].strip("[]"))
    if modifiers != ["U8"]:
        return lambda t: (None,) * 4
    return lambda t: (None if (at := address(t)) is None else t.shared.get(at),)


@_kind("IADD3", "VIADD", "IADD")
def _iadd(modifiers: list[str], rest: list[str]) -> Compute:
    numbers = [_get(o) for o in rest[:3]]
    carried = [_get(o) for o in rest[3:]] if "X" in modifiers else []

    def add(*values: int) -> Sequence[int]:
        total = sum(values)
        return total & MASK, int(total >> 32 >= 1), int(total >> 32 >= 2)

    return _of([*numbers, *carried], add)


@_kind("IMAD")
def _imad(modifiers: list[str], rest: list[str]) -> Compute:
    wide, high = "WIDE" in modifiers, "HI" in modifiers
    unsigned = "U32" in modifiers
    a, b = _get(rest[0]), _get(rest[1])
    c = _pair(rest[2]) if wide or high else _get(rest[2])
    carried = [_get(o) for o in rest[3:]] if "X" in modifiers else []

    def multiply(a: int, b: int, c: int, *carries: int) -> Sequence[int]:
        if wide or high:
            x, y = (a & MASK, b & MASK) if unsigned else (_signed(a), _signed(b))
            total = x * y + c + sum(carries)
            carry = int((x * y & (1 << 64) - 1) + c + sum(carries) >> 64 > 0)
            return (total >> 32 & MASK,) if high else (total & MASK, total >> 32 & MASK, carry)
        # A negated factor or term is not cut off: only its lower bits count here.
        total = a * b + c + sum(carries)
        return total & MASK, int((a * b & MASK) + (c & MASK) >> 32 > 0)

    return _of([a, b, c, *carried], multiply)


@_kind("LEA")
def _lea(modifiers: list[str], rest: list[str]) -> Compute:
    if "HI" not in modifiers:
        shift = _get(rest[2]) if len(rest) > 2 else lambda t: 0
        return _of(
            [_get(rest[0]), _get(rest[1]), shift],
            lambda a, b, s: ((total := (a << s & MASK) + b) & MASK, int(total >> 32 > 0)),
        )
    signed = "SX32" in modifiers
    carried = [_get(rest.pop())] if "X" in modifiers else []
    above = [] if signed else [_get(rest[2])]
    getters = [_get(rest[0]), _get(rest[1]), _get(rest[-1]), *above, *carried]

    def lea(a: int, b: int, shift: int, *more: int) -> Sequence[int]:
        top = (MASK if a >> 31 & 1 else 0) if signed else more[0]
        carry = more[-1] if carried else 0
        total = (((top & MASK) << 32 | a & MASK) << shift >> 32 & MASK) + b + carry
        return total & MASK, int(total >> 32 > 0)

    return _of(getters, lea)


@_kind("SHF")
def _shf(modifiers: list[str], rest: list[str]) -> Compute:
    def shift(low: int, by: int, above: int) -> Sequence[int]:
        low, above = low & MASK, above & MASK
        if "L" in modifiers:
            both = above << 32 | low
            by = min(by, 63)
            return (both << by >> 32 & MASK if "HI" in modifiers else low << by & MASK,)
        if "HI" in modifiers:
            by = min(by, 31 if "S32" in modifiers else 32)
            return ((_signed(above) if "S32" in modifiers else above) >> by & MASK,)
        both = above << 32 | low
        return ((_signed(above) << 32 | low if "S64" in modifiers else both) >> min(by, 63) & MASK,)

    return _of([_get(o) for o in rest[:3]], shift)


@_kind("LOP3", "PLOP3")
def _lop3(modifiers: list[str], rest: list[str]) -> Compute:
    lut = int(rest[3], 16)
    getters = [_get(o) for o in rest[:3]]

    def combined(a: int, b: int, c: int) -> int:
        found = 0
        for k in range(8):
            if lut >> k & 1:
                x, y, z = (a if k & 4 else ~a), (b if k & 2 else ~b), (c if k & 1 else ~c)
                found |= x & y & z
        return found & MASK

    predicates = all(re.fullmatch(r"!?U?P[\dT]", o) for o in rest[:3])

    def lop(a: int, b: int, c: int) -> Sequence[int]:
        found = combined(a, b, c)
        return (found & 1, 1 - (found & 1)) if predicates else (found, int(found != 0))

    def partly(t: _Thread) -> Sequence[Value]:
        """What one unknown predicate may decide, another may have decided."""
        values = [get(t) for get in getters]
        if None not in values:
            return lop(*values)
        if not predicates:
            return None, None
        choices = [[0, 1] if v is None else [v] for v in values]
        ends = {combined(a, b, c) & 1 for a in choices[0] for b in choices[1] for c in choices[2]}
        return (ends.pop(), None) if len(ends) == 1 else (None, None)

    return partly


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


@_kind("ISETP")
def _isetp(modifiers: list[str], rest: list[str]) -> Compute:
    compare = COMPARE[modifiers[0]]
    unsigned, both = "U32" in modifiers, "AND" in modifiers
    a, b, other = _get(rest[0]), _get(rest[1]), _get(rest[2])
    below = _get(rest[3]) if "EX" in modifiers else None

    def compute(t: _Thread) -> Sequence[Value]:
        x, y, z = a(t), b(t), other(t)
        found: Value = None
        if x is not None and y is not None:
            x, y = (x & MASK, y & MASK) if unsigned else (_signed(x), _signed(y))
            if below is None:
                found = int(compare(x, y))
            elif x == y:
                found = below(t)
            else:
                found = int(compare(x, y))
        return _joined(found, z, both), _joined(None if found is None else 1 - found, z, both)

    return compute


def _joined(a: Value, b: Value, both: bool) -> Value:
    """a and b, or a or b, where one of them may decide alone."""
    decisive = 0 if both else 1
    if decisive in (a, b):
        return decisive
    return None if None in (a, b) else 1 - decisive


@_kind("FCHK")
def _fchk(modifiers: list[str], rest: list[str]) -> Compute:
    return lambda t: (0,)  # no division is one of the rare ones


@_kind("SEL")
def _sel(modifiers: list[str], rest: list[str]) -> Compute:
    a, b, which = (_get(o) for o in rest[:3])

    def select(t: _Thread) -> Sequence[Value]:
        chosen = which(t)
        if chosen is None:
            return (None,)
        value = a(t) if chosen else b(t)
        return (None if value is None else value & MASK,)

    return select


@_kind("VIMNMX", "VIADDMNMX", "IMNMX")
def _minmax(modifiers: list[str], rest: list[str]) -> Compute:
    def least(*values: int) -> Sequence[int]:
        *numbers, is_least = values
        a, b = (numbers[0] + numbers[1], numbers[2]) if len(numbers) == 3 else numbers
        key = (lambda v: v & MASK) if "U32" in modifiers else _signed
        return ((min if is_least else max)(a & MASK, b & MASK, key=key),)

    return _of([_get(o) for o in rest], least)


@_kind("PRMT")
def _prmt(modifiers: list[str], rest: list[str]) -> Compute:
    def permute(a: int, how: int, b: int) -> Sequence[int]:
        both = (b & MASK) << 32 | a & MASK
        found = 0
        for k in range(4):
            byte = both >> 8 * (how >> 4 * k & 7) & 0xFF
            if how >> 4 * k & 8:
                byte = 0xFF if byte >> 7 else 0
            found |= byte << 8 * k
        return (found,)

    return _of([_get(o) for o in rest[:3]], permute)


@_kind("P2R")
def _p2r(modifiers: list[str], rest: list[str]) -> Compute:
    base, mask = _get(rest[1]), int(rest[2], 16)

    def pack(t: _Thread) -> Sequence[Value]:
        old, bits = base(t), t.registers[P : P + 7]
        if old is None or None in (bit for k, bit in enumerate(bits) if mask >> k & 1):
            return (None,)
        return (old & ~mask | sum(bit << k for k, bit in enumerate(bits) if bit and mask >> k & 1),)

    return pack


@_kind("IABS")
def _iabs(modifiers: list[str], rest: list[str]) -> Compute:
    return _of([_get(rest[0])], lambda a: (abs(_signed(a)),))


@_kind("HFMA2")
def _hfma2(modifiers: list[str], rest: list[str]) -> Compute:
    """As nvcc writes a constant: nothing, and two halves."""
    if rest[:2] != ["-RZ", "RZ"] or len(rest) != 4:
        return lambda t: (None,)
    high, low = (int(np.float16(half).view(np.uint16)) for half in rest[2:])
    return lambda t: (high << 16 | low,)


# Divisions by what is no power of two go by way of floats: a reciprocal that is a little too small, and its correction.


@_kind("I2F")
def _i2f(modifiers: list[str], rest: list[str]) -> Compute:
    get = _pair(rest[0]) if {"U64", "S64"} & {*modifiers} else _get(rest[0])

    def convert(value: int) -> Sequence[int]:
        number = value if {"U32", "U64"} & {*modifiers} else _signed(value)
        found = np.float32(number)
        if "RP" in modifiers and int(found) < number:
            found = np.nextafter(found, np.float32(np.inf))
        return (_bits_of(found),)

    return _of([get], convert)


@_kind("MUFU")
def _mufu(modifiers: list[str], rest: list[str]) -> Compute:
    if "RCP" not in modifiers:
        return lambda t: (None,)
    return _of([_get(rest[0])], lambda a: (_bits_of(np.float32(1 / value if (value := _float(a)) else np.inf)),))


@_kind("F2I")
def _f2i(modifiers: list[str], rest: list[str]) -> Compute:
    if "TRUNC" not in modifiers:
        return lambda t: (None, None)
    most = (1 << 64) - 1 if "U64" in modifiers else MASK

    def convert(a: int) -> Sequence[int]:
        value = _float(a)
        found = most if value >= most else max(0, int(value))
        return found & MASK, found >> 32

    return _of([_get(rest[0])], convert)
