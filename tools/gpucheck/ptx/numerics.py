"""PTX types as numpy sees them. Sixteen-bit floats are kept as bits and computed in float32."""

import numpy as np

TYPES = {
    **{
        f"{kind}{bits}": np.dtype(f"{'int' if kind == 's' else 'uint'}{bits}")
        for kind in "usb"
        for bits in (8, 16, 32, 64)
    },
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.uint16),
    "bf16": np.dtype(np.uint16),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "tf32": np.dtype(np.uint32),
}
SMALL_FLOATS = ("f16", "bf16", "f16x2", "bf16x2")
NAN16 = {"f16": 0x7FFF, "bf16": 0x7FFF}


def widen(bits: np.ndarray, kind: str) -> np.ndarray:
    """float32 values of f16 or bf16 bits."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def narrow(values: np.ndarray, kind: str, rounding: str = "rn") -> np.ndarray:
    """f16 or bf16 bits of float32 or float64 values, rounded to nearest even or toward zero."""
    values = np.asarray(values, np.float32)
    if kind == "bf16":
        bits = values.view(np.uint32)
        shift = np.uint32(16)
        bias = np.uint32(0x7FFF) + ((bits >> shift) & np.uint32(1)) if rounding == "rn" else np.uint32(0)
        narrowed = ((bits + bias) >> shift).astype(np.uint16)
    else:
        half = values.astype(np.float16)
        if rounding == "rz":
            beyond = np.abs(half.astype(np.float32)) > np.abs(values)
            half = np.where(beyond, np.nextafter(half, np.float16(0)), half)
        narrowed = half.view(np.uint16)
    return np.where(np.isnan(values), np.uint16(NAN16[kind]), narrowed)


def to_tf32(bits: np.ndarray, rounding: str) -> np.ndarray:
    """float32 bits rounded to nineteen: half away from zero (rna), half to even (rn), toward zero (rz)."""
    even = np.uint32(0x0FFF) + (bits >> np.uint32(13) & np.uint32(1))
    bias = {"rna": np.uint32(0x1000), "rn": even, "rz": np.uint32(0)}[rounding]
    return (bits + bias) & np.uint32(0xFFFFE000)


def halves(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (bits & np.uint32(0xFFFF)).astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)


def join(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Through float64, where the product is exact: the sum is rounded twice, which a tie in 2^29 can show."""
    return a.astype(np.float64) * b + c


def tensor_core_sum(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c[n, 16, 8] + a[n, 16, K] b[n, K, 8] as an A100 adds TF32 products (Khattak and Mikaitis, arXiv 2512.07004): four
    of them and c at a time, cut off one bit below the last one of the largest, their sum cut off to 24 bits. Later GPUs
    keep more."""
    infinite = np.uint32(0x7F800000)
    c, a, b = (np.ascontiguousarray(np.moveaxis(x, 0, -1)) for x in (c, a, b))
    a = a.swapaxes(0, 1)
    terms = np.empty((5, *c.shape), np.float32)
    for first in range(0, len(b), 4):
        terms[0] = c
        np.multiply(a[first : first + 4, :, None], b[first : first + 4, None], out=terms[1:])
        power = (terms.view(np.uint32) & infinite).max(0)  # of the largest, as the bits of a float
        np.maximum(power, np.uint32(27 << 23), out=power)  # at least 2^-100
        scale = (np.uint32(278 << 23) - power).view(np.float32)  # 2^24 / power
        total = (terms * scale).astype(np.int32).sum(0, dtype=np.int32).astype(np.float64)
        cut_off = (total.view(np.int64) & ~((1 << 29) - 1)).view(np.float64)  # 24 bits of its 53
        c = (cut_off / scale).astype(np.float32)
        if power.max() == infinite:
            c = np.where(power < infinite, c, terms.sum(0))
    return np.moveaxis(c, -1, 0)


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b)


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Floating point: correctly rounded. Integers: toward zero; by zero gives all ones, as the hardware does."""
    if a.dtype.kind == "f":
        return a / b
    if a.dtype.kind == "u":
        return np.where(b == 0, ~a.dtype.type(0), a // np.where(b == 0, 1, b))
    floor, exact = a // np.where(b == 0, 1, b), a % np.where(b == 0, 1, b) == 0
    return np.where(b == 0, -1, floor + (~exact & ((a < 0) != (b < 0)))).astype(a.dtype)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b))).astype(a.dtype)


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the product."""
    if a.dtype.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return (a.astype(wide) * b.astype(wide) >> wide.type(8 * a.dtype.itemsize)).astype(a.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    first, second = (x & low) * (y >> half), (x >> half) * (y & low)
    carry = ((x & low) * (y & low) >> half) + (first & low) + (second & low) >> half
    high = (x >> half) * (y >> half) + (first >> half) + (second >> half) + carry
    if a.dtype.kind == "i":  # a negative operand is 2^64 less than its bits say
        high = high - np.where(a < 0, y, 0) - np.where(b < 0, x, 0)
    return high.view(a.dtype)


def shift_left(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    if by.ndim == 0 and by < bits:
        return a << by.astype(a.dtype)
    return np.where(by >= bits, a.dtype.type(0), a << np.minimum(by, bits - 1).astype(a.dtype))


def shift_right(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = a.dtype.itemsize * 8
    if by.ndim == 0 and by < bits:
        return a >> by.astype(a.dtype)
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by >= bits, a.dtype.type(0), shifted)


def to_integer(values: np.ndarray, dtype: np.dtype, rounding: str) -> np.ndarray:
    """Out of range saturates, NaN is zero, as cvt does."""
    rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](values.astype(np.float64))
    limits = np.iinfo(dtype)
    inside = np.nan_to_num(np.clip(rounded, limits.min, limits.max))
    top = rounded >= limits.max
    return np.where(top, dtype.type(limits.max), np.where(top, 0, inside).astype(dtype))


def flush(values: np.ndarray) -> np.ndarray:
    """.ftz: subnormals are zeros."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)
