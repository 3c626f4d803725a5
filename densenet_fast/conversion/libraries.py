"""How other libraries write a DenseNet's parts, each over the one view of a layer that the fused path has.

No library is imported: a part is known by the module and name of a class that it is, or that it derives from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..modules.eligibility import has_activation, why_not
from ..modules.views import LayerView, TransitionView, view_layer, view_transition

_LAYER = ["norm1", "relu1", "conv1", "norm2", "relu2", "conv2"]


class Library(NamedTuple):
    name: str
    module: str  # in which its classes are
    block: str
    layer: str
    transition: str
    view: Callable[[Any], LayerView | str]  # of a layer that runs as the library's class; reasons as view_layer's

    def view_layer(self, layer: nn.Module) -> LayerView | str:
        """A layer in its present mode, or why it cannot run fused, in words that follow its name."""
        cls = _base(layer, self.module, self.layer)
        reason = f"is {type(layer).__name__}, not {self.layer}" if cls is None else why_not(layer, cls)
        if reason is not None:
            return f" {reason}"
        return self.view(layer)


def library_of(module: nn.Module) -> tuple[Library, str, type[nn.Module]] | None:
    """Whose dense block or transition `module` is: the library, "dense block" or "transition", and the class."""
    for library in LIBRARIES:
        for kind, name in ("dense block", library.block), ("transition", library.transition):
            cls = _base(module, library.module, name)
            if cls is not None:
                return library, kind, cls
    return None


def _base(module: nn.Module, library: str, name: str) -> type[nn.Module] | None:
    """The class `name` of `library` among those that `module` is of."""
    for cls in type(module).__mro__:
        if cls.__name__ == name and cls.__module__ == library:
            return cls
    return None


def view_of_transition(transition: nn.Module) -> TransitionView | str:
    """A transition of any of the libraries, all of which are nn.Sequential."""
    parts = transition._modules
    names = ["norm", *([] if has_activation(parts.get("norm")) else ["relu"]), "conv", "pool"]
    if list(parts) != names:
        return f"its children are {', '.join(parts)}, not {', '.join(names)}"
    return view_transition(parts)


def recomputes(layer: nn.Module) -> bool:
    """Whether a layer is to recompute its bottleneck in backward: torchvision's, timm's and the efficient
    implementation's words for it."""
    own = layer.__dict__
    return bool(own.get("memory_efficient") or own.get("grad_checkpointing") or own.get("efficient"))


def _by_names(layer: Any) -> LayerView | str:
    """A layer whose forward calls its children by their names."""
    view = view_layer(layer._modules, float(layer.drop_rate) if layer.training else 0.0)
    return f".{view}" if isinstance(view, str) else view


def _in_turn(layer: Any) -> LayerView | str:
    """A layer that is an nn.Sequential."""
    if list(layer._modules) != _LAYER:
        return f" has {', '.join(layer._modules)}, not {', '.join(_LAYER)}"
    return _by_names(layer)


def _in_layers(layer: Any) -> LayerView | str:
    """A layer whose child `layers` is an nn.Sequential, with a dropout at its end if there is one."""
    reason = why_not(layer.layers, nn.Sequential)
    if reason is not None:
        return f".layers {reason}"
    parts = dict(layer.layers._modules)
    drop_rate, dropout = 0.0, parts.pop("dropout", None)
    if list(parts) != _LAYER:
        return f".layers has {', '.join(parts)}, not {', '.join(_LAYER)}"
    if dropout is not None and dropout.training and dropout.p > 0:
        reason = why_not(dropout, nn.Dropout)
        if reason is not None:
            return f".layers.dropout {reason}"
        drop_rate = float(dropout.p)
    view = view_layer(parts, drop_rate)
    return f".layers.{view}" if isinstance(view, str) else view


LIBRARIES = (
    Library("torchvision", "torchvision.models.densenet", "_DenseBlock", "_DenseLayer", "_Transition", _by_names),
    Library("timm", "timm.models.densenet", "DenseBlock", "DenseLayer", "DenseTransition", _by_names),
    Library("MONAI", "monai.networks.nets.densenet", "_DenseBlock", "_DenseLayer", "_Transition", _in_layers),
    Library("torchxrayvision", "torchxrayvision.models", "_DenseBlock", "_DenseLayer", "_Transition", _in_turn),
)
