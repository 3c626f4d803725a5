"""Global and shared memory: bytes, which of them may be touched, and the stamps of who touched them last."""

import bisect
import struct
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .faults import Misaligned, OutOfBounds, Unwritten
from .races import Stamps

GLOBAL_BASE = 0x7F00_0000_0000
READABLE, WRITABLE = 1, 2
WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.dtype("V16")}
SHIFTS = {width: width.bit_length() - 1 for width in WIDTHS}


class Struct:
    """A parameter passed by value: struct.pack(layout, *fields), a tensor standing for its address, None for null."""

    def __init__(self, layout: str, *fields: Tensor | float | None):
        self.layout, self.fields = layout, fields

    def pack(self, address) -> bytes:
        values = (address(f) if isinstance(f, Tensor) else 0 if f is None else f for f in self.fields)
        return struct.pack(self.layout, *values)


class Space:
    """Bytes, touched at aligned places. `unit` is the width of the narrowest access: one stamp's reach."""

    name = ""

    def __init__(self, size: int, unit: int):
        size = -(-size // 16) * 16 or 16
        self.unit = unit
        self.data = np.full(size, 0xFF, np.uint8)
        self.views = {width: self.data.view(dtype) for width, dtype in WIDTHS.items()}
        self.stamps = Stamps(size // unit)

    def units(self, at: np.ndarray, width: int) -> np.ndarray:
        """[accesses, units per access]: which stamps belong to accesses of `width` bytes."""
        first = at >> SHIFTS[self.unit]
        return first[:, None] if width <= self.unit else first[:, None] + np.arange(width // self.unit)

    def load(self, at: np.ndarray, width: int, dtype: np.dtype) -> np.ndarray:
        """[accesses, width / itemsize]"""
        return self.views[width][at >> SHIFTS[width]].view(dtype).reshape(len(at), -1)

    def store(self, at: np.ndarray, width: int, values: np.ndarray) -> None:
        self.views[width][at >> SHIFTS[width]] = np.ascontiguousarray(values).view(WIDTHS[width]).reshape(-1)


class Shared(Space):
    """The shared memories of CTAs that run together, one behind the other. Never written means a stamp of zero."""

    name = "shared"

    def __init__(self, ctas: int, size: int, unit: int):
        self.size = size
        self.pitch = -(-size // 16) * 16
        super().__init__(ctas * self.pitch, unit)

    def locate(self, address: np.ndarray, cta: np.ndarray, width: int) -> np.ndarray:
        """Addresses as places in `data`."""
        if np.bitwise_or.reduce(address) & width - 1:
            raise Misaligned(f"shared address {_first(address, address % width != 0)} in an access of {width} bytes")
        if address.min() < 0 or address.max() + width > self.size:
            outside = (address < 0) | (address + width > self.size)
            raise OutOfBounds(f"shared address {_first(address, outside)} of {self.size} bytes")
        return address + cta * self.pitch


class _Placed(NamedTuple):
    storage: Tensor  # bytes
    start: int


class Global(Space):
    """Allocations with gaps between them. A tensor is placed with all its storage, but only its elements may be
    written: a kernel given a slice of a buffer can read the slice's neighbours and cannot change them."""

    name = "global"
    GAP = 512

    def __init__(self, unit: int, size: int):
        super().__init__(size, unit)
        self.state = np.zeros(len(self.data), np.uint8)
        self.states = {width: self.state.view(WIDTHS[width]) for width in (1, 2, 4, 8)}
        self.placed: dict[int, _Placed] = {}
        self.top = self.GAP
        self.writes = 0

    @staticmethod
    def room(tensors: list[Tensor]) -> int:
        return sum(t.untyped_storage().nbytes() + 2 * Global.GAP for t in tensors) + 2 * Global.GAP

    def address(self, tensor: Tensor) -> int:
        """The address of a tensor's first element; its storage is placed at the first sight of any tensor on it."""
        if tensor.numel() == 0:
            return 0
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.placed:
            content = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.placed[storage.data_ptr()] = _Placed(content, self.top)
            self.data[self.top : self.top + len(content)] = content.numpy()
            self.state[self.top : self.top + len(content)] = READABLE
            self.top = -(-(self.top + len(content) + self.GAP) // 256) * 256
        self._elements(tensor)[...] |= WRITABLE
        return GLOBAL_BASE + self._start(tensor)

    def _start(self, tensor: Tensor) -> int:
        placed = self.placed[tensor.untyped_storage().data_ptr()]
        return placed.start + tensor.storage_offset() * tensor.element_size()

    def _elements(self, tensor: Tensor) -> np.ndarray:
        """[*shape, bytes of an element]: the state of a tensor's bytes."""
        size = tensor.element_size()
        strides = (*(s * size for s in tensor.stride()), 1)
        return np.lib.stride_tricks.as_strided(self.state[self._start(tensor) :], (*tensor.shape, size), strides)

    def forget(self, tensor: Tensor) -> None:
        """Make a tensor's elements unwritten: reading one before it is written is a fault."""
        self._elements(tensor)[...] &= WRITABLE

    def collect(self) -> None:
        """Copy what the kernel wrote back into the tensors."""
        for storage, start in self.placed.values():
            storage.copy_(torch.from_numpy(self.data[start : start + len(storage)]))

    def locate(self, address: np.ndarray, width: int, write: bool) -> np.ndarray:
        if np.bitwise_or.reduce(address) & width - 1:
            raise Misaligned(f"global address {_first(address, address % width != 0):#x} in an access of {width} bytes")
        at = address - GLOBAL_BASE
        if at.min() < 0 or at.max() + width > len(self.data):
            far = (at < 0) | (at + width > len(self.data))
            raise OutOfBounds(f"global address {_first(address, far):#x} is in no allocation")
        allowed = self._all(at, width, WRITABLE if write else READABLE)
        if np.count_nonzero(allowed) < len(allowed):
            if write or not self._all(at[~allowed], width, WRITABLE).all():
                raise OutOfBounds(
                    f"global {self.describe(at[~allowed][0])} must not be {'written' if write else 'read'}"
                )
            raise Unwritten(f"global {self.describe(at[~allowed][0])} is read before it is written")
        if write:
            self.writes += 1
            states = self.states[min(width, 8)].reshape(-1, max(width // 8, 1))
            states[at >> SHIFTS[width]] = _pattern(READABLE | WRITABLE, width)
        return at

    def owners(self, at: np.ndarray) -> list[tuple[int, int]]:
        """The storages that hold these places, and how many of them each."""
        starts = [p.start for p in self.placed.values()]
        first, last = (bisect.bisect(starts, end) - 1 for end in (at.min(), at.max()))
        if first == last:
            return [([*self.placed][first], len(at))]
        counts = np.bincount(np.searchsorted(starts, at, "right") - 1, minlength=len(starts))
        return [(storage, int(n)) for storage, n in zip(self.placed, counts, strict=True) if n]

    def describe(self, at: int) -> str:
        for number, (storage, start) in enumerate(self.placed.values()):
            if start - self.GAP // 2 <= at < start + len(storage) + self.GAP // 2:
                return f"byte {at - start} of allocation {number} ({len(storage)} bytes)"
        return f"address {GLOBAL_BASE + int(at):#x}"

    def _all(self, at: np.ndarray, width: int, bits: int) -> np.ndarray:
        """Whether each byte of each access has all of `bits`."""
        pattern = _pattern(bits, width)
        if width <= 8:
            return self.states[width][at >> SHIFTS[width]] & pattern == pattern
        return (self.states[8].reshape(-1, 2)[at >> SHIFTS[width]] & pattern == pattern).all(1)


@cache
def _pattern(bits: int, width: int) -> np.unsignedinteger:
    return WIDTHS[min(width, 8)](int.from_bytes(bytes([bits]) * min(width, 8), "little"))


def _first(values: np.ndarray, where: np.ndarray) -> int:
    return int(values[where][0])
