"""What instructions do to a thread's integers, by their names in SASS, the machine code of NVIDIA's GPUs.

Modifiers follow a name behind dots: `U32` and `S32` say how an operand's sign is read, `64` that it is a pair of
registers, `X` that carries are added, which are predicates behind the other operands. `U` before a name: once for all
threads of a warp. NVIDIA documents the names alone; the rest is what they mean in nvcc's code.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np

from ..machine_code import Instruction
from .operands import CONSTANT, PREDICATE, address_of, pair_of, signed, split, value_of
from .thread import MASK, Execute, Get, P, Thread, Value

Compute = Callable[[Thread], Sequence[Value]]
Maker = Callable[[list[str], list[str]], Compute]  # of an instruction's modifiers, and of the operands that it reads
KINDS: dict[str, Maker] = {}


def maker(instruction: Instruction) -> Maker | None:
    """None where its results are unknown."""
    return KINDS.get(instruction.kind.removeprefix("U"))


def execution(instruction: Instruction) -> Execute:
    """What an instruction that is no jump does to a thread."""
    results, rest = split(instruction)
    found = maker(instruction)
    unknown = (None,) * len(results)
    _, *modifiers = instruction.name.split(".")
    compute = (lambda t: unknown) if found is None else found(modifiers, rest)
    if not instruction.guard:
        return lambda t: t.keep(results, compute(t))
    guard = value_of(instruction.guard)

    def guarded(t: Thread) -> None:
        value = guard(t)
        if value is None:  # either result
            t.keep(results, unknown)
        elif value:
            t.keep(results, compute(t))

    return guarded


def _kind(*names: str) -> Callable[[Maker], Maker]:
    def register(function: Maker) -> Maker:
        KINDS.update(dict.fromkeys(names, function))
        return function

    return register


def _of(operands: Sequence[str | Get], function: Callable[..., Sequence[int]]) -> Compute:
    """A function of values that are all known."""
    getters = [value_of(operand) if isinstance(operand, str) else operand for operand in operands]
    unknown = (None,) * 3

    def compute(t: Thread) -> Sequence[Value]:
        values = [get(t) for get in getters]
        return function(*values) if None not in values else unknown

    return compute


SPECIAL: dict[str, Get] = {
    "SR_TID.X": lambda t: t.number,
    "SR_CTAID.X": lambda t: t.block.place[0],
    "SR_CTAID.Y": lambda t: t.block.place[1],
    "SR_CTAID.Z": lambda t: t.block.place[2],
    "SR_CgaCtaId": lambda t: 0,  # the block's number in its cluster, which has no other
}


@_kind("MOV", "S2R", "S2UR", "CS2R", "R2UR")
def _mov(modifiers: list[str], rest: list[str]) -> Compute:
    get = SPECIAL.get(rest[0]) or value_of(rest[0])
    return lambda t: (value := get(t), value)  # of CS2R the upper half, too: it is only asked for zeros


@_kind("LDC")
def _ldc(modifiers: list[str], rest: list[str]) -> Compute:
    """From the constants, where the parameters are."""
    found = CONSTANT.fullmatch(rest[0])
    address: Get = address_of(found[1]) if found else lambda t: None
    size = 1 if "U8" in modifiers else 2 if "U16" in modifiers else 4
    if "64" not in modifiers:
        return lambda t: (t.constant(address(t), size),)
    return lambda t: (t.constant(at := address(t)), t.constant(None if at is None else at + 4))


@_kind("STS")
def _sts(modifiers: list[str], rest: list[str]) -> Compute:
    """To shared memory."""
    address, value = address_of(rest[0].strip("[]")), value_of(rest[1])

    def store(t: Thread) -> Sequence[Value]:
        at = address(t)
        if at is not None:
            t.shared[at] = value(t)
        return ()

    return store


@_kind("LDS")
def _lds(modifiers: list[str], rest: list[str]) -> Compute:
    """From shared memory: flags alone, which are bytes; all else there is data."""
    address = address_of(rest[0].strip("[]"))
    if modifiers != ["U8"]:
        return lambda t: (None,) * 4
    return lambda t: (None if (at := address(t)) is None else t.shared.get(at),)


@_kind("ATOMG")
def _atomg(modifiers: list[str], rest: list[str]) -> Compute:
    """How many blocks were counted before this one: as many as are counted at most if it is the last."""
    most = value_of(rest[1])
    return lambda t: (most(t) if t.block.last else MASK,)  # there are never so many blocks


@_kind("IADD3", "VIADD", "IADD")
def _iadd(modifiers: list[str], rest: list[str]) -> Compute:
    def add(*values: int) -> Sequence[int]:
        total = sum(values)
        return total & MASK, int(total >> 32 >= 1), int(total >> 32 >= 2)

    return _of(rest if "X" in modifiers else rest[:3], add)


@_kind("IMAD")
def _imad(modifiers: list[str], rest: list[str]) -> Compute:
    """a * b + c: WIDE has all 64 bits of it, and HI the upper 32."""
    wide, high = "WIDE" in modifiers, "HI" in modifiers
    *factors, term = rest[:3]
    carried = rest[3:] if "X" in modifiers else []

    def multiply(a: int, b: int, c: int, *carries: int) -> Sequence[int]:
        if wide or high:
            x, y = (a & MASK, b & MASK) if "U32" in modifiers else (signed(a), signed(b))
            total = x * y + c + sum(carries)
            carry = int((x * y & (1 << 64) - 1) + c + sum(carries) >> 64 > 0)
            return (total >> 32 & MASK,) if high else (total & MASK, total >> 32 & MASK, carry)
        # A negated factor or term is not cut off: only its lower bits count here.
        total = a * b + c + sum(carries)
        return total & MASK, int((a * b & MASK) + (c & MASK) >> 32 > 0)

    return _of([*factors, pair_of(term) if wide or high else term, *carried], multiply)


@_kind("LEA")
def _lea(modifiers: list[str], rest: list[str]) -> Compute:
    """(a << shift) + b. With HI a is 64 bits, and the upper half of the shifted is added; its own upper half is another
    operand, or with SX32 the sign of a."""
    if "HI" not in modifiers:
        return _of(rest[:3], lambda a, b, s=0: ((total := (a << s & MASK) + b) & MASK, int(total >> 32 > 0)))
    sign, carried = "SX32" in modifiers, "X" in modifiers

    def lea(a: int, b: int, *more: int) -> Sequence[int]:
        *upper, shift, carry = more if carried else (*more, 0)
        top = (MASK if a >> 31 & 1 else 0) if sign else upper[0] & MASK
        total = ((top << 32 | a & MASK) << shift >> 32 & MASK) + b + carry
        return total & MASK, int(total >> 32 > 0)

    return _of(rest, lea)


@_kind("SHF")
def _shf(modifiers: list[str], rest: list[str]) -> Compute:
    """64 bits of two operands, shifted to the left (L) or the right (R): their lower half, or with HI the upper."""

    def shift(low: int, by: int, above: int) -> Sequence[int]:
        low, above = low & MASK, above & MASK
        if "L" in modifiers:
            both = above << 32 | low
            by = min(by, 63)
            return (both << by >> 32 & MASK if "HI" in modifiers else low << by & MASK,)
        if "HI" in modifiers:
            by = min(by, 31 if "S32" in modifiers else 32)
            return ((signed(above) if "S32" in modifiers else above) >> by & MASK,)
        top = signed(above) if "S64" in modifiers else above
        return ((top << 32 | low) >> min(by, 63) & MASK,)

    return _of(rest[:3], shift)


@_kind("LOP3", "PLOP3")
def _lop3(modifiers: list[str], rest: list[str]) -> Compute:
    """Any function of three bits: those of a number's eight that its table sets; PLOP3 of predicates."""
    table = int(rest[3], 16)
    getters = [value_of(o) for o in rest[:3]]

    def combined(a: int, b: int, c: int) -> int:
        found = 0
        for k in range(8):
            if table >> k & 1:
                x, y, z = (a if k & 4 else ~a), (b if k & 2 else ~b), (c if k & 1 else ~c)
                found |= x & y & z
        return found & MASK

    predicates = all(PREDICATE.fullmatch(o.removeprefix("!")) for o in rest[:3])

    def lop(a: int, b: int, c: int) -> Sequence[int]:
        found = combined(a, b, c)
        return (found & 1, 1 - (found & 1)) if predicates else (found, int(found != 0))

    def partly(t: Thread) -> Sequence[Value]:
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


