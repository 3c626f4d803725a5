"""The verdict on a case: what ours does otherwise than stock layers.

In float64 within 1e-9 of the largest value. In float32 the error against float64 may be twice stock's, plus one eps.
Where that fails, the numbers of the case are rounded otherwise a few times: what stock makes of them shows how far the
case amplifies roundings (a ReLU at zero, a norm of two values). In float32 the median gradient is then held to twice
stock's error, and each value to eight times: where the gradients of a few pixels cancel, as those of a norm on batch
statistics do, sums in another order leave that much.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import build
from .build import Rounding
from .cases import Case
from .uses import Outcome, fragile, run

DTYPE = {"eager": torch.float64, "native": torch.float32, "triton": torch.float32}
IN_PLACE = ("modified by an inplace operation", "modified inplace", "that requires grad is being used in an in-place")


@dataclass(frozen=True)
class Difference:
    kind: str  # output, gradient, statistic, hook, caller's, format, fact, error
    text: str


class Wrong(AssertionError):
    """A case on which ours differs from stock."""


def check(case: Case, backend: str, kinds: tuple[str, ...] = ()) -> None:
    """Raises:
    Wrong: ours, fused or plain, does otherwise than stock; with the case as code.
    """
    found = [d for d in differences(case, backend) if not kinds or d.kind in kinds]
    if found:
        lines = "\n".join(f"  {d.kind}: {d.text}" for d in found[:12])
        code = f"from tests.fuzz.cases import *\nfrom tests.fuzz.compare import check\ncheck({case!r}, {backend!r})"
        raise Wrong(f"{len(found)} differences\n{lines}\n{code}")


def differences(case: Case, backend: str) -> list[Difference]:
    dtype = DTYPE[backend]
    names = [backend] if case.net.drop_rate else [backend, "plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [difference for name in names for difference in _Verdict(case, name, dtype).differences()]


class _Verdict:
    """What the backend `name`, or ours on plain layers, does in `dtype`."""

    def __init__(self, case: Case, name: str, dtype: torch.dtype):
        self.case, self.name, self.dtype = case, name, dtype
        self.eps = torch.finfo(torch.bfloat16 if case.use.autocast else dtype).eps
        self.exact = dtype == torch.float64
        self.at_once, self.inplace = False, True
        self.stock = self._stock(dtype)
        self.refused_in_place = _is_in_place(self.stock.error)
        # Stock is wrong, or refuses, where statistics are written between its forward and backward. Ours is right, but
        # for its plain layers, which are stock's.
        if self.refused_in_place or (self.stock.error is None and fragile(case) and name != "plain"):
            self.at_once, self.inplace = True, not self.refused_in_place
            self.stock = self._stock(dtype)

    def _stock(self, dtype: torch.dtype, rounding: Rounding | None = None) -> Outcome:
        return _run_stock(self.case, dtype, self.at_once, self.inplace, rounding)

    def _ours(self, rounding: Rounding | None = None) -> Outcome:
        # Native computes in float32 alone.
        backend = "auto" if self.case.use.autocast and self.name == "native" else self.name
        return run(build.ours(self.case, self.dtype), self.case, self.dtype, backend=backend, rounding=rounding)

    def _in_float64(self, rounding: Rounding | None = None) -> Outcome:
        exact = self._stock(torch.float64, rounding)
        if exact.error is None or self.stock.error is not None:
            return exact
        # Without autocast a convolution keeps the very image that is edited.
        return _run_stock(self.case, torch.float64, True, False, rounding)

    @cached_property
    def right(self) -> Outcome:
        return self._in_float64()

    @cached_property
    def peaks(self) -> dict[str, float]:
        """The largest value of each kind."""
        peaks: dict[str, float] = defaultdict(float)
        for what, value in self.right.values.items():
            kind = what.split()[0]
            peaks[kind] = max(peaks[kind], _largest(value))
        return peaks

    @cached_property
    def rounded(self) -> list[tuple[Outcome, Outcome, Outcome]]:
        """(right, stock, ours) of the same numbers otherwise rounded."""
        size = 1e-13 if self.exact else self.eps
        roundings = [Rounding(seed, size, self.dtype) for seed in range(1, 8)]
        return [(self._in_float64(r), self._stock(self.dtype, r), self._ours(r)) for r in roundings]

    def differences(self) -> Iterator[Difference]:
        stock, got, name = self.stock, self._ours(), self.name
        if self.refused_in_place and (stock.error is not None or isinstance(got.error, RuntimeError)):
            return
        if stock.error is None and got.error is None:
            yield from self._compare(got)
        elif stock.error is None:
            yield Difference("error", f"{name} raises in {got.phase}, stock does not: {got.error!r}")
        elif got.error is None:
            yield Difference("error", f"{name} does not raise, stock does in {stock.phase}: {stock.error!r}")
        else:
            if not isinstance(got.error, (type(stock.error), ValueError, RuntimeError)):
                yield Difference("error", f"{name} raises {got.error!r}, stock {stock.error!r}")
            if name != "plain" and got.phase == "forward 0" and self.case.use.entry in ("features", "slice"):
                for n, b in build.ours(self.case, self.dtype).named_buffers():
                    if not torch.equal(got.values.get(f"statistic {n}", b), b):
                        yield Difference("error", f"{name} fails in forward and leaves another {n}")

    def _compare(self, got: Outcome) -> Iterator[Difference]:
        stock, name = self.stock, self.name
        for what in sorted(got.values.keys() ^ stock.values.keys()):
            yield Difference("fact", f"{what}: only {name if what in got.values else 'stock'} has it")
        for what, fact in got.facts.items():
            if fact != stock.facts.get(what, fact):
                yield Difference("fact", f"{what}: {name} {fact}, stock {stock.facts[what]}")
        # One channel has no format of its own: stock's cat then gives what its strides happen to say.
        one_channel = min(self.case.net.growth, *self.case.net.channels()) == 1
        comparable = {} if one_channel and self.case.image.layout == "channels_last" else got.formats
        for what, formats in comparable.items():
            if "full_backward" in what:
                continue  # a sum of gradients has the format of the one that autograd happens to add first
            expected = stock.formats.get(what, formats)
            if any(theirs and not ours for ours, theirs in zip(formats, expected, strict=True)):
                yield Difference("format", f"{what}: contiguous in NCHW, in NHWC: {name} {formats}, stock {expected}")
        if not self.exact and self.right.amplification > 30:
            return  # of a constant channel float32 leaves nothing to compare
        for what, value in got.values.items():
            if self.refused_in_place and what.endswith("in the end"):
                continue  # stock's would have been rectified
            if self.case.use.autocast and what.startswith("gradient"):
                continue  # bfloat16 rounds g before its corrections, which may be all of it: contract/test_precision.py
            if what in stock.values and value.shape == stock.values[what].shape:
                far = self._far(what, value)
                if far is not None:
                    yield Difference(what.split()[0], f"{what}: {name} is off by {far}")
        if "rounded" in vars(self) and not self.exact and not self.case.use.autocast:  # there was reason to look closer
            yield from self._inaccurate()

    def _far(self, what: str, value: Tensor) -> str | None:
        """How far a value is off, if it is too far."""
        stock, right = self.stock.values[what], self.right.values[what]
        found = _distance(value, right)
        if what.startswith("caller's") or not value.is_floating_point():
            return None if torch.equal(value, stock) else f"{_distance(value, stock):.1e}, expected nothing"
        least = self._least(what)
        if found <= least + 2 * _distance(stock, right):
            return None
        if self.exact:  # what cancels to nothing leaves roundings of larger numbers of its kind
            least += 1e-12 * self.peaks[what.split()[0]]
            if found <= least:
                return None
        most = least + (2 if self.exact else 8) * max(self._errors(what)[0])
        return f"{found:.1e}, expected at most {most:.1e}" if found > most else None

    def _least(self, what: str) -> float:
        # What is exactly nothing in stock's order of sums is a rounding of larger numbers of its kind in another.
        size = _largest(self.right.values[what]) or self.peaks[what.split()[0]]
        return (1e-9 if self.exact else self.eps) * size

    def _errors(self, what: str) -> tuple[list[float], list[float]]:
        """(stock's, our) errors of a value in each rounding. In float64: how far the rounding moves stock's."""
        tries = [[outcome.values[what] for outcome in outcomes] for outcomes in self.rounded]
        stocks = [_distance(stock, self.right.values[what] if self.exact else right) for right, stock, _ in tries]
        return stocks, [_distance(ours, right) for right, _, ours in tries]

    def _inaccurate(self) -> Iterator[Difference]:
        """Whether the median gradient is, as a rule, more than twice as far off as stock's.

        Not where a norm has few values: all gradients behind it cancel.
        """
        if self.right.fewest < 16:
            return
        ratios = []
        for what in self.right.values:
            if what.startswith("gradient"):
                stocks, ours = map(median, self._errors(what))
                ratios.append(ours / max(2 * stocks + self._least(what), 1e-300))
        if len(ratios) >= 8 and median(ratios) > 1:
            yield Difference("gradient", f"{self.name}: the median error is {2 * median(ratios):.1f} times stock's")


@lru_cache(maxsize=8)  # fused and plain layers are compared with the same
def _run_stock(case: Case, dtype: torch.dtype, at_once: bool, inplace: bool, rounding: Rounding | None) -> Outcome:
    model = build.stock(case, dtype)
    if not inplace:
        build.without_inplace(model)
    with _Amplification() as seen:
        outcome = run(model, case, dtype, at_once=at_once, rounding=rounding)
    outcome.amplification, outcome.fewest = seen.most, seen.fewest
    return outcome


class _Amplification(TorchFunctionMode):
    """Of the norms on batch statistics: the most by which one multiplies a rounding of its mean, as it does where a
    channel is constant, and the fewest values that one has."""

    most, fewest = 0.0, inf

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm and kwargs["training"]:
            var, mean = torch.var_mean(args[0].detach(), (0, 2, 3), correction=0)
            self.fewest = min(self.fewest, args[0].numel() // args[0].shape[1])
            self.most = max(self.most, _largest(mean / (var + kwargs["eps"]).sqrt()))
        return function(*args, **kwargs)


def _is_in_place(error: Exception | None) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in IN_PLACE)


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def _distance(got: Tensor, right: Tensor) -> float:
    """The largest deviation; infinite where only one of the two is not a number."""
    got, right = got.double(), right.double()
    if got.numel() == 0:
        return 0.0
    off = torch.where((got == right) | (got.isnan() & right.isnan()), 0.0, (got - right).abs())
    return float(off.nan_to_num(torch.inf).max())
