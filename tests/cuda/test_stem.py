"""stem on CUDA, in integers: ties of the maximum go where PyTorch's go."""

import pytest
import torch

from .. import reference
from ..calls import Geometry, error, make
from .cases import MATHS, label
from .test_bn_relu_conv3x3 import check_exact

GEOMETRIES = [  # n, h, w, c
    Geometry(2, 5, 7, 64, 1, 1),
    Geometry(1, 18, 35, 13, 1, 1),
    Geometry(3, 1, 1, 24, 1, 1),
    Geometry(1, 2, 4, 70, 1, 1),
]


@pytest.mark.parametrize("name", ["stem_fwd", "stem_bwd"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=label)
@pytest.mark.parametrize("math", ["bf16", "fp32"])
@pytest.mark.parametrize("room", [8, 3], indirect=True)
def test_the_first_of_equal_maxima_counts(machine, room, name, geometry, math):
    check_exact(machine, make(name, geometry, MATHS[math].dtype, exact=True, room=room))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["stem_fwd", "stem_bwd"])
def test_a_bad_value_spreads_as_in_pytorch(machine, name, bad):
    call = make(name, Geometry(2, 6, 5, 20, 1, 1))
    dict(call.named())["x"][1, 2, 3, 1] = bad
    exact, ours = call.copy(torch.float64).on(reference).results(), call.copy().on(machine.operations).results()
    for result, wanted in exact.items():
        assert torch.equal(ours[result].isfinite(), wanted.isfinite()), result
        assert error(ours[result][wanted.isfinite()], wanted[wanted.isfinite()]) < 1e-5, result
