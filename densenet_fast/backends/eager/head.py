"""The final BN-ReLU and global average."""

from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import Affine, bn_relu_bwd, nhwc


def head_fwd(x: Tensor, norm: Norm, y: Tensor) -> None:
    y.copy_(Affine(norm).relu(x).mean((2, 3)))


def head_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    v = nhwc((dy / (x.shape[2] * x.shape[3]))[:, :, None, None].expand_as(x))
    dx.zero_()
    bn_relu_bwd(v, x, Affine(norm), dx, dnorm)
