"""Operands compiled to functions of a wave and a mask: `read` gives an array over lanes, `write` keeps one."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from .faults import Unsupported
from .parser import Address, Kernel, bytes_of

PARAMETER_BASE, PARAMETER_BITS = 1 << 40, 16  # generic addresses of parameters
RAW = {1: np.dtype(bool), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}

Read = Callable[[Any, np.ndarray | None], np.ndarray]
Write = Callable[[Any, np.ndarray | None, np.ndarray], None]


class Registers:
    """The registers of a kernel: a slot in every wave's file for each name."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.slots: dict[str, int] = {}
        self.parameters = {p.name: i for i, p in enumerate(kernel.parameters)}
        self.widths: dict[str, int | None] = {}

    def width(self, name: str) -> int | None:
        if name not in self.widths:
            declared = self.kernel.registers.get(name) or self.kernel.registers.get(name.rstrip("0123456789"))
            self.widths[name] = None if declared is None else bytes_of(declared)
        return self.widths[name]

    def slot(self, name: str) -> int:
        return self.slots.setdefault(name, len(self.slots))

    def read(self, token: str, dtype: np.dtype) -> Read:
        if not isinstance(token, str):
            raise Unsupported(f"operand {token} where one register or constant is expected")
        width = self.width(token)
        if width is None:
            return _constant(self._literal(token, dtype)) if not token.startswith("%") else _special(token, dtype)
        slot, raw = self.slot(token), RAW[width]
        fit = dtype if dtype.itemsize == width else raw

        def read(wave, mask):
            value, absent = wave.values[slot], wave.absent[slot]
            if value is None:
                value, absent = np.zeros(wave.lanes, fit), np.ones(wave.lanes, bool)
            if absent is not None:
                wave.taint(token, absent, mask)
            if value.dtype is not fit:
                value = value.view(fit)
            return value if fit is dtype else value.astype(dtype)

        return read

    def _literal(self, token: str, dtype: np.dtype) -> np.generic:
        kernel = self.kernel
        if token.startswith(("0f", "0F")):
            return np.array(int(token[2:], 16), np.uint32).view(dtype)[()]
        if token.startswith(("0d", "0D")):
            return np.array(int(token[2:], 16), np.uint64).view(dtype)[()]
        symbol, _, offset = token.partition("+")
        if symbol in kernel.shared:
            return dtype.type(kernel.shared[symbol] + int(offset or 0))
        if symbol in self.parameters:
            return dtype.type(PARAMETER_BASE + (self.parameters[symbol] << PARAMETER_BITS) + int(offset or 0))
        try:
            value = int(token.rstrip("U"), 0)
        except ValueError:
            try:
                return np.float64(token).astype(dtype)
            except ValueError:
                raise Unsupported(f"operand {token}") from None
        return np.array(value % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)[()]

    def predicate(self, token: str) -> Read:
        negated = token.startswith("!")
        read = self.read(token.lstrip("!"), RAW[1])
        return (lambda wave, mask: ~read(wave, mask)) if negated else read

    def write(self, token: str) -> Write:
        if token == "_":
            return lambda wave, mask, value: None
        width = self.width(token) if isinstance(token, str) else None
        if width is None:
            raise Unsupported(f"destination {token}")
        slot = self.slot(token)

        def write(wave, mask, value):
            if value.dtype.itemsize != width:  # narrower types extend by their sign into wider registers
                value = value.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{width}")
            if value.ndim == 0:
                value = np.full(wave.lanes, value)
            old, absent, tainted = wave.values[slot], wave.absent[slot], wave.tainted
            if mask is not None:
                absent = ~mask if old is None else None if absent is None else absent & ~mask
                value = value if old is None else np.where(mask, value.view(old.dtype), old)
                tainted = None if tainted is None else tainted & mask
            else:
                absent = None
            wave.values[slot] = value
            wave.absent[slot] = absent if tainted is None else tainted if absent is None else absent | tainted

        return write

    def address(self, operand: Address, dtype: np.dtype = RAW[8]) -> Read:
        """Signed 64-bit addresses over all lanes."""
        width = self.width(operand.base)
        base = self.read(operand.base, dtype if width is None else RAW[width])
        offset = np.int64(operand.offset)
        if width is None:  # a symbol
            return lambda wave, mask: np.full(wave.lanes, base(wave, mask).astype(np.int64) + offset)
        return lambda wave, mask: base(wave, mask).astype(np.int64) + offset


def _constant(value: np.generic) -> Read:
    return lambda wave, mask: value


def _special(name: str, dtype: np.dtype) -> Read:
    def read(wave, mask):
        if name not in wave.special:
            raise Unsupported(f"special register {name}")
        return wave.special[name].astype(dtype, copy=False)

    return read


def scalar_bytes(value: Any, type_name: str) -> bytes:
    """A number as a parameter of this type."""
    size = bytes_of(type_name)
    if type_name.startswith("f") or isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")
