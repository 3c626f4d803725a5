"""A stage on modules: their tensors go in, what their norms took from the batch comes out."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .. import stage
from ..contract.block import TENSORS
from ..stage import ConsumerSpec, ConvolutionSpec, StageSpec, Wanted
from ..stage.buffer import convolved_format
from ..stage.spec import CONSUMER_TENSORS
from .eligibility import each
from .reading import BlockReading, Known, Source, group_of, source_of, sources_of, tensors_of, uses_batch
from .running_stats import Tracked, Transaction, tracked


class Consumer(NamedTuple):
    """The modules that consume a buffer, as they were read."""

    kind: Literal["transition", "stem", "head"]
    norm: Any
    sources: tuple[Source, ...]
    slots: tuple[int, ...]  # of the tensors, among `stage.spec.CONSUMER_TENSORS`
    dims: int  # of the images
    pools: bool  # a transition
    known: dict[Any, Known]  # of the stage that ends with it; as `BlockReading.known`

    @classmethod
    def of(
        cls,
        kind: Literal["transition", "stem", "head"],
        norm: Any,
        conv: nn.Module | None = None,
        dims: int = 2,
        pools: bool = True,
    ) -> "Consumer":
        sources = [*sources_of(norm), None if conv is None else source_of(conv, "weight")]
        slots = tuple([i for i, source in enumerate(sources) if source is not None])
        return cls(kind, norm, tuple([source for source in sources if source is not None]), slots, dims, pools, {})

    def spec(self, outputs: int) -> ConsumerSpec:
        norm = self.norm
        return ConsumerSpec(self.kind, outputs, norm.eps, uses_batch(norm), group_of(norm), self.pools)


class Output(NamedTuple):
    y: Tensor
    stats: Tensor | None  # [2, K] of y, if the next stage wants them
    layout: torch.memory_format  # that PyTorch's layers give y
    buffer: Tensor | None = None  # if it is tapped


def run_stage(
    x: Tensor,
    updates: Transaction,
    block: BlockReading | None,
    consumer: Consumer | None,
    *,
    convolution: _ConvNd | None = None,
    backend: str,
    layout: torch.memory_format,
    x_stats: Tensor | None = None,
    extend: bool = False,
    following: BlockReading | None = None,
    tapped: bool = False,
    is_read: bool = False,
) -> Output:
    """A `block` and its `consumer`, or a `convolution` and the stem behind it, as one stage, what their norms took from
    the batch reported to `updates`.

    The output has what the block `following` wants of it, which may then `extend` it; without one it is for others to
    see, or, if it `is_read` and no more, the buffer itself. tapped: the buffer is wanted beside the consumer's output.
    layout: the memory format that PyTorch's layers give x.
    """
    dims = block.module.spatial_dims if block is not None else 2 if consumer is None else consumer.dims
    stage.check_image(x, dims)
    of_x = layout
    tensors = [] if block is None else block.tensors()
    if consumer is not None:
        tensors += tensors_of(consumer.sources)
        if consumer.kind == "transition":
            # PyTorch's poolings of volumes return them in its own format.
            convolved = dims == 2 or not consumer.pools
            layout = convolved_format(layout, tensors[-1]) if convolved else torch.contiguous_format
    if convolution is not None:
        assert consumer is not None
        layout = convolved_format(layout, convolution.weight)
        known = _of_stem(convolution, consumer, tensors)
    elif block is not None:
        known = _of_block(x, block, consumer, tensors)
    else:
        assert consumer is not None
        outputs = tensors[-1].shape[0] if consumer.kind == "transition" else x.shape[1]
        known = _of_consumer(consumer, x.shape[1], outputs)
    spec, norms, alike = known
    wanted = Wanted(layout=None if is_read else layout, buffer=tapped)
    if following is not None:
        wanted = Wanted(any(map(uses_batch, following.norms)), following.growth, buffer=tapped)
    y, y_stats, stats, buffer = stage.run(
        spec,
        x,
        tensors,
        stage.drawn(spec, x),
        backend=backend,
        wanted=wanted,
        x_stats=x_stats,
        extend=extend,
        alike=alike,
        layout=of_x,
        efficient=any(part is not None and part.module.efficient for part in (block, following)),
    )
    for norm, is_alone in norms:
        updates.report(norm, stats, x.shape[0] * prod(spec.size(x)) if is_alone else None, backend)
    return Output(y, y_stats, layout, buffer)


def _of_block(x: Tensor, block: BlockReading, consumer: Consumer | None, tensors: list[Tensor]) -> Known:
    """Of modules in their present mode; kept with what was read of the last of them, for tensors that are alike."""
    outputs = tensors[-1].shape[0] if consumer is not None and consumer.kind == "transition" else 0
    mode = None if consumer is None else (consumer.spec(outputs), consumer.slots)
    known = block.known if consumer is None else consumer.known
    key = x.shape[1], stage.is_autocast(x), mode, *map(group_of, block.synchronised)
    is_compiling = torch.compiler.is_compiling()
    kept = known.get(key)
    if kept is not None and not is_compiling and kept.alike is not None and kept.alike.are(tensors):
        return kept
    shapes = [tensor.shape for tensor in tensors]
    if kept is None or kept.spec.shapes != shapes:
        layers, norms = block.layer_specs(shapes), block.norms
        behind = len(block.layers) * len(TENSORS)
        slots = block.slots
        of_consumer = None
        if consumer is not None:
            of_consumer = consumer.spec(outputs or x.shape[1] + sum(layer.growth for layer in layers))
            slots = (*slots, *(behind + slot for slot in consumer.slots))
            norms = (*norms, consumer.norm)
        spec = StageSpec(x.shape[1], layers, of_consumer, slots, block.module.spatial_dims)
        kept = Known(spec, _tracked(spec, norms))
    fit = kept.spec.shapes == shapes  # else the stage refuses them
    known[key] = Known(kept.spec, kept.norms, stage.Alike(tensors) if fit and not is_compiling else None)
    return known[key]


def _of_consumer(
    consumer: Consumer,
    channels: int,
    outputs: int,
    slots: tuple[int, ...] = (),
    convolution: ConvolutionSpec | None = None,
) -> Known:
    """Of a consumer alone, or of one behind a convolution, whose tensors are in `slots`; kept with the consumer."""
    what = channels, consumer.spec(outputs), (*consumer.slots, *slots), consumer.dims, convolution
    if what not in consumer.known:
        make = _consuming.__wrapped__ if torch.compiler.is_compiling() else _consuming
        spec = make(*what)
        consumer.known[what] = Known(spec, _tracked(spec, [consumer.norm]))
    return consumer.known[what]


def _of_stem(convolution: _ConvNd, consumer: Consumer, tensors: list[Tensor]) -> Known:
    """Of a stem with its convolution, whose tensors are added to the others."""
    added = [convolution._parameters["weight"], convolution._parameters["bias"]]
    slots = tuple([len(CONSUMER_TENSORS) + i for i, tensor in enumerate(added) if tensor is not None])
    tensors += [tensor for tensor in added if tensor is not None]
    (outputs, inputs, *kernel), dims, groups = convolution.weight.shape, consumer.dims, convolution.groups
    stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
    geometry = each(stride, dims), each(padding, dims), each(dilation, dims)
    spec = ConvolutionSpec(inputs * groups, tuple(kernel), *geometry, groups)
    return _of_consumer(consumer, outputs, outputs, slots, spec)


def _tracked(spec: StageSpec, norms: Sequence[Any]) -> list[tuple[Tracked, bool]]:
    """And whether they took statistics of this process's batch alone."""
    return [(each, is_alone) for is_alone, taken in spec.taken_over for each in tracked(norms, taken)]


@lru_cache(maxsize=64)
def _consuming(
    channels: int, consumer: ConsumerSpec, slots: tuple[int, ...], dims: int, convolution: ConvolutionSpec | None
) -> StageSpec:
    return StageSpec(channels, (), consumer, slots, dims, convolution)
