"""BN-ReLU-conv3x3 into a slice of the block's buffer, with dropout.

The bottleneck layer calls it on z; a layer without bottleneck calls it on the buffer itself.

Dropout keeps element i of the dense output [M, G], i = row * G + channel, when the upper 24 bits of
SplitMix64(seed + (i + 1) * 0x9E3779B97F4A7C15) are at least round(p * 2**24), and scales what it keeps by 1 / (1 - p).
The mask is a function of (seed, i) alone: no backend stores it, and all backends agree on it.
Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from torch import Tensor

from ._operation import NORM, Operation, image, vectors


def _fwd(*args: object) -> None:
    return None


def _bwd(
    dy: Tensor,
    y: Tensor,
    y_mean: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    drop_rate: float,
    seed: Tensor | None,
    batch_stats: bool,
    dx: Tensor | None,
    a: Tensor,
    b: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    u = x.new_empty(0) if dx is not None else image(x, *x.shape[1:])
    return u, *vectors(x), weight.new_empty(weight.shape if wgrad else 0)


OPERATIONS = (
    # y = dropout(conv3x3(relu(bn(x)), weight, padding=1)), zeros padded after the ReLU; y's statistics if y_mean is
    # given. x [N, C, H, W], weight [G, C, 3, 3], y [N, G, H, W] a slice of the buffer, y_mean, y_var [G].
    # seed: int64 scalar on x's device, None without dropout.
    Operation(
        "bn_relu_conv3x3_fwd",
        f"(Tensor x, {NORM}, Tensor weight, float drop_rate, Tensor? seed, Tensor(a!) y, Tensor(b!)? y_mean,"
        " Tensor(c!)? y_var) -> ()",
        _fwd,
    ),
    # From dy [N, G, H, W], the gradient of the slice y before its correction y_a, y_b [G]:
    #   d = mask * (dy - y_a - y_b * (y - y_mean)),  u = conv3x3_transposed(d, weight) * (bn(x) > 0).
    # Without dx: -> u [N, C, H, W]. With dx [N, C, H, W]: dx += gamma * rstd * u, and u is not returned.
    # u is the norm's v; dgamma, dbeta [C]; dweight [G, C, 3, 3] if `wgrad`.
    Operation(
        "bn_relu_conv3x3_bwd",
        f"(Tensor dy, Tensor y, Tensor y_mean, Tensor y_a, Tensor y_b, Tensor x, {NORM}, Tensor weight,"
        " float drop_rate, Tensor? seed, bool batch_stats, Tensor(a!)? dx, Tensor(b!) a, Tensor(c!) b, bool wgrad)"
        " -> (Tensor u, Tensor dgamma, Tensor dbeta, Tensor dweight)",
        _bwd,
    ),
)
