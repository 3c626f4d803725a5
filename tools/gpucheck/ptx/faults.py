"""What the interpreter refuses: each class is one kind of mistake in a kernel, or a limit of the interpreter itself."""


class Fault(Exception):
    """A kernel did what it must not do."""


class OutOfBounds(Fault):
    """Access outside every allocation, or a write outside the elements of the tensors given to the launch."""


class Misaligned(Fault):
    """An address that is not a multiple of the access's width."""


class Race(Fault):
    """Two accesses to one place, one of them a write, that no barrier, warp sync, or fence and atomic puts in order."""


class MissingWait(Fault):
    """Shared memory touched, or the kernel left, while an asynchronous copy into it is in flight."""


class Unwritten(Fault):
    """A register or memory read before anything was written to it."""


class Divergence(Fault):
    """A warp-wide instruction that only a part of the warp, or different parts separately, executes."""


class Unsupported(Fault):
    """An instruction, or a form of it, that the interpreter does not know."""
