"""Calls of every operation with random arguments, for any backend, in memory surrounded by NaN (blocks.py). A layer's
convolutions are halves of a block of one layer: `conv1x1_fwd` is the first of `block_fwd`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densenet_fast.contract import DECLARATIONS, Half, Norm, NormGradient, accumulator
from densenet_fast.contract.block import TENSORS
from densenet_fast.contract.declaration import Argument

from . import blocks
from .blocks import ROOM, copied, in_image, in_line, in_rows

HALVES = {
    "conv1x1_fwd": ("block_fwd", Half.FIRST),
    "conv3x3_fwd": ("block_fwd", Half.SECOND),
    "conv1x1_bwd": ("block_bwd", Half.FIRST),
    "conv3x3_bwd": ("block_bwd", Half.SECOND),
    "plain_fwd": ("block_fwd", Half.BOTH),  # a layer without bottleneck
    "plain_bwd": ("block_bwd", Half.BOTH),
    "layer_fwd": ("block_fwd", Half.BOTH),
    "layer_bwd": ("block_bwd", Half.BOTH),
}
NAMES = [*HALVES, *(name for name in DECLARATIONS if not name.startswith("block"))]
_ACTIVATIONS = {"x", "v", "dx", "y", "dy", "z", "g", "u", "weight", "dweight"}


class Geometry(NamedTuple):
    n: int
    h: int
    w: int
    c: int  # channels before the layer
    k: int  # bottleneck width
    g: int  # growth


class Call(NamedTuple):
    operation: str
    parameters: tuple[Any, ...]  # records among them, as `contract.Operations` takes them

    def on(self, operations: Any) -> "Call":
        """This call, done."""
        getattr(operations, self.operation)(*self.parameters)
        return self

    def arguments(self) -> Iterator[tuple[Argument, Any]]:
        """As the operator takes them, flat."""
        for value, (_, record, arguments) in zip(self.parameters, DECLARATIONS[self.operation].parameters, strict=True):
            yield from zip(arguments, [value] if record is None else value, strict=True)

    def tensors(self) -> Iterator[tuple[str, Argument, Tensor]]:
        for argument, value in self.arguments():
            for i, leaf in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(leaf, Tensor):
                    yield _name(argument.name, i if isinstance(value, list) else None), argument, leaf

    def results(self) -> dict[str, Tensor]:
        """What is written, under names, integers in float64; of pairs each row, that of a buffer apart from that of
        bottlenecks; of g what a backward leaves."""
        found = {}
        total, between = None, ""
        if self.operation.startswith("block"):
            total = dict(self.named())["x"].shape[1]
            between = "u" if self.operation == "block_bwd" and self.parameters[-1] == Half.SECOND else ""
        for name, argument, tensor in self.tensors():
            if not argument.role.written and name != between:
                continue
            if name == "g":
                found[name] = self.left(tensor)
            elif tensor.dim() == 2 and name in ("stats", "correction"):
                for row in (0, 1):
                    found[f"{name}[{row}]"] = tensor[row, :total]
                    if total is not None:
                        found[f"{name}[{row}] of z"] = tensor[row, total:]
            else:
                found[name] = tensor if tensor.is_floating_point() else tensor.double()
        return found

    def left(self, g: Tensor) -> Tensor:
        """The channels of g of which a backward says what they hold."""
        *_, block, _, _, begin, end, _ = self.parameters
        return blocks.outside(g, blocks.new_channels(block, begin, end))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        for name, _, tensor in self.tensors():
            yield name, tensor

    def changed(self, change: Callable[[str, Tensor], Any]) -> "Call":
        """With change(name, tensor) in the place of every tensor."""

        def of(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [of(_name(name, i), leaf) for i, leaf in enumerate(value)]
            return change(name, value) if isinstance(value, Tensor) else value

        parameters = []
        for value, (_, record, arguments) in zip(self.parameters, DECLARATIONS[self.operation].parameters, strict=True):
            names = [argument.name for argument in arguments]
            if record is None:
                parameters.append(of(names[0], value))
            else:
                parameters.append(record(*(of(name, field) for name, field in zip(names, value, strict=True))))
        return Call(self.operation, tuple(parameters))

    def in_place(self) -> "Call":
        """With each argument that may be written over another in the place of that."""
        over = {argument.name: argument.role.over for argument, _ in self.arguments() if argument.role.over}
        tensors = dict(self.named())
        return self.changed(lambda name, tensor: tensors[over[name]] if name in over else tensor)

    def copy(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Call":
        """All in new memory, laid out and surrounded as it is; activations and weights in `dtype`."""

        def change(name: str, tensor: Tensor) -> Tensor:
            if dtype is None or not tensor.is_floating_point():
                return copied(tensor, tensor.dtype, device)
            return copied(tensor, dtype if is_activation(name) else accumulator(dtype), device)

        return self.changed(change)


def _name(argument: str, place: int | None) -> str:
    if place is None:
        return argument
    if argument not in ("tensors", "gradients"):
        return f"{argument}[{place}]"
    of_layer = f"{TENSORS[place % len(TENSORS)]} of layer {place // len(TENSORS)}"
    return of_layer if argument == "tensors" else f"d{of_layer}"


def is_activation(name: str) -> bool:
    """Whether the tensor of that name, or the weight, has the activations' dtype."""
    return name in _ACTIVATIONS or "weight" in name


