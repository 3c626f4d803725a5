"""The launches of a dense block, or of a part of it: layer by layer, all planned at once (plan.py)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...contract import Block, Half, Norm, NormGradient
from ...contract.block import NUMBERS, TENSORS, Layer, z_size
from ._partial import Partial, sum_now
from .arguments import Arguments, Pair
from .bn_relu_conv1x1_bwd import conv1x1_bwd
from .bn_relu_conv1x1_fwd import conv1x1
from .bn_relu_conv3x3_bwd import Output, conv3x3_bwd
from .bn_relu_conv3x3_fwd import conv3x3
from .dropout import Dropout
from .plan import Planner, planned


def block_fwd(
    x: Tensor, stats: Tensor, z: Tensor | None, block: Block, tracked: bool, begin: int, end: int, halves: int
) -> None:
    _forward(x, stats, z, _part(block, begin, end), tracked, begin, end, halves)


def block_bwd(
    g: Tensor,
    correction: Tensor,
    x: Tensor,
    stats: Tensor,
    z: Tensor | None,
    block: Block,
    gradients: list[Tensor | None],
    u: Tensor | None,
    begin: int,
    end: int,
    halves: int,
) -> None:
    _backward(g, correction, x, stats, z, _part(block, begin, end), gradients, u, begin, end, halves)


def _part(block: Block, begin: int, end: int) -> Block:
    """The block with the layers from `begin` to `end`; of others the weights alone, from whose sizes it follows where
    these are."""
    each = len(TENSORS)
    if end * each - begin * each >= len(block.tensors):
        return block
    run = range(begin * each, end * each)
    return block._replace(
        tensors=[t if i in run or TENSORS[i % each][:6] == "weight" else None for i, t in enumerate(block.tensors)]
    )


class _Layer(NamedTuple):
    """A layer of which all is checked."""

    at: Layer
    reads: Arguments  # the channels before its own
    y: Tensor  # [N, G, H, W], its own
    norm1: Norm
    weight1: Tensor
    second: tuple[Norm, Tensor] | None  # norm2 and weight2; None without bottleneck
    dropout: Dropout

    @property
    def before(self) -> slice:
        return slice(self.at.begin)

    @property
    def new(self) -> slice:
        return slice(self.at.begin, self.at.end)

    def bottleneck(self, z: Tensor | None) -> Tensor:
        """[N, K, H, W], in z or else in scratch memory."""
        if z is None:
            return self.scratch()
        of = self.reads
        return z[self.at.z].view(of.N, of.H, of.W, self.at.width).permute(0, 3, 1, 2)

    def scratch(self) -> Tensor:
        """[N, K, H, W]."""
        of = self.reads
        return of.plan.empty(of.N, of.H, of.W, self.at.width, dtype=of.x.dtype).permute(0, 3, 1, 2)


@planned("block_fwd")
def _forward(
    plan: Planner,
    x: Tensor,
    stats: Tensor,
    z: Tensor | None,
    block: Block,
    tracked: bool,
    begin: int,
    end: int,
    halves: int,
) -> None:
    for layer in _layers(plan, x, {"stats": stats}, z, block, begin, end, halves):
        y_stats = _pair(stats, layer.new) if tracked else None
        if layer.second is None:
            if halves & Half.SECOND:
                conv3x3(layer.reads, layer.norm1, layer.weight1, layer.dropout, layer.y, y_stats)
                plan.reuse()
            continue
        norm2, weight2 = layer.second
        bottleneck, batch = layer.bottleneck(z), layer.at.norm2.uses_batch
        folded = z is None and not batch  # nobody else sees z: norm2 runs where it is written
        if halves & Half.FIRST:
            z_norm, z_stats = norm2 if folded else None, _pair(stats, layer.at.of_z) if batch else None
            conv1x1(layer.reads, layer.norm1, layer.weight1, z_norm, bottleneck, z_stats)
        if halves & Half.SECOND:
            check = Arguments(plan, "z", bottleneck)
            conv3x3(check, None if folded else norm2, weight2, layer.dropout, layer.y, y_stats)
        plan.reuse()


@planned("block_bwd")
def _backward(
    plan: Planner,
    g: Tensor,
    correction: Tensor,
    x: Tensor,
    stats: Tensor,
    z: Tensor | None,
    block: Block,
    gradients: list[Tensor | None],
    u: Tensor | None,
    begin: int,
    end: int,
    halves: int,
) -> None:
    layers = _layers(plan, x, {"stats": stats, "correction": correction}, z, block, begin, end, halves)
    Arguments(plan, "x", x).image("g", g, x.shape[1])
    if len(gradients) != len(block.tensors):
        plan.refuse("length of gradients", len(gradients), f"{len(block.tensors)}, as tensors")
    if u is None and halves != Half.BOTH and any(layer.second is not None for layer in layers):
        plan.refuse("u", None, "memory that the second half leaves to the first, where they are called apart")
    behind: Partial | None = None  # the gradient of weight1 of the layer behind, in parts
    for layer in reversed(layers):
        output = Output(g[:, layer.new], layer.y, stats[0, layer.new], _pair(correction, layer.new))
        dx, places = g[:, layer.before], gradients[len(TENSORS) * layer.at.number :][: len(TENSORS)]
        (dnorm1, dweight1), (dnorm2, dweight2) = _gradients(layer, correction, places)
        of_x = layer.norm1, layer.weight1
        if layer.second is None:
            if halves & Half.SECOND:
                conv3x3_bwd(layer.reads, output, *of_x, layer.dropout, dx, True, dnorm1, dweight1, behind)
                behind = None
                plan.reuse()
            continue
        norm2, weight2 = layer.second
        bottleneck, v = layer.bottleneck(z), layer.scratch() if u is None else u
        if z is None:
            conv1x1(layer.reads, *of_x, None, bottleneck, None)
        of_half = plan.free
        if halves & Half.SECOND:
            check = Arguments(plan, "z", bottleneck)
            conv3x3_bwd(check, output, norm2, weight2, layer.dropout, v, False, dnorm2, dweight2, behind)
            behind = None
            plan.reuse(of_half)
        if halves & Half.FIRST:
            of_z = norm2, _pair(correction, layer.at.of_z)
            behind = conv1x1_bwd(layer.reads, v, bottleneck, *of_z, *of_x, dx, dnorm1, dweight1)
            if behind and (layer is layers[0] or not halves & Half.SECOND):
                sum_now(plan, behind)  # there is no launch behind that has room for it
            elif behind:
                plan.keep(behind.weights)
        plan.reuse()


def _pair(rows: Tensor, columns: slice) -> Pair:
    return rows[0, columns], rows[1, columns]


def _layers(
    plan: Planner,
    x: Tensor,
    pairs: dict[str, Tensor],
    z: Tensor | None,
    block: Block,
    begin: int,
    end: int,
    halves: int,
) -> list[_Layer]:
    """The layers from `begin` to `end`, all that is read or written checked."""
    whole, widths = Arguments(plan, "x", x), _widths(plan, block)
    count = len(widths)
    if not 0 <= begin <= end <= count:
        plan.refuse("begin and end", [begin, end], f"a range of the {count} layers")
    if halves not in (Half.FIRST, Half.SECOND, Half.BOTH):
        plan.refuse("halves", halves, "1, 2 or both, 3")
    for name, pair in pairs.items():
        whole.pair(name, pair, whole.C + sum(widths))
    if z is not None:
        whole.line("z", z, z_size(widths, whole.M))
    elif halves != Half.BOTH and any(widths[begin:end]):
        plan.refuse("z", None, "memory that the first half leaves to the second, where they are called apart")
    if block.seeds is not None:
        block = block._replace(seeds=whole.seeds(block.seeds, count))
    return [_checked(plan, x, pairs["stats"], at) for at in list(block.layers(whole.C, whole.M))[begin:end]]


def _widths(plan: Planner, block: Block) -> list[int]:
    """K of each layer, 0 without bottleneck."""
    count, rest = divmod(len(block.numbers), len(NUMBERS))
    if rest or len(block.tensors) != len(TENSORS) * count:
        lengths = [len(block.tensors), len(block.numbers)]
        plan.refuse("lengths of tensors and numbers", lengths, f"{len(TENSORS)} and {len(NUMBERS)} a layer")
    widths = []
    for i in range(count):
        weight1, weight2 = (block.tensors[len(TENSORS) * i + TENSORS.index(name)] for name in ("weight1", "weight2"))
        for name, weight in (("weight1", weight1), ("weight2", weight2)):
            if weight is None and name == "weight1":
                plan.refuse(f"{name} of layer {i}", None, "a tensor")
            if weight is not None and weight.dim() != 4:
                plan.refuse(f"sizes of {name}", list(weight.shape), "a convolution's weight, of four dimensions")
        widths.append(0 if weight1 is None or weight2 is None else weight1.shape[0])
    return widths


def _checked(plan: Planner, x: Tensor, stats: Tensor, at: Layer) -> _Layer:
    if not 0 < at.begin < at.end <= x.shape[1]:
        plan.refuse("channels", f"{at.begin}, {at.end} behind layer {at.number + 1}", f"from 1 to {x.shape[1]}")
    for number, norm in (("1", at.norm1), ("2", at.norm2)):
        if (norm.mean is None) != (norm.var is None):
            plan.refuse(f"mean{number} and var{number}", "one alone", "both or neither")
    reads, second = Arguments(plan, "x", x[:, : at.begin]), None
    norm1 = reads.norm(at.norm1.on(stats[:, : at.begin]), at.begin, "1")
    weight1 = reads.weight("weight1", at.weight1, None, at.begin, 3 if at.weight2 is None else 1)
    if at.weight2 is not None:
        norm2 = reads.norm(at.norm2.on(stats[:, at.of_z]), at.width, "2")
        second = norm2, reads.weight("weight2", at.weight2, None, at.width, 3)
    return _Layer(at, reads, x[:, at.begin : at.end], norm1, weight1, second, Dropout.of(at.drop_rate, at.seed))


def _gradients(
    layer: _Layer, correction: Tensor, places: Sequence[Tensor | None]
) -> list[tuple[NormGradient, Tensor | None]]:
    """Where those of norm1 and weight1, and of norm2 and weight2, are written: if they are not wanted, in scratch
    memory."""
    check, named, found = layer.reads, dict(zip(TENSORS, places, strict=True)), []
    of_norms = (
        ("1", layer.at.norm1, layer.before, layer.at.begin, layer.at.weight1),
        ("2", layer.at.norm2, layer.at.of_z, layer.at.width, layer.at.weight2),
    )
    for number, norm, columns, channels, weight in of_norms:
        learnt = () if weight is None else ("gamma", "beta", "weight")
        for name in ("mean", "var", "gamma", "beta", "weight"):
            if name not in learnt and named[f"{name}{number}"] is not None:
                check.plan.refuse(f"gradient of {name}{number}", "a tensor", None)
        dgamma, dbeta = (
            check.plan.empty(channels)
            if (place := named[f"{name}{number}"]) is None
            else check.written(f"d{name}{number}", place, channels)
            for name in ("gamma", "beta")
        )
        dweight = None if weight is None else check.gradient(f"dweight{number}", named[f"weight{number}"], weight)
        found.append((NormGradient(dgamma, dbeta, correction[:, columns] if norm.uses_batch else None), dweight))
    return found
