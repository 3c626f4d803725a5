"""Bytes that a native launch moves, from its parameters, by the rules of the Triton launches' (../memory.py)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.triton.traffic import Access, Grid

from ..memory import FLOAT32, Moved, cdiv, summed
from .plans import Planned

MOMENTS, SUMS = 3, 2  # values of a column that a block leaves


class Traffic(NamedTuple):
    accesses: list[Access]  # of activations
    weights: int = 0  # elements that all blocks read of weights, or write
    floats: int = 0  # that go through the L2 cache: partial results
    partials: int = 0  # partial gradients of weights, written to memory: floats


Arguments = dict[str, Any]


def _rows(a: Arguments, values: int) -> int:
    """What blocks leave of statistics or sums, written and read."""
    return 2 * a["partials"]["tile_count"] * values * a["partials"]["C"]


def _conv1x1_fwd(a: Arguments, grid: Grid) -> Traffic:
    tiles = a.get("tiles", cdiv(a["M"], 128))
    columns = a.get("column_blocks", grid[0] // tiles)
    x = Access("x", a["M"] * a["C"], programs=columns, reach=columns)
    weights = tiles * columns * a["C"] * cdiv(a["K"], columns)
    return Traffic([x, Access("z", a["M"] * a["K"], True)], weights, _rows(a, MOMENTS))


def _conv1x1_bwd(a: Arguments, grid: Grid) -> Traffic:
    """Of one turn's channels of z."""
    K, slabs = min(128, a["K"] - a["first_k"]), cdiv(a["C"], 128)
    splits = cdiv(grid[0], slabs)
    read = [Access(name, a["M"] * K, programs=slabs, reach=slabs) for name in ("u", "z") if a[name]]
    read += [Access(name, a["M"] * a["C"]) for name in ["x"] + ["dx"] * a["accumulate"]]
    partials = splits * K * a["C"] if a["dweight_partials"] else 0
    sums = splits * SUMS * a["C"] if a["sum_partials"] else 0
    return Traffic([*read, Access("dx", a["M"] * a["C"], True)], splits * K * a["C"], sums, partials)


