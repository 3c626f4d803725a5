"""Dense blocks as functions of tensors, without modules or side effects.

from densenet_fast.functional import Bottleneck, Norm, Transition, dense_stage

batch_norm = Norm(mean=None, var=None, gamma=gamma, beta=beta, eps=1e-5)  # batch statistics
stage = dense_stage(x, [Bottleneck(norm1, weight1, norm2, weight2), ...], Transition(norm, weight))
stage.y, stage.batch_stats
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import stage
from .stage import ConsumerSpec, LayerSpec, StageSpec

__all__ = [
    "Bottleneck",
    "Head",
    "Norm",
    "Plain",
    "StageOutput",
    "Stats",
    "Stem",
    "Transition",
    "dense_stage",
]

Stats = tuple[Tensor, Tensor]  # mean, var [C]


class Norm(NamedTuple):
    """A BatchNorm (Ioffe and Szegedy 2015). `mean, var` [C]: the running statistics to use, or None for the batch's.
    `gamma, beta` [C]: weight and bias, or None. float32, for float64 activations float64; `dense_stage` converts."""

    mean: Tensor | None
    var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    eps: float


class Bottleneck(NamedTuple):
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3-dropout (Huang et al. 2017, section 3, "Bottleneck layers").

    [N, C, H, W] -> [N, G, H, W]. weight1 [K, C, 1, 1], weight2 [G, K, 3, 3]: the activations' dtype. drop_rate: in
    [0, 1]. seed: int64 scalar that decides which values are dropped; None: dropout does not run.
    """

    norm1: Norm
    weight1: Tensor
    norm2: Norm
    weight2: Tensor
    drop_rate: float = 0.0
    seed: Tensor | None = None


class Plain(NamedTuple):
    """BN-ReLU-conv3x3-dropout, the layer of DenseNet without bottleneck (Huang et al. 2017, section 3).

    [N, C, H, W] -> [N, G, H, W]. weight1 [G, C, 3, 3]; the rest as in `Bottleneck`.
    """

    norm1: Norm
    weight1: Tensor
    drop_rate: float = 0.0
    seed: Tensor | None = None


class Transition(NamedTuple):
    """BN, ReLU, 2x2 average, conv1x1: [N, C_total, H, W] -> [N, K, H // 2, W // 2]. weight [K, C_total, 1, 1].

    The paper pools behind the convolution, which gives the same: both are linear.
    """

    norm: Norm
    weight: Tensor


class Head(NamedTuple):
    """The final BN-ReLU and the average over the image: [N, C_total, H, W] -> [N, C_total]."""

    norm: Norm


class Stem(NamedTuple):
    """BN-ReLU-maxpool (3x3, stride 2) of a large-image net: [N, C, H, W] -> [N, C, (H + 1) // 2, (W + 1) // 2]."""

    norm: Norm


Layer = Bottleneck | Plain
Consumer = Transition | Head | Stem


class StageOutput(NamedTuple):
    """Result of `dense_stage`.

    Attributes:
        y: the consumer's output, or the whole buffer [N, C_total, H, W] without one.
        stats: (mean, biased var) of y's channels, [C] each, if they were asked for.
        batch_stats: for every norm in order (norm1, norm2 of each layer, the consumer's norm) the (mean, biased var) it
            took from the batch, [C] each, or None where it used given statistics.
    """

    y: Tensor
    stats: Stats | None
    batch_stats: list[Stats | None]


