"""A dense block."""

from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..stage import dropout_seeds
from ..stage.buffer import memory_format
from .eligibility import why_not
from .fusable import Fusable
from .layer import DenseLayer
from .reading import BlockReading, Reading
from .running_stats import Transaction
from .staging import run_stage


class DenseBlock(Fusable, nn.ModuleDict):
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

    Shapes: [N, C0, H, W] -> [N, C0 + L * k, H, W], floating, in the memory format of the input.

    Raises:
        ValueError: num_layers below 0, another count below 1, drop_rate outside [0, 1], an unknown backend; on the
            call: what `functional.dense_stage` refuses.
    """

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int | None,
        growth_rate: int,
        drop_rate: float = 0.0,
        efficient: bool = False,
        backend: str = "auto",
    ):
        super().__init__(backend)
        if num_layers < 0:
            raise ValueError(f"num_layers: got {num_layers}, expected at least 0")
        for i in range(num_layers):
            layer = DenseLayer(num_input_features + i * growth_rate, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)
        self.efficient = efficient

    def set_efficient(self, efficient: bool = True) -> Self:
        """Recompute the bottleneck outputs in backward (True) or keep them (False); returns self."""
        self.efficient = efficient
        return self

    def fused(self, x: Tensor, reading: Reading, updates: Transaction) -> Tensor:
        """[N, C0, H, W] -> [N, C0 + L * k, H, W]."""
        assert isinstance(reading, BlockReading)
        return run_stage(x, updates, reading, None, backend=self.backend, layout=memory_format(x)).y

    def plain(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)

    def layers(self) -> list[DenseLayer]:
        return cast(list[DenseLayer], list(self.values()))

    def read(self) -> Reading:
        why = self._why_plain()
        if why is not None:
            return Reading(self, why)
        layers = tuple(self.layers())
        return BlockReading(self, None, layers, [source for layer in layers for source in layer.sources()])

    def _why_plain(self) -> str | None:
        for name, layer in self.items():
            reason = why_not(layer, DenseLayer)
            if reason is not None:
                return f"{name} {reason}"
            reason = cast(DenseLayer, layer).why_plain()
            if reason is not None:
                return f"{name}.{reason}"
        return None

    @property
    def growth(self) -> int:
        """Channels that all layers add."""
        return sum([layer.growth_rate for layer in self.layers()])

    def seeds(self, device: torch.device) -> Tensor:
        """A fresh dropout seed for each layer."""
        return dropout_seeds(len(self._modules), device)
