"""Training steps and inference on the CPU beside another checkout: has a rebuild cost speed?

    python -m benchmarks.against ../other-checkout

Both checkouts run in processes of their own, with their own compiled library, which take turns; the ratio is that of
the medians, below 1 where this checkout is faster. `--save` writes them to benchmarks/results/against.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CASES = {  # net, side of the images, batch
    "densenet121 224": ("densenet121", 224, 8),
    "densenet121 64": ("densenet121", 64, 8),
    "bc100_12 32": ("bc100_12", 32, 32),
    "densenet40_12 32": ("densenet40_12", 32, 32),
}
KINDS = ("step", "efficient step", "inference", "inference of one")
RESULTS = Path(__file__).parent / "results" / "against.json"


def subject(case: str, kind: str) -> Callable[[], Any]:
    import densenet_fast

    name, side, batch = CASES[case]
    torch.manual_seed(0)
    if name == "densenet121":
        model = densenet_fast.densenet121(num_classes=10)
    elif name == "bc100_12":
        model = densenet_fast.DenseNet(12, (16, 16, 16))
    else:
        model = densenet_fast.DenseNet(12, (12, 12, 12), 1.0, 16, bn_size=None)
    model.set_efficient("efficient" in kind)
    x = torch.randn(1 if "one" in kind else batch, 3, side, side)

    def step() -> None:
        model(x).sum().backward()
        model.zero_grad()

    def inference() -> None:
        with torch.inference_mode():
            model(x)

    model.train("step" in kind)
    return step if "step" in kind else inference


def serve() -> None:
    """Time one run for each line read, a case and a kind."""
    runs: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        if line not in runs:
            runs[line] = subject(*json.loads(line))
        run = runs[line]
        run()  # whose caches the other checkout has cleared
        begin = time.perf_counter()
        run()
        print(time.perf_counter() - begin, flush=True)


def compare(trees: dict[str, Path], rounds: int, words: str) -> dict[str, dict[str, float]]:
    """Milliseconds, for each case and tree the median over the rounds."""
    from . import checkouts  # which the other checkout may not have

    found: dict[str, dict[str, float]] = {}
    with checkouts.turns(__file__, trees) as processes:
        for case in CASES:
            for kind in KINDS:
                if words not in f"{case} {kind}":
                    continue
                times = found[f"{case} {kind}"] = processes.medians(json.dumps((case, kind)), rounds)
                print(
                    f"{case:18} {kind:18} {times['here'] / times['there']:5.2f} of {times['there']:8.2f} ms", flush=True
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("against", type=Path, nargs="?", help="another checkout of this repository, built")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases with these words, as `bc100_12 32 step`")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/against.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    if options.against is None:
        parser.error("got no checkout, expected the folder of another one")
    from . import checkouts  # which the other checkout may not have

    trees = checkouts.here_and(options.against)
    found = compare(trees, options.rounds, options.only)
    if options.save:
        checkouts.save(RESULTS, options.against, milliseconds=found)
    return None


if __name__ == "__main__":
    main()
