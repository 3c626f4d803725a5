"""No launch of a real net is one that a driver would refuse (driver.h): every layer of the published DenseNets at batch
1 to 256 in every dtype, planned and launched by the product's own code, run by nobody."""

from collections.abc import Iterable, Iterator

import pytest
import torch

from densenet_fast.contract.block import z_size

from ..blocks import ROOM
from ..calls import NAMES as CALLS
from ..calls import Call, Geometry, is_activation, make
from ..rows import some
from .cases import MATHS

# Growth, channels of the stem, layers of each block, its images: DenseNet-121, 169, 201 and 161 for ImageNet, and
# DenseNet-BC of depth 100, 250 and 190 for CIFAR; and images of odd sizes.
LARGE, SMALL = (56, 28, 14, 7), (32, 16, 8)
NETS = [
    *((32, 64, layers, LARGE) for layers in ((6, 12, 24, 16), (6, 12, 32, 32), (6, 12, 48, 32))),
    (48, 96, (6, 12, 36, 24), LARGE),
    *((growth, 2 * growth, ((depth - 4) // 6,) * 3, SMALL) for depth, growth in ((100, 12), (250, 24), (190, 40))),
    (12, 24, (2, 2), (33, 5)),
]
NAMES = [name for name in CALLS if not name.startswith(("plain", "layer"))]
POWERS = [2**i for i in range(9)]
EVERY = range(1, 257)
DEVICES = {"A10": (72, 101376), "H200": (132, 232448)}  # multiprocessors, shared memory: the least and the most


def blocks() -> Iterator[tuple[int, list[int], int, int]]:
    """Size of the images, channels before each layer and behind the last, growth, channels behind the transition."""
    for growth, channels, layers_of, sizes in NETS:
        for count, size in zip(layers_of, sizes, strict=True):
            inputs = [channels + i * growth for i in range(count + 1)]
            channels = inputs[-1] // 2
            yield size, inputs, growth, channels


def calls(name: str, batches: Iterable[int]) -> Iterator[tuple[Geometry, Iterable[int]]]:
    """All geometries of the nets, of one image, and batches: where tiles are planned by all sizes at once (3x3) and for
    the most channels of each size of image, `batches`; else, as channels and rows are cut independently, some."""
    found = set()
    for size, inputs, growth, halved in blocks():
        if "3x3" in name:
            found.add(Geometry(1, size, size, 1, 4 * growth, growth))
        elif "1x1" in name:
            found |= {Geometry(1, size, size, c, 4 * growth, growth) for c in inputs[:-1]}
        elif name.startswith("stem"):
            found |= {Geometry(1, 112, 112, c, 1, 1) for c in (64, 96)}
        else:
            found.add(Geometry(1, size, size, inputs[-1], halved, 1))
    widest = {g.h: g for g in sorted(found)}.values()
    for geometry in found:
        yield geometry, batches if "3x3" in name or geometry in widest else POWERS


def of_batch(call: Call, n: int, size: int, k: int) -> Call:
    """A call on one image of 2x2, on n of size x size: their memory is asked for and never touched."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "z":
            return torch.empty(z_size([k], n * size * size), dtype=tensor.dtype)
        if not is_activation(name) or "weight" in name:
            return tensor
        if tensor.dim() == 2:
            return torch.empty(n, tensor.shape[1], dtype=tensor.dtype)
        _, c, h, w = tensor.shape
        shape = (n, h * size // 2, w * size // 2, tensor.stride(3))
        return torch.empty(shape, dtype=tensor.dtype).permute(0, 3, 1, 2)[:, ROOM : ROOM + c]

    return call.changed(change)


@pytest.mark.parametrize("batches", some([POWERS, EVERY], always=[POWERS]), ids=["some", "every"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("device", "math"),
    some([*(("H200", m) for m in MATHS), ("A10", "bf16"), ("A10", "fp32")], always=[("H200", "bf16"), ("A10", "fp32")]),
)
def test_a_driver_takes_every_launch(machine, name, math, device, batches):
    torch.use_deterministic_algorithms(False)  # which would fill all memory
    machine.device = DEVICES[device]
    machine.set_idle(True)
    for geometry, of_geometry in calls(name, batches):
        call = make(name, geometry._replace(h=2, w=2), MATHS[math].dtype)
        for n in of_geometry:
            machine.set(tf32=MATHS[math].tf32)  # a device on which no launch before has asked for shared memory
            of_batch(call, n, geometry.h, geometry.k).on(machine.operations)
