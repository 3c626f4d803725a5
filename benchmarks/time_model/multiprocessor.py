"""Cycles that programs take on a multiprocessor, from their machine code: one of its four schedulers, cycle by cycle.

The four have equal shares of a program's warps. Each cycle a scheduler issues one instruction of a warp whose last one
lets it (`stall`), whose barriers are clear and whose pipe is free; a warp goes through its instructions in order.
Copies, products and the program's other warps are waited for where the code waits. Where a program ends the next takes
its place. Memory is always as far as device.py says, shared memory has no bank conflicts, and what is predicated off
takes as long as what is not.
"""

import heapq
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from . import device
from .machine_code import NO_BARRIER, Instruction

FLOATS = ("FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2")
SPECIALS = ("MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO")
GLOBAL, SHARED = ("LDG", "STG", "LDGSTS", "ATOMG", "RED"), ("LDS", "STS", "LDSM", "STSM")
CONTROL = ("NOP", "BRA", "BRX", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "WARPGROUP", "LDGDEPBAR", "DEPBAR", "BAR")
COPY, PRODUCT, TOGETHER = "copy", "product", "together"  # what the simulation follows by itself
CLOSE_COPIES, AWAIT_COPIES, AWAIT_PRODUCTS = "close copies", "await copies", "await products"


class Operation(NamedTuple):
    """What an instruction asks of a scheduler."""

    instruction: Instruction
    pipe: str = ""
    busy: float = 0  # cycles that the pipe is not free for another
    latency: float = 0  # until the result is there
    kind: str = ""
    count: int = 0  # groups that a wait leaves; 1 for a product that closes a group
    shared: float = 0  # bytes of shared memory that it moves


class Latency(NamedTuple):
    """Cycles to global memory, of a load and of an asynchronous copy, which goes past the L1 cache."""

    load: float
    copy: float


@cache
def operation(instruction: Instruction, memory: Latency) -> Operation:
    kind, *modifiers = instruction.name.split(".")
    if kind in ("HGMMA", "HMMA"):
        return _product(instruction, kind, modifiers)
    if kind in GLOBAL or kind in SHARED:
        # Triton copies behind a predicate what several threads would copy alike, by one of them.
        moved = 0 if kind == "LDGSTS" and instruction.conditional else 32 * _width(kind, modifiers)
        # A fourth of 128 bytes a cycle for each scheduler.
        busy = device.SCHEDULERS * max(1.0, moved / device.SHARED_BYTES)
        inside = moved if kind in SHARED or kind == "LDGSTS" else 0
        latency = device.SHARED_LATENCY
        if kind in GLOBAL:
            latency = memory.load if kind == "LDG" else memory.copy
        return Operation(instruction, "memory", busy, latency, COPY if kind == "LDGSTS" else "", shared=inside)
    if kind == "SHFL":
        return Operation(instruction, "memory", device.SHUFFLE, device.SPECIAL_LATENCY)
    if kind in CONTROL:
        return _control(instruction, kind)
    if instruction.name in ("MEMBAR.ALL.GPU", "MEMBAR.SC.GPU"):
        return Operation(instruction, latency=memory.copy)
    if kind in SPECIALS:
        return Operation(instruction, "special", device.SPECIAL, device.SPECIAL_LATENCY)
    if kind in FLOATS or kind == "IMAD":
        return Operation(instruction, "float", device.FLOAT if kind in FLOATS else device.INTEGER)
    if kind.startswith(("U", "LDC", "S2", "CS2R", "R2UR", "VOTE", "MEMBAR", "FENCE")):
        return Operation(instruction, latency=device.CONSTANT_LATENCY)
    return Operation(instruction, "integer", device.INTEGER, device.SPECIAL_LATENCY)


def _control(instruction: Instruction, kind: str) -> Operation:
    left = re.search(r"0x([0-9a-f]+)", instruction.text)
    count = int(left[1], 16) if left else 0
    if kind == "DEPBAR":
        return Operation(instruction, kind=AWAIT_COPIES, count=count)
    if instruction.name == "WARPGROUP.DEPBAR.LE":
        return Operation(instruction, kind=AWAIT_PRODUCTS, count=count)
    return Operation(instruction, kind={"BAR": TOGETHER, "LDGDEPBAR": CLOSE_COPIES}.get(kind, ""))


def _product(instruction: Instruction, kind: str, modifiers: Sequence[str]) -> Operation:
    """A warp's share: of wgmma (HGMMA) a fourth, on the tensor core of its scheduler."""
    size = modifiers[0]
    half = 1 if "TF32" not in modifiers else 2
    if kind == "HMMA":  # 16816: 16 x 8 x 16
        m, n, k = int(size[:2]), int(size[2]), int(size[3:])
        busy = device.MMA_SYNC * half * m * n * k / device.TENSOR_MACS
        return Operation(instruction, "tensor", busy, busy + device.PRODUCT_LATENCY)
    m, n, k = map(int, size.split("x"))
    element = 2 * half
    of_registers = re.search(r"R\d+, R\d+, gdesc", instruction.text) is not None
    shared = element * k * (n if of_registers else m + n)
    busy = max(half * m * n * k / 4 / device.TENSOR_MACS, shared / device.SHARED_BYTES)
    closes = "gsb0" in instruction.text
    return Operation(instruction, "", busy, device.PRODUCT_LATENCY, PRODUCT, closes, shared / 4)


