"""Instructions that touch memory: loads, stores, asynchronous copies, atomics, fences."""

from typing import NamedTuple

import numpy as np

from .arithmetic import SHARED_WINDOW
from .faults import Misaligned, MissingWait, Race, Unsupported
from .memory import GLOBAL_BASE, Space
from .numerics import TYPES
from .parser import Instruction
from .races import IN_FLIGHT
from .registers import PARAMETER_BASE, PARAMETER_BITS, RAW, Registers
from .table import Execute, family

HINTS = (
    "L1::evict_last L1::evict_first L1::evict_normal L1::evict_unchanged L1::no_allocate L2::64B L2::128B L2::256B "
    "L2::cache_hint nc ca cg cs lu cv wb wt"
)
SPACES = ("global", "shared", "shared::cta")


def place(ins: Instruction, wave, lanes: np.ndarray, address: np.ndarray) -> tuple[Space, np.ndarray]:
    """The memory an access goes to, generic addresses resolved."""
    if "global" in ins.parts:
        return wave.memory, address
    if any(p in ins.parts for p in SPACES[1:]):
        return wave.shared, address
    shared = (address >= SHARED_WINDOW) & (address < SHARED_WINDOW + (1 << 32))
    if shared.any() and not shared.all():
        raise Unsupported("generic addresses of different memories in one instruction")
    return (wave.shared, address - SHARED_WINDOW) if shared.any() else (wave.memory, address)


@family("ld", f"global shared shared::cta param relaxed volatile weak gpu cta sys v2 v4 {HINTS}")
def load(ins: Instruction, registers: Registers) -> Execute:
    if "param" in ins.parts:
        return load_parameter(ins, registers)
    kind, targets = TYPES[ins.type_name], ins.operands[0]
    writes = [registers.write(name) for name in (targets if isinstance(targets, tuple) else (targets,))]
    address, width = registers.address(ins.operands[1]), kind.itemsize * len(writes)

    def execute(wave, mask):
        lanes = wave.active(mask)
        space, places = place(ins, wave, lanes, address(wave, mask)[lanes])
        at = wave.touch(space, lanes, places, width, write=False)
        for write, found in zip(writes, space.load(at, width, kind).T, strict=True):
            write(wave, mask, found if mask is None else wave.spread(lanes, found))

    return execute


def load_parameter(ins: Instruction, registers: Registers) -> Execute:
    kind, targets = TYPES[ins.type_name], ins.operands[0]
    writes = [registers.write(name) for name in (targets if isinstance(targets, tuple) else (targets,))]
    address = registers.address(ins.operands[1])

    def execute(wave, mask):
        lanes = wave.active(mask)
        places = address(wave, mask)[lanes] - PARAMETER_BASE
        wave.require_written()
        found = np.empty((len(places), len(writes)), kind)
        for place in np.unique(places):  # one, unless a structure is indexed
            parameter, offset = divmod(int(place), 1 << PARAMETER_BITS)
            found[places == place] = np.frombuffer(wave.parameters[parameter], kind, len(writes), offset)
        for write, values in zip(writes, found.T, strict=True):
            write(wave, mask, values if mask is None else wave.spread(lanes, values))

    return execute


@family("st", f"global shared shared::cta relaxed volatile weak gpu cta sys v2 v4 {HINTS}")
def store(ins: Instruction, registers: Registers) -> Execute:
    kind, sources = TYPES[ins.type_name], ins.operands[1]
    reads = [registers.read(name, kind) for name in (sources if isinstance(sources, tuple) else (sources,))]
    address, width = registers.address(ins.operands[0]), kind.itemsize * len(reads)

    def execute(wave, mask):
        lanes = wave.active(mask)
        space, places = place(ins, wave, lanes, address(wave, mask)[lanes])
        at = wave.touch(space, lanes, places, width, write=True)
        values = np.stack([np.broadcast_to(read(wave, mask), wave.lanes)[lanes] for read in reads], 1)
        wave.require_written()
        space.store(at, width, values)
        stored = space.load(at, width, kind)
        if stored.tobytes() != values.tobytes():
            raise Race(f"threads store different values to one place in {space.name} memory at once")

    return execute


