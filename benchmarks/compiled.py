"""A training step of a compiled net beside the same net's without a compiler, and what compiling takes.

    python -m benchmarks.compiled --model densenet121 --batch 8 --size 224

torchvision's net, compiled too, stands beside it, unless `--alone`. Steps take turns (rounds.py); a ratio is how many
times as fast as the net itself, of the medians, with the 20th and the 80th percentile of the rounds' own; beside it
that of the processor's time, which other processes disturb less. Compiling is counted in seconds of the processor,
tracing and the compiler together, the second time in a process that has done it before.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import densenet_fast

from . import machine
from .rounds import Durations, ratio, spread, take_turns


def step(call: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> Durations:
    begin = time.perf_counter(), time.process_time()
    call(x).square().mean().backward()
    durations = {"step": time.perf_counter() - begin[0], "processor": time.process_time() - begin[1]}
    model.zero_grad()
    return durations


def compiling(model: nn.Module, x: Tensor, compiler: str) -> float:
    """Seconds of the processor until the first step is through."""
    for _ in range(2):
        torch.compiler.reset()
        begin = time.process_time()
        step(torch.compile(model, backend=compiler, fullgraph=True), model, x)
        taken = time.process_time() - begin
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="densenet121", choices=["densenet121", "densenet161", "densenet201"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="without torchvision's net")
    parser.add_argument("--compiler", default="inductor", help="a backend of torch.compile, for instance aot_eager")
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, options.size, options.size)
    nets = {"densenet_fast": getattr(densenet_fast, options.model)()}
    if not options.alone:
        nets["torchvision"] = getattr(torchvision.models, options.model)()
    for name, model in nets.items():
        print(f"{name:24} compiled in {compiling(model, x, options.compiler):.1f} s of the processor")
    torch.compiler.reset()
    calls = {name: (model, model) for name, model in nets.items()} | {
        f"{name}, compiled": (torch.compile(model, backend=options.compiler, fullgraph=True), model)
        for name, model in nets.items()
    }
    turns = take_turns({name: lambda of=of: step(*of, x) for name, of in calls.items()}, options.rounds)  # type: ignore[misc]
    ours = turns.seconds["densenet_fast"]
    for name, durations in turns.seconds.items():
        median, low, high = ratio(ours["step"], durations["step"])
        of_processor = ratio(ours["processor"], durations["processor"]).median
        print(
            f"{name:24} {1e3 * spread(durations['step']).median:8.1f} ms, {median:.2f} times as fast ({low:.2f} to "
            f"{high:.2f}); of the processor {of_processor:.3f}"
        )
    print(machine.describe(torch.device("cpu")))
    print(f"{turns.dropped} rounds dropped; others kept at most {turns.others:.2f} cores busy")


if __name__ == "__main__":
    main()
