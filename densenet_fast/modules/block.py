"""A dense block."""

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from ..stage.buffer import memory_format
from .eligibility import why_not, why_other_helpers
from .fusable import Fusable
from .layer import DenseLayer, check_dims
from .reading import BlockReading, Reading
from .running_stats import Transaction
from .staging import run_stage
from .views import LayerView


class FusableBlock(Fusable):
    """A dense block of any class, whose children are its layers; `view` reads them."""

    efficient: bool  # recompute the bottleneck outputs in backward

    def forward(self, init_features: Tensor) -> Tensor:
        return self._call(init_features)

    def fused(self, x: Tensor, reading: Reading, updates: Transaction) -> Tensor:
        """[N, C0, H, W] -> [N, C0 + L * k, H, W]."""
        assert isinstance(reading, BlockReading)
        return run_stage(x, updates, reading, None, backend=self.backend, layout=memory_format(x)).y

    def read(self) -> Reading:
        views: list[LayerView] = []
        for name, layer in self.named_children():
            view = self.view(layer)
            if isinstance(view, str):
                return Reading(self, f"{name}{view}")
            views.append(view)
        if len({view.drops_channels for view in views if view.drop_rate > 0}) > 1:
            return Reading(self, "some layers drop channels of images, others values")
        return BlockReading(self, None, tuple(views), [source for view in views for source in view.sources()])

    def cost(self) -> str:
        plain, fused, channels = 0, 0, 0
        for layer in self.children():
            convs: list[Any] = [module for module in layer.modules() if isinstance(module, _ConvNd)]
            if not convs:
                return super().cost()
            width = sum([conv.out_channels for conv in convs[:-1]])
            plain += 2 * (convs[0].in_channels + width)  # what norms and convolutions are given
            fused += 0 if self.efficient else width
            channels = convs[0].in_channels + convs[-1].out_channels
        return f"more time, and {plain:,} values kept for each pixel instead of {fused + channels:,}"

    def set_efficient(self, efficient: bool = True) -> Self:
        """Recompute the bottleneck outputs in backward (True) or keep them (False), and with them what the convolution
        of a stem in front of the block gives; returns self."""
        self.efficient = efficient
        return self

    @abstractmethod
    def view(self, layer: nn.Module) -> LayerView | str:
        """A layer in its present mode, or why it cannot run fused, in words that follow its name."""


class DenseBlock(FusableBlock, nn.ModuleDict):
    """A dense block (Huang et al. 2017, section 3): `denselayer1` ... `denselayerL` in one buffer.

    Args:
        num_layers: L.
        num_input_features: channels C0 of the input.
        bn_size: bottleneck width in units of k, or None for layers without bottleneck.
        growth_rate: channels k that each layer adds.
        drop_rate: dropout probability of each layer's new channels.
        efficient: recompute the bottleneck outputs in backward. Kept for backward, per pixel: C0 + L * k values with
            it, L * bn_size * k more without.
        backend: see `set_backend`.
        spatial_dims: 1, 2 or 3, of the images.
        dilation: of the layers' 3x3 convolutions.

    Shapes: [N, C0, H, W] -> [N, C0 + L * k, H, W], floating, in the memory format of the input; with spatial_dims 1 and
    3, [N, C0, L] and [N, C0, D, H, W].

    Raises:
        ValueError: num_layers below 0, another count below 1, drop_rate outside [0, 1], spatial_dims that are none of
            1, 2, 3, an unknown backend; on the call: what `functional.dense_stage` refuses.
    """

    layer_class: type[DenseLayer] = DenseLayer

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int | None,
        growth_rate: int,
        drop_rate: float = 0.0,
        efficient: bool = False,
        backend: str = "auto",
        spatial_dims: int = 2,
        dilation: int = 1,
    ):
        super().__init__(backend)
        self.spatial_dims = check_dims(spatial_dims)
        if num_layers < 0:
            raise ValueError(f"num_layers: got {num_layers}, expected at least 0")
        for i in range(num_layers):
            channels = num_input_features + i * growth_rate
            layer = self.layer_class(
                channels, growth_rate, bn_size, drop_rate, spatial_dims=spatial_dims, dilation=dilation
            )
            self.add_module(f"denselayer{i + 1}", layer)
        self.efficient = efficient

    def plain(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)

    def view(self, layer: nn.Module) -> LayerView | str:
        reason = why_not(layer, DenseLayer) or why_other_helpers(layer, DenseLayer)
        if reason is not None:
            return f" {reason}"
        if layer.spatial_dims != self.spatial_dims:
            return f" is for images of {layer.spatial_dims} dimensions"
        view = cast(DenseLayer, layer).view(self.spatial_dims)
        return f".{view}" if isinstance(view, str) else view
