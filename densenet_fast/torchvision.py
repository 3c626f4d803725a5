"""torchvision's DenseNet API on densenet_fast: changing the import line is the whole migration.

    from densenet_fast.torchvision import DenseNet, densenet121, DenseNet121_Weights

Signatures, defaults, initialisation and state_dict keys are torchvision 0.26's; the weights enums are torchvision's own
and are imported from it when they are asked for.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import models
from .configurations import LARGE_IMAGES
from .modules import DenseBlock, DenseLayer, Transition

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

__all__ = [
    "DenseNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
]

_ENUMS = (
    "DenseNet121_Weights",
    "DenseNet161_Weights",
    "DenseNet169_Weights",
    "DenseNet201_Weights",
)


def __getattr__(name: str) -> Any:
    if name in _ENUMS:
        return getattr(import_module("torchvision.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _DenseLayer(DenseLayer):
    """A layer with torchvision's arguments; `options`: as `DenseLayer`."""

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int | None,
        drop_rate: float,
        memory_efficient: bool = False,
        **options: Any,
    ):
        super().__init__(num_input_features, growth_rate, bn_size, drop_rate, **options)
        self.memory_efficient = memory_efficient

    def any_requires_grad(self, input: list[Tensor]) -> bool:
        return any(tensor.requires_grad for tensor in input)

    def call_checkpoint_bottleneck(self, input: list[Tensor]) -> Tensor:
        """`bn_function`, recomputed in backward."""
        y: Tensor = checkpoint(lambda *inputs: self.bn_function(inputs), *input, use_reentrant=False)
        return y


class _DenseBlock(DenseBlock):
    """A block with torchvision's arguments; it recomputes if any of its layers is told to."""

    layer_class = _DenseLayer

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int | None,
        growth_rate: int,
        drop_rate: float,
        memory_efficient: bool = False,
        **options: Any,
    ):
        super().__init__(num_layers, num_input_features, bn_size, growth_rate, drop_rate, memory_efficient, **options)

    @property
    def efficient(self) -> bool:
        return any(getattr(layer, "memory_efficient", False) for layer in self.values())

    @efficient.setter
    def efficient(self, efficient: bool) -> None:
        layers: Any = self.values()
        for layer in layers:
            layer.memory_efficient = efficient


class DenseNet(models.DenseNet):
    """DenseNet-BC with torchvision's positional arguments, large stem and `kaiming_normal_` initialisation.

    Args:
        growth_rate: channels k that each layer adds.
        block_config: layers in each dense block.
        num_init_features: channels of the first convolution.
        bn_size: bottleneck width in units of k; None for layers without bottleneck.
        drop_rate: dropout probability behind each layer.
        num_classes: outputs of the classifier; 0: none, as in `densenet_fast.DenseNet`.
        memory_efficient: recompute the bottleneck outputs and the first convolution's in backward; memory is linear in
            depth either way.
        efficient: the same under densenet_fast's name.
        in_channels: channels of the image.
        backend: as in `densenet_fast.DenseNet`.
        output_stride: as in `densenet_fast.DenseNet`.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], H and W at least 29 with four blocks.

    Raises:
        ValueError: as `densenet_fast.DenseNet`.
    """

    block_class = _DenseBlock

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int | None = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
        *,
        efficient: bool = False,
        in_channels: int = 3,
        backend: str = "auto",
        output_stride: int | None = None,
    ):
        super().__init__(
            growth_rate,
            block_config,
            0.5,
            num_init_features,
            bn_size,
            drop_rate,
            num_classes,
            small_inputs=False,
            efficient=memory_efficient or efficient,
            in_channels=in_channels,
            backend=backend,
            output_stride=output_stride,
        )

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


_Transition = Transition


def _load_state_dict(model: nn.Module, weights: "WeightsEnum", progress: bool) -> None:
    """Load what an entry of torchvision's weights enums stands for, downloaded and checked by torchvision."""
    model.load_state_dict(weights.get_state_dict(progress=progress, check_hash=True))


