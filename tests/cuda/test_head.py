"""head on CUDA: images of any size, more images than one block reads, channels that end inside a block."""

import pytest
import torch

from .. import reference
from ..calls import Geometry, errors, make
from .cases import MATHS, label

GEOMETRIES = [  # n, h, w, c
    Geometry(2, 7, 7, 72, 1, 1),
    Geometry(600, 1, 1, 24, 1, 1),
    Geometry(1, 23, 25, 13, 1, 1),
]


@pytest.mark.parametrize("name", ["head_fwd", "head_bwd"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=label)
@pytest.mark.parametrize("math", ["bf16", "fp32"])
@pytest.mark.parametrize("room", [8, 3], indirect=True)
def test_error_is_at_most_twice_stock_s(machine, room, name, geometry, math):
    call = make(name, geometry, MATHS[math].dtype, room=room)
    exact = call.copy(torch.float64).on(reference).results()
    got = call.copy().on(machine.operations).results()
    ours, stock = (errors(values, exact) for values in (got, call.copy().on(reference).results()))
    for result in exact:
        assert ours[result] <= 2 * stock[result] + torch.finfo(got[result].dtype).eps, result


def test_nan_passes_the_relu(machine):
    fwd, bwd = (make(name, Geometry(1, 2, 2, 8, 1, 1), affine=False, exact=True) for name in ("head_fwd", "head_bwd"))
    for call in (fwd, bwd):
        dict(call.named())["x"].fill_(float("nan"))
    dict(bwd.named())["dy"].fill_(1)
    assert fwd.on(machine.operations).results()["y"].isnan().all()
    dx = bwd.on(machine.operations).results()["dx"]
    assert torch.equal(dx, torch.full_like(dx, 0.25))
