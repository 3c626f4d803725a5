"""A whole bottleneck layer in inference: BN-ReLU-conv1x1-BN-ReLU-conv3x3 on running statistics."""

from ._operation import NORM, Operation


def _infer(*args: object) -> None:
    return None


_NORM2 = NORM.replace("Tensor mean", "Tensor mean2").replace("Tensor var", "Tensor var2")
_NORM2 = _NORM2.replace("gamma", "gamma2").replace("beta", "beta2").replace("eps", "eps2")

OPERATIONS = (
    # y = conv3x3(relu(bn2(conv1x1(relu(bn1(x)), weight1))), weight2): x [N, C, H, W], weight1 [K, C, 1, 1],
    # weight2 [G, K, 3, 3], y [N, G, H, W] a slice of the buffer. norm2 folds into weight1; nothing else is kept.
    Operation(
        "bottleneck_infer",
        f"(Tensor x, {NORM}, Tensor weight1, {_NORM2}, Tensor weight2, Tensor(a!) y) -> ()",
        _infer,
    ),
)
