"""Dense blocks with random contents, for any backend: every tensor that an operation may touch is a part of a larger
one, whose rest is NaN. tests/reference.py computes what should become of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from densenet_fast.contract import Block, Half, accumulator
from densenet_fast.contract.block import NUMBERS, TENSORS, z_size

ROOM = 8  # elements of NaN before and behind everything, channels of an image; with 8 rows may start on 16 bytes


@dataclass(frozen=True)
class Shape:
    """Sizes of a block. `widths` are those of the bottlenecks, 0 in a layer without."""

    n: int
    h: int
    w: int
    channels: int
    widths: tuple[int, ...]
    growths: tuple[int, ...]
    behind: int = 0  # channels of the buffer behind the last layer's

    @property
    def total(self) -> int:
        return self.channels + sum(self.growths) + self.behind

    @property
    def pixels(self) -> int:
        return self.n * self.h * self.w

    @property
    def inputs(self) -> list[int]:
        """Channels that each layer reads."""
        return [self.channels + sum(self.growths[:i]) for i in range(len(self.growths))]


@dataclass
class Case:
    """The arguments of block_fwd and block_bwd; each may stand for any moment of a block's life."""

    block: Block
    x: Tensor  # [N, C_total, H, W]
    stats: Tensor  # [2, S]
    z: Tensor | None  # [Z]
    g: Tensor  # [N, C_total, H, W]
    correction: Tensor  # [2, S]
    gradients: list[Tensor | None]
    u: Tensor | None  # [N, K, H, W], where all widths are one

    def forward(self, begin: int = 0, end: int | None = None, halves: int = Half.BOTH, tracked: bool = True) -> tuple:
        end = self.layers if end is None else end
        return self.x, self.stats, self.z, self.block, tracked, begin, end, halves

    def backward(self, begin: int = 0, end: int | None = None, halves: int = Half.BOTH) -> tuple:
        end = self.layers if end is None else end
        memory = (self.g, self.correction, self.x, self.stats, self.z)
        return *memory, self.block, self.gradients, self.u, begin, end, halves

    @property
    def layers(self) -> int:
        return len(self.block.numbers) // len(NUMBERS)

    def copy(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Case":
        """Everything in new memory, laid out and surrounded as this is; activations and weights in `dtype`."""
        narrow = self.x.dtype if dtype is None else dtype

        def each(values: list[Tensor | None]) -> list[Tensor | None]:
            weights = (i % 5 == 4 for i in range(len(values)))
            return [
                of(t, narrow if is_weight else accumulator(narrow))
                for t, is_weight in zip(values, weights, strict=True)
            ]

        def of(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if t is None else copied(t, dtype, device)

        seeds = None if self.block.seeds is None else copied(self.block.seeds, torch.int64, device)
        return Case(
            self.block._replace(tensors=each(self.block.tensors), seeds=seeds),
            of(self.x, narrow),
            of(self.stats, accumulator(narrow)),
            of(self.z, narrow),
            of(self.g, narrow),
            of(self.correction, accumulator(narrow)),
            each(self.gradients),
            of(self.u, narrow),
        )

    def results(self) -> Iterator[tuple[str, Tensor]]:
        """The parts of which something is left: not u, and not the layers' channels of g."""
        for name, part in self.parts():
            if name == "g":
                yield name, outside(part, new_channels(self.block, 0, self.layers))
            elif name != "u":
                yield name, part

    def without(self, *names: str) -> "Case":
        """The same memory, but None for z or u."""
        return replace(self, **dict.fromkeys(names))

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under a name; of the pairs each row of the buffer's channels and of the bottlenecks'."""
        total = self.x.shape[1]
        for name, image in (("x", self.x), ("z", self.z), ("g", self.g), ("u", self.u)):
            if image is not None:
                yield name, image
        for name, pair in (("stats", self.stats), ("correction", self.correction)):
            for row in (0, 1):
                yield f"{name}[{row}] of x", pair[row, :total]
                yield f"{name}[{row}] of z", pair[row, total:]
        for name, flat in (("tensors", self.block.tensors), ("gradients", self.gradients)):
            for i, value in enumerate(flat):
                if value is not None:
                    yield f"{TENSORS[i % len(TENSORS)]} of {name}, layer {i // len(TENSORS)}", value


def make(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    *,
    exact: bool = False,
    affine: bool = True,
    frozen: tuple[bool, bool] = (False, False),
    drop_rate: float = 0.0,
    room: int = ROOM,
) -> Case:
    """A block and its memory, all random.

    `frozen`: whether norm1, norm2 use statistics of their own. `exact`: of small integers, with variances 1 and eps 0.
    """
    wide = accumulator(dtype)

    def values(*sizes: int) -> Tensor:
        return torch.randint(-3, 4, sizes).double() if exact else torch.randn(sizes, dtype=torch.float64)

    def statistics(size: int) -> Tensor:
        """Mean and variance [2, size]."""
        if exact:
            return torch.stack([torch.randint(-2, 3, (size,)).double(), torch.ones(size).double()])
        return torch.stack([torch.randn(size).double() * 0.3, torch.rand(size).double() + 0.5])

    def norm(size: int, own: bool) -> list[Tensor | None]:
        mean, var = statistics(size) if own else (None, None)
        gamma = values(size) if exact else torch.rand(size).double() + 0.5
        vectors = [mean, var, *([gamma, values(size)] if affine else [None, None])]
        return [None if v is None else in_line(v, wide, room) for v in vectors]

    def weight(outputs: int, inputs: int, kernel: int) -> Tensor:
        scale = 1 if exact else (2 / (inputs * kernel**2)) ** 0.5
        return in_line(values(outputs, inputs, kernel, kernel) * scale, dtype, room)

    tensors: list[Tensor | None] = []
    for inputs, width, growth in zip(shape.inputs, shape.widths, shape.growths, strict=True):
        tensors += norm(inputs, frozen[0])
        if width:
            tensors += [weight(width, inputs, 1), *norm(width, frozen[1]), weight(growth, width, 3)]
        else:
            tensors += [weight(growth, inputs, 3), *5 * [None]]
    eps = 2 * [0.0 if exact else 1e-5]
    layers = len(shape.growths)
    seeds = torch.randint(-(2**62), 2**62, (layers,)) if drop_rate else None
    learnt = [i % 5 > 1 for i in range(10 * layers)]  # gamma, beta, weight
    total, of_one_width = shape.total + sum(shape.widths), len(set(shape.widths) - {0}) == 1

    def image(channels: int) -> Tensor:
        return in_image(values(shape.n, channels, shape.h, shape.w), dtype, room)

    return Case(
        Block(shape.channels, tensors, layers * [*eps, drop_rate], seeds),
        image(shape.total),
        in_rows(statistics(total), wide, room),
        in_line(values(z_size(shape.widths, shape.pixels)), dtype, room) if any(shape.widths) else None,
        image(shape.total),
        in_rows(values(2, total), wide, room),
        [
            in_line(values(*t.shape), t.dtype, room) if learns and t is not None else None
            for t, learns in zip(tensors, learnt, strict=True)
        ],
        image(max(shape.widths)) if of_one_width else None,
    )


def new_channels(block: Block, begin: int, end: int) -> slice:
    """The channels that the layers from `begin` to `end` add, of whose gradient their backward may leave anything."""
    first, *_, last = [*block.layers(0, 0)][begin:end] * 2
    return slice(first.begin, last.end)


def outside(image: Tensor, channels: slice) -> Tensor:
    return torch.cat([image[:, : channels.start], image[:, channels.stop :]], 1)


def in_image(content: Tensor, dtype: torch.dtype, room: int) -> Tensor:
    """[N, C, H, W] as channels of a wider image in NHWC memory, whose other channels are NaN."""
    n, c, h, w = content.shape
    whole = torch.full((n, h, w, c + 2 * room), float("nan"), dtype=dtype).permute(0, 3, 1, 2)
    return whole[:, room : room + c].copy_(content)


def in_rows(content: Tensor, dtype: torch.dtype, room: int) -> Tensor:
    """A pair [2, C] as columns of a wider one, whose other columns are NaN."""
    whole = torch.full((2, content.shape[1] + 2 * room), float("nan"), dtype=dtype)
    return whole[:, room : room + content.shape[1]].copy_(content)


def in_line(content: Tensor, dtype: torch.dtype, room: int) -> Tensor:
    """Contiguous, between NaN."""
    whole = torch.full((content.numel() + 2 * room,), float("nan"), dtype=dtype)
    return whole[room : room + content.numel()].view(content.shape).copy_(content)


def whole_memory(part: Tensor) -> Tensor:
    """All that `part` is a part of, as a line."""
    return part.new_empty(0).set_(part.untyped_storage())  # type: ignore[call-overload]


def copied(part: Tensor, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    """`part` in a copy of its whole memory."""
    whole = whole_memory(part).to(device=device, dtype=dtype, copy=True)
    return whole.as_strided(part.shape, part.stride(), part.storage_offset())


def surroundings(part: Tensor) -> Tensor:
    """The memory that `part` is a part of, without it."""
    mask = torch.ones_like(whole_memory(part), dtype=torch.bool)
    mask.as_strided(part.shape, part.stride(), part.storage_offset()).zero_()
    return whole_memory(part)[mask]