def applies(name: str, geometry: Geometry) -> bool:
    return not name.startswith("transition") or min(geometry.h, geometry.w) > 1


def make(
    name: str,
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
    *,
    exact: bool = False,
    affine: bool = True,
    batch: bool = True,
    drop_rate: float = 0.0,
    room: int = ROOM,
) -> Call:
    """A call of the operation, or the layer's convolution, of that name.

    `exact`: of small integers. `batch`: whether norms use statistics of the batch.
    """
    n, h, w, c, k, g = geometry
    wide = accumulator(dtype)
    if name in HALVES:
        operation, halves = HALVES[name]
        widths = (0,) if name.startswith("plain") else (k,)
        behind = -(c + g) % 8 if room % 8 == 0 else 0  # as a stage's buffer: rows start on 16 bytes
        shape = blocks.Shape(n, h, w, c, widths, (g,), behind)
        frozen = (not batch, not batch)
        case = blocks.make(shape, dtype, exact=exact, affine=affine, frozen=frozen, drop_rate=drop_rate, room=room)
        direction = case.forward if operation == "block_fwd" else case.backward
        return Call(operation, direction(halves=halves))

    def values(*sizes: int) -> Tensor:
        return torch.randint(-3, 4, sizes).double() if exact else torch.randn(sizes, dtype=torch.float64)

    def image(channels: int, h: int = h, w: int = w) -> Tensor:
        return in_image(values(n, channels, h, w), dtype, room)

    def pair(size: int) -> Tensor:
        return in_rows(values(2, size), wide, room)

    def statistics(size: int) -> list[Tensor]:
        if exact:
            return [torch.randint(-2, 3, (size,)).double(), torch.ones(size).double()]
        return [torch.randn(size).double() * 0.3, torch.rand(size).double() + 0.5]

    def line(content: Tensor, dtype: torch.dtype = wide) -> Tensor:
        return in_line(content, dtype, room)

    gamma = torch.randint(-2, 3, (c,)).double() if exact else torch.rand(c).double() + 0.5
    vectors = [line(v) for v in (*statistics(c), gamma, values(c))]
    norm = Norm(*(vectors if affine else [*vectors[:2], None, None]), 0.0 if exact else 1e-5)
    weight = line(values(k, c, 1, 1), dtype)
    dnorm = NormGradient(line(values(c)), line(values(c)), pair(c) if batch else None)
    halved, pooled = (h // 2, w // 2), ((h + 1) // 2, (w + 1) // 2)
    running = [[line(v) for v in of] for of in zip(statistics(c), statistics(k), strict=True)]
    made: dict[str, Callable[[], tuple[Any, ...]]] = {
        "channel_stats": lambda: (image(c), pair(c)),
        "bn_bwd_apply": lambda: (image(c), image(c), line(values(c)), pair(c), image(c)),
        "update_running_stats": lambda: (
            *running,
            [torch.tensor(3), torch.tensor(1 << 40)],
            in_rows(torch.stack(statistics(c + 1 + k)), wide, room),
            [0, c + 1],
            9,
            [0.1, 1.0],
        ),
        "transition_fwd": lambda: (image(c), norm, weight, image(k, *halved), pair(k)),
        "transition_bwd": lambda: (image(k, *halved), image(c), norm, weight, image(c), dnorm, line(weight, dtype)),
        "stem_fwd": lambda: (image(c), norm, image(c, *pooled), pair(c)),
        "stem_bwd": lambda: (image(c, *pooled), image(c), norm, image(c), dnorm),
        "head_fwd": lambda: (image(c), norm, line(values(n, c), dtype)),
        "head_bwd": lambda: (line(values(n, c), dtype), image(c), norm, image(c), dnorm),
    }
    return Call(name, made[name]())


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each result relative to its largest exact value; of means, to the largest deviation too, as
    a mean may be as small as chance makes it."""
    found = {}
    for result, value in exact.items():
        deviations = exact[result.replace("[0]", "[1]")] if result.startswith("stats[0]") else value.flatten()[:0]
        found[result] = error(got[result], value, deviations.double().sqrt())
    return found


def error(got: Tensor, exact: Tensor, *also: Tensor) -> float:
    """Largest error relative to the largest exact value, or that of `also`."""
    if exact.numel() == 0:
        return 0.0
    size = max(t.double().abs().max().item() for t in (exact, *also) if t.numel())
    return (got.double() - exact.double()).abs().max().item() / (size or 1.0)
