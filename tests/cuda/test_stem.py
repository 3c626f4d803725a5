"""stem on CUDA, in integers: ties of the maximum go where PyTorch's go."""

import pytest
import torch

from ..native.cases import Geometry, error, run
from .cases import MATHS, make
from .test_bn_relu_conv3x3 import check_exact, integers, label

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
def test_the_first_of_equal_maxima_counts(machine, eager, room, name, geometry, math):
    check_exact(machine, eager, name, integers(name, geometry, MATHS[math].dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["stem_fwd", "stem_bwd"])
def test_a_bad_value_spreads_as_in_pytorch(machine, eager, name, bad):
    case = make(name, Geometry(2, 6, 5, 20, 1, 1), torch.float32)
    case.args[0 if name == "stem_fwd" else 1][1, 2, 3, 1] = bad
    exact, _ = run(getattr(eager, name), case, torch.float64)
    ours, _ = run(getattr(machine.operations, name), case)
    for got, wanted in zip(ours, exact, strict=True):
        assert torch.equal(got.isfinite(), wanted.isfinite())
        assert error(got[wanted.isfinite()], wanted[wanted.isfinite()]) < 1e-5