@_kind("ISETP")
def _isetp(modifiers: list[str], rest: list[str]) -> Compute:
    """A comparison, and its opposite, joined with a predicate by AND or OR. With EX of the upper halves of 64 bits:
    where they are equal, that of the lower halves counts, which is one more predicate."""
    compare = getattr(operator, modifiers[0].lower())
    unsigned, both = "U32" in modifiers, "AND" in modifiers
    a, b, other = (value_of(o) for o in rest[:3])
    below = value_of(rest[3]) if "EX" in modifiers else None

    def compute(t: Thread) -> Sequence[Value]:
        x, y, z = a(t), b(t), other(t)
        found: Value = None
        if x is not None and y is not None:
            x, y = (x & MASK, y & MASK) if unsigned else (signed(x), signed(y))
            found = below(t) if below is not None and x == y else int(compare(x, y))
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
    """Whether a division of floats is one of the rare ones, which a function does: none is."""
    return lambda t: (0,)


@_kind("SEL")
def _sel(modifiers: list[str], rest: list[str]) -> Compute:
    a, b, which = (value_of(o) for o in rest[:3])

    def select(t: Thread) -> Sequence[Value]:
        chosen = which(t)
        if chosen is None:
            return (None,)
        value = a(t) if chosen else b(t)
        return (None if value is None else value & MASK,)

    return select


