"""Launches: a kernel compiled to a list of functions, and the CTAs of a grid put through it in waves."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from . import access, arithmetic, warp  # noqa: F401  (fill the table)
from .banks import Wavefronts
from .faults import Unsupported
from .memory import Global, Struct
from .parser import Instruction, bytes_of, parse
from .races import Order
from .registers import Registers, scalar_bytes
from .table import Execute, check_known
from .wave import Grid, Wave

LANES = 4096  # threads that run together: more of them cost little per instruction
CONTROL = {"bra", "brx", "ret", "exit", "bar", "barrier", "trap"}


class Counts:
    """What a launch did: warp instructions by name; bytes of global memory asked for, by tensor; and, if the banks of
    shared memory are watched, by line of the PTX the wavefronts that its accesses took, and how many would have been
    enough without conflicts."""

    def __init__(self, banks: bool = False) -> None:
        self.instructions: Counter[str] = Counter()
        self.wavefronts: dict[int, Wavefronts] | None = {} if banks else None
        self._bytes: tuple[Counter[int], Counter[int]] = (Counter(), Counter())  # by storage: read, written

    def read(self, tensor: Tensor) -> int:
        """Bytes read from the tensor's storage."""
        return self._bytes[0][tensor.untyped_storage().data_ptr()]

    def written(self, tensor: Tensor) -> int:
        return self._bytes[1][tensor.untyped_storage().data_ptr()]

    def add(self, storage: int, size: int, write: bool) -> None:
        self._bytes[write][storage] += size


class Launch:
    """A kernel of a PTX text, ready to run: Launch(ptx, "name").run((2, 3), 128, [x, y, 5], shared=1024)."""

    def __init__(self, text: str, name: str):
        self.kernel = parse(text, name)
        self.registers = Registers(self.kernel)
        self.steps = [self._compile(ins) for ins in self.kernel.code]
        self.guards = [
            None if i.guard is None else self.registers.predicate("!" * i.negated + i.guard) for i in self.kernel.code
        ]
        self.units = {space: self._narrowest(space) for space in ("global", "shared")}

    def _compile(self, ins: Instruction) -> Execute | None:
        name = ins.parts[0]
        if name in CONTROL and ins.op != "bar.warp.sync":
            if name in ("bar", "barrier") and ("sync" not in ins.parts or ins.operands != ("0",)):
                raise Unsupported(f"line {ins.line}: {ins.op} {ins.operands}")
            return None
        try:
            return check_known(ins)(ins, self.registers)
        except Unsupported as error:
            raise Unsupported(f"{self.kernel.name}, line {ins.line}: {error}") from None

    def _narrowest(self, space: str) -> int:
        """Bytes of the narrowest access to a memory: the unit in which it is watched."""
        widths = [16]
        for ins in self.kernel.code:
            words = ins.parts
            if words[0] == "cp" and len(ins.operands) > 2:
                widths.append(int(ins.operands[2], 0))
            elif words[0] in ("ld", "st", "atom") and (
                space in words or not {"global", "shared", "param"} & set(words)
            ):
                targets = ins.operands[words[0] == "st"]
                widths.append(bytes_of(ins.type_name) * (len(targets) if isinstance(targets, tuple) else 1))
        return min(widths)

    def run(
        self,
        grid: Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Tensor | Struct | bytes | float | None],
        shared: int = 0,
        *,
        order: Iterable[int] | None = None,
        unwritten: Iterable[Tensor] = (),
        banks: bool = False,
    ) -> Counts:
        """Run every CTA. Tensors (on the CPU, any strides) are read and changed in place; `shared`: bytes of dynamic
        shared memory; `order`: the CTAs by number, in the order they shall arrive; `unwritten`: tensors whose elements
        must not be read before they are written; `banks`: whether to watch those of shared memory."""
        grid, block = _extents(grid), _extents((block,) if isinstance(block, int) else block)
        if self.kernel.threads not in (None, math.prod(block)):
            raise ValueError(f"{self.kernel.name}: got {math.prod(block)} threads, expected {self.kernel.threads}")
        if len(args) != len(self.kernel.parameters):
            raise ValueError(f"{self.kernel.name}: got {len(args)} arguments, expected {len(self.kernel.parameters)}")
        tensors = [t for a in args for t in (a.fields if isinstance(a, Struct) else [a]) if isinstance(t, Tensor)]
        memory = Global(self.units["global"], Global.room(tensors))
        parameters = [
            self._parameter(memory, a, p.type_name, p.size) for a, p in zip(args, self.kernel.parameters, strict=True)
        ]
        for tensor in unwritten:
            memory.forget(tensor)
        counts, ctas = Counts(banks), math.prod(grid)
        threads = -(-math.prod(block) // 32) * 32
        size = self.kernel.shared_bytes + shared
        whole = Grid(self, grid, block, size, memory, parameters, Order(ctas, threads), counts)
        queue = list(range(ctas) if order is None else order)
        together = max(1, LANES // threads)
        with np.errstate(all="ignore"):
            for first in range(0, ctas, together):
                Wave(whole, queue[first : first + together]).run()
        memory.collect()
        return counts

    def _parameter(self, memory: Global, value, type_name: str, size: int) -> bytes:
        if isinstance(value, Tensor):
            return memory.address(value).to_bytes(8, "little")
        if isinstance(value, Struct):
            value = value.pack(memory.address)
        if isinstance(value, bytes):
            if len(value) > size or size - len(value) >= 8:
                raise ValueError(f"{self.kernel.name}: got {len(value)} bytes for a parameter of {size}")
            return value.ljust(size, b"\xff")
        return scalar_bytes(value or 0, type_name)


def _extents(values: Sequence[int]) -> tuple[int, int, int]:
    return (*values, 1, 1, 1)[:3]