def _width(kind: str, modifiers: Sequence[str]) -> int:
    """Bytes of a lane."""
    if kind in ("LDSM", "STSM"):
        return 4 * int(modifiers[-1] if modifiers[-1] in ("2", "4") else 1)
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[modifier] for modifier in modifiers if modifier in sizes), 4)


class _Warp:
    def __init__(self, program: int, operations: Sequence[Operation], time: float):
        self.program, self.operations, self.ready, self.place = program, operations, time, 0
        self.barriers = [0.0] * 6
        self.copied, self.multiplied = 0.0, 0.0  # when the last copy and the last product issued are done
        self.copies: list[float] = []  # groups, oldest first
        self.products: list[float] = []

    def may_issue(self, operation: Operation) -> float:
        time, waits = self.ready, operation.instruction.waits
        if waits:
            time = max(time, *(self.barriers[b] for b in range(6) if waits >> b & 1))
        if operation.kind in (AWAIT_COPIES, AWAIT_PRODUCTS):
            groups = self.copies if operation.kind == AWAIT_COPIES else self.products
            over = groups[: max(0, len(groups) - operation.count)]
            time = max([time, *over])
        return time


def cycles(programs: Sequence[Sequence[Sequence[Operation]]], resident: int) -> float:
    """Until all programs, of which `resident` fit at a time and the first start first, have executed the operations of
    those of their warps that belong to the scheduler."""
    waiting: list[tuple[float, int, _Warp]] = []
    parked: dict[int, list[_Warp]] = {}  # warps that wait for the others of their program
    running: dict[int, int] = {}  # warps of each program that have not ended
    pipes: dict[str, float] = {"": 0.0}
    free = tensor = end = 0.0  # when the scheduler, and its tensor core, are; the last instruction so far
    order = started = 0

    def start(time: float) -> None:
        nonlocal order, started
        if started < len(programs):
            running[started] = len(programs[started])
            for operations in programs[started]:
                order += 1
                heapq.heappush(waiting, (time, order, _Warp(started, operations, time)))
            started += 1

    def release(program: int, time: float) -> None:
        """The warps that wait for each other, if all have come that have not ended."""
        nonlocal order
        if len(parked.get(program, ())) == running[program]:
            for other in parked.pop(program, ()):
                other.ready = max(other.ready, time)
                order += 1
                heapq.heappush(waiting, (other.ready, order, other))

    for _ in range(resident):
        start(0.0)
    while waiting:
        now, _, warp = heapq.heappop(waiting)
        operation = warp.operations[warp.place]
        time = max(warp.may_issue(operation), free, pipes.get(operation.pipe, 0.0))
        order += 1
        if time > now:
            heapq.heappush(waiting, (time, order, warp))
            continue
        instruction, kind = operation.instruction, operation.kind
        free, end = now + 1, max(end, now + 1)
        warp.ready = now + max(1, instruction.stall)
        if operation.pipe:
            pipes[operation.pipe] = now + operation.busy
        done = now + operation.busy + operation.latency
        if kind == PRODUCT:
            tensor = max(tensor, now) + operation.busy
            pipes["memory"] = max(pipes.get("memory", 0.0), now) + operation.shared * 4 / device.SHARED_BYTES
            warp.multiplied = tensor + operation.latency
            if operation.count:
                warp.products.append(warp.multiplied)
        elif kind == COPY:
            warp.copied = max(warp.copied, done)
        elif kind == CLOSE_COPIES:
            warp.copies.append(warp.copied)
        elif kind in (AWAIT_COPIES, AWAIT_PRODUCTS):
            groups = warp.copies if kind == AWAIT_COPIES else warp.products
            del groups[: max(0, len(groups) - operation.count)]
        if instruction.written != NO_BARRIER and kind not in (COPY, CLOSE_COPIES):
            warp.barriers[instruction.written] = max(warp.barriers[instruction.written], done)
        if instruction.read != NO_BARRIER:
            read = now + operation.busy + device.READ_LATENCY
            warp.barriers[instruction.read] = max(warp.barriers[instruction.read], read)
        warp.place += 1
        if warp.place == len(warp.operations):
            running[warp.program] -= 1
            if not running[warp.program]:
                start(now + 1)
            else:
                release(warp.program, now + device.BARRIER_LATENCY)
        elif kind == TOGETHER:
            parked.setdefault(warp.program, []).append(warp)
            release(warp.program, now + device.BARRIER_LATENCY)
        else:
            heapq.heappush(waiting, (warp.ready, order, warp))
    return end
