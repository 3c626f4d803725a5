"""BN-ReLU-conv1x1: the bottleneck convolution, from the block's buffer to z. Kernels 1 and 4 of docs/design.md."""

from torch import Tensor

from ._operation import NORM, Operation, image, sums, vector


def _fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = weight.shape[0]
    z = image(x, width, *x.shape[2:])
    return z, vector(x, width if stats else 0), vector(x, width if stats else 0)


def _bwd(
    u: Tensor,
    z: Tensor,
    z_mean: Tensor,
    scale: Tensor,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    dx: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return *sums(x), weight.new_empty(weight.shape if wgrad else 0)


OPERATIONS = (
    # z = conv1x1(relu(bn(x)), weight), and z's channel statistics if `stats`.
    # x [N, C, H, W], weight [K, C, 1, 1] -> z [N, K, H, W] dense NHWC, z_mean, z_var [K].
    Operation(
        "bn_relu_conv1x1_fwd",
        f"(Tensor x, {NORM}, Tensor weight, bool stats) -> (Tensor z, Tensor z_mean, Tensor z_var)",
        _fwd,
    ),
    # From u [N, K, H, W], the gradient at norm2's output, with norm2's scale, a, b [K] (bn_bwd_finalize):
    #   dz = scale * u - a - b * (z - z_mean),  v = conv1x1_transposed(dz, weight) * (bn(x) > 0),
    #   dx += gamma * rstd * v,  dweight = dz^T relu(bn(x))  -> sum_v, sum_vx [C], dweight [K, C, 1, 1] if `wgrad`.
    # u's memory may be used for dz: its content is undefined afterwards.
    Operation(
        "bn_relu_conv1x1_bwd",
        f"(Tensor(b!) u, Tensor z, Tensor z_mean, Tensor scale, Tensor a, Tensor b, Tensor x, {NORM}, Tensor weight,"
        " Tensor(a!) dx, bool wgrad) -> (Tensor sum_v, Tensor sum_vx, Tensor dweight)",
        _bwd,
    ),
)
