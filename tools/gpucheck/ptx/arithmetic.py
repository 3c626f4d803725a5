"""Instructions on registers: arithmetic, logic, comparison, conversion.

Approximate functions (rsqrt, rcp, sqrt, ex2, lg2, div.full, div.approx) are correctly rounded here; the hardware's may
differ by an ulp or two."""

import numpy as np

from . import numerics
from .faults import Unsupported
from .numerics import SMALL_FLOATS, TYPES, halves, join, narrow, widen
from .parser import Instruction
from .registers import RAW, Registers
from .table import Execute, family

SHARED_WINDOW = 1 << 44  # generic addresses of shared memory


def lift(ins: Instruction, registers: Registers, function) -> Execute:
    """An elementwise instruction of one type: packed and sixteen-bit floats are computed in float32."""
    kind, write = ins.type_name, registers.write(ins.operands[0])
    reads = [registers.read(token, TYPES[kind]) for token in ins.operands[1:]]
    if kind in SMALL_FLOATS:
        scalar = function
        if kind.endswith("x2"):

            def function(*packed):
                low, high = zip(*(halves(p) for p in packed), strict=True)
                part = [narrow(scalar(*(widen(v, kind[:-2]) for v in half)), kind[:-2]) for half in (low, high)]
                return join(*part)
        else:

            def function(*bits):
                return narrow(scalar(*(widen(b, kind) for b in bits)), kind)
    elif "ftz" in ins.parts:
        exact = function

        def function(*values):
            return numerics.flush(exact(*(numerics.flush(v) for v in values)))

    if len(reads) == 1:
        (a,) = reads
        return lambda wave, mask: write(wave, mask, function(a(wave, mask)))
    if len(reads) == 2:
        a, b = reads
        return lambda wave, mask: write(wave, mask, function(a(wave, mask), b(wave, mask)))
    return lambda wave, mask: write(wave, mask, function(*(r(wave, mask) for r in reads)))


@family("add sub", "rn ftz")
def sums(ins: Instruction, registers: Registers) -> Execute:
    return lift(ins, registers, np.add if ins.parts[0] == "add" else np.subtract)


@family("mul mad", "lo hi wide rn ftz")
def products(ins: Instruction, registers: Registers) -> Execute:
    name, kind = ins.parts[0], TYPES[ins.type_name]
    if kind.kind == "f" or ins.type_name in SMALL_FLOATS:
        return lift(ins, registers, np.multiply if name == "mul" else _rounded(numerics.fused_multiply_add, ins))
    if "wide" not in ins.parts:
        product = numerics.multiply_high if "hi" in ins.parts else np.multiply
        return lift(ins, registers, product if name == "mul" else lambda a, b, c: product(a, b) + c)
    wide = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
    a, b = (registers.read(token, kind) for token in ins.operands[1:3])
    c = registers.read(ins.operands[3], wide) if name == "mad" else None
    write = registers.write(ins.operands[0])

    def execute(wave, mask):
        value = a(wave, mask).astype(wide) * b(wave, mask).astype(wide)
        write(wave, mask, value if c is None else value + c(wave, mask))

    return execute


def _rounded(function, ins: Instruction):
    """The function with its float64 result rounded to the instruction's type."""
    result = TYPES[ins.type_name] if TYPES[ins.type_name].kind == "f" else np.dtype(np.float32)
    return lambda *values: function(*values).astype(result)


@family("fma", "rn ftz relu")
def fma(ins: Instruction, registers: Registers) -> Execute:
    if "relu" in ins.parts:
        return lift(ins, registers, _rounded(lambda a, b, c: np.maximum(numerics.fused_multiply_add(a, b, c), 0), ins))
    return lift(ins, registers, _rounded(numerics.fused_multiply_add, ins))


@family("div rem", "rn full approx ftz")
def quotients(ins: Instruction, registers: Registers) -> Execute:
    return lift(ins, registers, numerics.divide if ins.parts[0] == "div" else numerics.remainder)


@family("min max", "NaN ftz")
def extremes(ins: Instruction, registers: Registers) -> Execute:
    if "NaN" in ins.parts:
        return lift(ins, registers, np.minimum if ins.parts[0] == "min" else np.maximum)
    return lift(ins, registers, numerics.minimum if ins.parts[0] == "min" else numerics.maximum)


UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x.astype(np.float64)),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
}


@family(" ".join(UNARY), "rn approx ftz")
def unary(ins: Instruction, registers: Registers) -> Execute:
    if ins.type_name == "pred":
        read, write = registers.predicate(ins.operands[1]), registers.write(ins.operands[0])
        return lambda wave, mask: write(wave, mask, ~read(wave, mask))
    function = UNARY[ins.parts[0]]
    return lift(ins, registers, _rounded(function, ins) if TYPES[ins.type_name].kind == "f" else function)


@family("popc clz brev")
def bit_counts(ins: Instruction, registers: Registers) -> Execute:
    kind, name = TYPES[ins.type_name], ins.parts[0]
    read, write = registers.read(ins.operands[1], kind), registers.write(ins.operands[0])

    def execute(wave, mask):
        value = np.broadcast_to(read(wave, mask), wave.lanes)
        bits = np.unpackbits(value.astype(value.dtype.newbyteorder(">")).view(np.uint8).reshape(wave.lanes, -1), axis=1)
        if name == "brev":
            packed = np.packbits(bits[:, ::-1], axis=1).view(value.dtype.newbyteorder(">")).reshape(-1)
            return write(wave, mask, packed.astype(kind))
        count = bits.sum(1) if name == "popc" else np.where(bits.any(1), bits.argmax(1), bits.shape[1])
        return write(wave, mask, count.astype(np.uint32))

    return execute


@family("and or xor")
def logic(ins: Instruction, registers: Registers) -> Execute:
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.parts[0]]
    if ins.type_name != "pred":
        return lift(ins, registers, function)
    a, b = (registers.predicate(token) for token in ins.operands[1:])
    write = registers.write(ins.operands[0])
    return lambda wave, mask: write(wave, mask, np.asarray(function(a(wave, mask), b(wave, mask)), bool))


@family("shl shr")
def shifts(ins: Instruction, registers: Registers) -> Execute:
    function = numerics.shift_left if ins.parts[0] == "shl" else numerics.shift_right
    value, by = registers.read(ins.operands[1], TYPES[ins.type_name]), registers.read(ins.operands[2], RAW[4])
    write = registers.write(ins.operands[0])
    return lambda wave, mask: write(wave, mask, function(value(wave, mask), by(wave, mask)))


