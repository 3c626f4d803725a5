"""The 1x1 kernels: several tiles and slabs and splits, one kernel or two for backward, wide layers, NaN."""

import pytest
import torch

from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import Geometry
from .compare import FORMATS, arguments, call, errors
from .conftest import DEVICE

# Growths 4 to 48 with widths 4g and others, one pixel, one column, more tiles and channels than one program has.
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


@pytest.fixture(params=FORMATS)
def dtype(request):
    dtype, precision = FORMATS[request.param]
    torch.backends.cudnn.conv.fp32_precision = precision  # reset by conftest.py
    return dtype


def compare(triton, eager, name, args):
    for i, (ours, theirs, eps) in enumerate(errors(triton, eager, name, args)):
        assert ours <= 2 * theirs + eps, f"value {i}: {ours:.2e}, eager {theirs:.2e}"


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g)))
@pytest.mark.parametrize("name", ["bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd"])
def test_error(triton, eager, name, geometry, dtype):
    compare(triton, eager, name, arguments(name, geometry, dtype, DEVICE))


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("options", [{"affine": False}, {"batch_stats": False}], ids=str)
def test_variants(triton, eager, architecture, options):
    for name in ("bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd"):
        with recorded(Device(architecture, 4)):
            compare(triton, eager, name, arguments(name, GEOMETRIES[1], torch.bfloat16, DEVICE, **options))


@pytest.mark.parametrize("architecture", [80, 90])
def test_without_the_weights_gradient(triton, eager, architecture):
    args = arguments("bn_relu_conv1x1_bwd", GEOMETRIES[1], torch.bfloat16, DEVICE)
    with recorded(Device(architecture, 4)) as launches:
        full, _ = call(triton.bn_relu_conv1x1_bwd, args)
        part, _ = call(triton.bn_relu_conv1x1_bwd, [*args[:-1], False])
    assert part[2].numel() == 0
    for a, b in zip(full[:2] + full[3:], part[:2] + part[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    assert not any("wgrad" in launch.kernel.__name__ for launch in launches[-2:])
