"""A dense layer and a transition as the fused path sees them, whatever classes hold their parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..stage import LayerSpec
from .eligibility import (
    AVERAGE_POOLS,
    Predicate,
    dilation_of,
    has_activation,
    why_not,
    why_not_conv,
    why_not_norm,
    why_not_pool,
)
from .reading import Source, group_of, source_of, sources_of, uses_batch

Parts = Mapping[str, nn.Module | None]  # by torchvision's names; without relus where the norms have theirs inside


_HALVES: dict[str, Any] = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "divisor_override": None}
_NOTHING = _HALVES | {"kernel_size": 1, "stride": 1}


class LayerView(NamedTuple):
    """BN-ReLU-conv3x3, or with a bottleneck BN-ReLU-conv1x1 before it; then dropout."""

    norms: tuple[Any, ...]
    convs: tuple[Any, ...]  # one behind each norm
    drop_rate: float  # in the layer's present mode
    drops_channels: bool = False  # of images, as nn.Dropout2d does; not values

    def has_bottleneck(self) -> bool:  # no property: PyTorch 2.10's compiler knows none of tuples
        return len(self.convs) == 2

    def sources(self) -> list[Source | None]:
        """Of `contract.block.TENSORS`, in the present mode."""
        found = [
            source
            for norm, conv in zip(self.norms, self.convs, strict=True)
            for source in (*sources_of(norm), source_of(conv, "weight"))
        ]
        return found if self.has_bottleneck() else [*found, None, None, None, None, None]

    def spec(self, width: int, growth: int) -> LayerSpec:
        """What the layer does in the present mode."""
        first, *rest = self.norms
        eps2, batch2, group2 = (rest[0].eps, uses_batch(rest[0]), group_of(rest[0])) if rest else (0.0, False, None)
        batch1, group1 = uses_batch(first), group_of(first)
        modes = batch1, batch2, self.drop_rate, group1, group2, dilation_of(self.convs[-1]), self.drops_channels
        return LayerSpec(width, growth, first.eps, eps2, *modes)


class TransitionView(NamedTuple):
    """BN-ReLU-conv1x1 and, if it pools, 2x2 average."""

    norm: Any
    conv: Any
    pools: bool


def view_layer(parts: Parts, drop_rate: float, dims: int) -> LayerView | str:
    """The layer that norm1 relu1 conv1 [norm2 relu2 conv2] make for images of `dims` dimensions, or the reason why it
    cannot run fused."""
    if drop_rate > 1:
        return f"drop_rate is {drop_rate}, no probability"
    if "conv2" not in parts:
        reason = _why_not_bn_relu_conv(parts, "1", 3, dims)
        return reason or LayerView((parts["norm1"],), (parts["conv1"],), drop_rate)
    reason = _why_not_bn_relu_conv(parts, "1", 1, dims) or _why_not_bn_relu_conv(parts, "2", 3, dims)
    return reason or LayerView((parts["norm1"], parts["norm2"]), (parts["conv1"], parts["conv2"]), drop_rate)


def view_transition(parts: Parts, dims: int) -> TransitionView | str:
    """The transition that norm relu conv pool make for images of `dims` dimensions, or the reason why it cannot run
    fused."""
    pools = not _does_nothing(parts.get("pool"), dims)
    reason = _why_not_bn_relu_conv(parts, "", 1, dims)
    if pools:
        reason = reason or _why_not_part(parts, "pool", lambda m: why_not_pool(m, AVERAGE_POOLS[dims], **_HALVES))
    return reason or TransitionView(parts["norm"], parts["conv"], pools)


def pools(transition: Any) -> bool:
    """Whether a transition of torchvision's names halves the image."""
    return not _does_nothing(transition.pool, transition.spatial_dims)


def _does_nothing(pool: nn.Module | None, dims: int) -> bool:
    """Whether a transition's pooling has been taken out, in one of the ways in which that is done."""
    if pool is None:
        return False
    return why_not(pool, nn.Identity) is None or why_not_pool(pool, AVERAGE_POOLS[dims], **_NOTHING) is None


def _why_not_bn_relu_conv(parts: Parts, suffix: str, kernel: int, dims: int) -> str | None:
    norm = parts.get(f"norm{suffix}")
    return (
        _why_not_part(parts, f"norm{suffix}", lambda m: why_not_norm(m, dims))
        or (None if has_activation(norm) else _why_not_part(parts, f"relu{suffix}", lambda m: why_not(m, nn.ReLU)))
        or _why_not_part(parts, f"conv{suffix}", lambda m: why_not_conv(m, kernel, dims))
    )


def _why_not_part(parts: Parts, name: str, why: Predicate) -> str | None:
    part = parts.get(name)
    reason = "is missing" if part is None else why(part)
    return None if reason is None else f"{name} {reason}"
