"""How other libraries write a dense block, each over the one view of a layer that the fused path has.

No library is imported: a part is known by module and name of a class that it is, or that it derives from. A block of
another class, such as a project's own copy of a DenseNet, is known if it computes what a dense block does (trial.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..modules.eligibility import (
    CHANNEL_DROPOUTS,
    CONVOLUTIONS,
    has_activation,
    name_beside,
    runs_as,
    why_not,
    why_other_helpers,
)
from ..modules.views import LayerView, TransitionView, view_layer, view_transition

LAYER = ["norm1", "relu1", "conv1", "norm2", "relu2", "conv2"]


class Library(NamedTuple):
    block: str  # "module:class"
    layer: str
    view: Callable[[Any, int], LayerView | str]  # of a layer that runs as the library's class; reasons as view_layer's

    def runs(self, block: nn.Module) -> bool:
        """Whether calling `block` does what calling one of the library's does."""
        cls = _class_of(block, self.block)
        return cls is not None and runs_as(block, cls)

    def view_layer(self, layer: nn.Module, dims: int) -> LayerView | str:
        """A layer for images of `dims` dimensions in its present mode, or why it cannot run fused, in words that follow
        its name."""
        cls = _class_of(layer, self.layer)
        if cls is None:
            name = self.layer.partition(":")[2]
            return f" is {name_beside(layer, name)}, not {name}"
        reason = why_not(layer, cls) or why_other_helpers(layer, cls)
        return self.view(layer, dims) if reason is None else f" {reason}"


def name_of(cls: type) -> str:
    """As `Library.block` and `Library.layer` have it."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_of(module: nn.Module, name: str) -> type[nn.Module] | None:
    """The class of this name that `module` is of."""
    return next((cls for cls in type(module).__mro__ if name_of(cls) == name), None)


def known_library(block: nn.Module) -> Library | None:
    """The library that `block` is of."""
    return next((library for library in LIBRARIES if _class_of(block, library.block) is not None), None)


def is_transition(module: nn.Module) -> bool:
    """Whether `module` is written as all libraries write a transition: by its children."""
    names = list(module._modules)
    return isinstance(module, nn.Sequential) and names[:1] == ["norm"] and {"conv", "pool"} <= {*names}


def dims_of(part: nn.Module) -> int:
    """Of how many dimensions a block's or a transition's images are."""
    for module in part.modules():
        for dims, cls in CONVOLUTIONS.items():
            if isinstance(module, cls):
                return dims
    return 2


def view_of_transition(transition: nn.Module, dims: int) -> TransitionView | str:
    """A transition that runs as nn.Sequential."""
    parts = transition._modules
    names = ["norm", *([] if has_activation(parts.get("norm")) else ["relu"]), "conv", "pool"]
    if list(parts) != names:
        return f"its children are {', '.join(parts)}, not {', '.join(names)}"
    return view_transition(parts, dims)


def recomputes(layer: nn.Module) -> bool:
    """Whether a layer is to recompute its bottleneck in backward: torchvision's, timm's and the efficient
    implementation's words for it."""
    own = layer.__dict__
    return bool(own.get("memory_efficient") or own.get("grad_checkpointing") or own.get("efficient"))


def by_names(layer: Any, dims: int) -> LayerView | str:
    """A layer whose forward calls its children by their names."""
    view = view_layer(layer._modules, float(layer.drop_rate) if layer.training else 0.0, dims)
    return f".{view}" if isinstance(view, str) else view


def _in_turn(layer: Any, dims: int) -> LayerView | str:
    """A layer that is an nn.Sequential."""
    if list(layer._modules) != LAYER:
        return f" has {', '.join(layer._modules)}, not {', '.join(LAYER)}"
    return by_names(layer, dims)


def _in_layers(layer: Any, dims: int) -> LayerView | str:
    """A layer whose child `layers` is an nn.Sequential, with a dropout at its end if there is one."""
    reason = why_not(layer.layers, nn.Sequential)
    if reason is not None:
        return f".layers {reason}"
    parts = dict(layer.layers._modules)
    drop_rate, drops_channels, dropout = 0.0, False, parts.pop("dropout", None)
    if list(parts) != LAYER:
        return f".layers has {', '.join(parts)}, not {', '.join(LAYER)}"
    if dropout is not None and dropout.training and dropout.p > 0:
        of_channels = CHANNEL_DROPOUTS.get(dims, nn.Dropout)
        drops_channels = isinstance(dropout, of_channels) and of_channels is not nn.Dropout
        reason = why_not(dropout, of_channels if drops_channels else nn.Dropout)
        if reason is not None:
            return f".layers.dropout {reason}"
        drop_rate = float(dropout.p)
    view = view_layer(parts, drop_rate, dims)
    return f".layers.{view}" if isinstance(view, str) else view._replace(drops_channels=drops_channels)


_TORCHVISION, _TIMM = "torchvision.models.densenet", "timm.models.densenet"
_MONAI, _XRV = "monai.networks.nets.densenet", "torchxrayvision.models"
LIBRARIES = (
    Library(f"{_TORCHVISION}:_DenseBlock", f"{_TORCHVISION}:_DenseLayer", by_names),
    Library(f"{_TIMM}:DenseBlock", f"{_TIMM}:DenseLayer", by_names),
    Library(f"{_MONAI}:_DenseBlock", f"{_MONAI}:_DenseLayer", _in_layers),
    Library(f"{_XRV}:_DenseBlock", f"{_XRV}:_DenseLayer", _in_turn),
)
