"""What `import densenet_fast` takes beside `import torch`, in seconds of the processor.

    python -m benchmarks.import_time

Fresh interpreters import one and the other in turns; the ratio is that of the medians. `python -X importtime -c "import
densenet_fast"` tells which module takes what.
"""

import argparse
import subprocess
import sys
from statistics import median

import torch

from . import machine

PROGRAM = "import time, {0}; print(time.process_time())"  # which counts from the start of the process


def seconds(module: str) -> float:
    """Of a fresh interpreter, its own start included."""
    command = [sys.executable, "-c", PROGRAM.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    modules = ("torch", "densenet_fast")
    for module in modules:
        seconds(module)  # reads files for the first time
    turns = [[seconds(module) for module in modules] for _ in range(options.rounds)]
    theirs, ours = (median(times) for times in zip(*turns, strict=True))
    print(machine.describe(torch.device("cpu")))
    print(f"import torch {theirs:.2f} s, import densenet_fast {ours:.2f} s: {ours / theirs:.3f} times")


if __name__ == "__main__":
    main()
