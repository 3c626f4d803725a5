"""The programs of a launch: how many of each kind, and how often they go through which loops of the machine code.

A kernel's loops lie in its code in the order of its source: first, where it adds up another weight's gradient, that;
then its own; then, where the programs that arrive last merge, theirs. How often follows from the arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from densenet_fast.backends.triton._partial import ELEMENTS

from .machine_code import Code, Loop
from .memory import ROWS, cdiv
from .plans import Planned

SPLITS = 8  # of a weight's gradient that a program adds up at a time (triton/_partial.py)
MERGED = 4096  # values that a program merges at a time (triton/_reduce.py)

Arguments = dict[str, Any]


class Programs(NamedTuple):
    number: int
    trips: Any  # `Trips`, or native's way
    last: Any = None  # of the one that arrives last and merges


def _conv1x1_bwd(a: Arguments, grid: tuple[int, int, int]) -> int:
    return cdiv(cdiv(a["M"], a["BLOCK_M"]), a["splits"])


def _tiles_of_split(a: Arguments, grid: tuple[int, int, int]) -> int:
    return cdiv(cdiv(a["M"], a["BLOCK_M"]), grid[1])


def _stem_bwd(a: Arguments, grid: tuple[int, int, int]) -> int:
    if "M" in a:  # an older one, whose programs have tiles
        return _tiles_of_split(a, grid)
    return min(a["depth"] + 2 * (grid[2] > 1), a["P"] + 1)


# How often a program goes through its own loop, or its own loops.
TRIPS: dict[str, Callable[[Arguments, tuple[int, int, int]], int]] = {
    "bn_relu_conv1x1_fwd_kernel": lambda a, grid: cdiv(a["C"], a["BLOCK_C"]),
    "bn_relu_conv1x1_bwd_kernel": _conv1x1_bwd,
    "bn_relu_conv3x3_fwd_kernel": lambda a, grid: 3 * cdiv(a["C"], a["BLOCK_C"]),
    "bn_relu_conv3x3_dgrad_kernel": lambda a, grid: cdiv(9 * a["D"], a["BLOCK_K"]),
    "bn_relu_conv3x3_wgrad_kernel": lambda a, grid: cdiv(a["tiles"], grid[0]),
    "transition_fwd_kernel": lambda a, grid: cdiv(a["C"], a["BLOCK_C"]),
    "transition_dgrad_kernel": lambda a, grid: cdiv(a["K"], a["BLOCK_K"]),
    "transition_wgrad_kernel": lambda a, grid: cdiv(cdiv(a["Q"], a["BLOCK_M"]), grid[2]),
    "head_fwd_kernel": lambda a, grid: cdiv(a["pixels"], a["BLOCK_M"]),
    "head_bwd_kernel": _tiles_of_split,
    "stem_bwd_kernel": _stem_bwd,
    "merge_stats_kernel": lambda a, grid: cdiv(a.get("R", a.get("T")), a.get("BLOCK_R", a.get("BLOCK_T"))),
    "finish_bwd_kernel": lambda a, grid: cdiv(a["R"], a["BLOCK_R"]),
    "sum_weight_kernel": lambda a, grid: cdiv(a["splits"], SPLITS),
}
OWN = {"merge_stats_kernel": 2, "finish_bwd_kernel": 2}  # loops, where not one or none
# What of a program's tile is the slab of channels whose statistics it has.
SLAB = {
    "bn_relu_conv1x1_fwd_kernel": "BLOCK_K",
    "bn_relu_conv3x3_fwd_kernel": "BLOCK_G",
    "transition_fwd_kernel": "BLOCK_K",
}
NO_LOOP = (
    "bn_relu_conv3x3_correct_kernel",
    "bn_bwd_apply_kernel",
    "channel_stats_kernel",
    "stem_fwd_kernel",
    "clear_kernel",
    "update_running_stats_kernel",
)


def programs(launch: Planned, code: Code) -> list[Programs]:
    """Raises:
    ValueError: a kernel that is not modelled, or code that has other loops than its source.
    """
    if launch.kernel not in TRIPS and launch.kernel not in NO_LOOP:
        raise ValueError(f"{launch.kernel}: nothing is known of its loops; add it to {__name__}.TRIPS")
    a, grid, number = launch.arguments, launch.grid, launch.programs
    left = list(code.loops)
    own = 0 if launch.kernel in NO_LOOP else OWN.get(launch.kernel, 1)
    adding: list[Programs] = []
    if a.get("weights") is not None and "splits" in a and launch.kernel != "sum_weight_kernel":
        count = cdiv(cdiv(a["weight_stride"], ELEMENTS), grid[1]) * grid[1]
        adding = [Programs(count, {left.pop(0): cdiv(a["splits"], SPLITS)})]
    elif launch.kernel == "finish_bwd_kernel" and a.get("weights") is not None:  # an older one adds them up behind
        count = number - cdiv(a["C"], a["BLOCK_C"])
        adding = [Programs(count, {left.pop(): cdiv(a["S"], a["BLOCK_S"])})]
    own = own if len(left) not in (0, 4) else 0  # a loop that is unrolled whole is none
    trips = {loop: TRIPS[launch.kernel](a, grid) for loop in left[:own]}
    merging, last = left[own:], None
    if len(trips) != own or len(merging) not in (0, 4):
        raise ValueError(f"{launch.kernel}: got {len(code.loops)} loops, expected {own} and those that merge")
    if merging:
        last = {**trips, **_merging(launch, merging)}
    number -= sum(others.number for others in adding)
    return [*adding, Programs(number, trips, last)]


def _merging(launch: Planned, loops: list[Loop]) -> dict[Loop, int]:
    """Two loops for the rows of a group, two for those of all groups; of one group, the latter alone."""
    a = launch.arguments
    rows, _ = ROWS[launch.kernel](a, launch.grid)
    group = a["stats"][2] if "stats" in a else a["into"][1]
    groups, at_a_time = cdiv(rows, group), MERGED // a[SLAB.get(launch.kernel, "BLOCK_C")]
    if groups == 1:
        return dict.fromkeys(loops[2:], cdiv(group, at_a_time))
    return dict.fromkeys(loops[:2], cdiv(group, at_a_time)) | dict.fromkeys(loops[2:], cdiv(groups, at_a_time))