@family("shf", "l r wrap clamp")
def funnel_shift(ins: Instruction, registers: Registers) -> Execute:
    low, high, by = (registers.read(token, RAW[4]) for token in ins.operands[1:])
    write, left, wrap = registers.write(ins.operands[0]), "l" in ins.parts, "wrap" in ins.parts

    def execute(wave, mask):
        both = low(wave, mask).astype(np.uint64) | (high(wave, mask).astype(np.uint64) << np.uint64(32))
        count = by(wave, mask)
        count = (count & np.uint32(31) if wrap else np.minimum(count, np.uint32(32))).astype(np.uint64)
        shifted = both << count >> np.uint64(32) if left else both >> count
        write(wave, mask, (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    return execute


@family("lop3")
def logic_of_three(ins: Instruction, registers: Registers) -> Execute:
    a, b, c = (registers.read(token, RAW[4]) for token in ins.operands[1:4])
    write, lookup = registers.write(ins.operands[0]), int(ins.operands[4], 0)

    def execute(wave, mask):
        x, y, z = a(wave, mask), b(wave, mask), c(wave, mask)
        result = np.uint32(0)
        for case in range(8):
            if lookup >> case & 1:
                result = result | (x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z)
        write(wave, mask, result)

    return execute


@family("bfe")
def extract(ins: Instruction, registers: Registers) -> Execute:
    kind = TYPES[ins.type_name]
    value = registers.read(ins.operands[1], kind)
    start, length = (registers.read(token, RAW[4]) for token in ins.operands[2:])
    write, bits = registers.write(ins.operands[0]), 8 * kind.itemsize

    def execute(wave, mask):
        low, count = (r(wave, mask).astype(np.int64) & 0xFF for r in (start, length))
        count = np.minimum(count, np.maximum(bits - low, 0))  # what lies beyond is the sign, or zero
        up = numerics.shift_left(value(wave, mask), bits - low - count)
        write(wave, mask, np.where(count == 0, kind.type(0), numerics.shift_right(up, bits - count)).astype(kind))

    return execute


@family("bfi")
def insert(ins: Instruction, registers: Registers) -> Execute:
    kind = TYPES[ins.type_name]
    field, base = (registers.read(token, kind) for token in ins.operands[1:3])
    start, length = (registers.read(token, RAW[4]) for token in ins.operands[3:])
    write, bits = registers.write(ins.operands[0]), 8 * kind.itemsize

    def execute(wave, mask):
        low, count = (r(wave, mask).astype(np.int64) & 0xFF for r in (start, length))
        ones = ~numerics.shift_left(~np.zeros_like(base(wave, mask)), count)
        place = numerics.shift_left(np.where(count >= bits, ~kind.type(0), ones), low)
        put = numerics.shift_left(field(wave, mask), low)
        write(wave, mask, ((put & place) | (base(wave, mask) & ~place)).astype(kind))

    return execute


@family("prmt")
def permute_bytes(ins: Instruction, registers: Registers) -> Execute:
    a, b, select = (registers.read(token, RAW[4]) for token in ins.operands[1:])
    write = registers.write(ins.operands[0])

    def execute(wave, mask):
        both = a(wave, mask).astype(np.uint64) | (b(wave, mask).astype(np.uint64) << np.uint64(32))
        chosen, result = select(wave, mask).astype(np.uint64), np.uint64(0)
        for i in range(4):
            selector = chosen >> np.uint64(4 * i)
            byte = both >> ((selector & np.uint64(7)) * np.uint64(8)) & np.uint64(0xFF)
            sign = np.where(byte >= 128, np.uint64(0xFF), np.uint64(0))
            result = result | np.where(selector & np.uint64(8), sign, byte) << np.uint64(8 * i)
        write(wave, mask, result.astype(np.uint32))

    return execute


COMPARE = {
    **dict.fromkeys(("eq", "equ"), np.equal),
    **dict.fromkeys(("ne", "neu"), np.not_equal),
    **dict.fromkeys(("lt", "ltu", "lo"), np.less),
    **dict.fromkeys(("le", "leu", "ls"), np.less_equal),
    **dict.fromkeys(("gt", "gtu", "hi"), np.greater),
    **dict.fromkeys(("ge", "geu", "hs"), np.greater_equal),
}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@family("setp", " ".join([*COMPARE, *COMBINE, "num", "nan", "ftz"]))
def compare(ins: Instruction, registers: Registers) -> Execute:
    """p|q: the relation and its opposite; of packed operands, the relation of the lower and of the upper halves."""
    kind, relation = ins.type_name, ins.parts[1]
    a, b = (registers.read(token, TYPES[kind]) for token in ins.operands[1:3])
    combine = COMBINE.get(ins.parts[2])
    c = registers.predicate(ins.operands[3]) if combine else None
    writes = [registers.write(name) for name in ins.operands[0].split("|")]

    def execute(wave, mask):
        x, y = a(wave, mask), b(wave, mask)
        if kind.endswith("x2"):
            results = [relate(relation, *pair, kind[:-2]) for pair in zip(halves(x), halves(y), strict=True)]
        else:
            results = [relate(relation, x, y, kind)]
            results.append(~results[0])
        third = c(wave, mask) if combine else None
        for write, result in zip(writes, results, strict=False):
            write(wave, mask, np.asarray(combine(result, third) if combine else result, bool))

    return execute


def relate(relation: str, x: np.ndarray, y: np.ndarray, kind: str) -> np.ndarray:
    if kind in SMALL_FLOATS:
        x, y = widen(x, kind), widen(y, kind)
    if x.dtype.kind != "f":
        return COMPARE[relation](x, y)
    unordered = np.isnan(x) | np.isnan(y)
    if relation in ("num", "nan"):
        return unordered if relation == "nan" else ~unordered
    result = COMPARE[relation](x, y)
    return result | unordered if relation.endswith("u") else result & ~unordered


@family("selp")
def select(ins: Instruction, registers: Registers) -> Execute:
    a, b = (registers.read(token, TYPES[ins.type_name]) for token in ins.operands[1:3])
    which, write = registers.predicate(ins.operands[3]), registers.write(ins.operands[0])

    def execute(wave, mask):
        first = which(wave, mask)
        both = wave.everyone if mask is None else mask  # what is not chosen may lack a value
        value = np.where(first, a(wave, both & first), b(wave, both & ~first))
        write(wave, mask, value)

    return execute


@family("mov")
def move(ins: Instruction, registers: Registers) -> Execute:
    target, source = ins.operands
    if ins.type_name == "pred":
        read, write = registers.predicate(source), registers.write(target)
        return lambda wave, mask: write(wave, mask, np.asarray(read(wave, mask), bool))
    kind = TYPES[ins.type_name]
    if isinstance(target, tuple):
        part = np.dtype(f"u{kind.itemsize // len(target)}")
        read, writes = registers.read(source, kind), [registers.write(name) for name in target]

        def unpack(wave, mask):
            value = np.broadcast_to(read(wave, mask), wave.lanes)
            for i, write in enumerate(writes):
                write(wave, mask, (value >> kind.type(8 * part.itemsize * i)).astype(part))

        return unpack
    write = registers.write(target)
    if isinstance(source, tuple):
        part = np.dtype(f"u{kind.itemsize // len(source)}")
        reads = [registers.read(name, part) for name in source]

        def pack(wave, mask):
            value = kind.type(0)
            for i, read in enumerate(reads):
                value = value | read(wave, mask).astype(kind) << kind.type(8 * part.itemsize * i)
            write(wave, mask, value)

        return pack
    read = registers.read(source, kind)
    return lambda wave, mask: write(wave, mask, read(wave, mask))


@family("cvta", "to global shared param const")
def convert_address(ins: Instruction, registers: Registers) -> Execute:
    kind = TYPES[ins.type_name]
    read, write = registers.read(ins.operands[1], kind), registers.write(ins.operands[0])
    window = kind.type(SHARED_WINDOW if "shared" in ins.parts else 0)
    if "to" in ins.parts:
        return lambda wave, mask: write(wave, mask, read(wave, mask) - window)
    return lambda wave, mask: write(wave, mask, read(wave, mask) + window)


@family("cvt", "rn rz rm rp rna rni rzi rmi rpi relu ftz sat")
def convert(ins: Instruction, registers: Registers) -> Execute:
    *words, to, of = ins.parts[1:]
    rounding = next((w for w in words if w.startswith("r") and w != "relu"), None)
    write = registers.write(ins.operands[0])
    if to.endswith("x2"):
        high, low = (registers.read(token, TYPES[of]) for token in ins.operands[1:])

        def pack(wave, mask):
            values = (low(wave, mask), high(wave, mask))
            if "relu" in words:
                values = (np.maximum(v, 0) for v in values)
            write(wave, mask, join(*(narrow(np.asarray(v), to[:-2], rounding) for v in values)))

        return pack
    read, function = registers.read(ins.operands[1], TYPES[of]), _conversion(ins, to, of, rounding, words)
    return lambda wave, mask: write(wave, mask, function(np.asarray(read(wave, mask))))


def _conversion(ins: Instruction, to: str, of: str, rounding: str | None, words: list[str]):
    target = TYPES[to]
    floating = [t in SMALL_FLOATS or TYPES[t].kind == "f" for t in (of, to)]
    if to == "tf32":
        return lambda x: numerics.to_tf32(x.view(np.uint32), rounding)
    widened = (lambda x: widen(x, of)) if of in SMALL_FLOATS else (lambda x: x)
    if to in SMALL_FLOATS:
        if "relu" in words:
            return lambda x: narrow(np.maximum(widened(x), 0), to, rounding)
        return lambda x: narrow(widened(x), to, rounding or "rn")
    if not floating[0] and not floating[1]:
        if "sat" in words:
            limits = np.iinfo(target)
            return lambda x: np.clip(
                x, max(limits.min, np.iinfo(x.dtype).min), min(limits.max, np.iinfo(x.dtype).max)
            ).astype(target)
        return lambda x: x.astype(target)
    if floating[0] and not floating[1]:
        return lambda x: numerics.to_integer(widened(x), target, rounding)
    if rounding in (None, "rn"):
        if "sat" in words:
            return lambda x: np.nan_to_num(np.clip(widened(x), 0, 1)).astype(target)
        return lambda x: widened(x).astype(target)
    if floating[0] and rounding.endswith("i"):
        whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
        return lambda x: whole(widened(x)).astype(target)
    raise Unsupported(f"instruction {ins.op}")
