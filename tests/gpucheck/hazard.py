"""A kernel with the register hazard that sass.py looks for, and one without: the same product, either way round."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def naive_kernel(
    x,  # [M, C]
    w,  # [K, C]
    z,  # [M, K] written
    M,
    C,
    K,
    SAFE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """z = relu(x) @ w^T. What was computed is the product's first operand, read from registers; SAFE: its second, read
    from shared memory."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for first in range(0, C, 64):
        c = first + tl.arange(0, 64)
        values = tl.load(x + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0.0)
        weight = tl.load(w + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & (c < C)[None, :], other=0.0)
        activated = tl.maximum(values.to(tl.float32), 0.0).to(values.dtype)
        acc = tl.dot(weight, tl.trans(activated), acc) if SAFE else tl.dot(activated, tl.trans(weight), acc)
    mask = (m < M)[:, None] & (k < K)[None, :]
    tl.store(z + m[:, None] * K + k[None, :], (tl.trans(acc) if SAFE else acc).to(z.dtype.element_ty), mask=mask)


class Naive(NamedTuple):
    """The kernel in bfloat16, its sizes multiples of 16."""

    safe: bool
    stages: int = 3
    kernel: str = "naive_kernel"
    architecture: int = 90

    def compile(self) -> Any:
        types = dict.fromkeys("xwz", "*bf16") | dict.fromkeys("MCK", "i32")
        constants = {"SAFE": self.safe, "BLOCK": 128}
        divisible = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
        source = triton.compiler.ASTSource(
            naive_kernel, types | dict.fromkeys(constants, "constexpr"), constants, divisible
        )
        target = triton.backends.compiler.GPUTarget("cuda", self.architecture, 32)
        return triton.compile(source, target, {"num_warps": 8, "num_stages": self.stages})
