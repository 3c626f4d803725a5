"""The final BN-ReLU and global average."""

from torch import Tensor

from ...contract import Norm, NormGradient
from ._common import Affine, bn_relu_bwd, rows


def head_fwd(x: Tensor, norm: Norm, y: Tensor) -> None:
    y.copy_(Affine(norm).relu(rows(x)).view(x.shape[0], -1, x.shape[1]).mean(1))


def head_bwd(dy: Tensor, x: Tensor, norm: Norm, dx: Tensor, dnorm: NormGradient) -> None:
    of_image = x.shape[2] * x.shape[3]

    def gradient(i: slice, activated: Tensor) -> Tensor:
        return (dy[i] / of_image)[:, None].expand(-1, of_image, -1).contiguous().view(activated.shape)

    bn_relu_bwd(x, norm, dx, dnorm, gradient)
