"""The native backend: kernels in C++ (csrc/), registered by the compiled library when it is imported.

In float32, bfloat16 and float16. For the CPU, the best kernels that the processor runs are chosen when they are first
used; those for CUDA are there where it was built with nvcc.
"""

from .. import _C  # noqa: F401  (registers `densenet_fast::<op>.native`)

DISPATCH_KEY = None  # the library has registered its kernels itself
