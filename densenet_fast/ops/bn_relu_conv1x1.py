"""BN-ReLU-conv1x1: the bottleneck convolution, from the block's buffer to z."""

from torch import Tensor

from ._operation import NORM, Operation, image, vector, vectors


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
    z_var: Tensor,
    z_gamma: Tensor | None,
    z_eps: float,
    z_a: Tensor,
    z_b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    batch_stats: bool,
    dx: Tensor,
    a: Tensor,
    b: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return *vectors(x), weight.new_empty(weight.shape if wgrad else 0)


OPERATIONS = (
    # z = conv1x1(relu(bn(x)), weight), and z's channel statistics if `stats`.
    # x [N, C, H, W], weight [K, C, 1, 1] -> z [N, K, H, W] dense NHWC, z_mean, z_var [K].
    Operation(
        "bn_relu_conv1x1_fwd",
        f"(Tensor x, {NORM}, Tensor weight, bool stats) -> (Tensor z, Tensor z_mean, Tensor z_var)",
        _fwd,
    ),
    # From u [N, K, H, W], the gradient at norm2's output, with norm2's statistics, gamma and correction [K]:
    #   dz = z_gamma * z_rstd * u - z_a - z_b * (z - z_mean),  v = conv1x1_transposed(dz, weight) * (bn(x) > 0),
    #   dx += gamma * rstd * v,  dweight = dz^T relu(bn(x))  -> dgamma, dbeta [C], dweight [K, C, 1, 1] if `wgrad`.
    # u's memory may be used for dz: its content is undefined afterwards.
    Operation(
        "bn_relu_conv1x1_bwd",
        "(Tensor(a!) u, Tensor z, Tensor z_mean, Tensor z_var, Tensor? z_gamma, float z_eps, Tensor z_a, Tensor z_b,"
        f" Tensor x, {NORM}, Tensor weight, bool batch_stats, Tensor(b!) dx, Tensor(c!) a, Tensor(d!) b, bool wgrad)"
        " -> (Tensor dgamma, Tensor dbeta, Tensor dweight)",
        _bwd,
    ),
)