class Copy(NamedTuple):
    """An asynchronous copy in flight, for each of some lanes."""

    lanes: np.ndarray
    group: np.ndarray  # number of groups the lane had committed before
    target: np.ndarray  # places in shared memory
    source: np.ndarray  # global addresses
    size: np.ndarray  # bytes from the source; the rest is zeros
    content: np.ndarray  # [lanes, width]
    begun: int  # global writes before

    def of(self, which: np.ndarray) -> "Copy":
        return self if which.all() else Copy(*(field[which] for field in self[:-1]), self.begun)


@family("cp", f"async shared shared::cta global commit_group wait_group wait_all {HINTS}")
def copy(ins: Instruction, registers: Registers) -> Execute:
    if "commit_group" in ins.parts:
        return commit
    if "wait_group" in ins.parts or "wait_all" in ins.parts:
        keep = int(ins.operands[0], 0) if "wait_group" in ins.parts else -1
        return lambda wave, mask: wait(wave, mask, keep)
    target, source = (registers.address(operand) for operand in ins.operands[:2])
    width = int(ins.operands[2], 0)
    size = registers.read(ins.operands[3], RAW[4]) if len(ins.operands) > 3 else None
    if len(ins.operands) > 4:
        raise Unsupported(f"instruction {ins.op} with {len(ins.operands)} operands")

    def execute(wave, mask):
        lanes = wave.active(mask)
        to = wave.touch(wave.shared, lanes, target(wave, mask)[lanes], width, write=True)
        units = wave.shared.units(to, width)
        if (wave.shared.stamps.write[units] != wave.order.stamp(wave.thread[lanes])[:, None]).any():
            raise Race("threads copy to one place in shared memory at once")
        wave.shared.stamps.write[units] |= IN_FLIGHT
        of = source(wave, mask)[lanes]
        count = (
            np.full(len(lanes), width)
            if size is None
            else np.broadcast_to(size(wave, mask), wave.lanes)[lanes].astype(np.int64)
        )
        if (count > width).any() or (of[count > 0] % width).any():
            raise Misaligned(
                f"asynchronous copy of {width} bytes from {int(of[0]):#x}, {int(count.max())} of them taken"
            )
        wave.require_written()
        content = fetch(wave, lanes, of, count, width)
        wave.copies.append(Copy(lanes, wave.committed[lanes], to, of, count, content, wave.memory.writes))

    return execute


def fetch(wave, lanes: np.ndarray, source: np.ndarray, size: np.ndarray, width: int) -> np.ndarray:
    """[lanes, width]: bytes from global memory, zeros beyond each lane's size."""
    content = np.zeros((len(lanes), width), np.uint8)
    for count in np.unique(size[size > 0]).tolist():
        step = count & -count  # the widest access that divides the size
        which = np.flatnonzero(size == count)
        for offset in range(0, count, step):
            at = wave.touch(wave.memory, lanes[which], source[which] + offset, step, write=False)
            content[which, offset : offset + step] = wave.memory.load(at, step, np.dtype(np.uint8))
    return content


def commit(wave, mask: np.ndarray | None) -> None:
    wave.committed[wave.active(mask)] += 1


def wait(wave, mask: np.ndarray | None, keep: int) -> None:
    """The copies of all but the last `keep` groups of each lane arrive; -1: also those in no group."""
    left = []
    for pending in wave.copies:
        done = pending.group < wave.committed[pending.lanes] - keep
        if mask is not None:
            done = done & mask[pending.lanes]
        if done.any():
            arrive(wave, pending.of(done))
        if not done.all():
            left.append(pending.of(~done))
    wave.copies = left


