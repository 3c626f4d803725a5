"""NaN and Inf: ReLU keeps NaN, and Winograd's tiles spread neither further than PyTorch's convolution does."""

import pytest
import torch
import torch.nn.functional as F

from .cases import Geometry, error, make, run

GEOMETRY = Geometry(2, 11, 9, 20, 24, 12)
BAD = [float("nan"), float("inf"), -float("inf")]


def same_pattern(got, expected):
    """Equal where finite, non-finite in the same places (Inf minus Inf is NaN: the kind may differ)."""
    assert torch.equal(got.isfinite(), expected.isfinite())
    where = expected.isfinite()
    assert error(got[where], expected[where]) < 1e-5


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "name", ["bn_relu_conv1x1_fwd", "bn_relu_conv3x3_fwd", "stem_fwd", "transition_fwd", "head_fwd"]
)
def test_one_bad_pixel_spreads_as_in_pytorch(native, eager, name, bad):
    case = make(name, GEOMETRY)
    case.args[0][0, 3, 5, 4] = bad
    ours, _ = run(getattr(native, name), case)
    theirs, _ = run(getattr(eager, name), case, torch.float64)
    same_pattern(ours[0], theirs[0])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_gradient_spreads_as_in_pytorch(native, eager, bad, accumulate):
    case = make("bn_relu_conv3x3_bwd", GEOMETRY, accumulate=accumulate)
    case.args[0][1, 2, 6, 3] = bad
    ours, _ = run(native.bn_relu_conv3x3_bwd, case)
    theirs, _ = run(eager.bn_relu_conv3x3_bwd, case, torch.float64)
    for got, expected in zip(ours, theirs, strict=True):
        same_pattern(got, expected)


def test_values_that_overflow_winograd_s_transform(native, eager):
    case = make("bn_relu_conv3x3_fwd", GEOMETRY)
    case.args[0][:, 0] = 2e38
    case.args[1:6] = [torch.zeros(24), torch.ones(24), None, None, 0.0]
    case.args[6][:, 0] = 1e-3
    ours, _ = run(native.bn_relu_conv3x3_fwd, case)
    assert ours[0].isfinite().all()


def test_relu_keeps_nan_and_its_gradient(native):
    x = torch.full((1, 3, 2, 2), float("nan")).contiguous(memory_format=torch.channels_last)
    zero, one, dx = torch.zeros(3), torch.ones(3), torch.empty_like(x)
    assert native.head_fwd(x, zero, one, None, None, 0.0).isnan().all()
    native.head_bwd(torch.ones(1, 3), x, zero, one, None, None, 0.0, False, dx, zero.clone(), zero.clone())
    assert torch.equal(dx, torch.full_like(dx, 0.25))
    y = F.relu(x.clone().requires_grad_()).mean((2, 3))
    assert y.isnan().all()
