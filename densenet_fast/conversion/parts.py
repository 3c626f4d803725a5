"""Other libraries' dense blocks and transitions that run fused: the same objects, of a class made for theirs.

A converted part is of a subclass of its own class, which finds its fused run before it: children, parameters, buffers,
hooks and the library's methods stay where they are, and its plain run is the library's forward.
"""

import inspect
from functools import wraps
from typing import Any

from torch import Tensor, nn

from ..modules import Fusable, Trunk
from ..modules.block import FusableBlock
from ..modules.eligibility import runs_as
from ..modules.reading import Readable, Reading
from ..modules.transition import FusableTransition
from ..modules.views import LayerView, TransitionView
from .libraries import LIBRARIES, Library, dims_of, recomputes, view_of_transition
from .trial import of_trial, why_not_as_tried

_ADDED = ("backend", "_warned", "_reading", "_recompute", "_tried", "spatial_dims")  # attributes that a conversion adds


class Converted(Fusable):
    """What converted blocks and transitions share."""

    stock: type[nn.Module]  # the class that the part had
    library: Library | None  # of a block

    def plain(self, x: Tensor) -> Tensor:
        return self.stock.forward(self, x)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuilt, (self.stock, self.library), self.__getstate__()


class ConvertedBlock(Converted, FusableBlock):
    library: Library
    _recompute: bool
    _tried: dict[str, dict[str, Any]]  # as `trial.of_trial`, of a block that is known by trial

    @property
    def efficient(self) -> bool:
        """Whether to recompute the bottleneck outputs: as the block was told, or as it or any layer was before."""
        return self._recompute or any(map(recomputes, (self, *self.children())))

    @efficient.setter
    def efficient(self, efficient: bool) -> None:
        self._recompute = efficient

    def read(self) -> Reading:
        reason = why_not_as_tried(self, self._tried)
        return super().read() if reason is None else Reading(self, reason)

    def view(self, layer: nn.Module) -> LayerView | str:
        return self.library.view_layer(layer, self.spatial_dims)


class ConvertedTransition(Converted, FusableTransition):
    def view(self) -> TransitionView | str:
        return view_of_transition(self, self.spatial_dims)


class ConvertedTrunk(Trunk):
    """An nn.Sequential of converted parts."""


_classes: dict[tuple[type[nn.Module], Library | None], type[Converted]] = {}


def _converted_class(stock: type[nn.Module], library: Library | None) -> type[Converted]:
    if (stock, library) in _classes:
        return _classes[stock, library]
    base = ConvertedTransition if library is None else ConvertedBlock
    namespace = {"stock": stock, "library": library, "__module__": __name__, "__doc__": stock.__doc__}
    if library is not None:
        namespace["forward"] = _called_as(stock)
    made = type(f"Fused{stock.__name__.lstrip('_')}", (base, stock), namespace)
    return _classes.setdefault((stock, library), made)


def _called_as(stock: type[nn.Module]) -> Any:
    """A block's fused forward that is called as that of `stock`: keywords, torch.fx and exporters go by its names."""
    name = list(inspect.signature(stock.forward).parameters)[1]

    @wraps(stock.forward)
    def forward(self: FusableBlock, *args: Tensor, **kwargs: Tensor) -> Any:
        inputs = [*args, *kwargs.values()]
        if len(inputs) != 1 or list(kwargs) not in ([], [name]):
            return stock.forward(self, *args, **kwargs)  # an error, in the library's words
        return self._call(inputs[0])

    made: Any = forward
    made.stands_for = FusableBlock.forward
    return made


def _rebuilt(stock: type[nn.Module], library: Library | None) -> nn.Module:
    """An empty converted part, for copies and for pickled models."""
    cls = _converted_class(stock, library)
    return cls.__new__(cls)


def change_block(block: nn.Module, library: Library, efficient: bool, backend: str) -> str | None:
    """Make a converted one of a library's block, or tell why it cannot run fused; it stays as it was then."""
    if not library.runs(block):
        return f"its forward is not {library.block.partition(':')[2]}'s"
    return _change(block, library, efficient, backend)


def change_transition(transition: nn.Module, backend: str) -> str | None:
    """Make a converted one of a transition, or tell why it cannot run fused; it stays as it was then."""
    if not runs_as(transition, nn.Sequential):
        return "its forward is not nn.Sequential's"
    return _change(transition, None, False, backend)


def _why_taken(part: nn.Module, base: type[nn.Module]) -> str | None:
    """Why `part` cannot become a `base`, too: it has a name of its own that a conversion would take from it."""
    added = {name for cls in base.__mro__ if issubclass(cls, Readable) for name in vars(cls) if name[:2] != "__"}
    names = {*_ADDED, "library", "stock", *added} - {"efficient", "forward"}
    taken = [name for name in sorted(names) if hasattr(part, name)]
    return f"it has a {taken[0]!r} of its own, which converted parts have, too" if taken else None


def _change(part: Any, library: Library | None, efficient: bool, backend: str) -> str | None:
    reason = _why_taken(part, ConvertedTransition if library is None else ConvertedBlock)
    if reason is not None:
        return reason
    tried = {} if library in (None, *LIBRARIES) else of_trial(part)
    part.__class__ = _converted_class(type(part), library)
    part.backend, part._warned, part.spatial_dims = backend, set(), dims_of(part)
    if isinstance(part, ConvertedBlock):
        part.efficient = efficient
        part._tried = tried
    reason = part.reading().why_plain
    if reason is not None:
        change_back(part)
    return reason


def change_trunk(trunk: Any, backend: str) -> str | None:
    """Make a converted one of an nn.Sequential of converted parts, or tell why it stays as it was."""
    reason = _why_taken(trunk, ConvertedTrunk)
    if reason is not None:
        return reason
    trunk.__class__ = ConvertedTrunk
    trunk.backend = backend
    trunk.spatial_dims = next(child.spatial_dims for child in trunk.children() if isinstance(child, Fusable))
    return None


def is_converted(module: nn.Module) -> bool:
    return isinstance(module, Converted | ConvertedTrunk)


def change_back(module: Any) -> None:
    """Undo `change` and `change_trunk`; other modules stay as they are."""
    if is_converted(module):
        part: Any = module
        part.__class__ = nn.Sequential if isinstance(module, ConvertedTrunk) else module.stock
        for name in _ADDED:
            part.__dict__.pop(name, None)
