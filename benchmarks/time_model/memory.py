"""Bytes that a launch moves, from its arguments: tests/triton/traffic.py, which tests hold to what kernels do, and by
the same rules what it leaves out: the stem's, the transitions' and the head's kernels, weights and partial results.

From DRAM come activations, and partial gradients of weights that the L2 cache does not keep, read or written once,
though often where programs far apart read the same; through the L2 cache goes what all programs ask for, and weights
and partial results besides, which stay there. Vectors of channels are left out.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.triton.traffic import KERNELS, Access, Grid

from . import device
from .plans import Planned

Arguments = dict[str, Any]
FLOAT32 = 4


class Moved(NamedTuple):
    dram: int
    l2: int
    new: float  # the share of what a program reads that it has not had before


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _stem_fwd(a: Arguments, grid: Grid) -> list[Access]:
    pixels = a["M"] // (a["P"] * a["Q"]) * a["H"] * a["W"]
    return [Access("x", pixels * a["C"], repeats=9 / 4), Access("y", a["M"] * a["C"], written=True)]


def _stem_bwd(a: Arguments, grid: Grid) -> list[Access]:
    """A step loads twelve pixels for four, and two of the windows' gradients; two steps come before a program's own."""
    if "M" in a:  # an older one: 25 loads to find the maxima again and four more; nine of the windows' gradients
        pixels, windows, of_x, of_dy = a["M"] // (a["P"] * a["Q"]) * a["H"] * a["W"], a["M"], 29 / 4, 9.0
    else:
        pixels, windows, steps = a["count"], a["columns"] * a["P"], 1 + 2 * (grid[2] - 1) / a["P"]
        of_x, of_dy = 12 / 4 * steps, 2 * steps
    x, dy = Access("x", pixels * a["C"], repeats=of_x), Access("dy", windows * a["C"], repeats=of_dy)
    return [x, dy, Access("dx", pixels * a["C"], written=True)]


def _transition_fwd(a: Arguments, grid: Grid) -> list[Access]:
    return [Access("x", 4 * a["Q"] * a["C"]).along(grid, 1), Access("y", a["Q"] * a["K"], written=True)]


def _transition_dgrad(a: Arguments, grid: Grid) -> list[Access]:
    pixels = a["N"] * a["H"] * a["W"]
    dy = Access("dy", a["N"] * (a["H"] // 2) * (a["W"] // 2) * a["K"]).along(grid, 1)
    return [dy, Access("x", pixels * a["C"]), Access("dx", pixels * a["C"], written=True)]


def _transition_wgrad(a: Arguments, grid: Grid) -> list[Access]:
    x, dy = Access("x", 4 * a["Q"] * a["C"]).along(grid, 1), Access("dy", a["Q"] * a["K"]).along(grid, 0)
    return [x, dy, Access("dweight", grid[2] * a["K"] * a["C"], written=True, partial=True)]


def _head_fwd(a: Arguments, grid: Grid) -> list[Access]:
    return [Access("x", grid[0] * a["pixels"] * a["C"])]


def _head_bwd(a: Arguments, grid: Grid) -> list[Access]:
    return [Access("x", a["M"] * a["C"]), Access("dx", a["M"] * a["C"], written=True)]


ACTIVATIONS: dict[str, Callable[[Arguments, Grid], list[Access]]] = {
    **KERNELS,
    "stem_fwd_kernel": _stem_fwd,
    "stem_bwd_kernel": _stem_bwd,
    "transition_fwd_kernel": _transition_fwd,
    "transition_dgrad_kernel": _transition_dgrad,
    "transition_wgrad_kernel": _transition_wgrad,
    "head_fwd_kernel": _head_fwd,
    "head_bwd_kernel": _head_bwd,
}

# Elements of the weight that one program reads.
WEIGHTS: dict[str, Callable[[Arguments], int]] = {
    "bn_relu_conv1x1_fwd_kernel": lambda a: a["C"] * a["BLOCK_K"],
    "bn_relu_conv1x1_bwd_kernel": lambda a: a["BLOCK_K"] * a["BLOCK_C"],
    "bn_relu_conv3x3_fwd_kernel": lambda a: 9 * a["C"] * a["BLOCK_G"],
    "bn_relu_conv3x3_dgrad_kernel": lambda a: 9 * a["D"] * a["BLOCK_C"],
    "transition_fwd_kernel": lambda a: a["C"] * a["BLOCK_K"],
    "transition_dgrad_kernel": lambda a: a["K"] * a["BLOCK_C"],
}


# Rows of statistics or sums that programs leave, one of each with two values of each column; and columns.
ROWS: dict[str, Callable[[Arguments, Grid], tuple[int, int]]] = {
    "bn_relu_conv1x1_fwd_kernel": lambda a, grid: (grid[0], a["K"]),
    "bn_relu_conv1x1_bwd_kernel": lambda a, grid: (a["splits"], a["C"]),
    "bn_relu_conv3x3_fwd_kernel": lambda a, grid: (grid[0], a["G"]),
    "bn_relu_conv3x3_dgrad_kernel": lambda a, grid: (cdiv(a["M"], a["BLOCK_M"]), a["C"]),
    "channel_stats_kernel": lambda a, grid: (grid[0], a["C"]),
    "stem_fwd_kernel": lambda a, grid: (grid[0], a["C"]),
    "stem_bwd_kernel": lambda a, grid: (grid[1] if "M" in a else grid[0] * grid[2], a["C"]),
    "transition_fwd_kernel": lambda a, grid: (grid[0], a["K"]),
    "transition_dgrad_kernel": lambda a, grid: (grid[0], a["C"]),
    "head_bwd_kernel": lambda a, grid: (grid[1], a["C"]),
    "finish_bwd_kernel": lambda a, grid: (a["R"], a["C"]),
    # Of statistics the means are read twice.
    "merge_stats_kernel": lambda a, grid: (cdiv(3 * a.get("R", a.get("T")), 2), a["C"]),
}


def moved(launch: Planned) -> Moved:
    a, grid = launch.arguments, launch.grid
    accesses = ACTIVATIONS[launch.kernel](a, grid) if launch.kernel in ACTIVATIONS else []
    more = FLOAT32 * _added(a)
    if launch.kernel in WEIGHTS:
        more += WEIGHTS[launch.kernel](a) * a["weight"].itemsize * launch.programs
    if launch.kernel in ROWS:
        rows, columns = ROWS[launch.kernel](a, grid)
        more += 2 * FLOAT32 * rows * columns
    return summed(((access, a[access.tensor].itemsize) for access in accesses), more)


def summed(accesses: Iterable[tuple[Access, int]], more: int) -> Moved:
    """Of accesses with the bytes of their elements, and more bytes that go through the L2 cache alone."""
    dram, through, asked, new = 0, more, 0.0, 0
    for access, itemsize in accesses:
        size = access.elements * itemsize
        dram += access.dram(size, device.PROCESSORS)
        through += round(size * access.programs * access.repeats)
        if not access.written:
            asked += access.elements * access.repeats
            new += access.elements
    return Moved(dram, through, new / asked if asked else 1.0)


def _added(a: Arguments) -> int:
    """Elements of a weight's partial gradients that are read and added up."""
    if a.get("weights") is None or a.get("dweight") is None:
        return 0
    return a["splits"] * a["weight_stride"] if "splits" in a else a["S"] * a["K"] * a["C"] * a["TAPS"]
