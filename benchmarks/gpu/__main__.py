"""python -m benchmarks.gpu first|again|more [step ...] [--out DIR] [--operations NAMES] [--rehearse], or: results.

first and again do the steps below in their order, all or those named; more does those of more.py. results makes the
files of benchmarks/results/ from the lines of a run.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .. import results
from . import background, collect, cpu, kernels, model, more, preflight, rehearsal, sanitizer, smoke, speed, summary
from .runner import GOOD, Run, Step, environment, interrupted, run_steps
from .settings import Settings, on_a_gpu
from .settings import rehearsal as rehearsed

FAR_END = 5.0  # seconds for the summary
LIMITS = {"first": 530.0, "again": 150.0, "more": 540.0}

# Seconds that each has in `first`, the most important first. What one leaves is the next one's.
PREFLIGHT = 17.0
SECONDS = {
    "smoke": 48.0,
    "model": 20.0,
    "sanitizer": 55.0,
    "compiled": 7.0,
    "ceilings": 5.0,
    "training": 98.0,
    "batches": 105.0,
    "operations": 60.0,
    "profile": 55.0,
    "memory": 45.0,
}
BY_NAME_ONLY = {"cpu": 60.0}
AGAIN = ("smoke", "model", "ceilings", "training", "operations")


def compiled(run: Run) -> None:
    background.hear_of_variants(run)
    speed.wait_for_compiling(run)


def functions(what: str, settings: Settings) -> dict[str, Callable[[Run], None]]:
    """What the steps do."""
    names = settings.operations
    return {
        "smoke": partial(smoke.smoke, operations=[n for n in smoke.NAMES if not names or n in names]),
        "model": model.model,
        "sanitizer": sanitizer.sanitizer,
        "compiled": compiled,
        "ceilings": speed.ceilings,
        "training": partial(speed.training_large, names=speed.TRAINING if what == "first" else speed.OURS),
        "batches": speed.the_rest,
        "operations": partial(kernels.each_operation, names=kernels.asked(names)),
        "profile": kernels.profile,
        "memory": speed.memory,
        "cpu": cpu.cpu,
    }


def planned(what: str, names: Sequence[str], limit: float, settings: Settings) -> list[Step]:
    """The steps, and when each must have ended: in proportion to the seconds it has in `first`."""
    steps = [
        Step("preflight", preflight.preflight, PREFLIGHT - 2),
        Step("background", partial(background.background, peers=what == "first"), PREFLIGHT),
    ]
    if what == "more":
        left = limit - FAR_END
        return [steps[0], *(Step(name, partial(more.more, name=name), left) for name in names or more.COMMANDS)]
    seconds = SECONDS | BY_NAME_ONLY
    chosen = [name for name in seconds if name in (names or (SECONDS if what == "first" else AGAIN))]
    scale = (limit - FAR_END - PREFLIGHT) / sum(seconds[name] for name in chosen)
    until = PREFLIGHT
    for name in chosen:
        until += scale * seconds[name]
        steps.append(Step(name, functions(what, settings)[name], until))
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*LIMITS, "results"))
    steps = (*SECONDS, *BY_NAME_ONLY)
    told = f"some of {', '.join(steps)}; of more: {', '.join(more.COMMANDS)}; of results: {', '.join(LIMITS)}"
    parser.add_argument("steps", nargs="*", help=told)
    default = Path(os.environ.get("OUT", "build/gpu/out"))
    parser.add_argument("--out", type=Path, default=default, help="folder of what is measured (default: $OUT)")
    parser.add_argument("--operations", default="", help="check and time these alone, with commas between them")
    parser.add_argument("--limit", type=float, help="seconds (default: first 530, again 150, more 540)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny nets, faults planted")
    parser.add_argument("--results", type=Path, default=results.ROOT, help="where `results` writes")
    args = parser.parse_args(arguments)
    known: Sequence[str] = {"more": tuple(more.COMMANDS), "results": tuple(LIMITS)}.get(args.what, steps)
    for name in args.steps:
        if name not in known:
            parser.error(f"unknown step: got {name!r}, expected some of {', '.join(known)}")
    if args.what == "results":
        paths = [p for command in args.steps or ["first"] for p in collect.save(args.out, command, args.results)]
        print("\n".join(["written:", *(f"  {path.parent.name}/{path.name}" for path in paths)]))
        return not paths
    chosen = tuple(name for name in args.operations.split(",") if name)
    for name in chosen:
        if name not in smoke.NAMES:
            parser.error(f"unknown operation: got {name!r}, expected some of {', '.join(smoke.NAMES)}")
    limit = args.limit or LIMITS[args.what]
    start = time.monotonic()
    environment()
    for heavy in ("triton", "densenet_fast.backends.triton"):  # once, for all children; it does not touch CUDA
        if find_spec("triton") is not None:
            import_module(heavy)
    out = args.out.resolve()
    settings = (rehearsed(out) if args.rehearse else on_a_gpu(out))._replace(operations=chosen)
    if args.rehearse:
        rehearsal.plant()
    run = Run(settings, limit, args.what)
    run.journal.line("settings", large=settings.large, command=args.what, **settings.describe(settings.large, 3))
    with interrupted(run):
        run_steps(run, planned(args.what, args.steps, limit, settings))
    told = summary.text(run.journal.lines, limit, time.monotonic() - start)
    (out / f"{args.what}.txt").write_text(told)
    print("\n" + told, end="", flush=True)
    return any(line.get("verdict", "right") not in GOOD for line in run.journal.lines)


if __name__ == "__main__":
    sys.exit(main())
