"""python -m tools.gpucheck.triton.aot MODULE:FUNCTION [--arch 80,90,100]: kernels compiled without a GPU.

FUNCTION gets a list of architectures and returns what to compile, a `Variant` and a line that describes it for each.
Prints the resources of each and exits with 1 unless all of them compile without spilling, fit the shared memory, use
the tensor cores where they multiply, and are free of the register hazard (sass.py).
"""

import argparse
import re
import sys
import time
from importlib import import_module
from typing import NamedTuple

from . import sass
from .compiler import Compiled, Variant, compiled

SMALL, A100, H100 = 99 << 10, 163 << 10, 227 << 10
SHARED_LIMIT = {80: A100, 86: SMALL, 89: SMALL, 90: H100, 100: H100, 120: SMALL}  # bytes a CTA may have
TENSOR_CORE = re.compile(r"\b(tcgen05\.mma|wgmma\.mma_async|mma\.sync)\b")


class Item(NamedTuple):
    variant: Variant
    description: str


def findings(made: Compiled, architecture: int) -> tuple[str, list[str]]:
    """The table's columns, and what is wrong."""
    registers, stack = sass.usage(made.cubin)
    units = sorted(set(TENSOR_CORE.findall(made.ptx)))
    wrong = [f"{stack} bytes of stack"] * (stack > 0)
    if made.shared > SHARED_LIMIT[architecture]:
        wrong.append(f"shared memory over {SHARED_LIMIT[architecture] >> 10} KiB")
    if "tt.dot" in made.ttir and not units:
        wrong.append("no tensor core")
    if architecture == 90 and "wgmma.mma_async" in made.ptx:
        wrong += [f"hazard: {instruction}" for instruction in sass.hazards(sass.disassemble(made.cubin))]
    return f"{registers:3d} registers {stack:4d} stack {made.shared / 1024:6.1f} KiB {','.join(units):16s}", wrong


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tools.gpucheck.triton.aot", description="Compile kernels.")
    options.add_argument("items", metavar="MODULE:FUNCTION", help="from architectures to what is compiled for them")
    options.add_argument("--arch", default="80,90,100", help="compute capabilities times ten (%(default)s)")
    chosen = options.parse_args()
    module, _, function = chosen.items.partition(":")
    items: list[Item] = getattr(import_module(module), function)([int(a) for a in chosen.arch.split(",")])
    failed, begun = 0, time.monotonic()
    for i, (variant, description) in enumerate(items, 1):
        try:
            columns, wrong = findings(compiled(variant), variant.architecture)
        except Exception as error:
            columns, wrong = "", [f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
        failed += bool(wrong)
        verdict = "; ".join(wrong) or "ok"
        print(f"[{i}/{len(items)} {time.monotonic() - begun:4.0f} s] {description} {columns} {verdict}", flush=True)
    print(f"{len(items)} variants, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
