"""Faults planted in a rehearsal: a process that crashes, one that hangs, an operation that is wrong.

Everything else must be kept, and the summary must name each of them. A fault strikes where its facts are those of the
case, just before the case is measured, in the child that measures it.
"""

import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

import torch

from densenet_fast import backends


class Fault(NamedTuple):
    what: str  # "crash", "hang" or "wrong"
    kind: str  # of the line
    facts: dict[str, Any]


SMALLEST = (2, 5, 7, 24, 16, 4)  # of settings.SHAPES
FAULTS = (
    Fault("hang", "smoke", {"operation": "channel_stats", "backend": "eager", "dtype": "float32", "shape": SMALLEST}),
    Fault("crash", "smoke", {"operation": "head_fwd", "backend": "eager", "dtype": "float32", "shape": SMALLEST}),
    Fault("wrong", "smoke", {"operation": "transition_fwd", "backend": "native"}),
    Fault("crash", "turn", {"workload": "training 3", "variant": "eager", "round": 1}),
)
_planted: tuple[Fault, ...] = ()


def plant(faults: tuple[Fault, ...] = FAULTS) -> None:
    """From now on, in this process and its children."""
    global _planted
    _planted = faults


def strike(kind: str, facts: dict[str, Any]) -> None:
    for fault in _planted:
        if fault.kind == kind and all(facts.get(name) == value for name, value in fault.facts.items()):
            print(f"planted: {fault.what}", file=sys.stderr, flush=True)
            _STRIKES[fault.what](facts)


def _crash(_: dict[str, Any]) -> None:
    os.abort()


def _hang(_: dict[str, Any]) -> None:
    """With a process of its own, in a session of its own, that must not be left behind."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    time.sleep(3600)


def _wrong(facts: dict[str, Any]) -> None:
    """A transition's output is a thousandth too large."""
    table = backends.operations(facts["backend"], torch.device("cpu"))
    right = getattr(table, facts["operation"])

    def wrong(x: Any, norm: Any, weight: Any, y: torch.Tensor, stats: Any) -> None:
        right(x, norm, weight, y, stats)
        y.mul_(1.001)

    setattr(table, facts["operation"], wrong)


_STRIKES = {"crash": _crash, "hang": _hang, "wrong": _wrong}
