"""What an operation must cost on any machine: the fewest bytes it can move, and its arithmetic.

Bytes: every argument read once and every result written once, in a block by each half of each layer. What a kernel
reads twice, or keeps in cache between two halves, is the difference between this floor and the truth. Arithmetic: the
convolutions' products and sums.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .block import TENSORS, Block, Half, Layer
from .declaration import DECLARATIONS


class Traffic(NamedTuple):
    bytes: int
    flops: int  # a multiplication and an addition are two

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        return Traffic(self.bytes + other.bytes, self.flops + other.flops)


def traffic(operation: str, flat: Sequence[Any]) -> Traffic:
    """The cost of one call of an operation with the arguments of its operator."""
    declared = DECLARATIONS[operation]
    if operation == "block_fwd":
        return _block_fwd(*declared.gathered(flat))
    if operation == "block_bwd":
        return _block_bwd(*declared.gathered(flat))
    moved = sum(
        _bytes(value) * argument.role.transfers for argument, value in zip(declared.arguments, flat, strict=True)
    )
    given = {argument.name: value for argument, value in zip(declared.arguments, flat, strict=True)}
    weight = given.get("weight")
    if weight is None:
        return Traffic(moved, 0)
    products = 1 + (given.get("dweight") is not None)
    return Traffic(moved, 2 * products * weight.numel() * _pixels(given["dy" if "dy" in given else "y"]))


def _block_fwd(
    x: Tensor, stats: Tensor, z: Tensor | None, block: Block, tracked: bool, begin: int, end: int, halves: int
) -> Traffic:
    pixels, values, vectors, flops = _pixels(x), 0, 0, 0
    for layer in list(block.layers(x.shape[1], pixels))[begin:end]:
        c, k, g = layer.begin, layer.width, layer.end - layer.begin
        if layer.weight2 is not None and halves & Half.FIRST:
            values += pixels * (c + k) + layer.weight1.numel()
            vectors += 4 * c + 2 * k * layer.norm2.uses_batch
            flops += 2 * pixels * layer.weight1.numel()
        if halves & Half.SECOND:
            inputs, weight = _second(layer)
            values += pixels * (inputs + g) + weight.numel()
            vectors += 4 * inputs + 2 * g * tracked
            flops += 2 * pixels * weight.numel()
    return Traffic(values * x.element_size() + vectors * stats.element_size(), flops)


def _block_bwd(
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
) -> Traffic:
    pixels, values, vectors, flops = _pixels(x), 0, 0, 0
    for layer in list(block.layers(x.shape[1], pixels))[begin:end]:
        c, k, new = layer.begin, layer.width, layer.end - layer.begin
        wanted = gradients[len(TENSORS) * layer.number : len(TENSORS) * (layer.number + 1)]
        if halves & Half.SECOND:
            inputs, weight = _second(layer)
            products = 1 + (wanted[TENSORS.index("weight2" if k else "weight1")] is not None)
            # g and x of the new channels, z and u; without bottleneck, x and the gradient that is added to
            values += pixels * (2 * new + (2 * k or 3 * c)) + products * weight.numel()
            vectors += 3 * new + (4 + 2 + 4) * inputs
            flops += 2 * products * pixels * weight.numel()
        if layer.weight2 is not None and halves & Half.FIRST:
            products = 1 + (wanted[TENSORS.index("weight1")] is not None)
            values += pixels * (2 * k + 3 * c) + products * layer.weight1.numel()
            vectors += 5 * k + (4 + 2 + 4) * c
            flops += 2 * products * pixels * layer.weight1.numel()
        if layer.weight2 is not None and z is None:
            values += pixels * (c + k) + layer.weight1.numel()
            vectors += 4 * c
            flops += 2 * pixels * layer.weight1.numel()
    return Traffic(values * x.element_size() + vectors * stats.element_size(), flops)


def _second(layer: Layer) -> tuple[int, Tensor]:
    """Channels and weight of a layer's 3x3 convolution."""
    return (layer.begin, layer.weight1) if layer.weight2 is None else (layer.width, layer.weight2)


def _pixels(image: Tensor) -> int:
    return image.numel() // image.shape[1]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0
