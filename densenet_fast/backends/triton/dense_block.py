"""ops/dense_block.py: the launches of all layers, planned once for tensors that look alike (plan.py)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ._reduce import Gradients
from .arguments import Arguments, Norm
from .bn_relu_conv1x1 import conv1x1, conv1x1_bwd
from .bn_relu_conv3x3_bwd import conv3x3_bwd
from .bn_relu_conv3x3_fwd import conv3x3
from .plan import Parameters, Scratch, run


def dense_block_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    tracked: bool,
    channels: int,
    tensors: list[Tensor | None],
    numbers: list[float],
    z: list[Tensor],
    z_mean: list[Tensor],
    z_var: list[Tensor],
) -> None:
    lengths = tuple(map(len, (z, z_mean, z_var)))
    of_block = [x, mean, var, *z, *z_mean, *z_var]
    run("dense_block_fwd", _forward, of_block, tensors, tuple(numbers), lengths, channels, tracked)


def dense_block_bwd(
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
    gradients: list[Tensor],
) -> None:
    lengths = tuple(map(len, (z, z_mean, z_var, gradients)))
    of_block = [x, mean, var, *z, *z_mean, *z_var, *gradients, g, a, b]
    run("dense_block_bwd", _backward, of_block, tensors, tuple(numbers), lengths, channels)


class _BatchNorm(NamedTuple):
    norm: Norm
    eps: float
    batch_stats: bool


class _Layer(NamedTuple):
    """A layer's arguments, checked, and its parts of the block's buffer."""

    check: Arguments  # of x
    x: Tensor  # [N, C, H, W]
    y: Tensor  # [N, G, H, W], the channels `at`
    at: slice
    norm1: _BatchNorm
    weight1: Tensor  # [K, C, 1, 1]
    norm2: _BatchNorm
    weight2: Tensor  # [G, K, 3, 3]
    drop_rate: float
    seed: Tensor | None
    z: Tensor | None  # [N, K, H, W]

    @property
    def width(self) -> int:
        return self.weight1.shape[0]

    @property
    def convolved(self) -> tuple[Tensor, Norm, float, Tensor]:
        """What z is made of."""
        return self.x, self.norm1.norm, self.norm1.eps, self.weight1

    def image(self, scratch: Scratch) -> Tensor:
        """[N, K, H, W] of scratch memory."""
        n, _, h, w = self.x.shape
        return scratch.new_empty(self.x, (n, h, w, self.width)).permute(0, 3, 1, 2)


def _layers(
    operation: str,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    channels: int,
    tensors: Parameters,
    numbers: Sequence[float],
    z: Sequence[Tensor],
    z_mean: Sequence[Tensor],
    z_var: Sequence[Tensor],
) -> list[_Layer]:
    whole = Arguments(operation, "x", x)
    count = len(z_mean)
    if (len(tensors), len(numbers)) != (11 * count, 3 * count) or len(z) not in (0, count) or len(z_var) != count:
        lengths = [len(values) for values in (tensors, numbers, z, z_mean, z_var)]
        whole.refuse(
            "lengths of tensors, numbers, z, z_mean and z_var", lengths, "11, 3, 1 (or for z none), 1 and 1 a layer"
        )
    for name, vector in (("mean", mean), ("var", var)):
        whole.vector(name, vector, whole.C, written=True)

    layers: list[_Layer] = []
    for i in range(count):
        mean1, var1, gamma1, beta1, weight1, mean2, var2, gamma2, beta2, weight2, seed = tensors[11 * i : 11 * i + 11]
        eps1, eps2, drop_rate = numbers[3 * i : 3 * i + 3]
        if weight1 is None or weight2 is None:
            whole.refuse("weights", None, "a tensor for each")
        begin = layers[-1].at.stop if layers else channels
        at = slice(begin, begin + weight2.shape[0])
        if not 0 < begin < at.stop <= whole.C:
            whole.refuse("channels", f"{channels}, {at.stop} behind layer {i + 1}", f"from 1 to {whole.C}")
        check, width = Arguments(operation, "x", x[:, :begin]), weight1.shape[0]
        for name, vector in (("z_mean", z_mean[i]), ("z_var", z_var[i])):
            check.vector(name, vector, width if mean2 is None or var2 is None else 0, written=True)
        layers.append(
            _Layer(
                check,
                x[:, :begin],
                x[:, at],
                at,
                _norm(check, "1", mean1, var1, (mean[:begin], var[:begin]), gamma1, beta1, begin, eps1),
                check.weight("weight1", weight1, None, begin, 1),
                _norm(check, "2", mean2, var2, (z_mean[i], z_var[i]), gamma2, beta2, width, eps2),
                check.weight("weight2", weight2, None, width, 3),
                drop_rate,
                check.seed(seed),
                z[i] if z else None,
            )
        )
    return layers


def _norm(
    check: Arguments,
    suffix: str,
    mean: Tensor | None,
    var: Tensor | None,
    batch: tuple[Tensor, Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    channels: int,
    eps: float,
) -> _BatchNorm:
    """A norm on its own statistics, or else on the batch's."""
    own = None if mean is None or var is None else (mean, var)
    return _BatchNorm(check.norm(*(own or batch), gamma, beta, channels, suffix=suffix), eps, own is None)