def _conv1x1_bwd_reduce(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([], a["weights"], a["splits"] * a["weights"] + a["sum_count"] * SUMS * a["C"])


def _halo(t: dict[str, int]) -> float:
    """How often a pixel is read: by each tile that has it, or has it in its halo."""
    H, W, runs = t["H"], t["W"], t["N"] * t["image_runs"]
    columns = sum(min(c + t["columns"] + 1, W) - max(c - 1, 0) for c in range(0, W, t["columns"]))
    rows = 0
    for begin in range(0, runs, t["runs"]):
        end = min(begin + t["runs"], runs)
        for image in range(begin // t["image_runs"], cdiv(end, t["image_runs"])):
            first, last = ((run - image * t["image_runs"]) * t["run_rows"] for run in (begin, end))
            rows += min(last + 1, H) - max(first - 1, 0)
    return rows * columns / _pixels(t)


def _pixels(tiling: dict[str, int]) -> int:
    return tiling["N"] * tiling["H"] * tiling["W"]


def _conv3x3_fwd(a: Arguments, grid: Grid) -> Traffic:
    tiling = a["main_loop"]["tiling"]
    pixels, C = _pixels(tiling), a["main_loop"]["C"]
    x = Access("x", pixels * C, repeats=_halo(tiling)).along(grid, 1)
    return Traffic([x, Access("y", pixels * a["G"], True)], grid[0] * 9 * C * a["G"], _rows(a, MOMENTS))


def _conv3x3_dgrad(a: Arguments, grid: Grid) -> Traffic:
    tiling = a["main_loop"]["tiling"]
    pixels, G, C = _pixels(tiling), a["main_loop"]["C"], a["C"]
    d = Access("d", pixels * G, repeats=_halo(tiling)).along(grid, 1)
    others = [Access(name, pixels * C) for name in ["x"] + ["u"] * a["accumulate"]]
    partials = 0
    if a.get("dweight_blocks"):
        added = a["dweight"]
        partials = added["splits"] * 9 * added["padded_G"] * added["padded_C"]
    weights = tiling["row_tiles"] * tiling["column_tiles"] * 9 * G * C
    return Traffic([d, *others, Access("u", pixels * C, True)], weights, _rows(a, SUMS) + partials)


def _conv3x3_wgrad(a: Arguments, grid: Grid) -> Traffic:
    tiling = a["tiling"]
    pixels, splits = _pixels(tiling), grid[0]
    x = Access("x", pixels * a["C"], repeats=_halo(tiling)).along(grid, 2)
    d = Access("d", pixels * a["G"]).along(grid, 1)
    return Traffic([x, d], partials=splits * 9 * a["G"] * grid[1] * cdiv(a["C"], grid[1]))


def _wgrad_reduce(a: Arguments, grid: Grid) -> Traffic:
    """Of checkouts in which it is a launch of its own."""
    return Traffic([], 9 * a["G"] * a["C"], a["splits"] * 9 * a["padded_G"] * a["padded_C"])


def _prepare(a: Arguments, grid: Grid) -> Traffic:
    read = [Access(name, a["M"] * a["G"]) for name in ("dy", "y")]
    weights = 2 * 9 * a["weight"]["inputs"] * a["weight"]["outputs"]
    return Traffic([*read, Access("d", a["M"] * a["d_stride"], True)], weights)


def _pack(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([], sum(2 * 9 * weight["inputs"] * weight["outputs"] for weight in a["weight"]))


def _pool(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([Access("x", 4 * a["pooled_rows"] * a["C"]), Access("pooled", a["pooled_rows"] * a["C"], True)])


def _pool_bwd(a: Arguments, grid: Grid) -> Traffic:
    pixels = 4 * a["pooled_rows"]
    read = [Access("x", pixels * a["C"]), Access("pooled", a["pooled_rows"] * a["C"])]
    return Traffic([*read, Access("dx", pixels * a["C"], True)], floats=_rows(a, SUMS))


def _stem_fwd(a: Arguments, grid: Grid) -> Traffic:
    """Nine loads of a window, of four pixels a window."""
    C = a["image"]["C"]
    images = a["M"] // (cdiv(a["image"]["H"], 2) * cdiv(a["image"]["W"], 2))
    x = Access("x", images * a["image"]["H"] * a["image"]["W"] * C, repeats=9 / 4)
    return Traffic([x, Access("y", a["M"] * C, True)], floats=_rows(a, MOMENTS))


def _stem_bwd(a: Arguments, grid: Grid) -> Traffic:
    """A tile's windows and one more row and column of them, then each pixel and the windows that it is in."""
    image = a["image"]
    windows = cdiv(image["H"], 2) * cdiv(image["W"], 2) * image["C"] * grid[0] // (a["tiles_y"] * a["tiles_x"])
    pixels = image["H"] * image["W"] * image["C"] * grid[0] // (a["tiles_y"] * a["tiles_x"])
    x = Access("x", pixels, repeats=9 / 4 * (9 * 17) / (8 * 16) + 1)
    return Traffic([x, Access("dy", windows, repeats=9), Access("dx", pixels, True)], floats=_rows(a, SUMS))


def _head_fwd(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([Access("x", grid[0] * a["pixels"] * a["C"])])


def _head_bwd(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([Access("x", a["M"] * a["C"]), Access("dx", a["M"] * a["C"], True)], floats=_rows(a, SUMS))


def _bn_bwd_apply(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([Access(name, a["M"] * a["C"], name == "dx") for name in ("v", "x", "dx")])


def _channel_stats(a: Arguments, grid: Grid) -> Traffic:
    return Traffic([Access("x", a["M"] * a["C"])], floats=_rows(a, MOMENTS))


TRAFFIC: dict[str, Callable[[Arguments, Grid], Traffic]] = {
    "bn_bwd_apply_kernel": _bn_bwd_apply,
    "bn_relu_conv1x1_bwd_kernel": _conv1x1_bwd,
    "bn_relu_conv1x1_bwd_reduce_kernel": _conv1x1_bwd_reduce,
    "bn_relu_conv1x1_fwd_kernel": _conv1x1_fwd,
    "bn_relu_conv3x3_dgrad_kernel": _conv3x3_dgrad,
    "bn_relu_conv3x3_fwd_kernel": _conv3x3_fwd,
    "bn_relu_conv3x3_wgrad_kernel": _conv3x3_wgrad,
    "bn_relu_conv3x3_wgrad_reduce_kernel": _wgrad_reduce,
    "bn_relu_pool_bwd_kernel": _pool_bwd,
    "bn_relu_pool_kernel": _pool,
    "channel_stats_kernel": _channel_stats,
    "conv3x3_pack_kernel": _pack,
    "conv3x3_prepare_kernel": _prepare,
    "head_bwd_kernel": _head_bwd,
    "head_fwd_kernel": _head_fwd,
    "stem_bwd_kernel": _stem_bwd,
    "stem_fwd_kernel": _stem_fwd,
    "update_running_stats_kernel": lambda a, grid: Traffic([]),
}


def moved(launch: Planned) -> Moved:
    traffic = TRAFFIC[launch.kernel](launch.arguments, launch.grid)
    partials = [(Access("partials", traffic.partials, True), FLOAT32)] if traffic.partials else []
    accesses = [(access, launch.element) for access in traffic.accesses]
    return summed([*accesses, *partials], traffic.weights * launch.element + traffic.floats * FLOAT32)
