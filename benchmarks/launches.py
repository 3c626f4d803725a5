"""What a planned Triton launch costs the host, beside another checkout's.

    python -m benchmarks.launches --against ../other-checkout

A dense block's forward and backward, planned and compiled before, run on the driver of tools/gpucheck, which only notes
what it is given: no GPU is needed, and only the way from the operation to the driver is measured. Time is that of the
processor, for each launch. Both checkouts run in processes of their own, which take turns; the figures are medians.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 24
STEPS = 20  # of a turn


def serve() -> None:
    """Time a turn for each line read."""
    from tests.triton import seam

    seam.stand_in()
    import torch

    from densenet_fast.backends import triton as operations
    from tests import blocks

    shape = blocks.Shape(2, 4, 4, 64, (128,) * LAYERS, (32,) * LAYERS)
    case = blocks.make(shape, torch.bfloat16, room=16)
    last = torch.channels_last
    tensors = [t.contiguous(memory_format=last) if t is not None and t.dim() == 4 else t for t in case.block.tensors]
    case.block = case.block._replace(tensors=tensors)

    def step() -> None:
        operations.block_fwd(*case.forward())
        operations.block_bwd(*case.backward())

    step()
    seam.DRIVER.forget()
    step()
    launches = len(seam.DRIVER.launches())
    for _ in sys.stdin:
        seam.DRIVER.forget()
        begin = time.process_time()
        for _ in range(STEPS):
            step()
        print((time.process_time() - begin) / STEPS / launches, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    from tools.gpucheck import driver

    from . import checkouts

    here = Path(__file__).resolve().parents[1]
    trees = {"here": here} | ({"there": options.against.resolve()} if options.against else {})
    with tempfile.TemporaryDirectory() as folder:
        driver.build(Path(folder))
        environment = driver.environment(Path(folder))
        environment.pop("PYTHONPATH", None)  # each checkout has its own
        with checkouts.turns(__file__, trees, **environment) as processes:
            found = processes.medians("block", options.rounds)
    ratio = f", {found['here'] / found['there']:.2f} of {found['there'] * 1e3:.2f}" if options.against else ""
    print(f"{found['here'] * 1e3:.2f} us for a launch{ratio}")
    return None


if __name__ == "__main__":
    main()
