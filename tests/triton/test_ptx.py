"""The PTX that Triton emits for sm_80, executed (tools/gpucheck/ptx): the layouts, waits and barriers that the compiler
chose, races, bounds. Errors are held to eager's as everywhere; launches move the bytes that traffic.py says."""

from itertools import chain

import pytest
import torch

from ..calls import NAMES as CALLS
from ..calls import Geometry
from ..rows import some
from . import traffic
from .compare import FORMATS, call, check_error

ODD = Geometry(2, 5, 7, 37, 48, 12)  # sizes and channels that are no multiple of anything
DEEP = Geometry(2, 13, 12, 330, 128, 32)  # loops longer than their pipelines by two steps at least
ALIGNED = Geometry(2, 5, 7, 40, 48, 16)  # rows on 16 bytes: a 3x3 backward corrects the gradient in its place
NAMES = [name for name in CALLS if name not in ("update_running_stats", "layer_fwd", "layer_bwd")]  # both halves
PRODUCTS = [name for name in NAMES if name.startswith(("conv", "plain", "transition"))]
CASES = [(name, ODD, form) for name in NAMES for form in FORMATS if form != "tf32" or name in PRODUCTS]
CASES += [(name, DEEP, form) for name in PRODUCTS for form in ("bfloat16", "float32")]
CASES += [(name, ALIGNED, form) for name in ("conv3x3_bwd", "plain_bwd") for form in ("bfloat16", "float32")]


@pytest.mark.parametrize(
    ("name", "geometry", "form"),
    some(CASES, always=lambda row: row[2] == "bfloat16" and (row[1] != DEEP or row[0].startswith("conv"))),
    ids=lambda v: f"{v.c}" if isinstance(v, Geometry) else v,
)
def test_error(executed, triton, eager, name, geometry, form):
    seeds = 3 if geometry == ALIGNED else 1  # among few values one may be rounded well or badly by chance
    check(executed, triton, eager, form, *(call(name, geometry, form, drop_rate=0.2) for _ in range(seeds)))


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name.endswith("bwd")])
def test_error_where_the_weight_is_frozen(executed, triton, eager, name):
    frozen = call(name, ODD, "bfloat16").changed(lambda of, tensor: None if of.startswith("dweight") else tensor)
    check(executed, triton, eager, "bfloat16", frozen)


def same_memory(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def check(executed, triton, eager, form, *cases):
    form = FORMATS[form]
    if form.precision == "tf32":  # the tensor core drops float32's low bits, where the interpreter rounds
        form = form._replace(eps=2 * form.eps)
    check_error(triton, eager, form, *cases)
    assert executed.done
    for launch, counts in executed.done:
        if launch.kernel.fn.__name__ in traffic.KERNELS:
            requested = {of: n for of, n in traffic.requested(launch).items() if launch.arguments[of[0]] is not None}
            for tensor, written in requested:
                argument = launch.arguments[tensor]
                if argument.dim() > 1:
                    found = counts.written(argument) if written else counts.read(argument)
                    expected = sum(
                        n
                        for (other, way), n in requested.items()
                        if way == written and same_memory(launch.arguments[other], argument)
                    )
                    if "into" in launch.arguments and same_memory(launch.arguments["into"][0], argument):
                        expected += traffic.merged(launch)[written]  # in scratch memory, as the argument is
                    assert found == expected, (
                        f"{launch.kernel.fn.__name__}: {tensor} {'written' if written else 'read'}"
                    )


def test_running_statistics(executed, triton, eager):
    """Norms of different widths in one launch, a branch for each."""
    widths = [5, 300, 17]
    stats = torch.rand(2, sum(widths)) + 0.5
    ours = [*[[torch.full((c,), v) for c in widths] for v in (0.25, 0.75)], [torch.tensor(i) for i in range(3)]]
    theirs = [[t.clone() for t in group] for group in ours]
    rest = (stats, [0, 5, 305], 9, [0.1, 1.0, 0.3])
    triton.update_running_stats(*ours, *rest)
    eager.update_running_stats(*theirs, *rest)
    assert executed.done
    for got, expected in zip(chain(*ours), chain(*theirs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
