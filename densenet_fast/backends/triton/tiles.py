"""Which tile a kernel takes: a committed table, and rules for what it does not hold. Nothing is timed at run time.

Entries are keyed by operation, architecture and the kind of product; `python -m benchmarks.tune` measures them on the
GPU at hand. Until a row says otherwise its choice comes from what compiles without spilling (tests/triton/aot.py).
"""

from typing import NamedTuple


class Tile(NamedTuple):
    """Pixels, output channels and reduced channels of one program's tile; warps; stages of the software pipeline."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


HALF, TF32, FP32 = "half", "tf32", "fp32"  # kinds of product: 16-bit operands, TF32, three TF32 products
