"""Dense blocks as functions of tensors: validation, dtypes and the choice of backend, without modules or side effects.

from densenet_fast.functional import Bottleneck, Norm, Transition, dense_stage

batch_norm = Norm(mean=None, var=None, gamma=gamma, beta=beta, eps=1e-5)  # batch statistics
stage = dense_stage(x, [Bottleneck(norm1, weight1, norm2, weight2), ...], Transition(norm, weight))
stage.y, stage.batch_stats
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autograd, backends
from .autograd import Stats
from .ops._operation import accumulator
from .steps import Bottleneck, Consumer, Head, Layer, Norm, Plain, Stem, Transition, Wanted

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

    Under autocast a stage with convolutions computes in autocast's dtype; y has the dtype that PyTorch's layers give
    it: float32 where x is, unless the last step is a convolution.

    Raises:
        ValueError: wrong dimensions or channels, no room behind an x to extend, an image too small to pool, one value
            per channel where a norm uses batch statistics.
        RuntimeError: dtypes or devices differ, or the backend is not available.
    """
    convolves = bool(layers) or isinstance(consumer, Transition)
    dtype = _compute_dtype(x) if convolves else x.dtype
    layers, consumer = _fitted_stage(x, layers, consumer, dtype)
    ops = backends.operations(backend, x.device, dtype)
    layout = None if output_room else memory_format
    result = autograd.run(
        ops,
        x.to(dtype),
        stats,
        layers,
        consumer,
        wanted=Wanted(output_stats, output_room, layout),
        extend=extend and x.dtype == dtype,
        efficient=efficient,
    )
    y, mean, var = result.output
    if layout is not None and not isinstance(consumer, Transition):  # which ends in a convolution
        y = y.to(torch.promote_types(x.dtype, dtype))
    return StageOutput(y, None if mean is None or var is None else (mean, var), result.batch_stats)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """x's dtype, or autocast's where autocast would convert x for a convolution."""
    return torch.get_autocast_dtype(x.device.type) if _is_autocast(x) else x.dtype


def _is_autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def _fitted_stage(
    x: Tensor, layers: Sequence[Layer], consumer: Consumer | None, dtype: torch.dtype
) -> tuple[list[Layer], Consumer | None]:
    """The steps of a stage, checked against x, in the dtypes that they are computed in."""
    if x.dim() != 4:
        raise ValueError(f"wrong number of dimensions: got {list(x.shape)}, expected [N, C, H, W]")
    if not x.is_floating_point():
        raise RuntimeError(f"wrong dtype: got input {x.dtype}, expected a floating dtype")
    _, c, h, w = x.shape
    fitted = []
    for i, layer in enumerate(layers):
        fitted.append(_fitted(f"layer {i + 1}", layer, x, c, dtype))
        c += layer.growth
    if isinstance(consumer, Transition) and (h < 2 or w < 2):
        raise ValueError(f"image too small to pool: got {h}x{w}, expected at least 2x2")
    if consumer is not None:
        consumer = _fitted(f"the {type(consumer).__name__.lower()}", consumer, x, c, dtype)
    return fitted, consumer


def _fitted(name: str, step: Any, x: Tensor, c: int, dtype: torch.dtype) -> Any:
    """`step`, checked against its input of c channels, with weights in `dtype` and norms in its accumulator dtype."""
    width, wide = c, accumulator(dtype)
    fields: list[Any] = []
    for field, value in zip(step._fields, step, strict=True):
        if isinstance(value, Norm):
            if value.mean is None and x.numel() == x.shape[1]:
                raise ValueError(
                    f"one value per channel: got {list(x.shape)}, expected more than one value to take batch "
                    f"statistics of in {name}"
                )
            if (value.mean is None) != (value.var is None):
                raise ValueError(
                    f"half of the statistics: got mean or var alone in {name}, expected both, or None for both"
                )
            *vectors, eps = value
            for i, vector in enumerate(vectors):
                if vector is None:
                    continue
                if vector.shape[0] != width:
                    raise _wrong_channels(width, f"{value._fields[i]} of {name}", vector.shape[0])
                if vector.dtype != wide:
                    vectors[i] = vector.to(wide)
            fields.append(Norm._make([*vectors, eps]))
        elif field.startswith("weight"):
            check_weight(f"{field} of {name}", value, x)
            outputs, inputs = value.shape[:2]
            if inputs != width:
                raise _wrong_channels(width, f"{field} of {name}", inputs)
            width = outputs
            fields.append(value if value.dtype == dtype else value.to(dtype))
        else:
            fields.append(value)
    return type(step)(*fields)


def _wrong_channels(got: int, place: str, expected: int) -> ValueError:
    return ValueError(f"wrong number of channels: got {got} at {place}, expected {expected}")


def check_weight(name: str, weight: Tensor, x: Tensor) -> None:
    """Refuse an input that is not on the weight's device or, unless autocast converts both, of its dtype."""
    if weight.device != x.device:
        raise RuntimeError(f"wrong device: got input on {x.device}, expected {weight.device}, where {name} is")
    if weight.dtype != x.dtype and not _is_autocast(x):
        raise RuntimeError(
            f"wrong dtype: got input {x.dtype}, expected {weight.dtype}, which {name} has (model.to(dtype), "
            "x.to(dtype) or torch.autocast)"
        )
