"""The transition's kernels: odd images, several tiles and splits, layers wider than a tile, NaN."""

import pytest
import torch

from ..calls import Geometry
from .compare import FORMATS, call, check_error, check_exact, check_finite, label, sweep

SEEDS = 3  # among few values one may be rounded well or badly by chance: the median counts
SMALL, ODD = Geometry(2, 5, 7, 24, 16, 4), Geometry(3, 8, 8, 37, 48, 12)
GEOMETRIES = [SMALL, ODD, Geometry(1, 2, 2, 9, 5, 3), Geometry(4, 3, 7, 12, 6, 3), Geometry(2, 17, 16, 150, 130, 4)]
NAMES = ["transition_fwd", "transition_bwd"]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    seeds = SEEDS if geometry.n * geometry.h * geometry.w * geometry.c < 5000 else 1
    check_error(triton, eager, FORMATS[form], *(call(name, geometry, form) for _ in range(seeds)))


@pytest.mark.parametrize("options", [{"affine": False}, {"batch": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    check_error(triton, eager, FORMATS["float32"], *(call(name, SMALL, **options) for _ in range(SEEDS)))


@pytest.mark.parametrize("name", NAMES)
def test_small_integers_are_exact(triton, name):
    """Sums of small integers, and quarters of them."""
    check_exact(triton, call(name, ODD, exact=True), "stats", "correction")


def test_without_the_weights_gradient(triton):
    case = call("transition_bwd", SMALL, "bfloat16")
    frozen = case.changed(lambda name, tensor: None if name == "dweight" else tensor)
    full, part = (c.copy().on(triton).results() for c in (case, frozen))
    assert full.keys() - part.keys() == {"dweight"}
    assert all(torch.equal(got, full[name]) for name, got in part.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "where"), [(NAMES[0], "x"), (NAMES[1], "dy"), (NAMES[1], "x")])
def test_nan_and_infinity_as_in_pytorch(triton, name, where, bad):
    case = call(name, SMALL)
    check_finite(triton, case, where, bad)
