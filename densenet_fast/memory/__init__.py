"""Bytes of a training step, from the shapes alone: what a forward keeps for backward, exactly, and the peak.

    step = memory.Step.of(densenet_fast.densenet121(), (8, 3, 224, 224))
    step.kept(), step.peak("native")  # bytes beyond parameters and images

The stages are those of `modules/trunk.py`: the stem, and each dense block with its transition or the head. What an
operation needs while it runs differs by backend (scratch.py); all else does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from ..contract import accumulator
from ..models import DenseNet
from ..modules import DenseBlock, Transition, pools
from ..modules.reading import uses_batch
from .scratch import scratch
from .stage import Stage

__all__ = ["Stage", "Step", "check"]


@dataclass(frozen=True)
class Step:
    """A training step of a DenseNet with float32 parameters, as far as its memory goes.

    All bytes are beyond parameters, buffers and the batch of images, as an allocator counts them between two points:
    gradients are None before the step.
    """

    stages: tuple[Stage, ...]
    efficient: tuple[bool, ...]  # of each stage; True of those that have nothing to recompute
    batch: int  # the images themselves, in float32: there before the step
    copy: int  # of the images, as the first convolution reads them, and of its weight, as autocast converts it
    images: int  # what is kept of that: in front of a stem the weight alone
    first: int  # bytes of the first convolution's gradient
    classifier: int  # and of the classifier's
    outputs: int  # what is kept behind the last stage: the classifier's input and output

    @classmethod
    def of(cls, model: DenseNet, shape: Sequence[int], dtype: torch.dtype = torch.float32, nhwc: bool = False) -> Self:
        """Of a model as it is, for images of `shape` [N, C, H, W].

        Args:
            dtype: of the activations; bfloat16 and float16 stand for autocast over float32 parameters.
            nhwc: whether the images come in channels_last memory; if not, a copy of them is made, which nets without a
                stem's pooling keep.

        Raises:
            ValueError: no DenseNet of ours, or the images do not fit it.
        """
        check(model)
        n, in_channels, *size = shape
        conv0: Any = model.features.conv0
        dims = model.spatial_dims
        if len(size) != dims or in_channels != conv0.in_channels or min(shape) < 1:
            raise ValueError(
                f"shape: got {tuple(shape)}, expected images [N, {conv0.in_channels}, {', '.join('DHW'[3 - dims :])}]"
            )
        is_half = dtype.itemsize == 2
        stages, efficient = _stages(model, n, size, dtype, is_half)
        weight = is_half * _half(conv0, dtype)
        copy = prod(shape) * dtype.itemsize * (is_half or not (nhwc or dims == 1)) + weight
        images = copy if _gradients(conv0) else 0
        if stages[0].consumer == "stem":
            images = weight if stages[0].trained else 0
        head, classes = stages[-1].outputs, getattr(model.classifier, "out_features", 0)
        return cls(
            tuple(stages),
            tuple(efficient),
            prod(shape) * 4,
            copy,
            images,
            _gradients(conv0),
            _gradients(model.classifier),
            n * (head + classes) * dtype.itemsize + is_half * _half(model.classifier, dtype),
        )

    def kept(self, efficient: Sequence[bool] | None = None) -> int:
        """Bytes alive after the forward: all that is kept for backward, and the output. efficient: of each stage, as
        the model has it if None."""
        of = zip(self.stages, efficient or self.efficient, strict=True)
        return self.images + self.outputs + sum(stage.kept(chosen) for stage, chosen in of)

    def peak(self, backend: str, efficient: Sequence[bool] | None = None, threads: int | None = None) -> int:
        """The most bytes at any moment, which is in backward: parameters' gradients are among them."""
        efficient = efficient or self.efficient
        before = accumulate(stage.kept(e) for stage, e in zip(self.stages, efficient, strict=True))
        peaks = [
            kept + self.beside(i, backend, e, threads)
            for i, (kept, e) in enumerate(zip(before, efficient, strict=True))
        ]
        return max(peaks)

    def beside(self, i: int, backend: str, efficient: bool, threads: int | None = None) -> int:
        """The most bytes during the backward of stage i beside what stages up to it have kept."""
        stage = self.stages[i]
        if not stage.trained:
            return 0
        gradients = self.classifier + sum(behind.parameters for behind in self.stages[i:])
        dx = stage.pixels * stage.channels * stage.dtype.itemsize
        always = self.images + self.outputs + gradients + stage.output + stage.buffer + stage.statistics
        inside = scratch(stage, backend, efficient, threads)
        if stage.consumer == "stem":
            return always + self.copy + max(inside + efficient * stage.again, self.first)
        return always + max(dx + stage.converted, inside)


