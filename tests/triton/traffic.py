"""The byte model: what a launch reads and writes of activations, from its grid and tiles.

Weights, vectors and partial results of one program's size stay in L2 and are left out, and so are the partial gradients
of a weight where the L2 cache keeps all of them. `requested` is what the programs ask for; `moved` is what comes from
DRAM: what programs running at the same time read in common is moved once.
"""

from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import triton

from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import Device, Launch

Grid = tuple[int, ...]


class Access(NamedTuple):
    tensor: str  # name of the argument
    elements: int  # read or written by all programs, each reading once what it has in common with itself
    written: bool = False
    programs: int = 1  # that read the same
    reach: int = 1  # programs started from the first to the last of them
    repeats: float = 1.0  # how often one program asks for the same, taps of a convolution: cached
    partial: bool = False  # for a later launch that adds it up

    def along(self, grid: Grid, axis: int) -> "Access":
        """Read by all programs along an axis of the grid."""
        return self._replace(programs=grid[axis], reach=prod(grid[: axis + 1]))

    def dram(self, size: int, processors: int) -> int:
        """Bytes that come from or go to DRAM, of `size` bytes that are different ones. Programs that read the same and
        run at the same time share it through L2."""
        if self.partial and size <= tiles.CACHED:
            return 0
        return size * (1 if self.reach <= processors else self.programs)


def _columns(width: int, strip: int) -> int:
    """Pixels of a row that strips of `strip` pixels and their neighbours cover, inside the row."""
    return sum(min(w + strip, width - 1) - max(w - 1, 0) + 1 for w in range(0, width, strip))


def _taps(a: dict) -> float:
    """Pixels read by the nine taps, per pixel: those in the padding are not."""
    return (3 * a["H"] - 2) * (3 * a["W"] - 2) / (a["H"] * a["W"])


def _conv1x1_fwd(a: dict, grid: Grid) -> list[Access]:
    again = grid[0] * a["BLOCK_M"] / a["M"]  # the last pixel in place of those behind it
    return [Access("x", a["M"] * a["C"], repeats=again).along(grid, 1), Access("z", a["M"] * a["K"], written=True)]


def _conv1x1_bwd(a: dict, grid: Grid) -> list[Access]:
    slabs = triton.cdiv(a["C"], a["BLOCK_C"])
    outputs = [Access(name, a["M"] * a["K"], programs=slabs, reach=slabs) for name in ("u", "z")]
    inputs = [Access(name, a["M"] * a["C"], written) for name, written in (("x", False), ("dx", False), ("dx", True))]
    return [*outputs, *inputs, Access("dweight", a["splits"] * a["K"] * a["C"], written=True, partial=True)]


def _conv1x1_grads(a: dict, grid: Grid) -> list[Access]:
    both = _conv1x1_bwd(a, grid)
    if a["dweight"] is None:
        return both[:-1]
    slabs, outputs = triton.cdiv(a["C"], a["BLOCK_C"]), triton.cdiv(a["K"], a["BLOCK_K"])
    return [*both, *both[:2], Access("x", a["M"] * a["C"], programs=outputs, reach=slabs * outputs)]


def _conv3x3_fwd(a: dict, grid: Grid) -> list[Access]:
    pixels = a["strips"] // a["per_row"] * a["W"]
    repeats = (3 * a["H"] - 2) / a["H"] * _columns(a["W"], a["STRIP"]) / a["W"]
    read = Access("x", pixels * a["C"], repeats=repeats).along(grid, 1)
    return [read, Access("y", pixels * a["G"], written=True)]


def _conv3x3_correct(a: dict, grid: Grid) -> list[Access]:
    return [*(Access(name, a["M"] * a["G"]) for name in ("dy", "y")), Access("d", a["M"] * a["D"], written=True)]


def _conv3x3_dgrad(a: dict, grid: Grid) -> list[Access]:
    added = [Access("u", a["M"] * a["C"])] * a["ACCUMULATE"]
    d = Access("d", a["M"] * a["D"], repeats=_taps(a)).along(grid, 1)
    again = triton.cdiv(a["M"], a["BLOCK_M"]) * a["BLOCK_M"] / a["M"]  # the last pixel in place of those behind it
    return [d, Access("x", a["M"] * a["C"], repeats=again), *added, Access("u", a["M"] * a["C"], written=True)]


def _conv3x3_wgrad(a: dict, grid: Grid) -> list[Access]:
    d = Access("d", a["M"] * a["D"], repeats=_taps(a)).along(grid, 1)
    partial = Access("weights", grid[0] * 9 * a["G"] * a["C"], written=True, partial=True)
    return [d, Access("x", a["M"] * a["C"]).along(grid, 2), partial]


KERNELS: dict[str, Callable[[dict, Grid], list[Access]]] = {
    "bn_bwd_apply_kernel": lambda a, grid: [Access(n, a["M"] * a["C"], n == "dx") for n in ("v", "x", "dx")],
    "bn_relu_conv1x1_fwd_kernel": _conv1x1_fwd,
    "bn_relu_conv1x1_bwd_kernel": _conv1x1_bwd,
    "bn_relu_conv1x1_grads_kernel": _conv1x1_grads,
    "bn_relu_conv3x3_fwd_kernel": _conv3x3_fwd,
    "bn_relu_conv3x3_correct_kernel": _conv3x3_correct,
    "bn_relu_conv3x3_dgrad_kernel": _conv3x3_dgrad,
    "bn_relu_conv3x3_wgrad_kernel": _conv3x3_wgrad,
    "channel_stats_kernel": lambda a, grid: [Access("x", a["M"] * a["C"])],
}


def accesses(launch: Launch) -> list[Access]:
    return KERNELS[launch.kernel.fn.__name__](launch.arguments, launch.grid)


def _bytes(launch: Launch, access: Access) -> int:
    return access.elements * launch.arguments[access.tensor].element_size()


def requested(launch: Launch) -> dict[tuple[str, bool], int]:
    """Bytes by tensor and whether they are written, as the programs ask for them."""
    found: defaultdict[tuple[str, bool], int] = defaultdict(int)
    for access in accesses(launch):
        found[access.tensor, access.written] += round(_bytes(launch, access) * access.programs * access.repeats)
    return dict(found)


def merged(launch: Launch) -> tuple[int, int]:
    """Bytes of scratch memory read and written by a backward kernel that finishes a norm: a row of sums of each program
    and group, counters, and what it adds up of a weight's gradient."""
    a = launch.arguments
    sums, group, dgamma, _ = a["into"]
    added = 4 * a["splits"] * a["weight_stride"] if a.get("weights") is not None else 0
    if a["arrivals"] is None:  # a launch of its own merges
        return added, sums.nbytes
    rows = next(r for r in range(sums.shape[0] + 1) if r + triton.cdiv(r, group) == sums.shape[0])
    groups = triton.cdiv(rows, group)
    again = groups if groups > 1 else 0
    slabs, of_rows = a["arrivals"].numel() // (groups + 1), (rows + again) * 2 * 4 * dgamma.numel()
    return of_rows + added, of_rows + 4 * slabs * (groups + (groups > 1))


def moved(launch: Launch, device: Device) -> int:
    """Bytes from and to DRAM."""
    return sum(access.dram(_bytes(launch, access), device.processors) for access in accesses(launch))
