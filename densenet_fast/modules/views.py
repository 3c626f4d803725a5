"""A dense layer and a transition as the fused path sees them, whatever classes hold their parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..stage import LayerSpec
from .eligibility import has_activation, why_not, why_not_conv, why_not_norm, why_not_pool
from .reading import Source, group_of, source_of, sources_of, uses_batch

Parts = Mapping[str, nn.Module | None]  # by torchvision's names; without relus where the norms have theirs inside


class LayerView(NamedTuple):
    """BN-ReLU-conv3x3, or with a bottleneck BN-ReLU-conv1x1 before it; then dropout."""

    norms: tuple[Any, ...]
    convs: tuple[Any, ...]  # one behind each norm
    drop_rate: float  # in the layer's present mode

    @property
    def has_bottleneck(self) -> bool:
        return len(self.convs) == 2

    @property
    def growth_rate(self) -> int:
        """Channels that the layer adds."""
        weight = self.convs[-1]._parameters.get("weight")  # which may have been cut; not evaluated if parametrized
        return self.convs[-1].out_channels if weight is None else weight.shape[0]

    def sources(self) -> list[Source | None]:
        """Of `contract.block.TENSORS`, in the present mode."""
        found = [
            source
            for norm, conv in zip(self.norms, self.convs, strict=True)
            for source in (*sources_of(norm), source_of(conv, "weight"))
        ]
        return found if self.has_bottleneck else [*found, None, None, None, None, None]

    def spec(self, width: int, growth: int) -> LayerSpec:
        """What the layer does in the present mode."""
        first, *rest = self.norms
        eps2, batch2, group2 = (rest[0].eps, uses_batch(rest[0]), group_of(rest[0])) if rest else (0.0, False, None)
        batch1, group1 = uses_batch(first), group_of(first)
        return LayerSpec(width, growth, first.eps, eps2, batch1, batch2, self.drop_rate, group1, group2)


class TransitionView(NamedTuple):
    """BN-ReLU-conv1x1 and 2x2 average."""

    norm: Any
    conv: Any


def view_layer(parts: Parts, drop_rate: float) -> LayerView | str:
    """The layer that norm1 relu1 conv1 [norm2 relu2 conv2] make, or the reason why it cannot run fused."""
    if "conv2" not in parts:
        reason = _why_not_bn_relu_conv(parts, "1", 3)
        return reason or LayerView((parts["norm1"],), (parts["conv1"],), drop_rate)
    reason = _why_not_bn_relu_conv(parts, "1", 1) or _why_not_bn_relu_conv(parts, "2", 3)
    return reason or LayerView((parts["norm1"], parts["norm2"]), (parts["conv1"], parts["conv2"]), drop_rate)


def view_transition(parts: Parts) -> TransitionView | str:
    """The transition that norm relu conv pool make, or the reason why it cannot run fused."""
    reason = _why_not_bn_relu_conv(parts, "", 1) or _why_not_part(parts, "pool", _why_not_average)
    return reason or TransitionView(parts["norm"], parts["conv"])


def _why_not_bn_relu_conv(parts: Parts, suffix: str, kernel: int) -> str | None:
    norm = parts.get(f"norm{suffix}")
    return (
        _why_not_part(parts, f"norm{suffix}", why_not_norm)
        or (None if has_activation(norm) else _why_not_part(parts, f"relu{suffix}", lambda m: why_not(m, nn.ReLU)))
        or _why_not_part(parts, f"conv{suffix}", lambda m: why_not_conv(m, kernel))
    )


def _why_not_part(parts: Parts, name: str, why: Any) -> str | None:
    part = parts.get(name)
    reason = "is missing" if part is None else why(part)
    return None if reason is None else f"{name} {reason}"


def _why_not_average(module: nn.Module) -> str | None:
    return why_not_pool(
        module, nn.AvgPool2d, kernel_size=2, stride=2, padding=0, ceil_mode=False, divisor_override=None
    )
