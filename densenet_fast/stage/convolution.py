"""The convolution that a stem begins with: PyTorch's, on images in NHWC memory.

What it makes is most of what a stem would keep for backward, and can be made again from the images, which whoever
trains holds anyway. They are kept as they were given: what is converted or laid out anew lives inside a pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .buffer import channels_last
from .spec import CONVOLUTION_TENSORS, StageSpec

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the number of the images' dimensions


def laid_out(images: Tensor, dtype: torch.dtype) -> Tensor:
    """As the convolution reads them."""
    return images.to(dtype).contiguous(memory_format=channels_last(images))


def convolved(spec: StageSpec, images: Tensor, slots: Sequence[Tensor | None]) -> Tensor:
    """[N, channels, H, W] -> [N, C0, H', W'], differentiable; images as `laid_out`."""
    _, _, stride, padding, dilation, groups = _of(spec)
    weight, bias = slots[-len(CONVOLUTION_TENSORS) :]
    y: Tensor = _CONVOLUTIONS[spec.dims](images, weight, bias, stride, padding, dilation, groups)
    return y


def gradients(
    spec: StageSpec, dy: Tensor, images: Tensor, slots: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Of the weight, and of the bias if there is one, those that are needed, contiguous; dy as `convolved` gives it."""
    _, _, stride, padding, dilation, groups = _of(spec)
    weight, bias = slots[-len(CONVOLUTION_TENSORS) :]
    assert weight is not None
    mask = [False, *needs, *[False] * (bias is None)]
    sizes = None if bias is None else [spec.channels]
    geometry = list(stride), list(padding), list(dilation), False, [0] * spec.dims, groups
    _, *found = torch.ops.aten.convolution_backward.default(dy, images, weight, sizes, *geometry, mask)
    return [gradient.contiguous() if need else None for gradient, need in zip(found, needs, strict=False)]


def _of(spec: StageSpec) -> Any:
    assert spec.convolution is not None
    return spec.convolution
