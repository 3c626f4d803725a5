"""Raw results: JSON files in benchmarks/results/<machine>/, one for each group and setting, with every duration.

A file is an object with `machine` (machine.facts), `group`, `setting`, `settings`, `ceilings` (operations only) and
`records`. A record is one line of one comparison:

    case, phase, variant, label, family    what was measured, and as what
    batch, x                               images in a step; depth, growth rate or batch where the case is one of a row
    seconds                                one for each round that counts, in turns with the other records of the case
    live, peak                             bytes of a training step (memory.StepMemory)
    check                                  by result: relative error and the error allowed
    missing, error                         why there are no seconds: it cannot run here; it failed or was wrong
    dropped, others                        rounds dropped as disturbed, most cores that others kept busy in the rest
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import machine
from .compare import Comparison, Workload
from .variants import BY_NAME

ROOT = Path(__file__).parent / "results"

Record = dict[str, Any]


class Book:
    """What one session has measured, by group."""

    def __init__(self, root: Path, facts: dict[str, Any], setting: str, settings: dict[str, Any]):
        """facts: machine.facts where it was measured."""
        self.folder = root / machine.slug(facts)
        self.setting, self.settings = setting, settings
        self.machine = facts
        self.groups: dict[str, dict[str, Any]] = {}

    def group(self, name: str) -> dict[str, Any]:
        """The contents of the group's file, to be added to."""
        return self.groups.setdefault(
            name,
            {
                "machine": self.machine,
                "group": name,
                "setting": self.setting,
                "settings": self.settings,
                "ceilings": {},
                "records": [],
            },
        )

    def add(self, group: str, workload: Workload, comparison: Comparison, x: float | None = None) -> None:
        self.group(group)["records"] += records(workload, comparison, x)

    def save(self) -> list[Path]:
        """Write every group's file; returns the paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, contents in self.groups.items():
            paths.append(self.folder / f"{name}-{self.setting}.json")
            write(paths[-1], contents)
        return paths


def write(path: Path, contents: dict[str, Any]) -> None:
    """A group's file, a record on each line."""
    lines = ",\n".join(json.dumps(record) for record in contents["records"])
    head = json.dumps({**contents, "records": []}, indent=1)
    path.write_text(head.replace('"records": []', f'"records": [\n{lines}\n]') + "\n")


def records(workload: Workload, comparison: Comparison, x: float | None = None) -> list[Record]:
    """A comparison's lines, one for each variant and phase."""
    found = []
    turns = comparison.turns
    for name, outcome in comparison.outcomes.items():
        phases = ("forward", "forward+backward") if workload.training else ("inference",)
        for phase in phases:
            found.append(
                {
                    "case": workload.subject.name,
                    "phase": phase,
                    "variant": name,
                    "label": BY_NAME[name].label,
                    "family": BY_NAME[name].family,
                    "batch": workload.batch,
                    "x": x,
                    "seconds": outcome.seconds.get(phase, []),
                    "live": outcome.memory and outcome.memory.live,
                    "peak": outcome.memory and outcome.memory.peak,
                    "check": outcome.check,
                    "missing": outcome.missing,
                    "error": outcome.error,
                    "dropped": turns and turns.dropped,
                    "others": turns and round(turns.others, 3),
                }
            )
    return found


def read(root: Path) -> Iterator[dict[str, Any]]:
    """Every group's file below `root`, by machine and name."""
    for path in sorted(root.glob("*/*.json")):
        yield json.loads(path.read_text())
