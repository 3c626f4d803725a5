"""All bottleneck layers of a block in one operation, prepared at once. Optional for a backend; without it the layers
are called one by one, which computes the same. What is written shares no memory with anything else.

A block's layers go as two flat lists. `tensors`, eleven for each layer: norm1's mean, var (None for the batch's),
gamma, beta; weight1; norm2's mean, var, gamma, beta; weight2; dropout's seed. `numbers`, three: norm1's eps, norm2's
eps, drop_rate.
"""

from ._operation import Operation


def _nothing(*args: object) -> None:
    return None


OPERATIONS = (
    # The layers whose input begins with the first `channels` of x [N, C_total, H, W] write their channels into x and,
    # if `tracked`, their statistics into mean, var [C_total]; each writes its z [N, K, H, W], if z is not empty, and
    # the statistics of z [K], or [0] where norm2 uses running ones.
    Operation(
        "dense_block_fwd",
        "(Tensor(a!) x, Tensor(b!) mean, Tensor(c!) var, bool tracked, int channels, Tensor?[] tensors,"
        " float[] numbers, Tensor(d!)[] z, Tensor(e!)[] z_mean, Tensor(f!)[] z_var) -> ()",
        _nothing,
    ),
    # Adds to g [N, C_total, H, W], a, b [C_total] as the layers' own operations do, the last layer first, and writes
    # `gradients`, six for each layer: dgamma1, dbeta1, dweight1, dgamma2, dbeta2, dweight2; a dweight [0] is not
    # wanted. z, if empty, is recomputed.
    Operation(
        "dense_block_bwd",
        "(Tensor(a!) g, Tensor(b!) a, Tensor(c!) b, Tensor x, Tensor mean, Tensor var, int channels, Tensor?[] tensors,"
        " float[] numbers, Tensor[] z, Tensor[] z_mean, Tensor[] z_var, Tensor(d!)[] gradients) -> ()",
        _nothing,
    ),
)
