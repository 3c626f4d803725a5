"""A layer of a dense block."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..stage import LayerSpec
from .eligibility import CONVOLUTIONS, NORMS, Predicate, why_not, why_not_conv, why_not_norm, why_not_parts
from .reading import Source, group_of, source_of, sources_of, uses_batch

_why_not_relu: Predicate = partial(why_not, cls=nn.ReLU)


@cache
def _parts(dims: int, has_bottleneck: bool) -> dict[str, Predicate]:
    """What the fused path takes children for, by their names."""
    norm, conv = partial(why_not_norm, dims=dims), partial(why_not_conv, dims=dims)
    if not has_bottleneck:
        return {"norm1": norm, "relu1": _why_not_relu, "conv1": partial(conv, kernel=3)}
    return {
        "norm1": norm,
        "relu1": _why_not_relu,
        "conv1": partial(conv, kernel=1),
        "norm2": norm,
        "relu2": _why_not_relu,
        "conv2": partial(conv, kernel=3),
    }


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
    ):
        super().__init__()
        self.spatial_dims = check_dims(spatial_dims)
        norm, conv = NORMS[spatial_dims], CONVOLUTIONS[spatial_dims]
        check_counts(num_input_features=num_input_features, growth_rate=growth_rate, bn_size=bn_size)
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"drop_rate: got {drop_rate}, expected a probability in [0, 1]")
        self.norm1 = norm(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        if bn_size is None:
            self.conv1 = conv(num_input_features, growth_rate, 3, padding=1, bias=False)
        else:
            width = bn_size * growth_rate
            self.conv1 = conv(num_input_features, width, 1, bias=False)
            self.norm2 = norm(width)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = conv(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    @property
    def has_bottleneck(self) -> bool:
        return "conv2" in self._modules

    @property
    def growth_rate(self) -> int:
        conv = self.conv2 if self.has_bottleneck else self.conv1
        weight = conv._parameters.get("weight")  # which may have been cut; not evaluated where it is parametrized
        return conv.out_channels if weight is None else weight.shape[0]

    @property
    def norms(self) -> tuple[Any, ...]:
        children = cast(dict[str, Any], self._modules)
        return (children["norm1"], children["norm2"]) if self.has_bottleneck else (children["norm1"],)

    def forward(self, *features: Tensor | Sequence[Tensor]) -> Tensor:
        """The new channels [N, k, H, W] from all channels before, given as one tensor, as several or as a list."""
        inputs: list[Any] = list(features)
        if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            inputs = list(inputs[0])
        x = torch.cat(inputs, 1)  # also of one input: relu1 may then overwrite what norm1, replaced, returns
        x = self.conv1(self.relu1(self.norm1(x)))
        if self.has_bottleneck:
            x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x

    def why_plain(self) -> str | None:
        """Why this layer cannot run fused, naming the submodule."""
        return why_not_parts(self, _parts(self.spatial_dims, self.has_bottleneck))

    def sources(self) -> list[Source | None]:
        """Of `contract.block.TENSORS`, in the layer's present mode."""
        children = cast(dict[str, Any], self._modules)
        found = [*sources_of(children["norm1"]), source_of(children["conv1"], "weight")]
        if self.has_bottleneck:
            return [*found, *sources_of(children["norm2"]), source_of(children["conv2"], "weight")]
        return [*found, None, None, None, None, None]

    def spec(self, width: int, growth: int) -> LayerSpec:
        """What the layer does in its present mode."""
        first, *rest = self.norms
        eps2, batch2, group2 = (rest[0].eps, uses_batch(rest[0]), group_of(rest[0])) if rest else (0.0, False, None)
        drop_rate = self.drop_rate if self.training else 0.0
        return LayerSpec(width, growth, first.eps, eps2, uses_batch(first), batch2, drop_rate, group_of(first), group2)
