"""Whether a block of an unknown class is a dense block: by trying it.

Many projects carry a DenseNet of their own, whose layers have torchvision's names. What such a class computes cannot be
read off it, so a copy of the block runs on random numbers in float64, in training and in evaluation, beside the plain
layers that its names promise: outputs and gradients have to be the same.
"""

import copy
import inspect
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.views import LayerView
from .libraries import LAYER, Library, by_names, dims_of, name_of

_TOLERANCE = 1e-10  # of float64: an operation left out or added is far off


_SEEN = {"training", "drop_rate", "memory_efficient", "grad_checkpointing", "efficient"}  # attributes with a meaning


def of_trial(block: nn.Module) -> dict[str, dict[str, Any]]:
    """Attributes by which a block, its layers and what these have besides a dense layer's parts may be told to compute
    something else than when the block was tried; by the names of these modules."""
    found = {name: _attributes(module) for name, module in [("", block), *block.named_children()]}
    for name, layer in block.named_children():
        for child, module in _others(layer).items():
            found[f"{name}.{child}"] = {"__class__": type(module)} | _attributes(module)
    return found


def why_not_as_tried(block: nn.Module, tried: dict[str, dict[str, Any]]) -> str | None:
    """Why a block may compute something else than when it was tried; tried: its `of_trial` then."""
    for name, attributes in tried.items():
        module = block.get_submodule(name)
        for attribute, value in attributes.items():
            if getattr(module, attribute, None) != value:  # in a graph a variable, which cannot be told
                return f"{name or 'it'} has another {attribute} than when it was tried"
    return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    simple = bool, int, float, str, type(None)
    own = module.__dict__.items()
    return {name: value for name, value in own if name[0] != "_" and name not in _SEEN and isinstance(value, simple)}


def _others(layer: nn.Module) -> dict[str, nn.Module]:
    """The children of a layer that are none of a dense layer's parts."""
    return {name: child for name, child in layer.named_children() if name not in LAYER}


def is_candidate(module: nn.Module) -> bool:
    """Whether the names of children and grandchildren are those of a dense block."""
    return bool(module._modules) and all(
        re.fullmatch(r"denselayer\d+", name) and {"norm1", "conv1"} <= layer._modules.keys()
        for name, layer in module.named_children()
    )


def tried_library(block: nn.Module) -> Library | str:
    """The library that consists of this block's classes, or why it is not a dense block that can run fused."""
    classes = {type(layer) for layer in block.children()}
    if len(classes) > 1:
        return f"its layers are of several classes: {', '.join(sorted(cls.__name__ for cls in classes))}"
    taken = [parameter.kind for parameter in inspect.signature(type(block).forward).parameters.values()]
    if taken != [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2:  # itself and x
        return "its forward takes something else than one tensor"
    library = Library(name_of(type(block)), name_of(classes.pop()), by_names)
    views = _views(block, library)  # first: what has hooks, as pruned layers do, may not be copied
    if isinstance(views, str):
        return views
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        trial = copy.deepcopy(block).to("cpu", torch.float64)
        for training in (False, True):
            reason = _why_another(trial.train(training), library)
            if reason is not None:
                return reason
    return library


def _why_another(block: nn.Module, library: Library) -> str | None:
    """Why `block`, in float64 on the CPU, does not compute in its present mode what a dense block does."""
    views, dims = _views(block, library), dims_of(block)
    if isinstance(views, str):
        return views
    x = torch.randn(2, views[0].convs[0].in_channels, *(5, 4, 3)[:dims], dtype=torch.float64)
    parameters = [p for p in block.parameters() if p.requires_grad]
    results = []
    for run in (type(block).forward, lambda _, x: _plain(views, x)):
        torch.manual_seed(0)  # of dropout
        given = x.clone().requires_grad_()
        try:
            y: Any = run(block, given)  # not its hooks
            gradients = torch.autograd.grad(y.square().sum(), [given, *parameters])
        except Exception as error:  # whatever a foreign class may raise, it is no dense block
            return f"tried on numbers, it raises {type(error).__name__}: {error}"
        results.append([y, *gradients])
    theirs, ours = results
    if [t.shape for t in theirs] != [t.shape for t in ours]:
        return "tried on numbers, its output has another shape than a dense block's"
    difference = max(((a - b).norm() / (b.norm() + 1e-300)).item() for a, b in zip(theirs, ours, strict=True))
    if difference <= _TOLERANCE:
        return None
    return f"tried on numbers, it is no dense block: relative difference {difference:.1e}"


def _views(block: nn.Module, library: Library) -> list[LayerView] | str:
    """Of the layers in their present mode, or why one cannot run fused."""
    found: list[LayerView] = []
    others = {f"{name}.{child}": m for name, layer in block.named_children() for child, m in _others(layer).items()}
    for name, module in {"it": block, **dict(block.named_children())}.items():
        if module._parameters or module._buffers:
            return f"{name} has {', '.join([*module._parameters, *module._buffers])} of its own"
    for name, module in others.items():
        if any(True for tensors in (module.parameters(), module.buffers()) for _ in tensors):
            return f"{name} has tensors, and is no part of a dense layer"
    for name, layer in block.named_children():
        if not isinstance(getattr(layer, "drop_rate", None), float | int):
            return f"{name} has no drop_rate"
        view = library.view_layer(layer, dims_of(block))
        if isinstance(view, str):
            return f"{name}{view}"
        found.append(view)
    return found


def _plain(views: list[LayerView], x: Tensor) -> Tensor:
    """A dense block by PyTorch's own layers."""
    for view in views:
        y = x
        for norm, conv in zip(view.norms, view.convs, strict=True):
            y = conv(F.relu(norm(y)))
        x = torch.cat([x, F.dropout(y, view.drop_rate)], 1)
    return x
