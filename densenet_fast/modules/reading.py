"""What a stage takes out of modules: whether they can run fused, their specs, their tensors.

A module is read once and again when it has changed. Modules are looked at in every step, since anybody may set an
attribute, hook a child or replace it; so looking is cheap: one tuple for each child, compared with the last.
"""

from abc import abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from ..stage import StageSpec

# What `eligibility` or a reading looks at; of other classes, of everything. Buffers, parameters and children are looked
# up in their dictionaries, ten times as fast as attributes; a parameter may be parametrized, which only the attribute
# knows.
_OF_NORMS = ("training", "eps", "momentum", "track_running_stats")
_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_OF_POOLINGS = ("ceil_mode", "return_indices", "divisor_override")
_OF_LAYERS = ("training", "drop_rate")
_OF_FUSABLES = ("backend",)
_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.BatchNorm2d: _OF_NORMS,
    nn.Conv2d: _OF_CONVOLUTIONS,
    nn.ReLU: (),
}
_ALL = tuple({*_OF_NORMS, *_OF_CONVOLUTIONS, *_OF_POOLINGS, *_OF_LAYERS, *_OF_FUSABLES})
State = list[Any]


def state_of(module: nn.Module) -> State:
    """Everything but tensors that decides what calling `module` and its children does."""
    found: State = []
    _collect(module, found)
    return found


def _collect(module: nn.Module, found: State) -> None:
    of, cls = module.__dict__, module.__class__
    parameters, buffers, children = of["_parameters"], of["_buffers"], of["_modules"]
    found += (
        module,
        cls,
        of.get("forward"),
        bool(of["_forward_hooks"] or of["_forward_pre_hooks"] or of["_backward_hooks"] or of["_backward_pre_hooks"]),
        parameters.get("bias") is None,
        buffers.get("running_mean") is None,
        buffers.get("num_batches_tracked") is None,
    )
    found += map(of.get, _ATTRIBUTES.get(cls, _ALL))
    for name, child in children.items():
        found.append(name)
        if child is not None:
            _collect(child, found)


_Read = TypeVar("_Read", bound=tuple[Any, ...])


class Readable(nn.Module, Generic[_Read]):
    """A module that remembers what was read of it, which neither a copy nor a checkpoint of it has."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reading"}

    def reading(self) -> _Read:
        """What the module is in its present state."""
        state, kept = state_of(self), self.__dict__.get("_reading")
        if kept is None or kept[0] != state:
            kept = self.__dict__["_reading"] = state, self.read()
        return kept[1]

    @abstractmethod
    def read(self) -> _Read:
        """Read the module anew."""


class Reading(NamedTuple):
    """What was read of a block or a transition."""

    module: Any
    why_plain: str | None  # why it cannot run fused
    layers: list[Any]
    norms: list[Any]
    specs: dict[Any, StageSpec]  # of its stages, by what tensors and consumers tell

    def tensors(self) -> list[Tensor | None]:
        """Of its layers, as `contract.block.TENSORS`, in their present mode."""
        return [tensor for layer in self.layers for tensor in layer.tensors()]


def uses_batch(norm: Any) -> bool:
    """Whether a norm takes statistics of the batch in its present mode."""
    return isinstance(norm, nn.BatchNorm2d) and (norm.training or norm._buffers["running_mean"] is None)


def vectors_of(norm: Any) -> list[Tensor | None]:
    """mean, var (None for those of the batch), gamma, beta of a norm in its present mode."""
    parameters, buffers = norm._parameters, norm._buffers
    mean = var = None
    if not uses_batch(norm):
        mean, var = buffers["running_mean"], buffers["running_var"]
    if "weight" in parameters and "bias" in parameters:
        return [mean, var, parameters["weight"], parameters["bias"]]
    return [mean, var, norm.weight, norm.bias]


def weight_of(conv: nn.Module) -> Tensor:
    weight = conv._parameters.get("weight")
    return conv.weight if weight is None else weight  # type: ignore[return-value]
