"""Kill a training process at random moments, resume it each time, and compare with a run that nothing disturbed.

    python -m tests.train [--kills 20] [--seed 0] [--workers 1]

Prints in what the last checkpoints differ, weights, optimizer, schedule and generators bit by bit, and exits with 1 if
they do. Minutes; `test_resume.py` does the same with two kills.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from . import runs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.train", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images in the run that is killed")
    options = parser.parse_args()
    longer = f"--trainer.max_epochs={max(4, options.kills)}"
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        runs.finish(runs.fit(whole, longer), whole)
        generator = random.Random(options.seed)
        kills = runs.kill_and_resume(killed, options.kills, generator, longer, f"--data.workers={options.workers}")
        different = runs.difference(whole, killed)
        compared = runs.compared(whole)
    print(f"killed {kills} times and resumed; {len(different)} of {compared} values differ from the undisturbed run's")
    for key in different:
        print(f"  {key}")
    return 1 if different or kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
