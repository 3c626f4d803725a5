"""A stage layer by layer and half by half, for what steps in between: reductions of statistics over process groups
(SyncBatchNorm), convolutions that no kernel has (mixed.py), and dropout of channels (dropout.py).

Several norms read a channel, perhaps over different groups. So `stats` and `correction` [2, S] begin with a stretch of
columns for each of `StageSpec.groups`: the buffer's channels, and room for the bottleneck of a layer that runs. Behind
the stretches lie the bottlenecks' columns, as in any stage. A layer runs as a block of one on the stretch of norm1's
group.

Behind each half its statistics are merged, if a group of processes takes them. Every process of a group makes the same
reductions in the same order, also with an empty batch.
"""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..contract import DECLARATIONS, Block, Half, Operations
from ..contract.block import NUMBERS, TENSORS, Layer, aligned
from . import mixed
from .buffer import dense
from .dropout import mask_of
from .spec import StageSpec


def _nothing(*_: Any) -> None:
    pass


# What runs on an empty batch, whose process takes part in reductions.
IDLE = cast(Operations, SimpleNamespace(**dict.fromkeys(DECLARATIONS, _nothing)))


class HalfByHalf:
    """One pass over a stage."""

    def __init__(self, spec: StageSpec, ops: Operations, x: Tensor, block: Block):
        self._spec, self._ops, self._x, self._block = spec, ops, x, block
        self._masks = block.seeds if spec.drops_channels else None  # [N, channels that the layers add]
        self._values = x.numel() // x.shape[1]  # of each channel, in this process
        self._of_group: dict[str, Tensor] = {}  # and in all of a group: the same, [1]

    def forward(self, stats: Tensor, z: Tensor | None) -> Tensor:
        """All layers; `stats` begins with those that the input's channels have in this process.

        Returned are the statistics to be reported: with unbiased variances where they are of a group.
        """
        spec = self._spec
        self._share(stats, slice(spec.channels), stats[:, : spec.channels])
        for layer in self._layers():
            of, one = spec.layers[layer.number], self._alone(layer)
            own = self._stretch(stats, of.group1, layer.width)
            of_z = own[:, spec.total :]
            place = self._place(layer, z)
            if place is None and self._is_parted(layer):
                place = self._scratch(layer)
            run = partial(self._of(layer).block_fwd, self._x, own, place, one, spec.tracked, 0, 1)
            if self._is_parted(layer):
                run(Half.FIRST)
                of_z.copy_(self._merged(of_z, of.group2))
                run(Half.SECOND)
            else:
                run(Half.BOTH)
            if self._masks is not None:
                self._drop_channels(layer, own)
            stats[:, layer.of_z].copy_(of_z)
            if self._is_read(layer):
                self._share(stats, slice(layer.begin, layer.end), own[:, layer.begin : layer.end])
        return self._unbiased(stats) if spec.synchronised else stats

    def backward(
        self,
        g: Tensor,
        correction: Tensor,
        stats: Tensor,
        z: Tensor | None,
        gradients: list[Tensor | None],
        lowest: int,
    ) -> None:
        """The layers from the last to number `lowest`. stats: a copy, to be overwritten."""
        spec, x = self._spec, self._x
        for layer in reversed(list(self._layers())[lowest:]):
            of, one = spec.layers[layer.number], self._alone(layer)
            own, corrected = (self._stretch(each, of.group1, layer.width) for each in (stats, correction))
            of_z, corrected_z = own[:, spec.total :], corrected[:, spec.total :]
            of_z.copy_(stats[:, layer.of_z])
            corrected_z.zero_()
            if self._is_read(layer):
                new = slice(layer.begin, layer.end)
                corrected[:, new].copy_(self.correction(correction, stats, new, of.group1))
            if self._masks is not None:
                self._drop_gradients(layer, g, corrected, own)
            place = self._place(layer, z)
            if place is None and self._is_parted(layer):
                place = self._recomputed(layer, one, own)
            u = dense((x.shape[0], layer.width, *x.shape[2:]), like=x) if self._is_parted(layer) else None
            wanted = gradients[len(TENSORS) * layer.number :][: len(TENSORS)]
            run = partial(self._of(layer).block_bwd, g, corrected, x, own, place, one, wanted, u, 0, 1)
            if self._is_parted(layer):
                run(Half.SECOND)
                corrected_z.copy_(self._reduced(corrected_z, of.group2))
                run(Half.FIRST)
            else:
                run(Half.BOTH)

    def correction(self, correction: Tensor, stats: Tensor, columns: slice, group: str | None) -> Tensor:
        """a and b [2, c] of channels that all their readers have added to, for the mean that they have in `group`.

        dx = g - a - b * (x - mean) of another group's mean is a + b * (mean - other) and b of this.
        """
        mean = self._stretch(stats, group)[0, columns]
        total = torch.zeros_like(mean).expand(2, -1).clone()
        for each in self._spec.groups:
            a, b = self._reduced(self._stretch(correction, each)[:, columns], each)
            total[0] += a + b * (mean - self._stretch(stats, each)[0, columns])
            total[1] += b
        return total

    def _layers(self) -> Iterator[Layer]:
        return self._block.layers(self._spec.of_channels, self._values)

    def _is_parted(self, layer: Layer) -> bool:
        """Whether something happens between the layer's halves."""
        spec, i = self._spec, layer.number
        return layer.width > 0 and (mixed.is_mixed(spec, i) or spec.layers[i].group2 is not None)

    def _of(self, layer: Layer) -> Operations:
        """The operations that run a layer."""
        return IDLE if self._ops is IDLE else mixed.of_layer(self._ops, self._spec, layer.number)

    def _place(self, layer: Layer, z: Tensor | None) -> Tensor | None:
        return None if z is None else z[layer.z.start :][: aligned(self._values * layer.width)]

    def _alone(self, layer: Layer) -> Block:
        """A block of this layer."""
        _, tensors, numbers, seeds = self._block
        i = layer.number
        return Block(
            layer.begin,
            tensors[len(TENSORS) * i : len(TENSORS) * (i + 1)],
            numbers[len(NUMBERS) * i : len(NUMBERS) * (i + 1)],
            None if seeds is None or self._masks is not None else seeds[i : i + 1],
        )

    def _drop_channels(self, layer: Layer, stats: Tensor) -> None:
        """What a layer has added, times its mask."""
        new = slice(layer.begin, layer.end)
        self._x[:, new].mul_(self._mask(layer))
        if self._spec.tracked:
            self._ops.channel_stats(self._x[:, new], stats[:, new])

    def _drop_gradients(self, layer: Layer, g: Tensor, correction: Tensor, stats: Tensor) -> None:
        """The gradient of what a layer has added, corrected, times its mask."""
        new = slice(layer.begin, layer.end)
        d = g[:, new]
        self._ops.bn_bwd_apply(d, self._x[:, new], stats[0, new], correction[:, new], d)
        d.mul_(self._mask(layer))
        correction[:, new].zero_()

    def _mask(self, layer: Layer) -> Tensor:
        """[N, G, 1, 1] of a layer."""
        assert self._masks is not None
        return mask_of(self._masks, layer, self._spec)

    def _stretch(self, columns: Tensor, group: str | None, width: int = 0) -> Tensor:
        """The stretch of a norm's group, up to the room for a bottleneck of `width`."""
        begin = self._spec.begin_of(group)
        return columns[:, begin : begin + self._spec.total + width]

    def _is_read(self, layer: Layer) -> bool:
        """Whether anything in the stage reads the layer's channels."""
        return layer.end < self._spec.total or self._spec.consumer is not None

    def _scratch(self, layer: Layer) -> Tensor:
        return self._x.new_empty((aligned(self._values * layer.width),))

    def _recomputed(self, layer: Layer, one: Block, stats: Tensor) -> Tensor:
        """z, with norm2 on the statistics that it has: they are those of the group already."""
        place, tensors = self._scratch(layer), list(one.tensors)
        for name, row in zip(("mean2", "var2"), stats[:, self._spec.total :], strict=True):
            tensors[TENSORS.index(name)] = row
        self._of(layer).block_fwd(self._x, stats, place, one._replace(tensors=tensors), False, 0, 1, Half.FIRST)
        return place

    def _share(self, stats: Tensor, columns: slice, local: Tensor) -> None:
        """Statistics of channels into the stretch of every group, from those of this process [2, c]."""
        if not self._spec.synchronised:
            return  # they are there
        local = local.clone()  # which is overwritten
        merged = [self._merged(local, group) for group in self._spec.groups]
        for group, found in zip(self._spec.groups, merged, strict=True):
            self._stretch(stats, group)[:, columns].copy_(found)

    def _merged(self, local: Tensor, group: str | None) -> Tensor:
        """Statistics [2, c] over all processes of a group, from those of each (Chan, Golub and LeVeque 1983)."""
        if group is None:
            return local
        of_each = _gathered(self._packed(local), group)  # [P, 2 * c + 1]
        means, variances = of_each[:, :-1].unflatten(1, local.shape).unbind(1)
        counts = of_each[:, -1:]
        self._of_group[group] = counts.sum(0)
        share = counts / self._of_group[group]
        mean = (share * means).sum(0)
        return torch.stack([mean, (share * (variances + (means - mean).square())).sum(0)])

    def _reduced(self, local: Tensor, group: str | None) -> Tensor:
        """a and b [2, c] over all processes of a group: each has divided its sums by its own number of values."""
        if group is None:
            return local
        packed = self._packed(local * self._values)
        dist.all_reduce(packed, group=_process_group(group))
        return (packed[:-1] / packed[-1]).view(local.shape)

    def _packed(self, local: Tensor) -> Tensor:
        """[2 * c + 1], the last one the number of values; zeros of an empty batch, of which nothing was computed."""
        if self._values == 0:
            return local.new_zeros((local.numel() + 1,))
        return torch.cat([local.flatten(), local.new_full((1,), self._values)])

    def _unbiased(self, stats: Tensor) -> Tensor:
        found, spec = stats.clone(), self._spec
        for group in spec.groups:
            if group is not None:
                self._unbias_(self._stretch(found, group), group)
        for layer, of in zip(self._layers(), spec.layers, strict=True):
            if of.group2 is not None:
                self._unbias_(found[:, layer.of_z], of.group2)
        return found

    def _unbias_(self, stats: Tensor, group: str) -> None:
        count = self._of_group[group]
        stats[1].mul_(count / (count - 1))


def _process_group(name: str) -> Any:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def _gathered(packed: Tensor, group: str) -> Tensor:
    """Of every process of a group, in one row."""
    processes = _process_group(group)
    flat = packed.new_empty((processes.size() * packed.numel(),))
    dist.all_gather_into_tensor(flat, packed, processes)
    return flat.view(processes.size(), -1)
