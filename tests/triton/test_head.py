"""The head's kernels: images larger and smaller than a tile, several slabs and splits, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import Geometry
from .compare import FORMATS, arguments, call, check_error, label, sweep
from .conftest import DEVICE

GEOMETRIES = [
    Geometry(2, 5, 7, 24, 1, 1),
    Geometry(3, 9, 9, 70, 1, 1),
    Geometry(1, 1, 1, 9, 1, 1),
    Geometry(12, 7, 7, 130, 1, 1),
]
NAMES = ["head_fwd", "head_bwd"]


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    cases = [arguments(name, geometry, FORMATS[form].dtype, DEVICE) for _ in range(3)]
    with recorded(Device(90, 1)):  # several tiles for each program
        check_error(triton, eager, name, cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("options", [{"affine": False}, {"batch_stats": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, options):
    check_error(
        triton, eager, name, arguments(name, GEOMETRIES[0], torch.bfloat16, DEVICE, **options), FORMATS["bfloat16"]
    )


def test_a_gradient_of_any_layout(triton):
    args = arguments("head_bwd", GEOMETRIES[0], torch.float32, DEVICE)
    expected, _ = call(triton.head_bwd, args)
    args[0] = args[0].t().contiguous().t()
    results, _ = call(triton.head_bwd, args)
    assert all(map(torch.equal, results, expected))


def test_relu_keeps_nan_and_its_gradient(triton, eager):
    for name, position in (("head_fwd", 0), ("head_bwd", 1)):
        args = arguments(name, GEOMETRIES[0], torch.float32, DEVICE)
        args[position][1, 3, 2, 4] = float("nan")
        ours, _ = call(getattr(triton, name), args)
        theirs, _ = call(getattr(eager, name), args)
        for got, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, expected, equal_nan=True)
