"""What a stage is, apart from its tensors: a dense block of any number of layers and then at most one consumer of it.

A spec says how many channels and which mode; the tensors travel beside it in one flat list. Its slots are
`contract.block.TENSORS` of each layer in turn, then `CONSUMER_TENSORS`; only those that there are take a place in the
list: a norm that takes statistics of the batch has none of its own, another may have no parameters.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from operator import itemgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..contract import accumulator
from ..contract.block import TENSORS, z_size
from ..uncompiled import cached_property

CONSUMER_TENSORS = ("mean", "var", "gamma", "beta", "weight")
_WEIGHTS = ("weight1", "weight2", "weight")
_STATISTICS = ("mean1", "var1", "mean2", "var2", "mean", "var")


class LayerSpec(NamedTuple):
    width: int  # of the bottleneck, K; 0 without bottleneck
    growth: int  # channels that the layer adds, G
    eps1: float
    eps2: float
    batch1: bool  # whether norm1 takes statistics of the batch
    batch2: bool
    drop_rate: float  # 0 where dropout does not run
    group1: str | None = None  # name of the process group whose batch norm1 takes statistics of; None: this process's
    group2: str | None = None
    dilation: int = 1  # of the 3x3 convolution
    drops_channels: bool = False  # of each image, as nn.Dropout2d does; all layers of a stage do, or none


class ConsumerSpec(NamedTuple):
    """BN-ReLU and what each kind does with it.

    transition: 2x2 average, conv1x1: [N, C, H, W] -> [N, K, H // 2, W // 2]. The paper pools behind the convolution,
        which gives the same: both are linear. One that does not pool -> [N, K, H, W]
    stem: 3x3 maximum, stride 2: -> [N, C, (H + 1) // 2, (W + 1) // 2]
    head: average over the image: -> [N, C]
    """

    kind: Literal["transition", "stem", "head"]
    outputs: int  # channels of y
    eps: float
    batch: bool
    group: str | None = None
    pools: bool = True  # a transition


@dataclass(frozen=True)
class StageSpec:
    channels: int  # of the input
    layers: tuple[LayerSpec, ...]
    consumer: ConsumerSpec | None
    slots: tuple[int, ...]  # of the tensors that there are
    dims: int = 2  # of the images

    def full(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """A tensor, or None, for every slot."""
        return list(self._by_slot((*tensors, None)))

    @cached_property
    def _by_slot(self) -> Callable[[Sequence[Tensor | None]], tuple[Tensor | None, ...]]:
        """Takes the tensors, and None behind them, into the slots."""
        places = dict(zip(self.slots, count()))
        return itemgetter(*[places.get(slot, -1) for slot in range(len(self._names))])

    @cached_property
    def total(self) -> int:
        """Channels of the buffer."""
        return self.channels + sum(layer.growth for layer in self.layers)

    @cached_property
    def statistics(self) -> int:
        """Columns of `stats`: the buffer's channels and the bottlenecks' (the former as halves.py has them)."""
        return self.of_channels + sum(layer.width for layer in self.layers)

    @cached_property
    def of_channels(self) -> int:
        """Columns before those of the bottlenecks."""
        return len(self.groups) * self.stretch if self.by_halves else self.total

    @cached_property
    def stretch(self) -> int:
        """Columns for each of `groups` where layers run by halves: the buffer's channels, and room for a bottleneck."""
        return self.total + max([0, *[layer.width for layer in self.layers]])

    @cached_property
    def groups(self) -> tuple[str | None, ...]:
        """The process groups over which norms take statistics of the buffer's channels; None: of this process."""
        found = [layer.group1 for layer in self.layers if layer.batch1]
        if self.consumer is not None and self.consumer.batch:
            found.append(self.consumer.group)
        return tuple(dict.fromkeys(found)) or (None,)

    @cached_property
    def group_of_norms(self) -> list[str | None]:
        """For every norm in order."""
        found = [g for layer in self.layers for g in ((layer.group1, layer.group2) if layer.width else (layer.group1,))]
        return found if self.consumer is None else [*found, self.consumer.group]

    @cached_property
    def synchronised(self) -> bool:
        """Whether any norm takes statistics over a process group."""
        return any(self.group_of_norms)

    @cached_property
    def by_halves(self) -> bool:
        """Whether a layer runs half by half (halves.py)."""
        parted = any(layer.dilation != 1 for layer in self.layers) or self.drops_channels
        return self.synchronised or self.dims != 2 or parted

    def begin_of(self, group: str | None) -> int:
        """The column of the buffer's first channel, of a norm that takes statistics over `group` or none of it."""
        return self.groups.index(group) * self.stretch if group in self.groups else 0

    @cached_property
    def of_consumer(self) -> slice:
        """Columns of the buffer's channels for the consumer's norm."""
        begin = 0 if self.consumer is None else self.begin_of(self.consumer.group)
        return slice(begin, begin + self.total)

    @cached_property
    def numbers(self) -> list[float]:
        """As `contract.block.NUMBERS`."""
        rates = [0.0 if self.drops_channels else layer.drop_rate for layer in self.layers]
        return [n for layer, rate in zip(self.layers, rates, strict=True) for n in (layer.eps1, layer.eps2, rate)]

    @cached_property
    def tracked(self) -> bool:
        """Whether any norm takes statistics of the batch."""
        of_layers = any(layer.batch1 or layer.batch2 for layer in self.layers)
        return of_layers or (self.consumer is not None and self.consumer.batch)

    @cached_property
    def drops(self) -> bool:
        return any(layer.drop_rate > 0 for layer in self.layers)

    @cached_property
    def drops_channels(self) -> bool:
        """Whether the layers' dropout, where it runs, drops channels of images, not values."""
        return any(layer.drops_channels and layer.drop_rate > 0 for layer in self.layers)

    @cached_property
    def convolves(self) -> bool:
        return len(self.layers) > 0 or (self.consumer is not None and self.consumer.kind == "transition")

    def layers_learn(self, needs_x: bool, needs: Sequence[bool]) -> bool:
        """Whether a backward goes through the layers, and not only through the consumer; by what needs a gradient: x,
        and each of the tensors."""
        return needs_x or any(self.of_layers(needs))

    def of_layers(self, needs: Sequence[bool]) -> tuple[bool, ...]:
        """`needs` of the layers' tensors; of the consumer's none."""
        behind = len(TENSORS) * len(self.layers)
        return tuple([need and slot < behind for slot, need in zip(self.slots, needs, strict=True)])

    def z_size(self, pixels: int) -> int:
        """Elements of all bottlenecks of N * H * W = `pixels`."""
        return z_size(self._widths, pixels)

    @cached_property
    def _widths(self) -> list[int]:
        return [layer.width for layer in self.layers]

    @cached_property
    def taken(self) -> list[tuple[int, int] | None]:
        """For every norm in order, the columns of `stats` that it took from the batch; None where it took none."""
        found: list[tuple[int, int] | None] = []
        channels, begin = self.channels, self.of_channels
        for layer in self.layers:
            first = self.begin_of(layer.group1)
            found.append((first, first + channels) if layer.batch1 else None)
            if layer.width:
                found.append((begin, begin + layer.width) if layer.batch2 else None)
            channels, begin = channels + layer.growth, begin + layer.width
        if self.consumer is not None:
            found.append((self.of_consumer.start, self.of_consumer.stop) if self.consumer.batch else None)
        return found

    @cached_property
    def taken_over(self) -> list[tuple[bool, list[tuple[int, int] | None]]]:
        """`taken` by whether statistics are over the values of this process, or over those of a group, of which
        variances are reported unbiased."""
        if not self.synchronised:
            return [(True, self.taken)]
        norms = list(zip(self.taken, self.group_of_norms, strict=True))
        alone = [taken if group is None else None for taken, group in norms]
        return [(True, alone), (False, [None if group is None else taken for taken, group in norms])]

    @cached_property
    def alone(self) -> list[str]:
        """What those norms are part of that take statistics of this process's batch."""
        norms = zip(self.places, self.taken, self.group_of_norms, strict=True)
        return [place for place, taken, group in norms if taken is not None and group is None]

    @cached_property
    def places(self) -> list[str]:
        """For every norm in order, what it is part of."""
        found = [f"layer {i + 1}" for i, layer in enumerate(self.layers) for _ in range(2 if layer.width else 1)]
        return found if self.consumer is None else [*found, f"the {self.consumer.kind}"]

    @cached_property
    def _names(self) -> list[str]:
        """Of all slots."""
        found = [f"{name} of layer {i + 1}" for i in range(len(self.layers)) for name in TENSORS]
        if self.consumer is not None:
            found += [f"{name} of the {self.consumer.kind}" for name in CONSUMER_TENSORS]
        return found

    @cached_property
    def names(self) -> list[str]:
        """What each tensor is called in a refusal."""
        return [self._names[slot] for slot in self.slots]

    def _among(self, kind: Collection[str]) -> list[int]:
        return [i for i, name in enumerate(self.names) if name.split()[0] in kind]

    @cached_property
    def weights(self) -> list[int]:
        """Where weights stand among the tensors."""
        return self._among(_WEIGHTS)

    @cached_property
    def given(self) -> list[int]:
        """Where statistics stand that are not the batch's."""
        return self._among(_STATISTICS)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the tensors."""
        begins = accumulate((layer.growth for layer in self.layers), initial=self.channels)
        found: list[tuple[int, ...]] = []
        one, three = (1,) * self.dims, (3,) * self.dims
        for layer, c in zip(self.layers, begins, strict=False):
            k, g = layer.width, layer.growth
            weights = ((k, c, *one), (g, k, *three)) if k else ((g, c, *three), ())
            found += [*[(c,)] * 4, weights[0], *[(k,)] * 4, weights[1]]
        if self.consumer is not None:
            found += [*[(self.total,)] * 4, (self.consumer.outputs, self.total, *one)]
        return [found[slot] for slot in self.slots]

    def dtypes(self, dtype: torch.dtype) -> list[torch.dtype]:
        """Of the tensors as operations take them for activations of `dtype`."""
        found = self._dtypes.get(dtype)
        if found is None:
            found = self._dtypes[dtype] = [accumulator(dtype)] * len(self.slots)
            for i in self.weights:
                found[i] = dtype
        return found

    @cached_property
    def _dtypes(self) -> dict[torch.dtype, list[torch.dtype]]:
        return {}
