"""NaN and Inf: ReLU keeps NaN, and Winograd's tiles spread neither further than PyTorch's convolution does."""

import pytest
import torch
import torch.nn.functional as F

from .. import reference
from ..calls import Geometry, error, make

GEOMETRY = Geometry(2, 11, 9, 20, 24, 12)
BAD = [float("nan"), float("inf"), -float("inf")]


def same_pattern(call, native, results=()):
    """Equal where finite, non-finite in the same places (Inf minus Inf is NaN: the kind may differ)."""
    exact, ours = call.copy(torch.float64).on(reference).results(), call.copy().on(native).results()
    for result in results or exact:
        where = exact[result].isfinite()
        assert torch.equal(ours[result].isfinite(), where), result
        assert error(ours[result][where], exact[result][where]) < 1e-5, result


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("conv1x1_fwd", "x", "z"),
        ("conv3x3_fwd", "z", "x"),
        ("plain_fwd", "x", "x"),
        ("stem_fwd", "x", "y"),
        ("transition_fwd", "x", "y"),
        ("head_fwd", "x", "y"),
    ],
)
def test_one_bad_pixel_spreads_as_in_pytorch(native, name, read, written, bad):
    call = make(name, GEOMETRY)
    given = dict(call.named())[read]
    if read == "z":
        given[(5 * 9 + 4) * 24 + 3] = bad
    else:
        given[0, 3, 5, 4] = bad
    same_pattern(call, native, [written])


@pytest.mark.parametrize(("name", "read", "written"), [("conv1x1_fwd", "x", "z"), ("transition_fwd", "x", "y")])
def test_inf_stays_inf(native, name, read, written):
    """With all that is made of it, whatever else is added: an instruction set that multiplies floats as sums of smaller
    ones has Inf minus Inf on its way."""
    call = make(name, GEOMETRY, affine=False)
    dict(call.named())[read][0, 3, 5, 4] = float("inf")
    exact = call.copy(torch.float64).on(reference).results()[written]
    ours = call.copy().on(native).results()[written]
    for sign in (1, -1):
        assert (exact == sign * float("inf")).any()
        assert torch.equal(ours == sign * float("inf"), exact == sign * float("inf"))


@pytest.mark.parametrize("name", ["conv3x3_bwd", "plain_bwd"])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_gradient_spreads_as_in_pytorch(native, name, bad):
    call = make(name, GEOMETRY)
    dict(call.named())["g"][1, 20 + 2, 6, 3] = bad
    same_pattern(call, native)


def test_values_that_overflow_winograd_s_transform(native):
    call = make("conv3x3_fwd", GEOMETRY, affine=False, batch=False)
    given = dict(call.named())
    given["z"].view(-1, 24)[:, 0] = 2e38
    given["mean2 of layer 0"][:], given["var2 of layer 0"][:] = 0, 1
    given["weight2 of layer 0"][:, 0] = 1e-3
    assert call.on(native).results()["x"].isfinite().all()


def test_relu_keeps_nan_and_its_gradient(native):
    fwd, bwd = (make(name, Geometry(1, 2, 2, 3, 1, 1), affine=False, exact=True) for name in ("head_fwd", "head_bwd"))
    for call in (fwd, bwd):
        dict(call.named())["x"].fill_(float("nan"))
    dict(bwd.named())["dy"].fill_(1)
    assert fwd.on(native).results()["y"].isnan().all()
    dx = bwd.on(native).results()["dx"]
    assert torch.equal(dx, torch.full_like(dx, 0.25))
    y = F.relu(dict(fwd.named())["x"].clone().requires_grad_()).mean((2, 3))
    assert y.isnan().all()
