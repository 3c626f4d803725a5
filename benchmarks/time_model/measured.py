"""What a GPU has measured of the modelled operations, and the model corrected by it.

Measured are operations, each with all its launches (`pytest benchmarks/bench_operation.py`, `python -m benchmarks.gpu`:
the group "operation" of benchmarks/results). A kernel's time is corrected by what its operation took over what the
model says of it; that of an operation which was not measured is left as it is.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .. import results
from ..rounds import spread
from .model import Line


class Measured(NamedTuple):
    where: str  # card, date and commit
    seconds: dict[str, float]  # by operation


class Correction(NamedTuple):
    """Measured over modelled, by operation."""

    where: str
    factors: dict[str, float]

    def corrected(self, line: Line) -> float:
        """Seconds."""
        return sum(time * self.factors.get(operation, 1.0) for operation, time in line.by_operation.items())


def find(settings: dict[str, Any], backend: str, root: Path = results.ROOT) -> Measured | None:
    """A backend's newest results of these settings (model, image, batch, dtype) from a GPU, if there are any."""
    found = [
        contents
        for contents in results.read(root)
        if contents["group"] == "operation"
        and contents["machine"]["device"] == "cuda"
        and contents["settings"].items() >= settings.items()
    ]
    for contents in sorted(found, key=lambda contents: contents["machine"]["date"], reverse=True):
        records = [r for r in contents["records"] if r["variant"] == backend and r["seconds"]]
        if records:
            machine = contents["machine"]
            where = f"{machine['model']}, {machine['date']}, commit {machine['commit']}"
            return Measured(where, {r["case"]: spread(r["seconds"]).median for r in records})
    return None


def correct(measured: Measured, lines: Iterable[Line]) -> Correction:
    modelled: dict[str, float] = defaultdict(float)
    for line in lines:
        for operation, time in line.by_operation.items():
            modelled[operation] += time
    measured_too = measured.seconds.keys() & modelled.keys()
    return Correction(measured.where, {name: measured.seconds[name] / modelled[name] for name in sorted(measured_too)})
