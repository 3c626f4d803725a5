"""The native backend's CUDA kernels: `recorded` and `plans` give the launches and machine code of a checkout, `layouts`
the names of their parameters, `control` the way that these make threads go through the code (`thread`, `operands` and
`instructions` execute it), `programs` the programs of a launch, `memory` its bytes."""

from ..model import Backend
from . import memory, plans, programs

__all__ = ["NATIVE", "memory", "plans", "programs"]

NATIVE = Backend(programs.Kernel, programs.programs, memory.moved)
