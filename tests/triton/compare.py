"""One call of this backend beside eager: in the same dtype, and as autograd has it in float64 (tests/reference.py)."""

from collections.abc import Collection
from itertools import cycle, islice
from statistics import median
from typing import NamedTuple

import torch

from .. import calls, reference
from ..blocks import surroundings
from ..calls import Call, Geometry, error
from .conftest import DEVICE


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


def call(name: str, geometry: Geometry, form: str = "float32", **options) -> Call:
    return calls.make(name, geometry, FORMATS[form].dtype, **options).copy(device=DEVICE)


def label(value) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def exact(of: Call) -> Call:
    """What is right."""
    return of.copy(torch.float64, "cpu").on(reference)


def untouched(before: Call, after: Call, right: Call) -> bool:
    """Whether NaN lies around every tensor as it did, and all is as before that the right call leaves so."""
    for (name, argument, old), (_, _, new), (_, _, true) in zip(
        before.tensors(), after.tensors(), right.tensors(), strict=True
    ):
        if new.is_floating_point() and not surroundings(new).isnan().all():
            return False
        if not argument.role.read:
            continue
        if name == "g":
            old, new, true = map(before.left, (old, new, true))
        old, new = (t.cpu().nan_to_num(7.0) for t in (old, new))
        left = old.double() == true.nan_to_num(7.0) if argument.role.written else slice(None)
        if not torch.equal(old[left], new[left]):
            return False
    return True


def check_error(triton, eager, form: Format, *cases: Call) -> None:
    """Every result is at most twice as far from what is right as eager's in the same dtype, plus one eps: in the median
    of several calls. And nothing else is touched."""
    torch.backends.cudnn.conv.fp32_precision = form.precision  # reset by conftest.py
    found = []  # of every call and result: our error, eager's
    for case in cases:
        right, after = exact(case), case.copy().on(triton)
        assert untouched(case, after, right)
        ours, theirs = after.results(), case.copy().on(eager).results()
        found.append(
            {name: (error(ours[name].cpu(), e), error(theirs[name].cpu(), e)) for name, e in right.results().items()}
        )
    for name, got in ours.items():
        our, their = (median(of_case[name][side] for of_case in found) for side in (0, 1))
        # Eager has no TF32 on the CPU, so there sums, too, differ by TF32's eps.
        eps = form.eps if form.precision == "tf32" else torch.finfo(got.dtype).eps
        assert our <= 2 * their + eps, f"{name}: {our:.2e}, eager {their:.2e}"


def check_exact(triton, case: Call, *quotients: str) -> None:
    """Sums of small integers have no rounding, so any difference is a wrong element; but for results that are
    quotients."""
    ours = case.copy().on(triton).results()
    for name, e in exact(case).results().items():
        if name.split("[")[0].split(" of ")[0] in quotients:
            assert error(ours[name].cpu(), e) < 1e-6, name
        else:
            assert torch.equal(ours[name].cpu().double(), e), name


def check_finite(triton, case: Call, name: str, bad: float, *place: int) -> None:
    """One bad value in the tensor of that name, at a place or in the middle, spreads as in PyTorch."""
    of = dict(case.named())[name]
    of[place or tuple(size // 2 for size in of.shape)] = bad
    ours = case.copy().on(triton).results()
    for name, e in exact(case).results().items():
        assert torch.equal(ours[name].cpu().isfinite(), e.isfinite()), name
