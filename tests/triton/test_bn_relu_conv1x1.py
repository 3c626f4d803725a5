"""The 1x1 kernels, as first halves of a layer: several tiles, slabs and splits, one kernel or two for backward, wide
layers, NaN."""

import pytest

from densenet_fast.backends.triton.launch import Device, recorded

from ..calls import Geometry, error
from .compare import FORMATS, call, check_error, check_exact, check_finite, label, sweep

# Growths 4 to 48 with widths 4g and others, one pixel, one column, more tiles and channels than one program has.
SEEDS = 3  # among few values one may be rounded well or badly by chance: the median counts
SMALL, ODD = Geometry(2, 5, 7, 24, 16, 4), Geometry(3, 8, 8, 37, 48, 12)
GEOMETRIES = [
    SMALL,
    ODD,
    Geometry(1, 13, 1, 9, 5, 3),
    Geometry(2, 1, 1, 30, 96, 24),
    Geometry(2, 12, 13, 66, 128, 32),
    Geometry(1, 9, 5, 260, 192, 48),
    Geometry(1, 3, 3, 40, 300, 75),
]
NAMES = ["conv1x1_fwd", "conv1x1_bwd"]
APART, TOGETHER = Device(80, 4), Device(90, 4)  # backward in two kernels, or in one
DEVICES = pytest.mark.parametrize("device", [APART, TOGETHER], ids=lambda d: f"sm_{d.architecture}")


@pytest.mark.parametrize(("geometry", "form"), sweep(GEOMETRIES), ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_at_most_twice_eager_s(triton, eager, name, geometry, form):
    seeds = SEEDS if geometry.n * geometry.h * geometry.w * geometry.c < 5000 else 1
    check_error(triton, eager, FORMATS[form], *(call(name, geometry, form) for _ in range(seeds)))


@DEVICES
@pytest.mark.parametrize("options", [{"affine": False}, {"batch": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_variants(triton, eager, name, device, options):
    cases = [call(name, ODD, "bfloat16", **options) for _ in range(SEEDS)]
    with recorded(device):
        check_error(triton, eager, FORMATS["bfloat16"], *cases)


@DEVICES
@pytest.mark.parametrize("name", NAMES)
def test_small_integers_are_exact(triton, name, device):
    with recorded(device):
        check_exact(triton, call(name, GEOMETRIES[4], exact=True), "stats", "correction")


@DEVICES
def test_without_the_weights_gradient(triton, device):
    case = call("conv1x1_bwd", ODD, "bfloat16")
    frozen = case.changed(lambda name, tensor: None if name.startswith("dweight1") else tensor)
    with recorded(device) as launches:
        full, part = (c.copy().on(triton).results() for c in (case, frozen))
    assert launches[-1].kernel.__name__ == "bn_relu_conv1x1_grads_kernel"  # and none that adds up nothing
    assert launches[-1].arguments["splits"] == 0
    assert full.keys() - part.keys() == {"dweight1 of layer 0"}
    for name, got in part.items():
        assert error(got, full[name]) < 1e-2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@DEVICES
@pytest.mark.parametrize(("name", "where"), [("conv1x1_fwd", "x"), ("conv1x1_bwd", "u"), ("conv1x1_bwd", "x")])
def test_nan_and_infinity_as_in_pytorch(triton, name, where, device, bad):
    """In x, or in the gradient: finite values in the same places, and NaN stays NaN through the ReLU."""
    with recorded(device):
        check_finite(triton, call(name, SMALL), where, bad)
