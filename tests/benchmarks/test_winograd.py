"""The transforms whose exactness is measured are those of a 3x3 convolution."""

import pytest
import torch

from benchmarks.winograd import POINTS, convolve


@pytest.mark.parametrize("points", POINTS, ids=" ".join)
def test_is_the_convolution(points):
    size = len(points) - 1
    x = torch.randn(3, 5, size + 2, size + 2, dtype=torch.float64)
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    ours = convolve(x, weight, points, channels=2)
    torch.testing.assert_close(ours, torch.conv2d(x, weight), rtol=1e-12, atol=1e-12)
