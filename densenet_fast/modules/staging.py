"""A stage on modules: their tensors go in, what their norms took from the batch comes out."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import stage
from ..contract.block import TENSORS
from ..stage import ConsumerSpec, StageSpec, Wanted
from .reading import Reading, uses_batch, vectors_of
from .running_stats import Transaction


class Consumer(NamedTuple):
    """What consumes a buffer."""

    kind: Literal["transition", "stem", "head"]
    norm: Any
    weight: Tensor | None = None  # of a transition; read once, since it may be parametrized

    def tensors(self) -> list[Tensor | None]:
        """As `stage.spec.CONSUMER_TENSORS`."""
        return [*vectors_of(self.norm), self.weight]

    def spec(self, channels: int) -> ConsumerSpec:
        """Of `channels` outputs."""
        return ConsumerSpec(self.kind, channels, self.norm.eps, uses_batch(self.norm))


def run_stage(
    x: Tensor,
    updates: Transaction,
    block: Reading | None,
    consumer: Consumer | None,
    *,
    backend: str,
    x_stats: Tensor | None = None,
    extend: bool = False,
    following: Reading | None = None,
    layout: torch.memory_format = torch.channels_last,
) -> stage.Result:
    """A `block` and `consumer` as one stage, its batch statistics reported to
    `updates`.

    The output has what the block `following` wants of it, which may then `extend` it; without one it is for others to
    see, in the memory format `layout`.
    """
    stage.check_image(x)
    tensors = [] if block is None else block.tensors()
    norms = [] if block is None else [*block.norms]
    if consumer is not None:
        norms.append(consumer.norm)
        tensors += consumer.tensors()
    spec = _spec(x.shape[1], block, consumer, tensors)
    wanted = Wanted(layout=layout)
    if following is not None:
        wanted = Wanted(any(map(uses_batch, following.norms)), following.module.growth)
    result = stage.run(
        spec,
        x,
        tensors,
        block.module.seeds(x.device) if block is not None and spec.drops else None,
        backend=backend,
        wanted=wanted,
        x_stats=x_stats,
        extend=extend,
        efficient=block is not None and block.module.efficient,
    )
    updates.report(norms, result.stats, spec.taken, x.shape[0] * x.shape[2] * x.shape[3], backend)
    return result


def _spec(channels: int, block: Reading | None, consumer: Consumer | None, tensors: list[Tensor | None]) -> StageSpec:
    """The spec of modules in their present mode, kept with the block's reading."""
    weight = None if consumer is None else consumer.weight
    if block is None:
        assert consumer is not None
        return _of_consumer(channels, consumer.spec(channels if weight is None else weight.shape[0]))
    of_weights = tuple([None if w is None else w.shape for w in tensors[4::5]])
    mode = None if consumer is None else (consumer.kind, consumer.norm.eps, uses_batch(consumer.norm))
    key = channels, of_weights, mode
    if key not in block.specs:
        found = []
        for i, layer in enumerate(block.layers):
            of_layer: Any = tensors[len(TENSORS) * i : len(TENSORS) * (i + 1)]
            found.append(layer.spec(of_layer[4], of_layer[9]))
        last = None
        if consumer is not None:
            total = channels + sum(layer.growth for layer in found)
            last = consumer.spec(total if weight is None else weight.shape[0])
        block.specs[key] = StageSpec(channels, tuple(found), last)
    return block.specs[key]


@lru_cache(maxsize=64)
def _of_consumer(channels: int, consumer: ConsumerSpec) -> StageSpec:
    return StageSpec(channels, (), consumer)