def _positional(build: Callable[..., DenseNet]) -> Callable[..., DenseNet]:
    """`build` that takes weights (or `pretrained`) and progress by position too, which torchvision has deprecated."""

    @functools.wraps(build)
    def call(*args: Any, **kwargs: Any) -> DenseNet:
        if len(args) > 2:
            raise TypeError(
                f"{build.__name__}: got {len(args)} positional arguments, expected at most weights, progress"
            )
        if args:
            warnings.warn("weights and progress by position are deprecated, as in torchvision: name them", stacklevel=2)
            given = dict(zip(("weights", "progress"), args, strict=False))
            if isinstance(given["weights"], bool):
                given["pretrained"] = given.pop("weights")
            kwargs = given | kwargs
        return build(**kwargs)

    return call


@_positional
def densenet121(*, weights: "WeightsEnum | str | None" = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """DenseNet-121 (Huang et al. 2017, table 1).

    Args:
        weights: a `torchvision.models.DenseNet121_Weights`, its name ("IMAGENET1K_V1", "DEFAULT"), or None.
        progress: show a progress bar while weights are downloaded.
        **kwargs: arguments of `DenseNet`.

    Raises:
        ImportError: weights were asked for and torchvision is not installed.
        ValueError: num_classes differs from that of the weights.
    """
    return _densenet("densenet121", weights, progress, kwargs)


@_positional
def densenet161(*, weights: "WeightsEnum | str | None" = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """DenseNet-161; arguments as `densenet121`, weights of `torchvision.models.DenseNet161_Weights`."""
    return _densenet("densenet161", weights, progress, kwargs)


@_positional
def densenet169(*, weights: "WeightsEnum | str | None" = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """DenseNet-169; arguments as `densenet121`, weights of `torchvision.models.DenseNet169_Weights`."""
    return _densenet("densenet169", weights, progress, kwargs)


@_positional
def densenet201(*, weights: "WeightsEnum | str | None" = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """DenseNet-201; arguments as `densenet121`, weights of `torchvision.models.DenseNet201_Weights`."""
    return _densenet("densenet201", weights, progress, kwargs)


@_positional
def densenet264(*, weights: None = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """DenseNet-264 (Huang et al. 2017, table 1), which torchvision does not have: `weights` must be None."""
    return _densenet("densenet264", weights, progress, kwargs)


def _densenet(name: str, weights: "WeightsEnum | str | None", progress: bool, kwargs: dict[str, Any]) -> DenseNet:
    if "pretrained" in kwargs:
        pretrained = kwargs.pop("pretrained")
        warnings.warn(
            "pretrained is deprecated, as in torchvision: use weights='IMAGENET1K_V1' or weights=None",
            stacklevel=4,
        )
        weights = weights or ("IMAGENET1K_V1" if pretrained else None)
    net = LARGE_IMAGES[name]
    arguments = net.growth_rate, net.block_config, net.num_init_features
    if weights is None:
        return DenseNet(*arguments, **kwargs)

    chosen = _weights_enum(name.removeprefix("densenet")).verify(weights)
    classes = len(chosen.meta["categories"])
    if kwargs.setdefault("num_classes", classes) != classes:
        raise ValueError(
            f"num_classes: got {kwargs['num_classes']}, expected {classes}, which weights={weights!r} have; load them "
            "without num_classes and replace model.classifier"
        )
    model = DenseNet(*arguments, **kwargs)
    _load_state_dict(model, chosen, progress)
    return model


def _weights_enum(depth: str) -> Any:
    name = f"DenseNet{depth}_Weights"
    if name not in _ENUMS:
        raise ValueError(f"weights: got weights for DenseNet-{depth}, expected None: there are none")
    try:
        return getattr(import_module("torchvision.models"), name)
    except ImportError as error:
        raise ImportError(
            f"pretrained weights come from torchvision, which is not installed: pip install torchvision ({error})"
        ) from error
