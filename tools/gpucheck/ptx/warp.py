"""Instructions a whole warp executes together: shuffles, votes, matrix loads and products."""

import numpy as np

from .faults import Divergence, Unsupported
from .numerics import TYPES, tensor_core_sum, widen
from .parser import Instruction
from .registers import RAW, Registers
from .table import Execute, family

LANE = np.arange(32)


def whole_warps(wave, mask: np.ndarray | None) -> None:
    if mask is not None:
        warps = mask.reshape(-1, 32)
        if (warps.any(1) & ~warps.all(1)).any():
            raise Divergence("only a part of a warp executes this")


def members(wave, mask: np.ndarray | None, member_mask: np.ndarray) -> np.ndarray:
    """[warps, 32]: the active lanes, which must be those the member mask names."""
    wave.require_written()
    active = (wave.everyone if mask is None else mask).reshape(-1, 32)
    named = np.broadcast_to(member_mask, wave.lanes).reshape(-1, 32)[:, :1] >> LANE.astype(np.uint32) & np.uint32(1)
    if (active.any(1, keepdims=True) & (active != named.astype(bool))).any():
        raise Divergence("the active lanes are not those of the member mask")
    return active


@family("shfl", "sync up down bfly idx")
def shuffle(ins: Instruction, registers: Registers) -> Execute:
    value, by, clamp, named = (registers.read(token, RAW[4]) for token in ins.operands[1:])
    writes = [registers.write(name) for name in ins.operands[0].split("|")]
    mode = ins.parts[2]

    def execute(wave, mask):
        active = members(wave, mask, named(wave, mask))
        b, c = (np.broadcast_to(r(wave, mask), wave.lanes).reshape(-1, 32).astype(np.int64) for r in (by, clamp))
        b, bound, segment = b & 31, c & 31, c >> 8 & 31
        first, last = LANE & segment, (LANE & segment) | (bound & ~segment)
        source = {"up": LANE - b, "down": LANE + b, "bfly": LANE ^ b, "idx": first | (b & ~segment)}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, LANE)
        if (active & ~np.take_along_axis(active, source, 1)).any():
            raise Divergence("a lane reads from one that does not take part")
        values = np.broadcast_to(value(wave, mask), wave.lanes).reshape(-1, 32)
        if wave.tainted is not None:
            wave.tainted = np.take_along_axis(wave.tainted.reshape(-1, 32), source, 1).reshape(-1)
        results = np.take_along_axis(values, source, 1).reshape(-1), inside.reshape(-1)
        for write, result in zip(writes, results, strict=False):
            write(wave, mask, np.ascontiguousarray(result))

    return execute


@family("vote", "sync all any uni ballot")
def vote(ins: Instruction, registers: Registers) -> Execute:
    predicate, named = registers.predicate(ins.operands[1]), registers.read(ins.operands[2], RAW[4])
    write, mode = registers.write(ins.operands[0]), ins.parts[2]
    if mode == "uni":
        raise Unsupported(f"instruction {ins.op}")

    def execute(wave, mask):
        active = members(wave, mask, named(wave, mask))
        says = np.broadcast_to(predicate(wave, mask), wave.lanes).reshape(-1, 32)
        wave.require_written()
        if mode == "ballot":
            result = ((says & active).astype(np.uint64) << LANE.astype(np.uint64)).sum(1).astype(np.uint32)
        else:
            result = (says | ~active).all(1) if mode == "all" else (says & active).any(1)
        write(wave, mask, np.repeat(result, 32))

    return execute


@family("redux", "sync add min max and or xor")
def reduce(ins: Instruction, registers: Registers) -> Execute:
    kind = TYPES[ins.type_name]
    value, named = registers.read(ins.operands[1], kind), registers.read(ins.operands[2], RAW[4])
    write = registers.write(ins.operands[0])
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[ins.parts[2]]  # fmt: skip

    def execute(wave, mask):
        active = members(wave, mask, named(wave, mask))
        if (active.any(1) & ~active.all(1)).any():
            raise Unsupported(f"{ins.op} of a part of a warp")
        values = np.broadcast_to(value(wave, mask), wave.lanes).reshape(-1, 32)
        wave.require_written()
        write(wave, mask, np.repeat(function.reduce(values, axis=1, dtype=kind), 32))

    return execute


@family("activemask")
def active_mask(ins: Instruction, registers: Registers) -> Execute:
    write = registers.write(ins.operands[0])

    def execute(wave, mask):
        active = (wave.everyone if mask is None else mask).reshape(-1, 32)
        write(wave, mask, np.repeat((active.astype(np.uint64) << LANE.astype(np.uint64)).sum(1).astype(np.uint32), 32))

    return execute


