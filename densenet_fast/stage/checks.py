"""What a stage refuses before anything runs, and the dtype that it computes in."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..uncompiled import constant
from .alike import Alike
from .spec import StageSpec


def compute_dtype(x: Tensor, convolves: bool) -> torch.dtype:
    """x's dtype, or autocast's where that converts x."""
    return torch.get_autocast_dtype(x.device.type) if convolves and is_autocast(x) else x.dtype


_is_autocast_available = constant(lambda device: torch.amp.is_autocast_available(device))


def is_autocast(x: Tensor) -> bool:
    """Whether autocast would convert x for a convolution."""
    device = x.device.type
    return _is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


SHAPES = {1: "[N, C, L]", 2: "[N, C, H, W]", 3: "[N, C, D, H, W]"}


def check_image(x: Tensor, dims: int = 2) -> None:
    """Refuse what is no image of `dims` dimensions.

    Raises:
        ValueError: x has not as many and two.
        RuntimeError: its dtype is not floating.
    """
    if x.dim() != dims + 2:
        raise ValueError(
            f"wrong number of dimensions: got {list(x.shape)}, expected {SHAPES[dims]} (one image: x[None])"
        )
    if not x.is_floating_point():
        raise RuntimeError(f"wrong dtype: got input {x.dtype}, expected a floating dtype (x.float())")


def check_stage(spec: StageSpec, x: Tensor, tensors: Sequence[Tensor], alike: Alike | None = None) -> None:
    """Refuse an image x, and tensors that do not fit it or each other. alike: those of the spec's shapes that the
    tensors are like, if there are such.

    Raises:
        ValueError: wrong channels, an image too small to pool, one value per channel where a norm uses batch
            statistics.
        RuntimeError: dtypes or devices differ.
    """
    size = spec.size(x)
    if spec.consumer is not None and spec.consumer.kind == "transition" and spec.consumer.pools and min(size) < 2:
        got, least = ("x".join(map(str, sizes)) for sizes in (size, [2] * len(size)))
        raise ValueError(f"image too small to pool: got {got}, expected at least {least}")
    if x.shape[0] * prod(size) == 1 and spec.alone:
        raise ValueError(
            f"one value per channel: got {list(x.shape)}, expected more than one value to take batch statistics of in "
            f"{spec.alone[0]}"
        )
    if alike is None or not _fit(spec, alike, x):
        for i in spec.weights:
            check_weight(spec.names[i], tensors[i], x)
    shapes = [tensor.shape for tensor in tensors] if alike is None else spec.shapes
    if shapes != spec.shapes:
        raise next(
            _misfit(name, shape, fitting)
            for name, shape, fitting in zip(spec.names, shapes, spec.shapes, strict=True)
            if shape != fitting
        )


def _fit(spec: StageSpec, alike: Alike, x: Tensor) -> bool:
    """Whether the dtypes and devices of tensors that are `alike` are x's, as far as is told without asking each."""
    return alike.devices == {x.device} and (alike.dtypes == spec.dtypes(x.dtype) or is_autocast(x))


def _misfit(name: str, shape: Sequence[int], fitting: Sequence[int]) -> ValueError:
    if len(shape) == len(fitting):
        axis = next(i for i in reversed(range(len(shape))) if shape[i] != fitting[i])
        if axis < 2:  # the image is wrong as often as the tensor
            return ValueError(f"wrong number of channels: got {fitting[axis]} at {name}, expected {shape[axis]}")
    return ValueError(f"wrong shape: got {list(shape)} at {name}, expected {list(fitting)}")


def check_weight(name: str, weight: Tensor, x: Tensor) -> None:
    """Refuse an input that is not on the weight's device or, unless autocast converts both, of its dtype."""
    if weight.device != x.device:
        raise RuntimeError(f"wrong device: got input on {x.device}, expected {weight.device}, where {name} is")
    if weight.dtype != x.dtype and not is_autocast(x):
        raise RuntimeError(
            f"wrong dtype: got input {x.dtype}, expected {weight.dtype}, which {name} has (model.to(dtype), "
            "x.to(dtype) or torch.autocast)"
        )
