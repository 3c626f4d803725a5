"""What a busy neighbour costs: a process beside ours that keeps one processor busy, as on servers and in containers.

    python -m benchmarks.neighbour [../other-checkout] [--save]

DenseNet-121 at 224x224 on the CPU, by everyone in a process of its own; they take turns, first alone and then with the
neighbour. The one figure is the median, the other how many times as long it takes with the neighbour. `--save` writes
all samples to benchmarks/results/neighbour.json. ONNX Runtime and OpenVINO take part where they are installed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "neighbour.json"
CASES = {"inference of one": (False, 1, 5), "inference of eight": (False, 8, 2), "training step": (True, 8, 1)}
PEERS = ("torchvision", "onnxruntime", "openvino")
BUSY = "while True: pass"


def subject(name: str, training: bool, batch: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    if name in ("here", "there"):
        import densenet_fast

        model: torch.nn.Module = densenet_fast.densenet121()
    else:
        import torchvision

        model = torchvision.models.densenet121()
    if name in ("onnxruntime", "openvino"):
        from benchmarks.runtimes import RUNTIMES, Exported

        model, x = Exported(model, RUNTIMES[name]), x.contiguous()
    model = model.to(memory_format=torch.channels_last).train(training)

    def step() -> None:
        model(x).square().mean().backward()
        model.zero_grad()

    def inference() -> None:
        with torch.inference_mode():
            model(x)

    return step if training else inference


def serve(name: str) -> None:
    """For each line, a case, the seconds of each of its runs; the first of all is not counted."""
    runs: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        training, batch, times = CASES[line.strip()]
        if line not in runs:
            runs[line] = subject(name, training, batch)
        seconds = []
        for _ in range(times + 1):
            begin = time.perf_counter()
            runs[line]()
            seconds.append(time.perf_counter() - begin)
        print(json.dumps(seconds[1:]), flush=True)


@contextmanager
def processes(trees: dict[str, Path]) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """By name, each in a checkout, whatever of this file that one has."""
    started = {
        name: subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", name],
            env={"PYTHONPATH": ":".join([str(tree), *filter(None, sys.path[1:])])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, tree in trees.items()
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(trees: dict[str, Path], rounds: int) -> dict[str, dict[str, list[list[float]]]]:
    """By case and name, seconds alone and with a neighbour."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    with processes(trees) as running:
        for case, (training, *_) in CASES.items():
            names = [name for name in running if not (training and name in ("onnxruntime", "openvino"))]
            samples = found[case] = {name: [[], []] for name in names}
            for load in (0, 1):
                for name in names:
                    ask(running[name], case)  # what is first compiled, allocated, read
                with neighbours(load):
                    for _ in range(rounds):
                        for name in names:
                            samples[name][load] += ask(running[name], case)
            for name in names:
                alone, beside = map(statistics.median, samples[name])
                print(
                    f"{case:18} {name:12} {1e3 * alone:8.1f} ms, with a neighbour {1e3 * beside:8.1f} ms: "
                    f"{beside / alone:.2f} times",
                    flush=True,
                )
    return found


def ask(process: "subprocess.Popen[str]", case: str) -> list[float]:
    """Seconds of a turn's runs."""
    from . import checkouts  # which the other checkout may not have

    assert process.stdin is not None
    assert process.stdout is not None
    time.sleep(checkouts.PAUSE)
    print(case, file=process.stdin, flush=True)
    seconds: list[float] = json.loads(process.stdout.readline())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("against", type=Path, nargs="?", help="another checkout of this repository, built")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/neighbour.json")
    parser.add_argument("--serve", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    from . import checkouts  # which the other checkout may not have

    trees = checkouts.here_and(options.against)
    trees |= {name: ROOT for name in PEERS if find_spec(name)}
    found = measure(trees, options.rounds)
    if options.save:
        checkouts.save(RESULTS, options.against, seconds=found)
    return None


if __name__ == "__main__":
    main()
