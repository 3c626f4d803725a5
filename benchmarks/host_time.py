"""Host time of a training step: everything but the operations, which are stubbed out, beside another checkout's.

    python -m benchmarks.host_time --against ../other-checkout

What Python, autograd and the allocator take for a step of nets with the layers of DenseNet-121 and of BC(100, 12), in
float32 and under autocast: the least time of a step on a fast GPU. The layers are thin, since the host does not notice
their width; the first convolution and the classifier, which are PyTorch's, are small. Time is that of the processor,
not of the clock on the wall. Both checkouts run in processes of their own, which take turns of several steps; the ratio
is that of the medians. `--save` writes them to benchmarks/results/host_time.json.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

NETS = {"densenet121": 32, "bc100_12": 8}  # and the side of its images
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # the latter under autocast
TURN = 5  # steps
RESULTS = Path(__file__).parent / "results" / "host_time.json"


def stub_operations() -> None:
    """Have every stage take operations that do nothing; those of old checkouts allocate what they would return."""
    import densenet_fast
    from densenet_fast import backends

    if (Path(densenet_fast.__file__).parent / "contract").is_dir():  # of this checkout; an import may find another's
        from densenet_fast.contract import DECLARATIONS

        stubs: dict[str, Callable[..., Any]] = {name: lambda *_: None for name in DECLARATIONS}
    else:
        from densenet_fast import ops

        stubs = {operation.name: operation.fake for operation in (*ops.OPERATIONS, *ops.OPTIONAL)}
    operations = SimpleNamespace(**stubs)
    backends.operations = lambda *_: operations


def step(net: str, dtype: torch.dtype | None) -> Callable[[], None]:
    import densenet_fast

    size = NETS[net]
    model = (
        densenet_fast.DenseNet(4, (6, 12, 24, 16), num_init_features=8, num_classes=2)
        if net == "densenet121"
        else densenet_fast.DenseNet(4, (16, 16, 16), num_init_features=8, num_classes=2)
    )
    channels = model.features.conv0.out_channels
    stride = 2 if net == "densenet121" else 1
    model.features.conv0 = torch.nn.Conv2d(3, channels, stride, stride, bias=False)
    x = torch.randn(2, 3, size, size)

    parameters = list(model.parameters())

    def run() -> None:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            y = model(x)
        y.sum().backward()
        for parameter in parameters:
            parameter.grad = None

    return run


def serve() -> None:
    """Time one step for each line read: `net dtype`."""
    torch.set_num_threads(1)
    stub_operations()
    steps = {f"{net} {name}": step(net, dtype) for net in NETS for name, dtype in DTYPES.items()}
    for run in steps.values():
        for _ in range(10):
            run()
    for line in sys.stdin:
        run = steps[line.strip()]
        run()  # whose caches the other checkout has cleared
        begin = time.process_time()
        for _ in range(TURN):
            run()
        print((time.process_time() - begin) / TURN, flush=True)


def compare(trees: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, for each case and tree the median over the rounds."""
    from . import checkouts  # which the other checkout may not have

    cases = [f"{net} {name}" for net in NETS for name in DTYPES]
    with checkouts.turns(__file__, trees, OMP_NUM_THREADS="1") as processes:
        return {case: processes.medians(case, rounds) for case in cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/host_time.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    from . import checkouts  # which the other checkout may not have

    trees = checkouts.here_and(options.against)
    found = compare(trees, options.rounds)
    for case, times in found.items():
        ratio = f", {times['here'] / times['there']:.2f} of {times['there']:.2f} ms" if options.against else ""
        print(f"{case:24} {times['here']:6.2f} ms{ratio}")
    if options.save:
        checkouts.save(RESULTS, options.against, milliseconds=found)
    return None


if __name__ == "__main__":
    main()