def dense_stage(
    x: Tensor,
    layers: Sequence[Layer] = (),
    consumer: Consumer | None = None,
    *,
    stats: Stats | None = None,
    extend: bool = False,
    output_stats: bool = False,
    output_room: int = 0,
    memory_format: torch.memory_format | None = torch.channels_last,
    efficient: bool = False,
    backend: str = "auto",
) -> StageOutput:
    """A dense block in one buffer, and the step that consumes the buffer (Huang et al. 2017, section 3).

    Args:
        x: [N, C0, H, W], floating; NHWC memory (channels_last) is read as it is, other layouts are copied.
        layers: `Bottleneck` or `Plain`; layer l reads the C0 + sum(growth before it) channels so far.
        consumer: `Transition` -> [N, K, H//2, W//2], `Head` -> [N, C_total], `Stem` -> [N, C_total, (H+1)//2,
            (W+1)//2], or None -> [N, C_total, H, W].
        stats: mean and biased variance [C0] of x if the producer of x already has them.
        extend: x is the y of a stage whose `output_room` is what these layers add, and nothing else writes behind it:
            the layers do, and x is not copied unless autocast converts it.
        output_stats: also return them for y (transition and stem).
        output_room: channels of memory behind y for the layers of the stage that extends it (transition and stem).
        memory_format: of y, where output_room is 0: a dense tensor that belongs to the caller, who may change it in
            place. None: y is read by stages only, its rows may be padded and it may be the buffer itself.
        efficient: recompute the bottleneck outputs z in backward. Kept for backward, per pixel: C_total values with
            it, C_total + sum(K) without.
        backend: "auto", "native", "triton" or "eager".

    Vectors of norms are float32, for float64 activations float64; others are converted. Under autocast a stage with
    convolutions computes in autocast's dtype; y has the dtype that PyTorch's layers give it: float32 where x is, unless
    the last step is a convolution.

    Raises:
        ValueError: wrong dimensions or channels, no room behind an x to extend, an image too small to pool, one value
            per channel where a norm uses batch statistics.
        RuntimeError: dtypes or devices differ, or the backend is not available.
    """
    stage.check_image(x)
    tensors: list[Tensor | None] = []
    for i, layer in enumerate(layers):
        place = f"layer {i + 1}"
        tensors += [*_vectors(layer.norm1, place), layer.weight1]
        tensors += [*_vectors(layer.norm2, place), layer.weight2] if isinstance(layer, Bottleneck) else [None] * 5
    if consumer is not None:
        tensors += _vectors(consumer.norm, f"the {type(consumer).__name__.lower()}")
        tensors.append(consumer.weight if isinstance(consumer, Transition) else None)
    spec = _spec(x.shape[1], layers, consumer, tuple([i for i, tensor in enumerate(tensors) if tensor is not None]))
    result = stage.run(
        spec,
        x,
        [tensor for tensor in tensors if tensor is not None],
        _seeds(layers) if spec.drops else None,
        backend=backend,
        wanted=stage.Wanted(output_stats, output_room, None if output_room else memory_format),
        x_stats=None if stats is None else torch.stack(stats),
        extend=extend,
        efficient=efficient,
    )
    mean, var = result.stats
    return StageOutput(
        result.y,
        None if result.y_stats is None else (result.y_stats[0], result.y_stats[1]),
        [None if taken is None else (mean[slice(*taken)], var[slice(*taken)]) for taken in spec.taken],
    )


def _spec(channels: int, layers: Sequence[Layer], consumer: Consumer | None, slots: tuple[int, ...]) -> StageSpec:
    found = []
    total = channels
    for layer in layers:
        rate = 0.0 if layer.seed is None else layer.drop_rate
        batch1, eps1 = layer.norm1.mean is None, layer.norm1.eps
        if isinstance(layer, Bottleneck):
            width, growth = layer.weight1.shape[0], layer.weight2.shape[0]
            found.append(LayerSpec(width, growth, eps1, layer.norm2.eps, batch1, layer.norm2.mean is None, rate))
        else:
            growth = layer.weight1.shape[0]
            found.append(LayerSpec(0, growth, eps1, 0.0, batch1, False, rate))
        total += growth
    if consumer is None:
        return StageSpec(channels, tuple(found), None, slots)
    of_norm = consumer.norm.eps, consumer.norm.mean is None
    if isinstance(consumer, Transition):
        return StageSpec(channels, tuple(found), ConsumerSpec("transition", consumer.weight.shape[0], *of_norm), slots)
    kind = "head" if isinstance(consumer, Head) else "stem"
    return StageSpec(channels, tuple(found), ConsumerSpec(kind, total, *of_norm), slots)  # type: ignore[arg-type]


def _vectors(norm: Norm, place: str) -> list[Tensor | None]:
    if (norm.mean is None) != (norm.var is None):
        raise ValueError(f"half of the statistics: got mean or var alone in {place}, expected both, or None for both")
    return [norm.mean, norm.var, norm.gamma, norm.beta]


def _seeds(layers: Sequence[Layer]) -> Tensor:
    given = [layer.seed for layer in layers]
    some = next(seed for seed in given if seed is not None)
    return torch.stack([torch.zeros_like(some) if seed is None else seed for seed in given])
