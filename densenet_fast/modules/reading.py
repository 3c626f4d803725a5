"""What a stage takes out of modules: whether they can run fused, their specs, their tensors.

A module is read once, and again when it has changed (snapshot.py).
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..contract.block import TENSORS
from ..stage import Alike, LayerSpec, StageSpec
from ..uncompiled import cached_property
from .running_stats import Tracked
from .snapshot import Snapshot

_Read = TypeVar("_Read")


class Readable(nn.Module, Generic[_Read]):
    """A module that remembers what was read of it, which neither a copy nor a checkpoint of it has."""

    spatial_dims = 2  # of the images

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reading"}

    def reading(self) -> _Read:
        """What the module is at present."""
        if torch.compiler.is_compiling():
            return self.read()  # what it looks at is guarded by the compiler
        kept = self.__dict__.get("_reading")
        if kept is None or not kept[0].holds(self):
            reading = self.read()  # first, since what parts remember of themselves counts among their attributes
            self.__dict__.setdefault("_reading")  # and so does this
            kept = self.__dict__["_reading"] = Snapshot(self), reading
        return kept[1]

    @abstractmethod
    def read(self) -> _Read:
        """Read the module anew."""


class Source(NamedTuple):
    """Where a tensor is found: in a dictionary of its module, ten times as fast as an attribute, or, where that has it
    not (a parametrized weight, a replica's), as an attribute."""

    module: nn.Module
    dictionary: str | None
    name: str


def source_of(module: nn.Module, name: str) -> Source | None:
    """None if the module has none."""
    if name in module._parameters:
        return None if module._parameters[name] is None else Source(module, "_parameters", name)
    if name in module._buffers:
        return None if module._buffers[name] is None else Source(module, "_buffers", name)
    return Source(module, None, name)


def sources_of(norm: Any) -> list[Source | None]:
    """mean, var (None for those of the batch), gamma, beta of a norm in its present mode."""
    given = [] if uses_batch(norm) else [source_of(norm, "running_mean"), source_of(norm, "running_var")]
    return [*(given or [None, None]), source_of(norm, "weight"), source_of(norm, "bias")]


def tensors_of(sources: Iterable[Source]) -> list[Any]:
    return [
        getattr(module, name) if dictionary is None else module.__dict__[dictionary][name]
        for module, dictionary, name in sources
    ]


def uses_batch(norm: Any) -> bool:
    """Whether a norm takes statistics of the batch in its present mode."""
    return isinstance(norm, _BatchNorm) and (norm.training or norm._buffers["running_mean"] is None)


def group_of(norm: Any) -> str | None:
    """The name of the process group whose batch an nn.SyncBatchNorm takes statistics of in its present mode; None of
    any other norm, and where it has nobody to reduce them with."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group: Any = norm.process_group or dist.group.WORLD
    return group.group_name if dist.get_world_size(group) > 1 else None


def is_synchronised(module: nn.Module) -> bool:
    """Whether any norm of `module` takes statistics over a process group, whose others wait for this process."""
    return any(group_of(part) is not None for part in module.modules())


@dataclass(frozen=True)
class Reading:
    """What was read of a block or a transition."""

    module: Any
    why_plain: str | None  # why it cannot run fused


class Known(NamedTuple):
    """What is known of a stage."""

    spec: StageSpec
    norms: list[tuple[Tracked, bool]]  # that track statistics, and whether those are of this process's batch alone
    alike: Alike | None = None  # what its tensors are like if they are of `spec.shapes`


@dataclass(frozen=True)
class BlockReading(Reading):
    """Of a block that can run fused."""

    layers: tuple[Any, ...]  # views.LayerView
    sources: list[Source | None]  # of the slots of each layer, `contract.block.TENSORS`
    known: dict[Any, Known] = field(default_factory=dict)  # of its stages, by what their modules tell

    @property
    def growth(self) -> int:
        """Channels that all layers add."""
        parameters, others = self._grow
        return others + sum([of["weight"].size(0) for of in parameters])  # a weight may have been cut

    @cached_property
    def _grow(self) -> tuple[list[dict[str, Any]], int]:
        """The parameters of the layers' last convolutions, and the channels that those add whose weights are
        parametrized, which are not evaluated."""
        convs = [layer.convs[-1] for layer in self.layers]
        own = [conv._parameters.get("weight") is not None for conv in convs]
        parametrized = [conv.out_channels for conv, is_own in zip(convs, own, strict=True) if not is_own]
        return [conv._parameters for conv, is_own in zip(convs, own, strict=True) if is_own], sum(parametrized)

    @cached_property
    def norms(self) -> tuple[Any, ...]:
        return tuple([norm for layer in self.layers for norm in layer.norms])

    @cached_property
    def synchronised(self) -> list[Any]:
        """The norms that may take statistics over a process group, which are to be asked at every step."""
        return [norm for norm in self.norms if isinstance(norm, nn.SyncBatchNorm)]

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Of the tensors that there are."""
        return tuple([i for i, source in enumerate(self.sources) if source is not None])

    def tensors(self) -> list[Any]:
        if torch.compiler.is_compiling() or self._whole is None:
            return tensors_of(self._given)
        return [tensor for tensor in chain.from_iterable(map(dict.values, self._whole)) if tensor is not None]

    @cached_property
    def _given(self) -> list[Source]:
        return [source for source in self.sources if source is not None]

    @cached_property
    def _whole(self) -> list[dict[str, Any]] | None:
        """The dictionaries of which all that they hold, one after the other, is the tensors, if there are such: they
        are read in half the time."""
        places = [place for place, _ in groupby(self._given, itemgetter(0, 1))]
        if any(dictionary is None for _, dictionary in places):
            return None
        found = [module.__dict__[dictionary] for module, dictionary in places]
        names = [name for of in found for name, tensor in of.items() if tensor is not None]
        return found if names == [source.name for source in self._given] else None

    def layer_specs(self, shapes: Sequence[torch.Size]) -> tuple[LayerSpec, ...]:
        """What the layers are with tensors of these shapes."""
        kinds = [TENSORS[slot % len(TENSORS)] for slot in self.slots]
        weights = [i for i, kind in enumerate(kinds) if kind in ("weight1", "weight2")]
        outputs = iter([shapes[i][0] for i in weights])
        return tuple(
            [layer.spec(next(outputs) if layer.has_bottleneck() else 0, next(outputs)) for layer in self.layers]
        )
