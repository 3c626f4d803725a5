"""python -m tools.gpucheck.triton.aot MODULE:FUNCTION [--arch 80,90,100]: kernels compiled without a GPU.

FUNCTION gets a list of architectures and returns what to compile: an `Item` for each.
Prints the resources of each and exits with 1 unless all of them compile without spilling, fit the shared memory, use
the tensor cores where they multiply, and are free of the register hazard; and unless no product waits for the one
before it ("serialised", from sm_90 on: ptxas.py) and no loop of products for what it has just begun to load ("exposed",
on sm_90: sass.py), but where the item says why.
"""

import argparse
import re
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple

from .. import ptxas
from . import sass
from .compiler import Compiled, Variant, compiled

UNASKED = 48 << 10  # bytes of shared memory that a CTA has without asking; Triton asks where its own part is larger
RESERVED = 1 << 10  # for the system, beside that; from sm_90 on cuobjdump counts it where a kernel uses shared memory
SMALL, A100, H100 = 99 << 10, 163 << 10, 227 << 10
SHARED_LIMIT = {80: A100, 86: SMALL, 89: SMALL, 90: H100, 100: H100, 120: SMALL}  # bytes a CTA may have
TENSOR_CORE = re.compile(r"\b(tcgen05\.mma|wgmma\.mma_async|mma\.sync)\b")


class Item(NamedTuple):
    variant: Variant
    description: str
    reasons: Mapping[str, str] = MappingProxyType({})  # why it may be serialised, or exposed


def findings(made: Compiled, architecture: int) -> tuple[str, list[str]]:
    """The table's columns, and what is wrong."""
    registers, stack, static = sass.usage(made.cubin)
    units = sorted(set(TENSOR_CORE.findall(made.ptx)))
    wrong = [f"{stack} bytes of stack"] * (stack > 0)
    if made.shared > SHARED_LIMIT[architecture]:
        wrong.append(f"shared memory over {SHARED_LIMIT[architecture] >> 10} KiB")
    static -= RESERVED if architecture >= 90 and static else 0
    if made.shared <= UNASKED < made.shared + static:
        wrong.append(f"{made.shared + static} bytes of shared memory, which Triton does not ask for")
    if "tt.dot" in made.ttir and not units:
        wrong.append("no tensor core")
    if architecture >= 90 and units:
        wrong += [f"serialised: {why}" for why in ptxas.serialised(sass.assembled(made.ptx))]
    if architecture == 90 and units:
        code = sass.disassemble(made.cubin)
        wrong += [f"hazard: {instruction}" for instruction in sass.hazards(code)]
        wrong += [f"exposed: {instruction}" for instruction in sass.exposed(code)]
    return f"{registers:3d} registers {stack:4d} stack {made.shared / 1024:6.1f} KiB {','.join(units):16s}", wrong


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tools.gpucheck.triton.aot", description="Compile kernels.")
    options.add_argument("items", metavar="MODULE:FUNCTION", help="from architectures to what is compiled for them")
    options.add_argument("--arch", default="80,90,100", help="compute capabilities times ten (%(default)s)")
    chosen = options.parse_args()
    module, _, function = chosen.items.partition(":")
    items: list[Item] = getattr(import_module(module), function)([int(a) for a in chosen.arch.split(",")])
    failed, begun = 0, time.monotonic()
    given, needed = set[tuple[str, str]](), set[tuple[str, str]]()  # reasons, and for what
    for i, (variant, description, reasons) in enumerate(items, 1):
        try:
            columns, wrong = findings(compiled(variant), variant.architecture)
        except Exception as error:
            columns, reasons = "", {}
            wrong = [f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
        kinds = {finding.partition(":")[0] for finding in wrong}
        excused = {kind: why for kind, why in reasons.items() if kind in kinds}
        given |= set(reasons.items())
        needed |= set(excused.items())
        left = [finding for finding in wrong if finding.partition(":")[0] not in excused]
        failed += bool(left)
        verdict = "; ".join(left or [*(f"{kind}: {why}" for kind, why in excused.items()), "ok"])
        print(f"[{i}/{len(items)} {time.monotonic() - begun:4.0f} s] {description} {columns} {verdict}", flush=True)
    for kind, why in sorted(given - needed):
        print(f"nothing is {kind} for this reason: {why}")
    print(f"{len(items)} variants, {failed} with findings")
    return 1 if failed or given - needed else 0


if __name__ == "__main__":
    sys.exit(main())
