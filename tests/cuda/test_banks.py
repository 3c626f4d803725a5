"""No lanes that shared memory serves at once meet in one of its banks, where rows lie on 16 bytes: counted as the PTX
runs."""

import pytest

from ..calls import NAMES, Geometry, applies, make
from ..rows import thorough
from .cases import MATHS, label

SINGLE = [name for name in NAMES if not name.startswith("layer")]
SIZES = [Geometry(1, 16, 16, 160, 128, 32), thorough(Geometry(1, 10, 12, 96, 64, 16))]
# Wavefronts that a kernel's accesses may take for each that they need, and why.
EXCUSED = {
    ("bn_relu_conv1x1_bwd_kernel", 4): (1.15, "dz is an operand as it lies, for ldmatrix, and one transposed, without"),
    ("bn_relu_conv3x3_wgrad_kernel", 2): (1.12, "eight pixels of a product that lie in two rows of a narrow image"),
    ("channel_stats_kernel", 2): (1.5, "the end of a block: both halves of a piece, which its channels leave"),
    ("stem_fwd_kernel", 2): (1.5, "as above"),
    ("stem_bwd_kernel", 2): (1.2, "as above"),
    ("head_fwd_kernel", 2): (1.8, "as above"),
    ("head_bwd_kernel", 2): (1.5, "as above"),
    ("bn_relu_pool_bwd_kernel", 2): (1.5, "as above"),
}


@pytest.mark.parametrize("geometry", SIZES, ids=label)
@pytest.mark.parametrize("math", ["bf16", thorough("tf32"), thorough("fp32")])
@pytest.mark.parametrize("name", SINGLE)
def test_banks(machine, name, math, geometry):
    if not applies(name, geometry):
        return
    machine.counting = True
    machine.set(tf32=MATHS[math].tf32)
    make(name, geometry, MATHS[math].dtype, room=8).on(machine.operations).results()
    for kernel, by_line in machine.wavefronts.items():
        taken, least = map(sum, zip(*by_line.values(), strict=True))
        size = MATHS[math].dtype.itemsize
        limit = next((limit for (part, of), (limit, _) in EXCUSED.items() if part in kernel and of == size), 1)
        assert taken <= limit * least, f"{kernel}: {worst(machine, kernel)}"


def worst(machine, kernel):
    """The line of the PTX that takes the most wavefronts more than it needs."""
    by_line = machine.wavefronts[kernel]
    line = max(by_line, key=lambda line: by_line[line].taken - by_line[line].least)
    text = next(ins.text for ins in machine.kernel(kernel).kernel.code if ins.line == line)
    return f"{by_line[line]}, line {line}, {text}"
