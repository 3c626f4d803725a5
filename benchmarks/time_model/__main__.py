"""python -m benchmarks.time_model MODEL IMAGE BATCH[,BATCH] DTYPE [--backend native] [--against CHECKOUT] [--save]"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import checkouts
from ..table import Table
from . import measured, native, plans
from .measured import Correction
from .model import TRITON, Backend, Line, lines, total

RESULTS = Path(__file__).parents[1] / "results"
# Whose launches, the file of the results, how they are planned and modelled.
BACKENDS: dict[str, tuple[str, str, Callable[..., Any], Backend]] = {
    "triton": ("Triton's", "time_model.json", plans.step, TRITON),
    "native": ("the native", "time_model_native.json", native.plans.step, native.NATIVE),
}
COLUMNS = ("ms", "programs", "DRAM", "L2", "tensor", "shared", "issue")  # of `Bounds`: the time first
TELLS = """\
ms: modelled time, of each launch the longest of programs, DRAM and L2, and the way to the next launch. programs: on the
busiest multiprocessor, simulated from the machine code. DRAM, L2: the bytes. tensor, shared, issue: tensor cores,
shared memory and issue slots if nothing waited. fit: programs on a multiprocessor. waves: of as many on all. What is
assumed: benchmarks/time_model/device.py. PyTorch's own launches are not in it."""


def table(here: Sequence[Line], there: Sequence[Line] | None, correction: Correction | None) -> Table:
    header = ["kernel", "launches", *COLUMNS, "fit", "waves"]
    header += ["ms there", "ratio"] if there is not None else []
    header += ["measured/modelled", "ms corrected"] if correction else []
    others = {line.kernel: line.bounds.time for line in there or ()}
    rows: list[list[str]] = []
    for line in here:
        row = [line.kernel, str(line.launches), *_milliseconds(line), f"{line.resident:.1f}", f"{line.waves:.1f}"]
        if there is not None:
            other = others.pop(line.kernel, None)
            row += [_ms(other), f"{line.bounds.time / other:.2f}"] if other else ["-", "-"]
        if correction:
            corrected = correction.corrected(line)
            row += [f"{corrected / line.bounds.time:.2f}", _ms(corrected)]
        rows.append(row)
    empty = ["-"] * (len(COLUMNS) + 3)
    rows += [[name, *empty, _ms(time), "-", *["-"] * (2 if correction else 0)] for name, time in others.items()]
    whole = total(line.bounds for line in here)
    last = Line("all", sum(line.launches for line in here), whole, 0, 0, {})
    row = [last.kernel, str(last.launches), *_milliseconds(last), "", ""]
    if there is not None:
        other = sum(line.bounds.time for line in there)
        row += [_ms(other), f"{whole.time / other:.3f}"]
    if correction:
        corrected = sum(map(correction.corrected, here))
        row += [f"{corrected / whole.time:.2f}", _ms(corrected)]
    return Table(header, [*rows, row])


def _milliseconds(line: Line) -> list[str]:
    b = line.bounds
    return [_ms(seconds) for seconds in (b.time, b.programs, b.dram, b.l2, b.tensor, b.shared, b.issue)]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _raw(found: Sequence[Line]) -> dict[str, Any]:
    """Milliseconds by kernel."""
    keep = ("time", "programs", "dram", "l2", "tensor", "shared", "issue")
    return {
        line.kernel: {"launches": line.launches, "fit": round(line.resident, 2), "waves": round(line.waves, 2)}
        | {name: round(1e3 * getattr(line.bounds, name), 4) for name in keep}
        for line in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_model", description="Modelled times of kernels.")
    parser.add_argument("model")
    parser.add_argument("image", type=int)
    parser.add_argument("batches", help="one, or several with commas between them")
    parser.add_argument("dtype", help="bfloat16, float16 or float32")
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/time_model*.json")
    options = parser.parse_args()
    whose, file, step, backend = BACKENDS[options.backend]
    saved = {}
    for batch in map(int, options.batches.split(",")):
        settings = {"model": options.model, "image": options.image, "batch": batch, "dtype": options.dtype}
        trees = checkouts.here_and(options.against)
        found = {name: lines(step(tree, **settings), backend) for name, tree in trees.items()}
        known = measured.find(settings, options.backend)
        correction = measured.correct(known, found["here"]) if known else None
        training = f"a training step of {batch} images, {options.image} on a side, {options.dtype}"
        print(f"{options.model}, {training}: {whose} launches on an H200")
        print(f"A model and no measurement; {_told(correction)}.\n")
        print(table(found["here"], found.get("there"), correction).text(), end="\n\n")
        saved[f"{options.model} {options.image} {batch} {options.dtype}"] = {n: _raw(each) for n, each in found.items()}
    print(TELLS)
    if options.save:
        checkouts.save(RESULTS / file, options.against, milliseconds=saved)


def _told(correction: Correction | None) -> str:
    if correction is None:
        return "no GPU has measured it yet"
    factors = ", ".join(f"{name} {factor:.2f}" for name, factor in correction.factors.items())
    return f"measured over modelled on {correction.where}: {factors}"


if __name__ == "__main__":
    main()
