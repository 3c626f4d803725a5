"""head on CUDA: images of any size, more images than one block reads, channels that end inside a block."""

import pytest
import torch

from ..native.cases import Geometry, error, run
from .cases import MATHS, make
from .test_bn_relu_conv3x3 import label

GEOMETRIES = [  # n, h, w, c
    Geometry(2, 7, 7, 72, 1, 1),
    Geometry(600, 1, 1, 24, 1, 1),
    Geometry(1, 23, 25, 13, 1, 1),
]


@pytest.mark.parametrize("name", ["head_fwd", "head_bwd"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=label)
@pytest.mark.parametrize("math", ["bf16", "fp32"])
@pytest.mark.parametrize("room", [8, 3], indirect=True)
def test_error_is_at_most_twice_eager_s(machine, eager, room, name, geometry, math):
    case = make(name, geometry, MATHS[math].dtype)
    exact, _ = run(getattr(eager, name), case, torch.float64)
    theirs, _ = run(getattr(eager, name), case)
    ours, _ = run(getattr(machine.operations, name), case)
    for got, their, wanted in zip(ours, theirs, exact, strict=True):
        assert error(got, wanted) <= 2 * error(their, wanted) + torch.finfo(got.dtype).eps


def test_nan_passes_the_relu(machine):
    x = torch.full((1, 8, 2, 2), float("nan")).contiguous(memory_format=torch.channels_last)
    zero, one, dx = torch.zeros(8), torch.ones(8), torch.empty_like(x)
    assert machine.operations.head_fwd(x, zero, one, None, None, 0.0).isnan().all()
    machine.operations.head_bwd(torch.ones(1, 8), x, zero, one, None, None, 0.0, False, dx, zero.clone(), zero.clone())
    assert torch.equal(dx, torch.full_like(dx, 0.25))
