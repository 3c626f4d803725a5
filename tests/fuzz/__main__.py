"""The long run by hand: python -m tests.fuzz --backend native --examples 10000 --seed 1

Prints each falsifying case, shrunk, as code that can be pasted, and a count at the end. After a failure the search goes
on from another seed.
"""

import argparse
import os
import sys
import time

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--backend", choices=("eager", "native", "triton"), default="native")
parser.add_argument("--examples", type=int, default=10_000)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--chunk", type=int, default=250, help="examples between two lines of progress")
parser.add_argument("--kinds", default="", help="only these differences: output,gradient,statistic,hook,format,...")
parser.add_argument("--no-shrink", action="store_true", help="print the first case as it was drawn")
parser.add_argument("--failures", type=int, default=20, help="stop after so many")
parser.add_argument("--threads", type=int, default=1)


def main() -> int:
    options = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch
    from hypothesis.errors import FlakyFailure

    from .compare import Wrong
    from .search import search

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    if options.backend == "triton":
        from tools.gpucheck.triton import interpreter

        interpreter.repair()
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # Triton's kernels would take TF32 with PyTorch's default
    how = {"kinds": tuple(filter(None, options.kinds.split(","))), "shrink": not options.no_shrink}
    done, failures, seed, start = 0, 0, options.seed, time.monotonic()
    while done < options.examples and failures < options.failures:
        ran: list[object] = []
        try:
            search(options.backend, min(options.chunk, options.examples - done), seed, **how, ran=ran)
        except (Wrong, FlakyFailure) as wrong:
            failures += 1
            print(f"{wrong}\n", flush=True)
        done, seed = done + len(ran), seed + 1
        seconds = time.monotonic() - start
        print(f"# {options.backend}: {done} examples, {failures} failures, {seconds:.0f} s", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
