"""All bottleneck layers of a block in one operation: every kernel issued without Python between. Optional for a backend;
without it the layers are called one by one, which computes the same.

A block's layers go as two flat lists. `tensors`, eleven for each layer: norm1's mean, var (None for the batch's), gamma,
beta; weight1; norm2's mean, var, gamma, beta; weight2; dropout's seed. `numbers`, three: norm1's eps, norm2's eps,
drop_rate.
"""

from torch import Tensor

from ._operation import Operation, image, vector

TENSORS = 11


def _fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    tracked: bool,
    channels: int,
    tensors: list[Tensor | None],
    numbers: list[float],
    keep_z: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    layers = [tensors[i : i + TENSORS] for i in range(0, len(tensors), TENSORS)]
    widths = [weight1.shape[0] for _, _, _, _, weight1, *_ in layers if weight1 is not None]
    taken = [width if layer[5] is None else 0 for width, layer in zip(widths, layers, strict=True)]
    z = [image(x, width, *x.shape[2:]) for width in widths] if keep_z else []
    return z, [vector(x, size) for size in taken], [vector(x, size) for size in taken]


def _bwd(
    g: Tensor,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    channels: int,
    tensors: list[Tensor | None],
    numbers: list[float],
    z: list[Tensor],
    z_mean: list[Tensor],
    z_var: list[Tensor],
    wgrad: list[bool],
) -> list[Tensor]:
    gradients = []
    for i in range(0, len(tensors), TENSORS):
        weights = tensors[i + 4], tensors[i + 9]
        for weight, wanted in zip(weights, wgrad[2 * i // TENSORS :][:2], strict=True):
            assert weight is not None
            size = weight.shape[1]
            gradients += [vector(x, size), vector(x, size), weight.new_empty(weight.shape if wanted else 0)]
    return gradients


OPERATIONS = (
    # The layers whose input begins with the first `channels` of x [N, C_total, H, W] write their channels into x and, if
    # `tracked`, their statistics into mean, var [C_total]. -> each layer's z [N, K, H, W] if `keep_z`, else none, and
    # z's statistics [K], or [0] where norm2 uses running ones.
    Operation(
        "dense_block_fwd",
        "(Tensor(a!) x, Tensor(b!) mean, Tensor(c!) var, bool tracked, int channels, Tensor?[] tensors, float[] numbers,"
        " bool keep_z) -> (Tensor[] z, Tensor[] z_mean, Tensor[] z_var)",
        _fwd,
    ),
    # Adds to g [N, C_total, H, W], a, b [C_total] as the layers' own operations do, the last layer first. z, if empty, is
    # recomputed. wgrad: of weight1 and weight2 of each layer.
    # -> dgamma1, dbeta1, dweight1, dgamma2, dbeta2, dweight2 of each layer.
    Operation(
        "dense_block_bwd",
        "(Tensor(a!) g, Tensor(b!) a, Tensor(c!) b, Tensor x, Tensor mean, Tensor var, int channels, Tensor?[] tensors,"
        " float[] numbers, Tensor[] z, Tensor[] z_mean, Tensor[] z_var, bool[] wgrad) -> Tensor[]",
        _bwd,
    ),
)
