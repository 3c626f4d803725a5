"""ops/bottleneck.py as two launches: norm2 and its ReLU run where z is written, and the 3x3 convolution takes it as it
is."""

from torch import Tensor

from ...ops._operation import image
from .arguments import Arguments
from .bn_relu_conv1x1 import conv1x1
from .bn_relu_conv3x3_fwd import conv3x3


def bottleneck_infer(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight1: Tensor,
    mean2: Tensor,
    var2: Tensor,
    gamma2: Tensor | None,
    beta2: Tensor | None,
    eps2: float,
    weight2: Tensor,
    y: Tensor,
) -> None:
    check = Arguments("bottleneck_infer", "x", x)
    norm = check.norm(mean, var, gamma, beta, check.C)
    weight1 = check.weight("weight1", weight1, None, check.C, 1)
    width = weight1.shape[0]
    norm2 = check.norm(mean2, var2, gamma2, beta2, width, suffix="2")
    weight2 = check.weight("weight2", weight2, None, width, 3)
    check.image("y", y, weight2.shape[0], written=True)
    z = image(x, width, check.H, check.W)
    conv1x1(check, x, norm, eps, weight1, norm2, eps2, z, None, Tensor.new_empty)
    conv3x3(Arguments("bottleneck_infer", "z", z), z, None, 0.0, weight2, 0.0, None, y, None, Tensor.new_empty)
