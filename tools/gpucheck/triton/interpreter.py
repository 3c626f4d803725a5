"""Triton's interpreter with its known faults (Triton 3.6) repaired, by `repair`: what it computes is what a GPU would.

- `tl.dot` multiplies bfloat16 operands as the 16-bit integers that hold them, is slow in float16, and ignores
  `input_precision`.
- A cast from float32 to bfloat16 truncates; the GPU rounds to nearest even.
- A tensor as a bound of `range` converts an array of one element to int, which NumPy deprecates.
- `tl.maximum` and `tl.minimum` keep NaN although they were not asked to; a GPU's do not.
- NumPy warns of arithmetic with NaN and infinities; a GPU does not.
- `tl.sum` adds down a column one after another; a GPU adds pairs, and pairs of pairs, which loses less.
- Three quarters of its time goes into sums of integers that are checked for an overflow nobody is told of, patches of
  the language that every launch and call makes anew, and names of types that nobody reads.
"""

from dataclasses import replace

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, TensorHandle


def _wide(bits: np.ndarray) -> np.ndarray:
    """bfloat16, held as uint16, to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16, held as uint16, to nearest even; every NaN stays one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to TF32's ten bits, ties away from zero, as cvt.rna does; infinities and NaN as they are."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return np.where(np.isfinite(x), ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32), x)


def _cast(self, src, to):
    if (src.dtype.scalar, to.scalar) == (tl.bfloat16, tl.float32):
        return TensorHandle(_wide(src.data), tl.float32)
    if (src.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
        return TensorHandle(_bfloat16(src.data), tl.bfloat16)
    return _original_cast(self, src, to)


def _fp_to_fp(self, src, to, rounding_mode):
    if {src.dtype.scalar, to.scalar} == {tl.bfloat16, tl.float32}:
        return _cast(self, src, to)
    return _original_fp_to_fp(self, src, to, rounding_mode)


def _dot(self, a, b, acc, input_precision, *_):
    x, y = (_wide(h.data) if h.dtype.scalar == tl.bfloat16 else h.data.astype(np.float32) for h in (a, b))
    if a.dtype.scalar == tl.float32 and input_precision.name.startswith("TF32"):
        big_x, big_y = _tf32(x), _tf32(y)
        product = big_x @ big_y
        if input_precision.name == "TF32x3":
            small_x, small_y = (np.nan_to_num(_tf32(v - w)) for v, w in ((x, big_x), (y, big_y)))
            product = (small_x @ big_y + big_x @ small_y) + product
    else:
        product = x @ y
    return TensorHandle(product + acc.data, acc.dtype.scalar)


def _patch_tensor(tensor, scope):
    _original_patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


def _sum(self, input):
    x = np.moveaxis(input.handle.data, self.axis, 0)
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return self.to_tensor(np.moveaxis(x, 0, self.axis) if self.keep_dims else x[0], input.dtype)


def _call(self, *args, **kwargs):
    with np.errstate(all="ignore"):
        return _original_call(self, *args, **kwargs)


_numpy_dtypes: dict[str, np.dtype] = {}
_patched: set[frozenset[str]] = set()


def _numpy_dtype(type):
    scalar = type.scalar
    found = _numpy_dtypes.get(scalar.name)
    return found or _numpy_dtypes.setdefault(scalar.name, _original_numpy_dtype(scalar))


def _patch_lang(fn):
    """The modules of the language that `fn` sees are patched once, and stay so."""
    seen = frozenset(module.__name__ for module in fn.__globals__.values() if module is tl or module is tl.core)
    if seen not in _patched:
        _patched.add(seen)
        _original_patch_lang(fn)
    return interpreter._LangPatchScope()


def _init_tuple(self, args, type=None):
    self.values = list(args)
    self._type = type if type is None or isinstance(type, tl.core.tuple_type) else tl.core.tuple_type(type)


def _type_of_tuple(self):
    if self._type is None:
        self._type = tl.core._type_for_tuple_values(self.values)
    return self._type


def _init_block_type(self, element_ty, shape):
    sizes = shape.value if isinstance(shape, tl.constexpr) else shape
    sizes = [size.value if isinstance(size, tl.constexpr) else size for size in sizes]
    self.element_ty, self.shape = element_ty, tl.core.tuple(sizes)
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    self.numel = tl.core.validate_block_shape(sizes)


_original_call = GridExecutor.__call__
_original_cast = InterpreterBuilder.cast_impl
_original_fp_to_fp = InterpreterBuilder.create_fp_to_fp
_original_numpy_dtype = interpreter._get_np_dtype
_original_patch_lang = interpreter._patch_lang
_original_patch_tensor = interpreter._patch_lang_tensor


def repair() -> None:
    InterpreterBuilder.cast_impl = _cast
    InterpreterBuilder.create_fp_to_fp = _fp_to_fp
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    ReduceOps.sum = _sum
    GridExecutor.__call__ = _call
    interpreter._patch_lang_tensor = _patch_tensor
    interpreter._patch_lang = _patch_lang
    interpreter._get_np_dtype = _numpy_dtype
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    tl.core.tuple.__init__ = _init_tuple
    tl.core.tuple.type = property(_type_of_tuple, lambda self, type: setattr(self, "_type", type))
    tl.core.block_type.__init__ = _init_block_type
    tl.core.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
