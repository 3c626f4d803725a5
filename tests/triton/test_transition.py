"""The transition's kernels: odd images, several tiles and splits, layers wider than a tile, NaN."""

import pytest
import torch

from ..native.cases import Geometry
from .compare import FORMATS, arguments, call, check_error, label, sweep
from .conftest import DEVICE

SEEDS = 3  # among few values one may be rounded well or badly by chance: the median counts
GEOMETRIES = [
    Geometry(2, 5, 7, 24, 16, 4),
    Geometry(3, 8, 8, 37, 48, 12),
    Geometry(1, 2, 2, 9, 5, 3),
    Geometry(4, 3, 7, 12, 6, 3),
    Geometry(2, 17, 16, 150, 130, 4),
]
NAMES = ["transition_fwd", "transition_bwd"]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    seeds = SEEDS if geometry.n * geometry.h * geometry.w * geometry.c < 5000 else 1
    cases = [arguments(name, geometry, FORMATS[form].dtype, DEVICE) for _ in range(seeds)]
    check_error(triton, eager, name, cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("options", [{"affine": False}, {"batch_stats": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    cases = [arguments(name, GEOMETRIES[0], torch.float32, DEVICE, **options) for _ in range(SEEDS)]
    check_error(triton, eager, name, cases[0], FORMATS["float32"], *cases[1:])


@pytest.mark.parametrize("name", NAMES)
def test_small_integers_are_exact(triton, eager, name):
    """Sums of small integers, and quarters of them, have no rounding."""
    args = arguments(name, GEOMETRIES[1], torch.float32, DEVICE, exact=True)
    exact, _ = call(getattr(eager, name), args, torch.float64)
    ours, _ = call(getattr(triton, name), args)
    whole = slice(0, 1) if name.endswith("fwd") else slice(0, -2)  # the others are quotients
    for i, (got, e) in enumerate(zip(ours[whole], exact[whole], strict=True)):
        assert torch.equal(got.double(), e), f"value {i}"


def test_without_the_weights_gradient(triton):
    args = arguments("transition_bwd", GEOMETRIES[0], torch.bfloat16, DEVICE)
    full, _ = call(triton.transition_bwd, args)
    part, _ = call(triton.transition_bwd, [*args[:-1], False])
    assert part[2].numel() == 0
    assert all(map(torch.equal, full[:2] + full[3:], part[:2] + part[3:]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "where"), [(NAMES[0], 0), (NAMES[1], 0), (NAMES[1], 1)])
def test_nan_and_infinity_as_in_pytorch(triton, eager, name, where, bad):
    args = arguments(name, GEOMETRIES[0], torch.float32, DEVICE)
    args[where][1, 3, 1, 2] = bad
    ours, _ = call(getattr(triton, name), args)
    theirs, _ = call(getattr(eager, name), args, torch.float64)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())
