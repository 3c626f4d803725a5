"""Whether a module is still what it was when it was last read.

Anybody may set an attribute, hook a child or replace it between two steps, so a step looks at everything that decides
what calling the modules does, tensors' values excepted. It looks at a thousand things, which lie all over the memory,
so loops run inside map and itemgetter, what cannot matter is not touched, and lists are compared that hold nothing new:
a new tuple for each module would have the garbage collected every step.
"""

from collections.abc import Iterator
from functools import cache
from itertools import chain, starmap
from operator import attrgetter, eq, is_, itemgetter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from .eligibility import helpers, is_stock_tensor

# What `eligibility` or a reading looks at.
_ATTRIBUTES = (
    *("training", "eps", "momentum", "track_running_stats"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("ceil_mode", "return_indices", "divisor_override", "p", "drop_rate", "backend"),
)
_hooks = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_children = itemgetter("_modules")
_parameters = itemgetter("_parameters")
_buffers = itemgetter("_buffers")
_CHILDLESS = (nn.ReLU, _BatchNorm, _ConvNd)  # which call no child that comes into them
_attributes = attrgetter("__dict__")  # quicker than vars
_forward = attrgetter("forward")
_call, _call_impl = attrgetter("__call__"), attrgetter("_call_impl")
_look = cache(itemgetter)  # at several attributes


class Snapshot:
    """Of a module and all below it."""

    def __init__(self, module: nn.Module):
        self._modules = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]  # those are called
        self._classes = list(map(type, self._modules))
        self._different = list(dict.fromkeys(self._classes))
        others = [cls for cls in self._different if not hasattr(cls, "reading")]  # ours do not change
        self._helpers = [(cls, name) for cls in others for name in helpers(cls)]
        self._methods = self._of_classes()
        self._own = [m.__dict__ for m in self._modules]
        self._sizes = list(map(len, self._own))  # an attribute more, for instance a forward set on an instance
        alike: dict[Any, list[dict[str, Any]]] = {}  # by what there is to look at
        tried = self._tried()
        for of in self._own:
            names = [name for name in (*_ATTRIBUTES, *tried.get(id(of), ())) if name in of]
            if names:  # torch.compile's wrapper has none
                alike.setdefault(_look(*names), []).append(of)
        self._seen = [(look, own, list(map(look, own))) for look, own in alike.items()]
        self._handles = RemovableHandle.next_id
        self._hooked = self._are_hooked()
        self._hooks = list(self._of_hooks())
        parents = [m for m in self._modules if m._modules or not isinstance(m, _CHILDLESS)]
        self._parents = [m.__dict__ for m in parents]
        families = list(map(_children, self._parents))
        self._names_of_children, self._children = _names(families), list(_values(families))
        # What comes into an empty one is either no tensor of the layer's or was taken out of the other.
        self._with_parameters = [m.__dict__ for m in self._modules if m._parameters]
        self._with_buffers = [m.__dict__ for m in self._modules if m._buffers]
        self._tensors = self._of_tensors()
        self._names_of_tensors, self._classes_of_tensors = _names(self._tensors), _classes(self._tensors)
        self._kinds = list(map(_kind, self._classes_of_tensors))

    def holds(self, module: nn.Module) -> bool:
        """Whether it is of `module`, not of one that this is a replica of, and nothing has changed."""
        return (
            module is self._modules[0]
            and all(map(is_, map(_attributes, self._modules), self._own))
            and list(map(len, self._own)) == self._sizes
            and list(map(type, self._modules)) == self._classes
            and self._of_classes() == self._methods
            and self._look_alike()
            and self._are_hooked_alike()
            and self._have_their_children()
            and self._have_their_tensors()
        )

    def _tried(self) -> dict[int, list[str]]:
        """The names of attributes that blocks which are known by trial look at, by the dictionary that has them."""
        found: dict[int, list[str]] = {}
        for module in self._modules:
            parts = dict(module.named_modules()) if module.__dict__.get("_tried") else {}
            for name, part in parts.items():
                found.setdefault(id(part.__dict__), []).extend(module.__dict__["_tried"].get(name, ()))
        return found

    def _of_classes(self) -> list[Any]:
        calls = map(_call, self._different), map(_call_impl, self._different)
        return [*map(_forward, self._different), *chain(*calls), *starmap(getattr, self._helpers)]

    def _look_alike(self) -> bool:
        try:
            return all(all(map(eq, map(look, own), seen)) for look, own, seen in self._seen)
        except KeyError:  # one attribute was deleted, another set
            return False

    def _are_hooked_alike(self) -> bool:
        """Where PyTorch has numbered no new handle of a hook, no other dictionary of hooks than then holds one."""
        handles = RemovableHandle.next_id
        if handles == self._handles and not any(self._hooks):
            return True not in self._hooked
        if self._are_hooked() != self._hooked:
            return False
        self._handles, self._hooks = handles, list(self._of_hooks())
        return True

    def _are_hooked(self) -> list[bool]:
        return list(map(bool, self._of_hooks()))

    def _of_hooks(self) -> Iterator[dict[int, Any]]:
        return chain.from_iterable(map(_hooks, self._own))

    def _have_their_children(self) -> bool:
        families = list(map(_children, self._parents))
        return _names(families) == self._names_of_children and all(map(is_, _values(families), self._children))

    def _have_their_tensors(self) -> bool:
        """In the same dictionaries, by name and kind; which tensors they are a step sees for itself."""
        if not all(map(is_, self._of_tensors(), self._tensors)) or _names(self._tensors) != self._names_of_tensors:
            return False
        classes = _classes(self._tensors)
        return classes == self._classes_of_tensors or list(map(_kind, classes)) == self._kinds

    def _of_tensors(self) -> list[dict[str, Any]]:
        return [*map(_parameters, self._with_parameters), *map(_buffers, self._with_buffers)]


def _names(dictionaries: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    return list(map(len, dictionaries)), list(chain.from_iterable(dictionaries))


def _values(dictionaries: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dictionaries))


def _classes(dictionaries: list[dict[str, Any]]) -> list[type]:
    return list(map(type, _values(dictionaries)))


@cache
def _kind(cls: type) -> object:
    """Of tensors of this class, or None for none: torch.func.functional_call has Tensors in place of Parameters."""
    return None if cls is type(None) else is_stock_tensor(cls)
