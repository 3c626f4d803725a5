"""Two checkouts of this repository that take turns, each in a process of its own with its own compiled library; and
what is written down of it."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import machine

PAUSE = 0.05  # seconds between turns, in which the threads of the last one go to sleep


class Turns:
    """Processes that print a time, in seconds, for each line they read."""

    def __init__(self, processes: Mapping[str, "subprocess.Popen[str]"]):
        self._processes = processes

    def medians(self, line: str, rounds: int) -> dict[str, float]:
        """Milliseconds by the name of the checkout, over `rounds` answers to `line`."""
        times: dict[str, list[float]] = {name: [] for name in self._processes}
        for _ in range(rounds):
            for name, process in self._processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                time.sleep(PAUSE)
                print(line, file=process.stdin, flush=True)
                times[name].append(float(process.stdout.readline()))
        return {name: 1e3 * statistics.median(each) for name, each in times.items()}


@contextmanager
def turns(script: str, trees: Mapping[str, Path], **environment: str) -> Iterator[Turns]:
    """`script --serve` in each of the checkouts, whatever of it they have."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, str(Path(script).resolve()), "--serve"],
            cwd=tree,
            env={"PYTHONPATH": str(tree), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, tree in trees.items()
    }
    try:
        yield Turns(processes)
    finally:
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def here_and(against: Path | None) -> dict[str, Path]:
    """This checkout, "here", and the other one, "there", if there is one."""
    here = {"here": Path(__file__).resolve().parents[1]}
    return here if against is None else here | {"there": against.resolve()}


def save(file: Path, against: Path | None, **found: Any) -> None:
    """As JSON: what was found, on which machine, at which commits."""
    record = {"here": machine.describe(torch.device("cpu")), **found}
    if against is not None:
        command = ["git", "-C", str(against), "rev-parse", "--short", "HEAD"]
        record["there"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    file.write_text(json.dumps(record, indent=1) + "\n")
