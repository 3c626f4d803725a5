"""What the operations of each backend allocate while they run, at most at once, in bytes: for the CPU an estimate from
above.

Measured peaks are within 3 % of `Step.peak` with it (tests/test_memory.py). Of kernels for GPUs, which none has
measured yet, it counts the gradient of z, and z where it is recomputed: beside these Triton's plans ask for at most
30 MB in the blocks of DenseNet-121 at batch 256 in bf16 (tests/triton/test_scratch.py).
"""

import torch

from .stage import Stage

PANEL = 16  # channels that the CPU kernels pad to
ROWS = 96  # pixels of a tile of their 1x1 convolutions, about
TILES = 42  # tiles of a chunk of their 3x3 convolutions, at most
ARENA = 3 << 14  # elements that they take at once, at least, and leave
FEW = 256  # pixels up to which they divide the channels of a 3x3 convolution among the threads


def scratch(stage: Stage, backend: str, efficient: bool, threads: int | None = None) -> int:
    """Of a stage's backward beside its gradients. threads: of the CPU kernels; those that PyTorch has if None.

    Raises:
        ValueError: there is no such backend.
    """
    if backend == "eager":
        return max(_eager_block(stage, efficient), _eager_consumer(stage))
    widest = max(stage.widths, default=0)
    rooms = stage.pixels * widest * stage.dtype.itemsize * (1 + efficient)  # u, and z where it is recomputed
    if backend == "native":
        threads = threads or torch.get_num_threads()
        return max(rooms + 4 * _native_block(stage, threads, efficient), 4 * _native_consumer(stage, threads))
    if backend != "triton":
        raise ValueError(f"unknown backend: got {backend!r}, expected one of native, triton, eager")
    return rooms


def _parts(tasks: int, threads: int) -> int:
    """Partial results of a sum over tasks (csrc/cpu/schedule.h)."""
    workers = min(tasks, threads)
    return 2 * workers if workers > 1 and tasks >= 8 * workers else workers


def _tasks(units: int, target: int, threads: int) -> int:
    """Equal tasks of about `target` units, a multiple of the threads where there are units enough."""
    return min(units, -(-units // (target * threads)) * threads)


def _native_block(stage: Stage, threads: int, efficient: bool) -> int:
    """Elements of the kernel that needs most: each lets go of what it took, for the next."""
    of_1x1 = _parts(_tasks(stage.pixels, ROWS, threads), threads)
    most = 0
    for c, (width, growth) in zip(stage.inputs, stage.layers, strict=True):
        size = 3 if _large_tiles(stage, width or c, growth) else 2  # outputs of a tile along an axis
        rows, columns = _tiles(stage, size)
        chunks = _tasks(stage.images * rows, max(1, TILES // columns), threads)
        tiles = -(-stage.images * rows // chunks) * columns  # the most of a chunk
        of_3x3, values = _parts(chunks, threads), (size + 2) ** 2
        c, width, growth = _padded(c), _padded(width), _padded(growth)
        inputs = width or c  # of the 3x3 convolution
        tile = (size + 2) * (size * columns + 2) * growth + values * tiles * (growth + min(32, inputs))
        partial = 1 if stage.pixels <= FEW else of_3x3
        second = inputs * growth * (values * (1 + min(partial, threads)) + 9 * partial)
        second += threads * tile + 6 * partial * inputs
        first = again = 0
        if width:
            partial = 1 if stage.pixels <= c else of_1x1
            first = width * c * (1 + partial) + threads * ROWS * (width + 9 * PANEL) + 6 * partial * c
            again = (width * c + threads * _tile(stage, width) + stage.pixels // 48 * width) * efficient
        most = max(most, first, second, again)
    return most + ARENA


def _tiles(stage: Stage, size: int) -> tuple[int, int]:
    """Rows and columns of an image's tiles of size x size outputs."""
    height, width = stage.size[-2] if len(stage.size) > 1 else 1, stage.size[-1]
    return -(-height // size), -(-width // size)


def _large_tiles(stage: Stage, inputs: int, outputs: int) -> bool:
    """large_tiles of csrc/cpu/conv3x3_tiles.h."""
    large, small = (rows * columns for rows, columns in (_tiles(stage, 3), _tiles(stage, 2)))
    fewer = large > 1 and 25 * (stage.images * large + 32) < 16 * (stage.images * small + 32)
    return fewer and min(inputs, outputs) >= PANEL


def _native_consumer(stage: Stage, threads: int) -> int:
    total = _padded(stage.total)
    partial = _parts(_tasks(stage.pixels, 4 * ROWS, threads), threads)
    sums = 6 * partial * total
    if stage.consumer == "transition":
        outputs = _padded(stage.outputs)
        return sums + total * outputs * (1 + partial) + threads * _tile(stage, outputs)
    return sums + threads * 2 * stage.size[-1] * total * (stage.consumer == "stem")


def _tile(stage: Stage, outputs: int) -> int:
    """Of a 1x1 convolution: inputs, and outputs where float32 sums of them have no room in their place."""
    return ROWS * (17 * PANEL + outputs * (stage.dtype.itemsize < 4))


def _padded(channels: int) -> int:
    return -(-channels // PANEL) * PANEL


def _eager_block(stage: Stage, efficient: bool) -> int:
    """A layer's first half: the bottleneck's gradient, pieces of its widest image and of the gradient of that, which in
    16 bits is one piece. Its second half: the gradients of both its ends, the bottleneck itself, if it is made again,
    pieces of it, and of the new channels' gradient with its surroundings, as the weight's gradient takes it."""
    most, in_products = 0, stage.dtype.itemsize >= 4
    for c, (width, growth) in zip(stage.inputs, stage.layers, strict=True):
        inner = width or c
        first = stage.pixels * (width + c * (not in_products)) + _pieces(stage, c, 1 + in_products) + 2 * width * c
        second = stage.pixels * (growth + inner * (1 + bool(width and efficient)))
        second += _pieces(stage, inner, 1, 5 * growth * in_products) + 9 * inner * growth
        most = max(most, first if width else 0, second)
    return most * stage.dtype.itemsize


def _eager_consumer(stage: Stage) -> int:
    values = {
        "transition": stage.pixels // 4 * stage.total
        + max(_pieces(stage, stage.total, 2), 2 * stage.total * stage.outputs),
        "head": _pieces(stage, stage.total, 2),
        "stem": _pieces(stage, stage.total, 3),
    }
    return values[stage.consumer] * stage.dtype.itemsize


def _pieces(stage: Stage, channels: int, count: int, instead: int = 0) -> int:
    """Elements of `count` images of a piece of the batch (backends/eager/_common.py, `pieces`), and, where there is
    another piece, of what is left of the last one or of `instead` channels, which a single piece has in the place of
    an image; and of interleaved sums (`folded`)."""
    image = stage.pixels // stage.images * channels
    images = max(-(-stage.images // 4), -(-(2 << 20) // (image * stage.dtype.itemsize)))
    of_piece = channels * count + (max(channels, instead) if images < stage.images else max(0, instead - channels))
    return min(images, stage.images) * stage.pixels // stage.images * of_piece + 7 * min(64 * channels, 2048)
