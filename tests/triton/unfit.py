"""Kernels that a compiler refuses, and dies of."""

import triton
import triton.language as tl


@triton.jit
def refused_kernel(x):
    tl.store(x, tl.arange(0, 3))  # no power of two


@triton.constexpr_function
def die():
    import os  # here, or Triton would look into it

    os._exit(9)


@triton.jit
def deadly_kernel(x):
    tl.store(x, die())
