"""The programs of a native launch, and the way that each kind of them goes through the machine code."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .. import device, model
from ..machine_code import Code
from ..memory import cdiv
from ..programs import Programs
from .control import Control, Run
from .plans import Compiled, Planned
from .thread import Block

LONG = 1500  # instructions of a loop with all its rounds, from which on not all are simulated
Round = tuple[Run, ...]
Place = tuple[int, int]  # a loop's first instruction, and how many of that came before


class Part(NamedTuple):
    """A loop's rounds, or what lies between loops as a single one."""

    loop: Place | None
    rounds: tuple[Round, ...]


class Way(NamedTuple):
    """Of each of a scheduler's warps. It is used as `machine_code.Trips` are."""

    warps: tuple[tuple[Part, ...], ...]

    def items(self) -> Iterator[tuple[Place, int]]:
        """The long loops, and the rounds of the warp that has most of them."""
        found: dict[Place, tuple[int, int]] = {}  # rounds, instructions
        for part in (part for parts in self.warps for part in parts):
            if part.loop is not None:
                size = sum(last + 1 - first for each in part.rounds for first, last in each)
                times, most = found.get(part.loop, (0, 0))
                found[part.loop] = max(times, len(part.rounds)), max(most, size)
        return ((loop, times) for loop, (times, size) in found.items() if size > LONG)

    def __or__(self, others: Mapping[Place, int]) -> "Way":  # type: ignore[override]
        """With fewer rounds, those of the middle left out."""
        most = dict(self.items())

        def shortened(part: Part) -> Part:
            if part.loop is None or part.loop not in others:
                return part
            left = max(0, len(part.rounds) - most[part.loop] + others[part.loop])
            return part._replace(rounds=part.rounds[: cdiv(left, 2)] + part.rounds[len(part.rounds) - left // 2 :])

        return Way(tuple(tuple(map(shortened, parts)) for parts in self.warps))


def way(code: Code, warps: Sequence[Sequence[Run]]) -> Way:
    return Way(tuple(tuple(_parts(code, list(runs), Counter())) for runs in warps))


def _parts(code: Code, runs: list[Run], seen: Counter[int]) -> Iterator[Part]:
    """Outer loops first: what is inside them stays in their rounds."""
    visits: dict[int, int] = {}  # of places that are branched back to: the run that first comes there
    back: dict[int, list[int]] = {}  # runs that end with a branch back there
    for k, ((_, last), (target, _)) in enumerate(pairwise(runs)):
        if target <= last and code.instructions[last].name.startswith("BRA"):
            first = visits.get(target)
            if first is None:
                first = next((i for i in range(k + 1) if runs[i][0] <= target <= runs[i][1]), None)
            if first is not None:
                visits[target] = first
                back.setdefault(target, []).append(k)
    if not visits:
        yield Part(None, (tuple(runs),))
        return
    target = min(visits, key=lambda place: (visits[place], place))
    begin = visits[target]
    before = [*runs[:begin], (runs[begin][0], target - 1)]
    yield Part(None, (tuple(run for run in before if run[0] <= run[1]),))
    runs[begin] = target, runs[begin][1]
    rounds = []
    for end in back[target]:
        rounds.append(tuple(runs[begin : end + 1]))
        begin = end + 1
    yield Part((target, seen[target]), tuple(rounds))
    seen[target] += 1
    yield from _parts(code, runs[begin:], seen)


class Kernel(model.Kernel):
    def __init__(self, compiled: Compiled):
        # A copy moves its bytes, behind a predicate or not: no two threads copy alike.
        instructions = [i._replace(conditional=False) if i.name.startswith("LDGSTS") else i for i in compiled.code[0]]
        self.code = compiled.code._replace(instructions=instructions)
        self.warps, self.registers, self.shared = compiled.warps, compiled.registers, compiled.shared
        self.copies = any(i.name.startswith("LDGSTS") for i in instructions)
        self.control = Control(compiled.code)
        self.counts = any(i.name.startswith("ATOMG") for i in instructions)
        self._cycles: dict[Any, float] = {}

    def places(self, trips: Way) -> list[list[int]]:
        return [
            [i for part in parts for each in part.rounds for first, last in each for i in range(first, last + 1)]
            for parts in trips.warps
        ]

    def key(self, trips: Way) -> Any:
        return trips

    def times(self, trips: Way) -> Iterable[tuple[float, Iterable[int]]]:
        found = Counter(run for parts in trips.warps for part in parts for each in part.rounds for run in each)
        return ((count / len(trips.warps), range(first, last + 1)) for (first, last), count in found.items())


def _blocks(a: dict[str, Any], *counts: int) -> list[int]:
    """Of a grid of one dimension that threads one by one divide: blocks of as many of each kind."""
    ends = [0, *(cdiv(sum(counts[: i + 1]), 256) for i in range(len(counts)))]
    return [end - begin for begin, end in pairwise(ends)]


def _prepare(a: dict[str, Any]) -> list[int]:
    return _blocks(a, a["weight"]["pieces"], a["affine_count"])


def _reduce(a: dict[str, Any]) -> list[int]:
    return [cdiv(a["weights"], 256)]


def _conv1x1_fwd(a: dict[str, Any]) -> list[int]:
    """Blocks with a tile more than the others, where the busiest multiprocessor has both. An older one has one each."""
    if "splits" not in a:
        return []
    longer, every = a["tiles"] % a["splits"] * a["column_blocks"], a["splits"] * a["column_blocks"]
    return [longer if cdiv(longer, device.PROCESSORS) < cdiv(every, device.PROCESSORS) else every]


# Blocks along x that do another work than those behind them.
IN_FRONT: dict[str, Callable[[dict[str, Any]], list[int]]] = {
    "bn_relu_conv1x1_fwd_kernel": _conv1x1_fwd,
    "bn_relu_conv3x3_dgrad_kernel": lambda a: [a.get("dweight_blocks", 0)],
    "bn_relu_conv1x1_bwd_reduce_kernel": _reduce,
    "conv3x3_prepare_kernel": _prepare,
}
LONGER_FIRST = ("bn_relu_conv1x1_fwd_kernel",)


def programs(launch: Planned, kernel: Kernel) -> list[Programs]:
    """A block of the middle stands for all of its kind, where the first are longer the first; and of its warps the
    first scheduler's for all."""
    counts = IN_FRONT[launch.kernel](launch.arguments) if launch.kernel in IN_FRONT else []
    found = []
    begin, rows = 0, launch.programs // launch.grid[0]
    for count in (*counts, launch.grid[0] - sum(counts)):
        if count > 0:
            x = begin if launch.kernel in LONGER_FIRST else begin + count // 2
            ways = [_way(launch, kernel, x, last) for last in (False, True)[: 1 + kernel.counts]]
            found.append(Programs(count * rows, *ways))
        begin += count
    return found


def _way(launch: Planned, kernel: Kernel, x: int, last: bool) -> Way:
    block = Block(launch.parameters, launch.grid, launch.threads, (x, 0, 0), last)
    return way(kernel.code, kernel.control.way(block, range(0, launch.threads, 32 * device.SCHEDULERS)))