def arrive(wave, copies: Copy) -> None:
    width = copies.content.shape[1]
    if copies.begun != wave.memory.writes:
        taken = np.arange(width) < copies.size[:, None]
        now = wave.memory.data[np.where(taken, copies.source[:, None] - GLOBAL_BASE + np.arange(width), 0)]
        if (taken & (now != copies.content)).any():
            raise Race("global memory changes while an asynchronous copy reads it")
    units = wave.shared.units(copies.target, width)
    wave.shared.store(copies.target, width, copies.content)
    wave.shared.stamps.write[units] = wave.order.stamp(wave.thread[copies.lanes])[:, None]


def none_in_flight(wave, mask: np.ndarray | None) -> None:
    """On exit."""
    for pending in wave.copies:
        if mask is None or mask[pending.lanes].any():
            raise MissingWait("the thread exits while an asynchronous copy of its is in flight")


ATOMICS = {
    "add": lambda old, value: old + value,
    "min": min,
    "max": max,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "exch": lambda old, value: value,
    "inc": lambda old, value: 0 if old >= value else old + 1,
    "dec": lambda old, value: value if old == 0 or old > value else old - 1,
    "cas": lambda old, expected, value: value if old == expected else old,
}
MEMORY_ORDERS = "relaxed acquire release acq_rel"


@family("atom red", f"global {MEMORY_ORDERS} gpu sys cta {' '.join(ATOMICS)}")
def atomic(ins: Instruction, registers: Registers) -> Execute:
    """On integers in global memory. Floating-point atomics make the order of CTAs show in the result: unsupported."""
    name, kind = next(p for p in ins.parts if p in ATOMICS), TYPES[ins.type_name]
    if kind.kind == "f" or "global" not in ins.parts:
        raise Unsupported(f"instruction {ins.op}")
    write = registers.write(ins.operands[0]) if ins.parts[0] == "atom" else None
    where, *tokens = ins.operands[ins.parts[0] == "atom" :]
    address, reads = registers.address(where), [registers.read(token, kind) for token in tokens]
    releases, acquires = (set(ins.parts) & {"acq_rel", half} for half in ("release", "acquire"))

    def execute(wave, mask):
        lanes = wave.active(mask)
        places = address(wave, mask)[lanes]
        wave.memory.locate(places, kind.itemsize, write=False)
        at = wave.memory.locate(places, kind.itemsize, write=True)
        values = [np.broadcast_to(read(wave, mask), wave.lanes)[lanes].tolist() for read in reads]
        wave.require_written()
        cells, found = wave.memory.views[kind.itemsize].view(kind), np.zeros(len(lanes), kind)
        for i, (thread, cell) in enumerate(
            zip(wave.thread[lanes].tolist(), (at // kind.itemsize).tolist(), strict=True)
        ):
            if releases:
                wave.order.fence(np.array([thread]))
            wave.order.atomic(thread, cell * kind.itemsize)
            if acquires:
                wave.order.fence(np.array([thread]))
            found[i] = cells[cell]
            new = ATOMICS[name](int(found[i]), *(v[i] for v in values))
            cells[cell] = np.array(new % (1 << 8 * kind.itemsize), f"u{kind.itemsize}").view(kind)
        if write:
            write(wave, mask, found if mask is None else wave.spread(lanes, found))

    return execute


@family("membar fence", "gl sys cta gpu sc acq_rel")
def fence(ins: Instruction, registers: Registers) -> Execute:
    if "cta" in ins.parts:
        return lambda wave, mask: None
    return lambda wave, mask: wave.order.fence(wave.thread[wave.active(mask)])


@family("prefetch", "global L1 L2")
def prefetch(ins: Instruction, registers: Registers) -> Execute:
    return lambda wave, mask: None


@family("createpolicy", f"fractional {HINTS} L2::evict_first L2::evict_last L2::evict_normal L2::evict_unchanged")
def cache_policy(ins: Instruction, registers: Registers) -> Execute:
    write = registers.write(ins.operands[0])
    return lambda wave, mask: write(wave, mask, np.uint64(0))