@family("bar", "warp sync")
def warp_barrier(ins: Instruction, registers: Registers) -> Execute:
    named = registers.read(ins.operands[0], RAW[4])

    def execute(wave, mask):
        members(wave, mask, named(wave, mask))
        wave.order.warp_sync(wave.thread[wave.active(mask)])

    return execute


@family("ldmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrices(ins: Instruction, registers: Registers) -> Execute:
    writes = [registers.write(name) for name in ins.operands[0]]
    address, count = registers.address(ins.operands[1]), len(ins.operands[0])
    transposed = "trans" in ins.parts

    def execute(wave, mask):
        whole_warps(wave, mask)
        rows = np.arange(wave.lanes) % 32 < 8 * count  # lanes 8i .. 8i+7 hold the row addresses of matrix i
        lanes = np.flatnonzero(rows if mask is None else rows & mask)
        at = wave.touch(wave.shared, lanes, address(wave, mask)[lanes], 16, write=False)
        found = wave.shared.load(at, 16, np.dtype(np.uint16)).reshape(-1, count, 8, 8)
        if transposed:
            found = found.swapaxes(2, 3)
        matrices = np.zeros((wave.lanes // 32, count, 8, 8), np.uint16)
        matrices[lanes[:: 8 * count] // 32] = found
        fragments = matrices.view(np.uint32).reshape(-1, count, 32)
        for i, write in enumerate(writes):
            write(wave, mask, np.ascontiguousarray(fragments[:, i]).reshape(-1))

    return execute


def fragment(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """[registers, warps, 8, values of a row's four lanes]: operand registers as float32."""
    bits = np.stack(registers)
    if kind == "tf32":  # the tensor core ignores the low thirteen bits
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).reshape(len(registers), -1, 8, 4)
    return widen(bits.view(np.uint16), kind).reshape(len(registers), -1, 8, 8)


@family("mma", "sync aligned m16n8k4 m16n8k8 m16n8k16 row col")
def matrix_product(ins: Instruction, registers: Registers) -> Execute:
    """d[16, 8] = a[16, K] b[K, 8] + c[16, 8], in float32. Lane 4g + q holds row (a, c) or column (b) g, and of it the
    q-th pair (tf32 in a and b: value) of every eight (four). How sums are rounded shows in tf32 only."""
    *_, shape, _, _, d_kind, kind, b_kind, c_kind = ins.parts
    if kind not in ("bf16", "f16", "tf32") or b_kind != kind or (d_kind, c_kind) != ("f32", "f32"):
        raise Unsupported(f"instruction {ins.op}")
    writes = [registers.write(name) for name in ins.operands[0]]
    a, b = ([registers.read(name, RAW[4]) for name in ins.operands[i]] for i in (1, 2))
    c = [registers.read(name, TYPES["f32"]) for name in ins.operands[3]]
    depth = int(shape.rsplit("k", 1)[1])
    if len(a) * (4 if kind == "tf32" else 8) != 2 * depth or len(b) * 2 != len(a):
        raise Unsupported(f"{ins.op} with {len(a)} and {len(b)} registers")

    def execute(wave, mask):
        whole_warps(wave, mask)
        left = wave.fragment("a", a, kind, mask)
        right = wave.fragment("b", b, kind, mask)
        sums = np.stack([wave.whole(r(wave, mask)) for r in c])
        wave.require_written()
        sums = sums.reshape(2, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1).reshape(-1, 16, 8)  # [half, parity, warp, g, q]
        sums = tensor_core_sum(sums, left, right) if kind == "tf32" else sums + left @ right
        parts = sums.reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        for i, write in enumerate(writes):
            write(wave, mask, parts[i])

    return execute


def left_operand(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """[warps, 16, K]: register i holds rows g + 8 (i mod 2) and the (i div 2)-th eight (four) of K."""
    parts = fragment(registers, kind)
    rows = parts.reshape(-1, 2, *parts.shape[1:]).transpose(2, 1, 3, 0, 4)  # [warp, half, g, eight, value]
    return rows.reshape(rows.shape[0], 16, -1)


def right_operand(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """[warps, K, 8]: register i holds the i-th eight (four) of K, column g."""
    columns = fragment(registers, kind).transpose(1, 2, 0, 3)  # [warp, g, eight, value]
    return columns.reshape(columns.shape[0], 8, -1).swapaxes(1, 2)
