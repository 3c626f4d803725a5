"""The stem's kernels: odd images, several tiles and splits, ties, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import Geometry, error
from .compare import FORMATS, arguments, call, check_error, label, sweep
from .conftest import DEVICE

GEOMETRIES = [
    Geometry(2, 5, 7, 24, 1, 1),
    Geometry(3, 8, 6, 70, 1, 1),
    Geometry(1, 1, 1, 9, 1, 1),
    Geometry(2, 1, 4, 5, 1, 1),
    Geometry(1, 10, 11, 16, 1, 1),
]
NAMES = ["stem_fwd", "stem_bwd"]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    check_error(triton, eager, name, arguments(name, geometry, FORMATS[form].dtype, DEVICE), FORMATS[form])


@pytest.mark.parametrize("name", NAMES)
def test_several_tiles_for_each_program(triton, eager, name):
    """With small integers only quotients are rounded."""
    args = arguments(name, Geometry(1, 23, 24, 5, 1, 1), torch.float32, DEVICE, exact=True)
    with recorded(Device(90, 1)):
        ours, _ = call(getattr(triton, name), args)
    exact, _ = call(getattr(eager, name), args, torch.float64)
    assert all(error(got, e) < 1e-6 for got, e in zip(ours, exact, strict=True))


@pytest.mark.parametrize("options", [{"affine": False}, {"batch_stats": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    check_error(
        triton, eager, name, arguments(name, GEOMETRIES[0], torch.bfloat16, DEVICE, **options), FORMATS["bfloat16"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES[::4], ids=lambda g: "x".join(map(str, g[:4])))
def test_ties_fall_to_the_same_position(triton, eager, geometry, dtype):
    """Small integers have many ties and no rounding."""
    for name in NAMES:
        args = arguments(name, geometry, dtype, DEVICE, exact=True)
        ours, _ = call(getattr(triton, name), args)
        theirs, _ = call(getattr(eager, name), args)
        first = 0 if name == "stem_fwd" else 2  # y, or dx behind dgamma and dbeta
        assert torch.equal(ours[first], theirs[first])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_values_that_rounding_makes_equal_tie(triton, eager, dtype):
    """bn(x) differs from 1 by less than half a place: every window's first position gets the gradient."""
    args = arguments("stem_bwd", GEOMETRIES[1], dtype, DEVICE)
    for vector, value in zip(args[2:6], (0.0, 1.0, 2.0**-15, 1.0), strict=True):  # mean, var, gamma, beta
        vector.fill_(value)
    ours, _ = call(triton.stem_bwd, args)
    theirs, _ = call(eager.stem_bwd, args)
    assert torch.equal(ours[2] != 0, theirs[2] != 0)


@pytest.mark.parametrize("count", [1, 40])
def test_nan_wins_and_gets_the_gradient(triton, eager, count):
    """Of several NaN in a window the last one, as in PyTorch."""
    for name, position in (("stem_fwd", 0), ("stem_bwd", 1)):
        args = arguments(name, GEOMETRIES[1], torch.float32, DEVICE, exact=True)
        x = args[position]
        for n, c, h, w in torch.stack([torch.randint(size, (count,)) for size in x.shape], 1).tolist():
            x[n, c, h, w] = float("nan")
        ours, _ = call(getattr(triton, name), args)
        theirs, _ = call(getattr(eager, name), args)
        first = 0 if name == "stem_fwd" else 2
        torch.testing.assert_close(ours[first], theirs[first], rtol=0, atol=0, equal_nan=True)
