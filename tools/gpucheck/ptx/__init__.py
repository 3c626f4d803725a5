"""An interpreter of PTX in numpy: it runs what nvcc or Triton emitted for sm_80, and refuses races, missing
waits, reads of what nobody wrote, and accesses outside the tensors given.

    counts = Launch(ptx, "name_of_the_kernel").run(grid, block, [x, y, 5, 0.5], shared=bytes_of_dynamic_memory)

Tensors on the CPU stand for pointers and are changed in place; `Struct` stands for a structure passed by value.
It has no memory model beyond the order described in `races`: asynchronous copies land where the kernel waits for them,
and a wave of CTAs runs in lockstep. Races are found on executed paths only."""

from .banks import Wavefronts
from .faults import Divergence, Fault, Misaligned, MissingWait, OutOfBounds, Race, Unsupported, Unwritten
from .launch import Counts, Launch
from .memory import Struct
from .parser import entries

__all__ = [
    "Counts",
    "Divergence",
    "Fault",
    "Launch",
    "Misaligned",
    "MissingWait",
    "OutOfBounds",
    "Race",
    "Struct",
    "Unsupported",
    "Unwritten",
    "Wavefronts",
    "entries",
]
