"""The 1x1 kernels: several tiles, slabs and splits, one kernel or two for backward, wide layers, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import Geometry
from ..oracle import error
from .compare import FORMATS, arguments, call, check_error, label, sweep
from .conftest import DEVICE

# Growths 4 to 48 with widths 4g and others, one pixel, one column, more tiles and channels than one program has.
SEEDS = 3  # among few values one may be rounded well or badly by chance: the median counts
GEOMETRIES = [
    Geometry(2, 5, 7, 24, 16, 4),
    Geometry(3, 8, 8, 37, 48, 12),
    Geometry(1, 13, 1, 9, 5, 3),
    Geometry(2, 1, 1, 30, 96, 24),
    Geometry(2, 12, 13, 66, 128, 32),
    Geometry(1, 7, 6, 150, 160, 40),
    Geometry(1, 9, 5, 260, 192, 48),
    Geometry(1, 3, 3, 40, 300, 75),
]
NAMES = ["bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd"]
APART, TOGETHER = Device(80, 4), Device(90, 4)  # backward in two kernels, or in one


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    seeds = SEEDS if geometry.n * geometry.h * geometry.w * geometry.c < 5000 else 1
    cases = [arguments(name, geometry, FORMATS[form].dtype, DEVICE) for _ in range(seeds)]
    check_error(triton, eager, name, cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("device", [APART, TOGETHER], ids=lambda d: f"sm_{d.architecture}")
@pytest.mark.parametrize("options", [{"affine": False}, {"batch_stats": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, device, options):
    cases = [arguments(name, GEOMETRIES[1], torch.bfloat16, DEVICE, **options) for _ in range(SEEDS)]
    with recorded(device):
        check_error(triton, eager, name, cases[0], FORMATS["bfloat16"], *cases[1:])


@pytest.mark.parametrize("device", [APART, TOGETHER], ids=lambda d: f"sm_{d.architecture}")
@pytest.mark.parametrize("name", NAMES)
def test_small_integers_are_exact(triton, eager, name, device):
    """Sums of small integers have no rounding, so any difference is a wrong element."""
    args = arguments(name, GEOMETRIES[4], torch.float32, DEVICE, exact=True)
    exact, _ = call(getattr(eager, name), args, torch.float64)
    with recorded(device):
        ours, _ = call(getattr(triton, name), args)
    for i, (got, e) in enumerate(zip(ours, exact, strict=True)):
        if (name.endswith("fwd") and i > 0) or i >= len(exact) - 2:
            assert error(got, e) < 1e-6  # quotients
        else:
            assert torch.equal(got.double(), e), f"value {i}"


@pytest.mark.parametrize("device", [APART, TOGETHER], ids=lambda d: f"sm_{d.architecture}")
def test_without_the_weights_gradient(triton, device):
    args = arguments("bn_relu_conv1x1_bwd", GEOMETRIES[1], torch.bfloat16, DEVICE)
    with recorded(device) as launches:
        full, _ = call(triton.bn_relu_conv1x1_bwd, args)
        part, _ = call(triton.bn_relu_conv1x1_bwd, [*args[:-1], False])
    assert part[2].numel() == 0
    assert launches[-2].kernel.__name__ == "bn_relu_conv1x1_grads_kernel"
    assert launches[-2].arguments["splits"] == 0
    for a, b in zip(full[:2] + full[4:], part[:2] + part[4:], strict=True):
        assert error(a, b) < 1e-2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("device", [APART, TOGETHER], ids=lambda d: f"sm_{d.architecture}")
@pytest.mark.parametrize(("name", "where"), [(NAMES[0], 0), (NAMES[1], 0), (NAMES[1], 8)])
def test_nan_and_infinity_as_in_pytorch(triton, eager, name, where, device, bad):
    """In x, or in the gradient: finite values in the same places, and NaN stays NaN through the ReLU."""
    args = arguments(name, GEOMETRIES[0], torch.float32, DEVICE)
    args[where][1, 3, 4, 2] = bad
    theirs, _ = call(getattr(eager, name), args, torch.float64)
    with recorded(device):
        ours, _ = call(getattr(triton, name), args)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())
