"""The native backend: kernels in C++ (csrc/), registered by the compiled library when it is imported.

In float32, bfloat16 and float16. For the CPU, AVX2, AVX-512 or portable kernels are chosen when the library is loaded;
those for CUDA are there where it was built with nvcc.
"""

from .. import _C  # noqa: F401  (registers `densenet_fast::<op>.native`)

DISPATCH_KEY = None  # the library has registered its kernels itself
