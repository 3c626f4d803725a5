"""The stem's kernels: odd images, several tiles and splits, ties, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..calls import Geometry, error
from .compare import FORMATS, call, check_error, exact, label, sweep

SMALL, WIDE = Geometry(2, 5, 7, 24, 1, 1), Geometry(3, 8, 6, 70, 1, 1)
GEOMETRIES = [SMALL, WIDE, Geometry(1, 1, 1, 9, 1, 1), Geometry(2, 1, 4, 5, 1, 1), Geometry(1, 10, 11, 16, 1, 1)]
NAMES = ["stem_fwd", "stem_bwd"]
FIRST = {"stem_fwd": "y", "stem_bwd": "dx"}


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    check_error(triton, eager, FORMATS[form], call(name, geometry, form))


@pytest.mark.parametrize("name", NAMES)
def test_several_tiles_for_each_program(triton, name):
    """With small integers only quotients are rounded."""
    case = call(name, Geometry(1, 23, 24, 5, 1, 1), exact=True)
    with recorded(Device(90, 1)):
        ours = case.copy().on(triton).results()
    assert all(error(ours[result].cpu(), e) < 1e-6 for result, e in exact(case).results().items())


@pytest.mark.parametrize("options", [{"affine": False}, {"batch": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    check_error(triton, eager, FORMATS["bfloat16"], call(name, SMALL, "bfloat16", **options))


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("geometry", [SMALL, GEOMETRIES[-1]], ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_ties_fall_to_the_same_position(triton, eager, name, geometry, form):
    """Small integers have many ties and no rounding."""
    case = call(name, geometry, form, exact=True)
    ours, theirs = (case.copy().on(backend).results()[FIRST[name]] for backend in (triton, eager))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", ["bfloat16", "float16"])
def test_values_that_rounding_makes_equal_tie(triton, eager, form):
    """bn(x) differs from 1 by less than half a place: every window's first position gets the gradient."""
    case = call("stem_bwd", WIDE, form)
    for name, value in (("mean", 0.0), ("var", 1.0), ("gamma", 2.0**-15), ("beta", 1.0)):
        dict(case.named())[name].fill_(value)
    ours, theirs = (case.copy().on(backend).results()["dx"] for backend in (triton, eager))
    assert torch.equal(ours != 0, theirs != 0)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("name", NAMES)
def test_nan_wins_and_gets_the_gradient(triton, eager, name, count):
    """Of several NaN in a window the last one, as in PyTorch."""
    case = call(name, WIDE, exact=True)
    x = dict(case.named())["x"]
    for n, c, h, w in torch.stack([torch.randint(size, (count,)) for size in x.shape], 1).tolist():
        x[n, c, h, w] = float("nan")
    ours, theirs = (case.copy().on(backend).results()[FIRST[name]] for backend in (triton, eager))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
