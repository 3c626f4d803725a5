"""One operation of this backend beside eager: in the same dtype, and on the same arguments in float64."""

from collections.abc import Collection
from itertools import cycle, islice
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from ..native.cases import ROOM, error, make, whole_of


class Format(NamedTuple):
    dtype: torch.dtype
    precision: str  # of PyTorch's convolutions in float32
    eps: float  # of what the products are rounded to


FORMATS = {
    "float32": Format(torch.float32, "ieee", torch.finfo(torch.float32).eps),
    "tf32": Format(torch.float32, "tf32", 2**-10),
    "bfloat16": Format(torch.bfloat16, "ieee", torch.finfo(torch.bfloat16).eps),
    "float16": Format(torch.float16, "ieee", torch.finfo(torch.float16).eps),
}


def sweep(geometries: list, forms: Collection[str] = tuple(FORMATS)) -> list[tuple]:
    """(geometry, form): every combination on a GPU. Where kernels are interpreted, which takes seconds, every geometry
    and every form once; test_ptx.py, the stronger proof, has every operation in every form."""
    if torch.cuda.is_available():
        return [(geometry, form) for geometry in geometries for form in forms]
    longest = max(len(geometries), len(forms))
    return list(islice(zip(cycle(geometries), cycle(forms), strict=False), longest))


def arguments(name, geometry, dtype, device, **options) -> list:
    """The operation's arguments: activations, as slices of a NaN-filled buffer, and weights in dtype."""
    return [_placed(a, dtype, device) for a in make(name, geometry, **options).args]


def label(value) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _in_buffer(x: Tensor) -> bool:
    return x.dim() == 4 and x._base is not None and x._base.shape[1] == x.shape[1] + 2 * ROOM


def _placed(argument, dtype, device):
    if not isinstance(argument, Tensor):
        return argument
    if _in_buffer(argument):
        return whole_of(argument).to(device, dtype)[:, ROOM : ROOM + argument.shape[1]]
    return argument.to(device, dtype if argument.dim() > 1 else None)


def copied(argument, dtype=None):
    """A copy, of an image with the buffer around it; or in another dtype."""
    if not isinstance(argument, Tensor):
        return argument
    if dtype is not None and argument.is_floating_point():
        return argument.to(dtype)
    if _in_buffer(argument):
        return whole_of(argument).clone()[:, ROOM : ROOM + argument.shape[1]]
    return argument.clone()


def call(operation, args, dtype=None) -> tuple[list[Tensor], list]:
    """Results and then what was written (but not bn_relu_conv1x1_bwd's u, which is undefined afterwards), and all
    arguments after the call; the given ones stay as they are."""
    args = [copied(a, dtype) for a in args]
    results = operation(*args)
    results = list(results) if isinstance(results, tuple) else [] if results is None else [results]
    schema = operation._schema.arguments
    written = [a for a, s in zip(args, schema, strict=True) if s.alias_info is not None and s.alias_info.is_write]
    if operation._schema.name.endswith("conv1x1_bwd"):
        written = written[1:]
    return results + [w for w in written if w is not None], args


def untouched(args, after, operation) -> bool:
    """Whether what is read is as before, and the buffers around the images hold NaN as before."""
    for before, now, argument in zip(args, after, operation._schema.arguments, strict=True):
        if not isinstance(now, Tensor):
            continue
        if _in_buffer(now):
            around = torch.cat([whole_of(now)[:, :ROOM], whole_of(now)[:, -ROOM:]], 1)
            if not around.isnan().all():
                return False
        if argument.alias_info is None and not torch.equal(before.nan_to_num(7.0), now.nan_to_num(7.0)):
            return False
    return True


def check_error(triton, eager, name, args, form, *others) -> None:
    """Every result is at most twice as far from float64 as eager's in the same dtype, plus one eps: in the median where
    others, more lists of arguments, are given. And nothing else is touched."""
    torch.backends.cudnn.conv.fp32_precision = form.precision  # reset by conftest.py
    found = []  # of every case and result: our error, eager's
    for case in (args, *others):
        exact, _ = call(getattr(eager, name), case, torch.float64)
        ours, after = call(getattr(triton, name), case)
        theirs, _ = call(getattr(eager, name), case)
        assert untouched(case, after, getattr(triton, name))
        assert [t.shape for t in ours] == [t.shape for t in exact]
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]
        found.append([(error(o, e), error(t, e)) for o, t, e in zip(ours, theirs, exact, strict=True)])
    for i, got in enumerate(ours):
        our, their = (median(of_case[i][side] for of_case in found) for side in (0, 1))
        # Eager has no TF32 on the CPU, so there sums, too, differ by TF32's eps.
        eps = form.eps if form.precision == "tf32" else torch.finfo(got.dtype).eps
        assert our <= 2 * their + eps, f"value {i}: {our:.2e}, eager {their:.2e}"
