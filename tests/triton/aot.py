"""python -m tests.triton.aot [--arch 80,90,100] [--quick]: every kernel, for every tile of the table and every dtype,
compiled without a GPU, from the launches the product plans.

Prints the resources of each and exits with 1 unless all of them compile without spilling, fit the shared memory, use
the tensor cores where they multiply, and are free of the register hazard (sass.py). Takes most of an hour; --quick two
minutes, with one variant of each kernel in bfloat16 and, on sm_90, in float32.
"""

import argparse
import re
import sys
import time
from typing import NamedTuple

from densenet_fast.backends.triton.launch import Launch
from densenet_fast.backends.triton.precompile import Variant

from . import plans, sass
from .compiler import Compiled, compiled

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a CTA may have
TENSOR_CORE = re.compile(r"\b(tcgen05\.mma|wgmma\.mma_async|mma\.sync)\b")


class Planned(NamedTuple):
    variant: Variant
    form: str
    launch: Launch


def planned(architectures: list[int], quick: bool) -> list[Planned]:
    found: dict[tuple, Planned] = {}
    for architecture in architectures:
        device = plans.DEVICES[architecture]
        for name, form in plans.FORMS.items():
            if quick and name != "bf16" and (name, architecture) != ("fp32", 90):
                continue
            for launch in plans.everything(device, form):
                variant = Variant.of(launch, architecture)
                key = (variant.kernel, architecture, name) if quick else (variant, "")
                found.setdefault(key, Planned(variant, name, launch))
    return list(found.values())


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


def describe(item: Planned) -> str:
    arguments, variant = item.launch.arguments, item.variant
    blocks = "x".join(str(v) for n, v in arguments.items() if n.startswith("BLOCK_"))
    sizes = " ".join(f"{n}={arguments[n]}" for n in ("C", "K", "G") if n in arguments)
    tile = f"{blocks} {variant.num_warps}/{variant.num_stages}"
    return (
        f"sm_{variant.architecture:<3d} {item.form} {variant.kernel.removesuffix('_kernel'):23s} {sizes:11s} {tile:16s}"
    )


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.triton.aot", description="Compile every kernel.")
    options.add_argument("--arch", default="80,90,100", help="compute capabilities times ten (%(default)s)")
    options.add_argument("--quick", action="store_true", help="one variant of each kernel")
    chosen = options.parse_args()
    items = planned([int(a) for a in chosen.arch.split(",")], chosen.quick)
    failed, begun = 0, time.monotonic()
    for i, item in enumerate(items, 1):
        try:
            columns, wrong = findings(compiled(item.variant), item.variant.architecture)
        except Exception as error:
            columns, wrong = "", [f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
        failed += bool(wrong)
        verdict = "; ".join(wrong) or "ok"
        print(f"[{i}/{len(items)} {time.monotonic() - begun:4.0f} s] {describe(item)} {columns} {verdict}", flush=True)
    print(f"{len(items)} variants, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
