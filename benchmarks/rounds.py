"""Taking turns: every variant runs once in each round, so that whatever happens to the machine happens to all alike.
What is over quickly runs for a while instead, as in use: alone it would find the caches as another variant left them.

A round during which other processes kept more than `DISTURBED` of a core busy is dropped and counted.
"""

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

DISTURBED = 0.12  # cores
LEAST = 0.05  # seconds that a turn lasts

Durations = dict[str, float]  # phase -> seconds
Name = TypeVar("Name", bound=Hashable)


class Stopwatch:
    """Marks on the device's own time line: CUDA events on a GPU, the wall clock elsewhere."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list = []

    def start(self) -> None:
        """The first mark, once the device has nothing left to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.mark()

    def mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The time from each mark to the next; forgets them."""
        marks, self._marks = self._marks, []
        pairs = itertools.pairwise(marks)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [first.elapsed_time(second) / 1000 for first, second in pairs]
        return [second - first for first, second in pairs]


class OtherProcesses:
    """How many cores other processes have kept busy, from the kernel's count of all and our own."""

    def __init__(self) -> None:
        self._last = self._now()

    def cores(self) -> float:
        """Mean over the time since the last call; 0 where the kernel does not say."""
        (start, busy, own), self._last = self._last, self._now()
        wall = self._last[0] - start
        return max(0.0, (self._last[1] - busy - (self._last[2] - own)) / wall) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        own = sum(os.times()[:4])
        try:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            )
        except OSError:
            return time.monotonic(), own, own
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, own


class Turns(NamedTuple):
    """Durations by variant and phase, one for each round; the rounds dropped; the most cores that others kept busy in
    a round that counts, above `DISTURBED` only if there were never enough quiet rounds."""

    seconds: dict[Hashable, dict[str, list[float]]]
    dropped: int
    others: float


def lasting(run: Callable[[], Durations], least: float = LEAST) -> Durations:
    """Mean durations of as many runs as take `least` seconds together."""
    runs = [run()]
    while sum(max(durations.values()) for durations in runs) < least:
        runs.append(run())
    return {phase: statistics.fmean(durations[phase] for durations in runs) for phase in runs[0]}


def take_turns(
    variants: Mapping[Name, Callable[[], Durations]],
    rounds: int,
    seconds: float = 0.0,
    others: Callable[[], float] | None = None,
) -> Turns:
    """Run `rounds` quiet rounds, and on for `seconds` or until there are four times as many; one more warms up first.

    After twice `rounds` without enough quiet ones it counts the least disturbed.
    """
    others = others or OtherProcesses().cores
    taken: list[tuple[float, dict[Name, Durations]]] = []
    quiet = 0
    start = time.monotonic()
    gc.collect()
    gc.disable()
    try:
        for run in variants.values():
            run()
        others()
        while (quiet < rounds and len(taken) < 2 * rounds) or (
            rounds <= quiet < 4 * rounds and time.monotonic() - start < seconds
        ):
            durations = {name: run() for name, run in variants.items()}
            taken.append((others(), durations))
            quiet += taken[-1][0] <= DISTURBED
    finally:
        gc.enable()

    if quiet >= rounds:
        counted = [turn for turn in taken if turn[0] <= DISTURBED]
    else:
        limit = sorted(cores for cores, _ in taken)[rounds - 1]
        counted = [turn for turn in taken if turn[0] <= limit][:rounds]
    by_variant = {
        name: {phase: [durations[name][phase] for _, durations in counted] for phase in counted[0][1][name]}
        for name in variants
    }
    return Turns(by_variant, len(taken) - len(counted), max(cores for cores, _ in counted))


class Spread(NamedTuple):
    """A median with the 20th and the 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), p20, p80)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as fast as theirs ours is: the ratio of the medians, the percentiles of the rounds' own ratios."""
    pairs = spread([t / o for t, o in zip(theirs, ours, strict=True)])
    return pairs._replace(median=statistics.median(theirs) / statistics.median(ours))
