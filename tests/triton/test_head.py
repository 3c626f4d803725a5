"""The head's kernels: images larger and smaller than a tile, several slabs and splits, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..calls import Geometry
from .compare import FORMATS, call, check_error, check_finite, label, sweep

SMALL = Geometry(2, 5, 7, 24, 1, 1)
GEOMETRIES = [SMALL, Geometry(3, 9, 9, 70, 1, 1), Geometry(1, 1, 1, 9, 1, 1), Geometry(12, 7, 7, 130, 1, 1)]
NAMES = ["head_fwd", "head_bwd"]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    cases = [call(name, geometry, form) for _ in range(3)]
    with recorded(Device(90, 1)):  # several tiles for each program
        check_error(triton, eager, FORMATS[form], *cases)


@pytest.mark.parametrize("options", [{"affine": False}, {"batch": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    check_error(triton, eager, FORMATS["bfloat16"], call(name, SMALL, "bfloat16", **options))


def test_a_gradient_of_any_layout(triton):
    case = call("head_bwd", SMALL)
    turned = case.changed(lambda name, t: t.t().contiguous().t() if name == "dy" else t)
    expected, results = (c.copy().on(triton).results() for c in (case, turned))
    assert all(torch.equal(results[name], e) for name, e in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_relu_keeps_nan_and_its_gradient(triton, name):
    check_finite(triton, call(name, SMALL), "x", float("nan"))
