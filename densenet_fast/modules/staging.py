"""A stage on modules: their tensors go in, what their norms took from the batch comes out."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import stage
from ..contract.block import TENSORS
from ..stage import ConsumerSpec, StageSpec, Wanted
from .reading import uses_batch, vectors_of, weight_of
from .running_stats import Transaction

if TYPE_CHECKING:
    from .block import DenseBlock


class Consumer(NamedTuple):
    """The modules that consume a buffer."""

    kind: Literal["transition", "stem", "head"]
    norm: Any
    conv: Any = None  # of a transition

    def tensors(self) -> list[Tensor | None]:
        """As `stage.spec.CONSUMER_TENSORS`."""
        return [*vectors_of(self.norm), None if self.conv is None else weight_of(self.conv)]

    def spec(self, channels: int) -> ConsumerSpec:
        """Of `channels` outputs."""
        return ConsumerSpec(self.kind, channels, self.norm.eps, uses_batch(self.norm))


def run_stage(
    x: Tensor,
    updates: Transaction,
    block: "DenseBlock | None",
    consumer: Consumer | None,
    *,
    backend: str,
    x_stats: Tensor | None = None,
    extend: bool = False,
    following: "DenseBlock | None" = None,
    layout: torch.memory_format = torch.channels_last,
) -> stage.Result:
    """`block`, which must be able to run fused, and `consumer` as one stage, its batch statistics reported to
    `updates`.

    The output has what the block `following` wants of it, which may then `extend` it; without one it is for others to
    see, in the memory format `layout`.
    """
    stage.check_image(x)
    tensors: list[Tensor | None] = []
    norms: list[Any] = []
    if block is not None:
        reading = block.reading()
        norms += reading.norms
        for layer in reading.layers:
            tensors += layer.tensors()
    if consumer is not None:
        norms.append(consumer.norm)
        tensors += consumer.tensors()
    spec = _spec(x.shape[1], block, consumer, tensors)
    wanted = Wanted(layout=layout)
    if following is not None:
        wanted = Wanted(any(map(uses_batch, following.reading().norms)), following.growth)
    result = stage.run(
        spec,
        x,
        tensors,
        block.seeds(x.device) if block is not None and spec.drops else None,
        backend=backend,
        wanted=wanted,
        x_stats=x_stats,
        extend=extend,
        efficient=block is not None and block.efficient,
    )
    updates.report(norms, result.stats, spec.taken, x.shape[0] * x.shape[2] * x.shape[3], backend)
    return result


def _spec(
    channels: int, block: "DenseBlock | None", consumer: Consumer | None, tensors: list[Tensor | None]
) -> StageSpec:
    """The spec of modules in their present mode, kept with the block's reading."""
    weight = tensors[-1]
    if block is None:
        assert consumer is not None
        return _of_consumer(channels, consumer.spec(channels if weight is None else weight.shape[0]))
    reading = block.reading()
    of_weights = tuple([None if w is None else w.shape for w in tensors[4::5]])
    mode = None if consumer is None else (consumer.kind, consumer.norm.eps, uses_batch(consumer.norm))
    key = channels, of_weights, mode
    if key not in reading.specs:
        found = []
        for i, layer in enumerate(reading.layers):
            of_layer: Any = tensors[len(TENSORS) * i : len(TENSORS) * (i + 1)]
            found.append(layer.spec(of_layer[4], of_layer[9]))
        last = None
        if consumer is not None:
            total = channels + sum(layer.growth for layer in found)
            last = consumer.spec(total if weight is None else weight.shape[0])
        reading.specs[key] = StageSpec(channels, tuple(found), last)
    return reading.specs[key]


@lru_cache(maxsize=64)
def _of_consumer(channels: int, consumer: ConsumerSpec) -> StageSpec:
    return StageSpec(channels, (), consumer)
