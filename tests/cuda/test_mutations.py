"""Faults planted into the kernels' PTX: each must be found by the machine or show in a result. Faults in the sources,
which nvcc must compile, are planted by `python -m tests.faults cuda`."""

import re

import pytest
import torch

from tools.gpucheck import ptx
from tools.gpucheck.cuda.launches import stem

from .. import reference
from ..calls import Geometry, errors, make

DEEP = Geometry(2, 11, 7, 176, 128, 32)  # more tiles of k than stages, more rows than one tile, a part of a tile
SMALL = Geometry(3, 9, 7, 1, 80, 12)
KERNELS = {  # an operation, its arguments' geometry, and words in the name of the kernel
    "conv1x1_fwd": ("conv1x1_fwd", DEEP),
    "conv1x1_bwd": ("conv1x1_bwd", DEEP),
    "conv3x3_fwd": ("conv3x3_fwd", SMALL),
    "conv3x3_dgrad": ("conv3x3_bwd", SMALL),
    "conv3x3_wgrad": ("conv3x3_bwd", SMALL),
    "channel_stats": ("channel_stats", Geometry(2, 29, 23, 40, 16, 4)),
}
WAIT = r"cp\.async\.wait_group (\d+);"
PRODUCTS = {  # a pattern in a kernel's PTX, and what becomes of it
    "a wait one group too short": (WAIT, lambda m: f"cp.async.wait_group {int(m[1]) + 1};"),
    "no barrier before the products": (rf"({WAIT}.*?)bar\.sync\s+0;", lambda m: m[1]),
    "two registers of an operand exchanged": (
        r"(mma\.sync[^{]*\{[^}]*\},\s*\{)([^,]*),([^,]*),([^,]*),",
        lambda m: f"{m[1]}{m[4]},{m[3]},{m[2]},",
    ),
}
TICKETS = {
    "no fence before the ticket": (r"membar\.gl;", ""),
    "a counter that is not left at zero": (r"\.inc\.u32(\s+%r\d+, \[%rd\d+\]), %r\d+;", r".add.u32\1, 1;"),
}
FAULTS = [
    *((kernel, fault, *PRODUCTS[fault]) for kernel in KERNELS if "conv" in kernel for fault in PRODUCTS),
    *(("channel_stats", fault, *TICKETS[fault]) for fault in TICKETS),
]


def caught(machine, name, geometry) -> bool:
    machine.device = (16, 100 * 1024)
    machine.set(tf32=False)
    call = make(name, geometry, torch.bfloat16)
    exact = call.copy(torch.float64).on(reference).results()
    stock = errors(call.copy().on(reference).results(), exact)
    try:
        got = call.copy().on(machine.operations).results()
    except (ptx.Fault, AssertionError):
        return True
    ours = errors(got, exact)
    return not all(ours[result] <= 2 * stock[result] + torch.finfo(got[result].dtype).eps for result in exact)


@pytest.mark.parametrize(("kernel", "fault", "pattern", "instead"), FAULTS, ids=[f"{k}-{f}" for k, f, *_ in FAULTS])
def test_fault_is_caught(machine, kernel, fault, pattern, instead):
    assert not caught(machine, *KERNELS[kernel])
    entry = next(run.kernel for run in machine.launches if f"{kernel}_kernel" in run.kernel)
    text = machine.texts[entry]
    start = text.index(f".entry {entry}")
    end = text.find(".entry", start + 1) % (len(text) + 1)
    changed, count = re.subn(pattern, instead, text[start:end], count=1, flags=re.DOTALL)
    assert count == 1, fault
    machine.replacement = {stem(entry): ptx.Launch(text[:start] + changed + text[end:], entry)}
    assert caught(machine, *KERNELS[kernel])


def test_stems_tell_kernels_apart(machine):
    stems = [stem(name) for name in machine.texts]
    assert len(set(stems)) == len(stems)
    assert not any(re.search("GLOBAL", s) for s in stems)