def check(model: nn.Module) -> None:
    """
    Raises:
        ValueError: no DenseNet of ours.
    """
    if not isinstance(model, DenseNet):
        raise ValueError(f"model: got {type(model).__name__}, expected a densenet_fast.DenseNet")


def _stages(
    model: DenseNet, n: int, size: Sequence[int], dtype: torch.dtype, is_half: bool
) -> tuple[list[Stage], list[bool]]:
    found: list[Stage] = []
    efficient: list[bool] = []
    parts: dict[str, Any] = dict(model.features.named_children())
    channels, at = parts["conv0"].out_channels, tuple(size)
    trained = _gradients(parts["conv0"]) > 0
    if "pool0" in parts:
        at = tuple((s + 1) // 2 for s in at)
        gradients = _gradients(parts["norm0"])
        trained = trained or gradients > 0
        given = _given(parts["norm0"], dtype)
        block = next(((n, p.efficient) for n, p in parts.items() if isinstance(p, DenseBlock)), ("", False))
        stem = Stage(block[0], n, at, channels, (), "stem", channels, gradients, 0, dtype, trained=trained, given=given)
        found.append(replace(stem, weights=parts["conv0"].weight.numel()))
        efficient.append(block[1] or not found[-1].can_recompute)
        at = found[-1].output_size
    names = list(parts)
    for name, block in parts.items():
        if not isinstance(block, DenseBlock):
            continue
        behind = parts[names[names.index(name) + 1]]
        gradients = _gradients(block) + _gradients(behind)
        layers_learn, trained = trained or _gradients(block) > 0, trained or gradients > 0
        layers = tuple(_layer(layer) for layer in block.values())
        total = channels + sum(growth for _, growth in layers)
        is_transition = isinstance(behind, Transition)
        stage = Stage(
            name,
            n,
            at,
            channels,
            layers,
            "transition" if is_transition else "head",
            behind.conv.out_channels if is_transition else total,
            gradients,
            is_half * (_half(block, dtype) + _half(behind, dtype)),
            dtype,
            pools=not is_transition or pools(behind),
            by_halves=len(size) != 2 or any(_dilation(layer) != 1 for layer in block.values()),
            trained=trained,
            layers_learn=layers_learn,
            given=_given(block, dtype) + _given(behind, dtype),
        )
        found.append(stage)
        efficient.append(block.efficient or not stage.can_recompute)
        if is_transition:
            channels, at = stage.outputs, stage.output_size
        if 0 in at:
            raise ValueError(f"image: got a side of {min(size)}, which leaves no pixel behind {name}")
    return found, efficient


def _given(part: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the statistics that norms of a part are given, which are not the batch's."""
    means = [m._buffers["running_mean"] for m in part.modules() if "running_mean" in m._buffers and not uses_batch(m)]
    return sum(2 * mean.numel() * accumulator(dtype).itemsize for mean in means if mean is not None)


def _layer(layer: Any) -> tuple[int, int]:
    return layer.conv1.out_channels if hasattr(layer, "conv2") else 0, _last(layer).out_channels


def _dilation(layer: Any) -> int:
    return _last(layer).dilation[0]


def _last(layer: Any) -> Any:
    """A layer's 3x3 convolution."""
    return layer.conv2 if hasattr(layer, "conv2") else layer.conv1


def _gradients(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def _half(module: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of what autocast converts and keeps: weights of convolutions and of the classifier."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1) * dtype.itemsize
