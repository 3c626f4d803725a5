"""A layer of a dense block."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eligibility import CONVOLUTIONS, NORMS
from .views import LayerView, view_layer


def check_dims(spatial_dims: int) -> int:
    """`spatial_dims`, if images can have so many."""
    if spatial_dims not in CONVOLUTIONS:
        raise ValueError(f"spatial_dims: got {spatial_dims}, expected 1, 2 or 3")
    return spatial_dims


def check_counts(**counts: int | None) -> None:
    """Refuse what is not a positive number, or None."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: got {count}, expected at least 1")


class DenseLayer(nn.Module):
    """One layer: norm1 relu1 conv1(1x1) norm2 relu2 conv2(3x3), then dropout (Huang et al. 2017, section 3).

    With `bn_size=None` it is the paper's layer without bottleneck: norm1 relu1 conv1(3x3).

    Args:
        num_input_features: channels C before the layer.
        growth_rate: channels k the layer adds.
        bn_size: bottleneck width in units of k, or None.
        drop_rate: dropout probability of the new channels.
        spatial_dims: 1, 2 or 3, of the images.
        dilation: of the 3x3 convolution.

    Shapes: [N, C, H, W] -> [N, k, H, W], in any floating dtype; by itself a layer runs as plain PyTorch.

    Raises:
        ValueError: a count below 1, drop_rate outside [0, 1], or spatial_dims that are none of 1, 2, 3.
    """

    spatial_dims = 2

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int | None = 4,
        drop_rate: float = 0.0,
        spatial_dims: int = 2,
        dilation: int = 1,
    ):
        super().__init__()
        self.spatial_dims = check_dims(spatial_dims)
        norm, conv = NORMS[spatial_dims], CONVOLUTIONS[spatial_dims]
        check_counts(num_input_features=num_input_features, growth_rate=growth_rate, bn_size=bn_size, dilation=dilation)
        padded = {"padding": dilation, "dilation": dilation, "bias": False}
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"drop_rate: got {drop_rate}, expected a probability in [0, 1]")
        self.norm1 = norm(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        if bn_size is None:
            self.conv1 = conv(num_input_features, growth_rate, 3, **padded)
        else:
            width = bn_size * growth_rate
            self.conv1 = conv(num_input_features, width, 1, bias=False)
            self.norm2 = norm(width)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = conv(width, growth_rate, 3, **padded)
        self.drop_rate = drop_rate

    def forward(self, input: Tensor | Sequence[Tensor]) -> Tensor:
        """The new channels [N, k, H, W] from all channels before, given as one tensor or as a list."""
        x = self.bn_function([input] if isinstance(input, Tensor) else input)
        if "conv2" in self._modules:
            x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x

    def bn_function(self, inputs: Sequence[Tensor]) -> Tensor:
        """norm1 relu1 conv1 of all channels before: the bottleneck's output [N, bn_size * k, H, W], if there is one."""
        features: Any = inputs
        x = torch.cat(features, 1)  # also of one tensor: relu1 may then overwrite what norm1, replaced, returns
        y: Tensor = self.conv1(self.relu1(self.norm1(x)))
        return y

    def view(self, dims: int) -> LayerView | str:
        """What the fused path sees of the layer in its present mode, or why it cannot run fused, as one for images of
        `dims` dimensions."""
        return view_layer(self._modules, self.drop_rate if self.training else 0.0, dims)
