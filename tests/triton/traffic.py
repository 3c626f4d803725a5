"""The byte model: what a launch reads and writes of activations, from its grid and tiles.

Weights, vectors and partial results of one program's size stay in L2 and are left out, but for the partial gradients of
weights, which are written in full. `requested` is what the programs ask for; `moved` is what comes from DRAM: what
programs running at the same time read in common is moved once.
"""

from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from densenet_fast.backends.triton.launch import Device, Launch


class Access(NamedTuple):
    tensor: str  # name of the argument
    elements: int  # read or written by all programs, each reading once what it has in common with itself
    written: bool = False
    axis: int | None = None  # of the grid, along which the programs read the same
    repeats: float = 1.0  # how often one program asks for the same, taps of a convolution: cached
    size: int | None = None  # bytes of an element, if not the tensor's


def _columns(width: int, strip: int) -> int:
    """Pixels of a row that strips of `strip` pixels and their neighbours cover, inside the row."""
    return sum(min(w + strip, width - 1) - max(w - 1, 0) + 1 for w in range(0, width, strip))


def _taps(a: dict) -> float:
    """Pixels read by the nine taps, per pixel: those in the padding are not."""
    return (3 * a["H"] - 2) * (3 * a["W"] - 2) / (a["H"] * a["W"])


def _conv1x1_fwd(a: dict) -> list[Access]:
    return [Access("x", a["M"] * a["C"], axis=1), Access("z", a["M"] * a["K"], written=True)]


def _conv1x1_bwd(a: dict) -> list[Access]:
    return _conv1x1_dgrad(a) + _partial(a["dweight"], a["K"] * a["C"], 1)


def _conv1x1_dgrad(a: dict) -> list[Access]:
    outputs = [Access(name, a["M"] * a["K"], axis=0) for name in ("u", "z")]
    inputs = [Access(name, a["M"] * a["C"], written) for name, written in (("x", False), ("dx", False), ("dx", True))]
    return outputs + inputs


def _conv1x1_wgrad(a: dict) -> list[Access]:
    both = [Access(name, a["M"] * a["K"], axis=0) for name in ("u", "z")]
    return [*both, Access("x", a["M"] * a["C"], axis=1), *_partial(a["dweight"], a["K"] * a["C"], 2)]


def _conv3x3_fwd(a: dict) -> list[Access]:
    pixels = a["strips"] // a["per_row"] * a["W"]
    repeats = (3 * a["H"] - 2) / a["H"] * _columns(a["W"], a["STRIP"]) / a["W"]
    read = Access("x", pixels * a["C"], axis=1, repeats=repeats)
    return [read, Access("y", pixels * a["G"], written=True)]


def _conv3x3_correct(a: dict) -> list[Access]:
    return [*(Access(name, a["M"] * a["G"]) for name in ("dy", "y")), Access("d", a["M"] * a["D"], written=True)]


def _conv3x3_dgrad(a: dict) -> list[Access]:
    added = [Access("u", a["M"] * a["C"])] * a["ACCUMULATE"]
    d = Access("d", a["M"] * a["D"], axis=1, repeats=_taps(a))
    return [d, Access("x", a["M"] * a["C"]), *added, Access("u", a["M"] * a["C"], written=True)]


def _conv3x3_wgrad(a: dict) -> list[Access]:
    d = Access("d", a["M"] * a["D"], axis=1, repeats=_taps(a))
    return [d, Access("x", a["M"] * a["C"], axis=2), *_partial(a["weights"], 9 * a["G"] * a["C"], 0)]


def _partial(tensor: Any, elements: int, axis: int) -> list[Access]:
    """One partial gradient of the weight for each split, along an axis of the grid."""
    return [Access("dweight", elements, written=True, axis=axis, size=4)] if tensor is not None else []


KERNELS: dict[str, Callable[[dict], list[Access]]] = {
    "bn_bwd_apply_kernel": lambda a: [Access(n, a["M"] * a["C"], n == "dx") for n in ("v", "x", "dx")],
    "bn_relu_conv1x1_fwd_kernel": _conv1x1_fwd,
    "bn_relu_conv1x1_bwd_kernel": _conv1x1_bwd,
    "bn_relu_conv1x1_dgrad_kernel": _conv1x1_dgrad,
    "bn_relu_conv1x1_wgrad_kernel": _conv1x1_wgrad,
    "bn_relu_conv3x3_fwd_kernel": _conv3x3_fwd,
    "bn_relu_conv3x3_correct_kernel": _conv3x3_correct,
    "bn_relu_conv3x3_dgrad_kernel": _conv3x3_dgrad,
    "bn_relu_conv3x3_wgrad_kernel": _conv3x3_wgrad,
    "channel_stats_kernel": lambda a: [Access("x", a["M"] * a["C"])],
}


def accesses(launch: Launch) -> list[Access]:
    return KERNELS[launch.kernel.fn.__name__](launch.arguments)


def _bytes(launch: Launch, access: Access) -> int:
    return access.elements * (access.size or launch.arguments[access.tensor].element_size())


def requested(launch: Launch) -> dict[tuple[str, bool], int]:
    """Bytes by tensor and whether they are written, as the programs ask for them."""
    found: defaultdict[tuple[str, bool], int] = defaultdict(int)
    for access in accesses(launch):
        programs = 1 if access.axis is None else launch.grid[access.axis]
        found[access.tensor, access.written] += round(_bytes(launch, access) * programs * access.repeats)
    return dict(found)


def moved(launch: Launch, device: Device) -> int:
    """Bytes from and to DRAM. Programs that read the same and run at the same time share it through L2."""
    total = 0
    for access in accesses(launch):
        programs = 1 if access.axis is None else launch.grid[access.axis]
        together = access.axis is not None and prod(launch.grid[: access.axis]) * programs <= device.processors
        total += _bytes(launch, access) * (1 if together and not access.written else programs)
    return total