@_kind("VIMNMX", "VIADDMNMX", "IMNMX")
def _minmax(modifiers: list[str], rest: list[str]) -> Compute:
    """The smaller of two numbers where the last operand is true, else the larger; VIADDMNMX has a sum for the first."""

    def least(*values: int) -> Sequence[int]:
        *numbers, is_least = values
        a, b = (numbers[0] + numbers[1], numbers[2]) if len(numbers) == 3 else numbers
        key = (lambda v: v & MASK) if "U32" in modifiers else signed
        return ((min if is_least else max)(a & MASK, b & MASK, key=key),)

    return _of(rest, least)


@_kind("PRMT")
def _prmt(modifiers: list[str], rest: list[str]) -> Compute:
    """Four of eight bytes, each chosen by three bits of a number; where a fourth is set, eight times its sign."""

    def permute(a: int, how: int, b: int) -> Sequence[int]:
        both = (b & MASK) << 32 | a & MASK
        found = 0
        for k in range(4):
            byte = both >> 8 * (how >> 4 * k & 7) & 0xFF
            if how >> 4 * k & 8:
                byte = 0xFF if byte >> 7 else 0
            found |= byte << 8 * k
        return (found,)

    return _of(rest[:3], permute)


@_kind("P2R")
def _p2r(modifiers: list[str], rest: list[str]) -> Compute:
    """A number whose bits in a mask are those predicates."""
    base, mask = value_of(rest[1]), int(rest[2], 16)

    def pack(t: Thread) -> Sequence[Value]:
        old, bits = base(t), t.registers[P : P + 7]
        if old is None or None in (bit for k, bit in enumerate(bits) if mask >> k & 1):
            return (None,)
        return (old & ~mask | sum(bit << k for k, bit in enumerate(bits) if bit and mask >> k & 1),)

    return pack


@_kind("IABS")
def _iabs(modifiers: list[str], rest: list[str]) -> Compute:
    return _of(rest[:1], lambda a: (abs(signed(a)),))


@_kind("HFMA2")
def _hfma2(modifiers: list[str], rest: list[str]) -> Compute:
    """As nvcc writes a constant: a product that is 0, and two numbers of 16 bits."""
    if rest[:2] != ["-RZ", "RZ"] or len(rest) != 4:
        return lambda t: (None,)
    high, low = (int(np.float16(half).view(np.uint16)) for half in rest[2:])
    return lambda t: (high << 16 | low,)


# Integers are divided by way of floats: by a reciprocal that is a little too small, and its correction.


def _float(value: int) -> float:
    return float(np.uint32(value & MASK).view(np.float32))


def _bits(value: np.float32) -> int:
    return int(value.view(np.uint32))


@_kind("I2F")
def _i2f(modifiers: list[str], rest: list[str]) -> Compute:
    """To the nearest float, or with RP to the next above."""

    bits = 64 if {"U64", "S64"} & {*modifiers} else 32

    def convert(value: int) -> Sequence[int]:
        number = value if {"U32", "U64"} & {*modifiers} else signed(value, bits)
        found = np.float32(number)
        if "RP" in modifiers and int(found) < number:
            found = np.nextafter(found, np.float32(np.inf))
        return (_bits(found),)

    return _of([pair_of(rest[0])] if bits == 64 else rest, convert)


@_kind("MUFU")
def _mufu(modifiers: list[str], rest: list[str]) -> Compute:
    """A reciprocal (RCP); roots and the like are of data."""
    if "RCP" not in modifiers:
        return lambda t: (None,)
    return _of(rest, lambda a: (_bits(np.float32(1 / value if (value := _float(a)) else np.inf)),))


@_kind("F2I")
def _f2i(modifiers: list[str], rest: list[str]) -> Compute:
    """Rounded down (TRUNC), unsigned."""
    if "TRUNC" not in modifiers:
        return lambda t: (None, None)
    most = (1 << 64) - 1 if "U64" in modifiers else MASK

    def convert(a: int) -> Sequence[int]:
        value = _float(a)
        found = most if value >= most else max(0, int(value))
        return found & MASK, found >> 32

    return _of(rest, convert)
