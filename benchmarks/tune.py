"""Time tiles of the triton backend on the GPU at hand: `python -m benchmarks.tune [--dry-run] [operation ...]`.

For every row of the table (densenet_fast/backends/triton/tiles.py) the row's tile and its neighbours run on one layer
of a DenseNet at 56x56, batch 128. Printed are the old tile and the fastest one, with microseconds, to be put into the
table by hand. Tiles that do not compile for the GPU or spill registers are left out. --dry-run lists the candidates
without a GPU.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import TritonError
from triton.testing import do_bench

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import device_of, launch, recorded
from densenet_fast.backends.triton.tiles import Tile

from .machine import describe

BATCH, SIZE, CHANNELS = 128, 56, 256
WIDEST = 192  # outputs where a row has no limit


def candidates(operation: str, tile: Tile) -> list[Tile]:
    """The tile and its neighbours, which differ in one field: a size halved or doubled, other warps or stages."""
    whole = operation == "bn_relu_conv1x1_bwd"  # its tile holds all outputs
    sizes = {
        name: (size // 2, size * 2) for name, size in zip("mnk", tile[:3], strict=True) if name != "n" or not whole
    }
    other = {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}
    found = [tile._replace(**{field: v}) for field, values in {**sizes, **other}.items() for v in values]
    return [tile, *(t for t in found if t != tile and min(t[:3]) >= 16 and max(t[:3]) <= 256)]


@contextmanager
def choice(key: tuple[str, int, str], tile: Tile) -> Iterator[None]:
    """`tile` for all layers of the key."""
    rows = tiles.TABLE[key]
    tiles.TABLE[key] = ((tiles.ANY, tile),)
    try:
        yield
    finally:
        tiles.TABLE[key] = rows


def layer(operation: str, outputs: int, dtype: torch.dtype) -> Callable[[], Any]:
    """A call that contains the operation's kernel, for a layer with so many outputs."""

    def image(channels: int, size: int = SIZE) -> Tensor:
        x = torch.randn(BATCH, channels, size, size, dtype=dtype, device="cuda")
        return x.contiguous(memory_format=torch.channels_last)

    def norm(channels: int) -> tuple[Any, ...]:
        zero, one = torch.zeros(channels, device="cuda"), torch.ones(channels, device="cuda")
        return zero, one, one, zero, 1e-5

    def weight(out: int, channels: int, kernel: int) -> Tensor:
        w = torch.randn(out, channels, kernel, kernel, dtype=dtype, device="cuda")
        return w.contiguous(memory_format=torch.channels_last)

    def into(x: Tensor) -> tuple[Any, ...]:
        vector = torch.zeros(x.shape[1], device="cuda")
        return True, x, vector, vector

    family, _, part = operation.rpartition("_")
    zero = torch.zeros(outputs, device="cuda")
    if family == "bn_relu_conv3x3":
        growth = outputs // 4 if part == "dgrad" else outputs
        width = 4 * growth
        z, y, w = image(width), image(growth), weight(growth, width, 3)
        of_y = torch.zeros(growth, device="cuda")
        if part == "fwd":
            return lambda: operations.bn_relu_conv3x3_fwd(z, *norm(width), w, 0.0, None, y, of_y, of_y.clone())
        rest = True, None, torch.zeros(width, device="cuda"), torch.zeros(width, device="cuda"), True
        return lambda: operations.bn_relu_conv3x3_bwd(y, y, of_y, of_y, of_y, z, *norm(width), w, 0.0, None, *rest)
    x, w = image(CHANNELS), weight(outputs, CHANNELS, 1)
    if family == "transition":
        y = image(outputs, SIZE // 2)
        if part == "fwd":
            return lambda: operations.transition_fwd(x, *norm(CHANNELS), w, y, zero, zero.clone())
        return lambda: operations.transition_bwd(y, x, *norm(CHANNELS), w, *into(image(CHANNELS)), True)
    if part == "fwd":
        return lambda: operations.bn_relu_conv1x1_fwd(x, *norm(CHANNELS), w, True)
    z = image(outputs)
    of_z = (*norm(outputs)[:3], 1e-5, zero, zero)
    return lambda: operations.bn_relu_conv1x1_bwd(z, z, *of_z, x, *norm(CHANNELS), w, *into(image(CHANNELS)), True)


def microseconds(run: Callable[[], Any], kernel: str) -> float | None:
    """The time of the kernel's launch among those of `run`; None if a tile does not compile or spills."""
    try:
        with recorded() as launches:
            run()
    except (TritonError, RuntimeError):  # the compiler's own passes fail with RuntimeError
        return None
    entry = next(e for e in launches if e.kernel.__name__ == kernel)
    compiled = entry.compile(device_of(torch.empty(0, device="cuda")).architecture)
    compiled.run  # noqa: B018  (loads it, which counts its spills)
    if compiled.n_spills:
        return None
    return 1000 * do_bench(lambda: launch(entry.kernel, entry.grid, **entry.options, **entry.arguments))


def tune(key: tuple[str, int, str], row: int) -> None:
    operation, _, kind = key
    most, old = tiles.TABLE[key][row]
    outputs = min(most, WIDEST)
    torch.backends.cudnn.conv.fp32_precision = "tf32" if kind == tiles.TF32 else "ieee"
    run = layer(operation, outputs, torch.bfloat16 if kind == tiles.HALF else torch.float32)
    times: dict[Tile, float] = {}
    for tile in candidates(operation, old):
        with choice(key, tile):
            time = microseconds(run, f"{operation}_kernel")
        if time is not None:
            times[tile] = time
    if not times:
        print(f"{operation} {kind} up to {most}: no tile runs")
        return
    new = min(times, key=lambda tile: times[tile])
    before = f"{times[old]:.1f} us" if old in times else "does not run"
    print(f"{operation} {kind} up to {most}: old {tuple(old)} {before}, new {tuple(new)} {times[new]:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", nargs="*", help="only these operations of the table")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates, time nothing")
    options = parser.parse_args()
    chosen = [key for key in tiles.TABLE if not options.operation or key[0] in options.operation]
    if options.dry_run:
        for key in chosen:
            for most, tile in tiles.TABLE[key]:
                print(f"{key[0]} sm_{key[1]} {key[2]} up to {most}: {len(candidates(key[0], tile))} candidates")
                print("  " + " ".join(str(tuple(t)) for t in candidates(key[0], tile)))
        return
    if not torch.cuda.is_available():
        parser.error("no CUDA device: got none, expected one to time on; --dry-run lists the candidates")
    print(describe(torch.device("cuda")))
    family = tiles.family(device_of(torch.empty(0, device="cuda")))
    for key in chosen:
        if key[1] == family:
            for row in range(len(tiles.TABLE[key])):
                tune(key, row)


if __name__ == "__main__":
    main()
