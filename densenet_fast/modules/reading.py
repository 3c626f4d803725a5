"""What a stage takes out of modules: whether they can run fused, their specs, their tensors.

A module is read once and again when it has changed. Modules are looked at in every step, since anybody may set an
attribute, hook a child or replace it; so looking is cheap: one tuple for each child, compared with the last.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..stage import StageSpec

# Whatever `eligibility` or a reading looks at. Buffers, parameters and children are looked up in their dictionaries,
# ten times as fast as attributes; a parameter may be parametrized, which only the attribute knows.
_ATTRIBUTES = (
    "forward",
    "training",
    "eps",
    "momentum",
    "track_running_stats",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "ceil_mode",
    "return_indices",
    "divisor_override",
    "drop_rate",
)
State = tuple[Any, ...]


def state_of(module: nn.Module) -> State:
    """Everything but tensors that decides what calling `module` does, its children's states not included."""
    of = module.__dict__
    hooked = (
        of["_forward_hooks"] or of["_forward_pre_hooks"] or of["_backward_hooks"] or of["_backward_pre_hooks"] or False
    )
    parameters, buffers = of["_parameters"], of["_buffers"]
    return (
        module,
        module.__class__,
        hooked is not False,
        parameters.get("bias") is None,
        buffers.get("running_mean") is None,
        buffers.get("num_batches_tracked") is None,
        *map(of.get, _ATTRIBUTES),
    )


def deep_state_of(module: nn.Module) -> State:
    """The same with all children by name."""
    found: list[Any] = []
    _collect(module, found)
    return tuple(found)


def _collect(module: nn.Module, found: list[Any]) -> None:
    found.append(state_of(module))
    for name, child in module._modules.items():
        found.append(name)
        if child is not None:
            _collect(child, found)


class Reading(NamedTuple):
    """What was read of a module, good as long as its state is this one."""

    state: State
    why_plain: str | None  # why it cannot run fused
    layers: list[Any]
    norms: list[Any]
    specs: dict[Any, StageSpec]  # of its stages, by what tensors and consumers tell


class Readable(nn.Module):
    """A module that remembers its reading, which neither a copy nor a checkpoint of it has."""

    _reading: Reading | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reading"}

    def reading(self) -> Reading:
        """What the module is in its present state."""
        state = deep_state_of(self)
        found = self._reading
        if found is None or found.state != state:
            found = self.read(state)
            self.__dict__["_reading"] = found
        return found

    @abstractmethod
    def read(self, state: State) -> Reading:
        """Read the module, which is in `state`, anew."""


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