def _split(tensors: Sequence[Tensor], lengths: Sequence[int]) -> tuple[list[list[Tensor]], Sequence[Tensor]]:
    """Lists of these lengths, and the rest."""
    lists = []
    for length in lengths:
        lists.append(list(tensors[:length]))
        tensors = tensors[length:]
    return lists, tensors


def _forward(
    scratch: Scratch,
    tensors: Sequence[Tensor],
    parameters: Parameters,
    numbers: Sequence[float],
    lengths: Sequence[int],
    channels: int,
    tracked: bool,
) -> None:
    x, mean, var = tensors[:3]
    lists, _ = _split(tensors[3:], lengths)
    for layer in _layers("dense_block_fwd", x, mean, var, channels, parameters, numbers, *lists):
        norm2, eps2, batch_stats = layer.norm2
        z = layer.image(scratch) if layer.z is None else layer.z
        if layer.check.image("z", z, layer.width, written=True) != layer.width:
            layer.check.refuse("strides of z", list(z.stride()), "dense NHWC memory")
        folded = layer.z is None and not batch_stats  # nobody else sees z: norm2 runs where it is written
        z_norm, z_eps, of_z = (norm2, eps2, None) if folded else (None, 0.0, norm2)
        z_stats, y_stats = norm2[:2] if batch_stats else None, (mean[layer.at], var[layer.at]) if tracked else None
        conv1x1(layer.check, *layer.convolved, z_norm, z_eps, z, z_stats, scratch.new_empty)
        drop, check = (layer.drop_rate, layer.seed), Arguments("dense_block_fwd", "z", z)
        conv3x3(check, z, of_z, eps2, layer.weight2, *drop, layer.y, y_stats, scratch.new_empty)
        scratch.reuse()


def _backward(
    scratch: Scratch,
    tensors: Sequence[Tensor],
    parameters: Parameters,
    numbers: Sequence[float],
    lengths: Sequence[int],
    channels: int,
) -> None:
    x, mean, var = tensors[:3]
    (*lists, gradients), (g, a, b) = _split(tensors[3:], lengths)
    layers = _layers("dense_block_bwd", x, mean, var, channels, parameters, numbers, *lists)
    whole = Arguments("dense_block_bwd", "x", x)
    whole.image("g", g, whole.C, written=True)
    a, b = whole.vector("a", a, whole.C, written=True), whole.vector("b", b, whole.C, written=True)
    if len(gradients) != 6 * len(layers):
        whole.refuse("length of gradients", len(gradients), f"6 for each of {len(layers)} layers")
    for i in reversed(range(len(layers))):
        layer, at, new_empty = layers[i], layers[i].at, scratch.new_empty
        of_x = layer.convolved
        z = layer.z
        if z is None:
            z = layer.image(scratch)
            conv1x1(layer.check, *of_x, None, 0.0, z, None, new_empty)
        norm2, eps2, batch_stats2 = layer.norm2
        of_z = z, norm2, eps2, layer.weight2, layer.drop_rate, layer.seed
        u, z_a, z_b = layer.image(scratch), *(scratch.new_zeros(x, layer.width) for _ in range(2))
        correction = a[: at.start], b[: at.start]
        into1, into2 = _gradients(layer, correction, (z_a, z_b), gradients[6 * i : 6 * i + 6])
        check, dy, y_mean = Arguments("dense_block_bwd", "z", z), g[:, at], mean[at]
        conv3x3_bwd(check, dy, layer.y, y_mean, a[at], b[at], *of_z, batch_stats2, u, False, into2, new_empty)
        dx, batch_stats1 = g[:, : at.start], layer.norm1.batch_stats
        conv1x1_bwd(layer.check, u, z, norm2, eps2, z_a, z_b, *of_x, batch_stats1, dx, into1, new_empty)
        scratch.reuse()


def _gradients(
    layer: _Layer, of_x: tuple[Tensor, Tensor], of_z: tuple[Tensor, Tensor], results: Sequence[Tensor]
) -> list[Gradients]:
    """Where the layer's two convolutions leave theirs: a, b of their inputs and three results each."""
    found = []
    for number, correction, (dgamma, dbeta, dweight), weight in (
        (1, of_x, results[:3], layer.weight1),
        (2, of_z, results[3:], layer.weight2),
    ):
        for name, vector in (("dgamma", dgamma), ("dbeta", dbeta)):
            layer.check.vector(f"{name}{number}", vector, weight.shape[1], written=True)
        layer.check.gradient(f"dweight{number}", dweight, weight)
        found.append(Gradients(*correction, dgamma, dbeta, dweight))
    return found
