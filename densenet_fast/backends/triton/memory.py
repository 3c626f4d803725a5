"""Whether what an operation writes shares memory with its other arguments."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch


class Extent(NamedTuple):
    """The memory of an argument from its first element to its last: rows of contiguous elements at one stride, or else
    one row. In bytes."""

    name: str
    place: int  # of the argument, counted from 1
    written: bool
    rows: int
    length: int
    stride: int
    over: str  # the name of an argument that it may be

    @classmethod
    def of(
        cls,
        name: str,
        place: int,
        written: bool,
        dtype: torch.dtype,
        sizes: Sequence[int],
        strides: Sequence[int],
        over: str = "",
    ) -> "Extent":
        size = dtype.itemsize
        axes = sorted((stride * size, n) for n, stride in zip(sizes, strides, strict=True) if n > 1)
        rows, length, step, whole = 1, size, 0, size  # step: from row to row
        for stride, n in axes:
            if rows == 1 and stride == length:
                length *= n
            elif rows == 1 or stride == step * rows:
                step, rows = step if rows > 1 else stride, rows * n
            else:
                step = -1
            whole += (n - 1) * stride
        lies = (rows, length, step) if step >= length or rows == 1 else (1, whole, 0)
        return cls(name, place, written, *lies, over)

    @property
    def bytes(self) -> int:
        return (self.rows - 1) * self.stride + self.length

    def meets(self, other: "Extent", distance: int) -> bool:
        """Whether `other`, `distance` bytes behind, shares memory: slices of one buffer may lie beside each other, each
        in the gaps between the other's rows."""
        if self.bytes <= distance or other.bytes <= -distance:
            return False
        if distance == 0 and self[3:6] == other[3:6] and (self.over == other.name or other.over == self.name):
            return False
        several = {extent.stride for extent in (self, other) if extent.rows > 1}
        if len(several) != 1:
            return True
        (stride,) = several
        return not self.length <= distance % stride <= stride - other.length


class Memory:
    """That of an operation's arguments."""

    def __init__(self, extents: Sequence[Extent]):
        self._extents = extents
        self._ends = [(extent.place - 1, extent.bytes, extent.written) for extent in extents]

    def is_apart(self, addresses: Sequence[int]) -> bool:
        """Whether no argument that is written begins before another ends, or the other way round."""
        every = written = 0  # the ends of the memory looked at so far
        for begin, size, writes in sorted([(addresses[i], size, writes) for i, size, writes in self._ends]):
            if begin < (every if writes else written):
                return False
            end = begin + size
            if end > every:
                every = end
            if writes and end > written:
                written = end
        return True

    def shared(self, addresses: Sequence[int]) -> tuple[Extent, Extent] | None:
        """An argument that is written and another, which share memory; None if there are none."""
        for one, other in combinations(self._extents, 2):
            if (one.written or other.written) and one.meets(
                other, addresses[other.place - 1] - addresses[one.place - 1]
            ):
                return (one, other) if one.written else (other, one)
        return None
