"""A wave: CTAs that run together, every instruction for all their threads at once.

Its threads stand in groups at places in the code; the group furthest behind runs, up to where the next one waits, so
what diverged comes together again as early as it can. Barriers open when nothing else can run."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import access, banks
from .faults import Divergence, Fault, MissingWait, Race, Unwritten
from .memory import Global, Shared, Space
from .parser import Instruction
from .races import IN_FLIGHT, THREAD, THREAD_BITS, Order
from .registers import RAW
from .warp import left_operand, right_operand

if TYPE_CHECKING:
    from .launch import Counts, Launch

Extents = tuple[int, int, int]
Groups = dict[int, np.ndarray]  # place in the code -> mask of the lanes there
STEPS = 20_000_000  # instructions of a wave after which it is taken for an endless loop


class Grid(NamedTuple):
    """What all waves of one launch share."""

    launch: "Launch"
    extents: Extents
    block: Extents
    shared: int  # bytes per CTA
    memory: Global
    parameters: list[bytes]
    order: Order
    counts: "Counts"


class Wave:
    """CTAs that run together: their registers, shared memory, places in the code."""

    def __init__(self, grid: Grid, ctas: list[int]):
        self.launch, self.order, self.memory, self.counts = grid.launch, grid.order, grid.memory, grid.counts
        self.parameters = grid.parameters
        self.lanes = len(ctas) * self.order.threads
        self.slot = np.repeat(np.arange(len(ctas)), self.order.threads)
        cta, inside = np.repeat(ctas, self.order.threads), np.tile(np.arange(self.order.threads), len(ctas))
        self.thread = cta * self.order.threads + inside  # number in the grid
        self.everyone, self.places = np.ones(self.lanes, bool), np.arange(self.lanes)
        self.live = inside < math.prod(grid.block)
        self.special = _special_registers(cta, inside, grid.extents, grid.block)
        self.shared = Shared(len(ctas), grid.shared, self.launch.units["shared"])
        self.values: list[np.ndarray | None] = [None] * len(self.launch.registers.slots)
        self.absent: list[np.ndarray | None] = [None] * len(self.launch.registers.slots)  # lanes without a value
        self.tainted: np.ndarray | None = None  # lanes in which the current instruction has read no value
        self.copies: list[access.Copy] = []
        self.committed = np.zeros(self.lanes, np.int64)
        self.fragments: dict[tuple, tuple] = {}

    def run(self) -> None:
        """Until every thread has left."""
        ready: Groups = {0: self.live.copy()}
        waiting: Groups = {}
        steps = 0
        while ready or waiting:
            if not ready:
                ready, waiting = waiting, {}
                self.order.barrier(self.thread[np.logical_or.reduce(list(ready.values()))])
            place = min(ready)
            steps += self._advance(place, ready.pop(place), ready, waiting)
            if steps > STEPS:
                raise Fault(f"{self.launch.kernel.name}: no end after {steps} instructions")

    def _advance(self, place: int, mask: np.ndarray, ready: Groups, waiting: Groups) -> int:
        """Run a group until it splits, waits, leaves or meets the next group; the number of instructions."""
        code, steps, guards = self.launch.kernel.code, self.launch.steps, self.launch.guards
        meets, begun = min(ready, default=len(code)), self.order.clock
        everyone = None if mask.all() else mask
        warps = int(mask.reshape(-1, 32).any(1).sum())
        while place < meets:
            ins, step, guard = code[place], steps[place], guards[place]
            self.counts.instructions[ins.parts[0]] += warps
            self.order.tick(ins.line)
            try:
                self.tainted = None
                active = everyone if guard is None else _meet(guard(self, everyone), everyone)
                self.require_written()
                if step is None:
                    taken = mask if active is None else active & mask
                    place = self._control(ins, place + 1, mask, taken, ready, waiting, meets)
                    if place is None:
                        return self.order.clock - begun
                    continue
                if active is None or np.count_nonzero(active):
                    step(self, active)
            except Fault as fault:
                raise type(fault)(f"{self.launch.kernel.name}, line {ins.line}, {ins.text}: {fault}") from None
            place += 1
        _join(ready, place, mask)
        return self.order.clock - begun

    def _control(
        self,
        ins: Instruction,
        following: int,
        mask: np.ndarray,
        taken: np.ndarray,
        ready: Groups,
        waiting: Groups,
        meets: int,
    ) -> int | None:
        """Where the whole group goes on, or None when it does not go on as one."""
        name, rest = ins.parts[0], mask & ~taken
        target = self.launch.kernel.labels[ins.operands[0]] if name == "bra" else following
        if not taken.any():
            return following
        if name == "bra":
            if not rest.any() and target < meets:
                return target
            _join(ready, target, taken)
        elif name == "brx":
            index = self.launch.registers.read(ins.operands[0], RAW[4])(self, taken)
            self.require_written()
            for i in np.unique(index[taken]).tolist():
                label = self.launch.kernel.tables[ins.operands[1]][i]
                _join(ready, self.launch.kernel.labels[label], taken & (index == i))
        elif name == "trap":
            raise Fault("the kernel traps")
        elif name in ("ret", "exit"):
            access.none_in_flight(self, taken)
            self.live &= ~taken
        else:
            arrived, live = taken.reshape(-1, 32), self.live.reshape(-1, 32)
            if (arrived.any(1) & (arrived != live).any(1)).any():
                raise Divergence("only a part of a warp arrives at the barrier here")
            _join(waiting, target, taken)
        _join(ready, following, rest)
        return None

    def taint(self, register: str, absent: np.ndarray, mask: np.ndarray | None) -> None:
        """Note lanes that read a register without a value. What they compute has none either; only using that is a
        fault: Triton's reductions let lanes without data shuffle along."""
        absent = absent if mask is None else absent & mask
        if np.count_nonzero(absent):
            self.tainted, self.culprit = absent if self.tainted is None else self.tainted | absent, register

    def require_written(self) -> None:
        if self.tainted is not None:
            raise Unwritten(f"{self._who(np.flatnonzero(self.tainted)[0])} has nothing in register {self.culprit}")

    def active(self, mask: np.ndarray | None) -> np.ndarray:
        return self.places if mask is None else np.flatnonzero(mask)

    def spread(self, lanes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values of some lanes as an array over all."""
        full = np.zeros(self.lanes, values.dtype)
        full[lanes] = values
        return full

    def whole(self, value: np.ndarray | np.generic) -> np.ndarray:
        return value if value.ndim else np.full(self.lanes, value)

    def fragment(self, side: str, reads, kind: str, mask: np.ndarray | None) -> np.ndarray:
        """A matrix operand out of its registers; neighbouring products share them, so the last few are kept."""
        parts = [self.whole(read(self, mask)) for read in reads]
        key = (side, kind, *(p.__array_interface__["data"][0] for p in parts))
        if key not in self.fragments:
            if len(self.fragments) > 64:
                self.fragments.clear()
            made = (left_operand if side == "a" else right_operand)(parts, kind)
            self.fragments[key] = parts, made
        return self.fragments[key][1]

    def touch(self, space: Space, lanes: np.ndarray, address: np.ndarray, width: int, write: bool) -> np.ndarray:
        """Check and record an access of `width` bytes by each of the lanes; the places in the memory's data."""
        self.require_written()
        if space is self.memory:
            at = self.memory.locate(address, width, write)
            for storage, count in self.memory.owners(at):
                self.counts.add(storage, width * count, write)
        else:
            at = self.shared.locate(address, self.slot[lanes], width)
            if self.counts.wavefronts is not None:
                banks.count(self.counts.wavefronts, self.order.lines[-1], lanes, address, width)
        units, me = space.units(at, width), self.thread[lanes][:, None]
        if space is self.shared:
            found = space.stamps.write[units]
            if np.bitwise_or.reduce(found, axis=None) & IN_FLIGHT:
                raise MissingWait(
                    f"{self._who(lanes[(found & IN_FLIGHT).any(1)][0])}: an asynchronous copy is still writing this"
                )
            if not write and np.count_nonzero(found) < found.size:
                bad = (found == 0).any(1)
                raise Unwritten(
                    f"{self._who(lanes[bad][0])} reads shared byte {int(address[bad][0])}, which nobody wrote"
                )
        bad = (self.order.write if write else self.order.read)(space.stamps, units, me)
        if bad is not None:
            where, other = bad
            line, whom = self.order.lines[other >> THREAD_BITS], self._name(other & THREAD)
            act = "writes" if write else "reads"
            raise Race(
                f"{self._who(lanes[where])} {act} {space.name} address {int(address[where]):#x}, "
                f"in no order with {whom} at line {line}"
            )
        return at

    def _who(self, lane: int) -> str:
        return self._name(int(self.thread[lane]))

    def _name(self, thread: int) -> str:
        return f"thread {thread % self.order.threads} of CTA {thread // self.order.threads}"


def _special_registers(cta: np.ndarray, thread: np.ndarray, grid: Extents, block: Extents) -> dict[str, np.ndarray]:
    found = {"%laneid": thread % 32, "%warpid": thread // 32}
    for name, index, (x, y, z) in (("tid", thread, block), ("ctaid", cta, grid)):
        found |= {f"%{name}.x": index % x, f"%{name}.y": index // x % y, f"%{name}.z": index // (x * y)}
        found |= {f"%n{name}.{axis}": np.full(len(cta), extent) for axis, extent in zip("xyz", (x, y, z), strict=True)}
    return {name: value.astype(np.uint32) for name, value in found.items()}


def _meet(says: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """The lanes that a guard lets through, None for all."""
    active = says if mask is None else says & mask
    return None if np.count_nonzero(active) == active.size else active


def _join(groups: Groups, place: int, mask: np.ndarray) -> None:
    if np.count_nonzero(mask):
        groups[place] = groups[place] | mask if place in groups else mask
