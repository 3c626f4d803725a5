"""Time tiles of the triton backend on the GPU at hand: `python -m benchmarks.tune [--dry-run] [operation ...]`.

For every row of the table (densenet_fast/backends/triton/tiles.py) the row's tile and its neighbours run on one layer
of a DenseNet at 56x56, batch 128. Printed are the old tile and the fastest one, with microseconds, to be put into the
table by hand. All candidates are compiled first, by many processes; tiles that do not compile for the GPU or spill
registers are left out. --dry-run plans the candidates of every architecture without a GPU and lists them.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from triton.runtime.errors import TritonError
from triton.testing import do_bench

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import plan as plans
from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import Device, Launch, device_of, recorded, whole
from densenet_fast.backends.triton.precompile import Variant, compile_all
from densenet_fast.backends.triton.tiles import Tile
from tests.calls import Geometry, make

from .machine import describe

BATCH, SIZE, CHANNELS = 128, 56, 256
NARROW, FEW = "_narrow", 64  # rows for few channels, and so many
WIDTHS = (192, 320)  # outputs where a row has no limit: the second where the first take another kernel
DEVICES = (Device(80, 108), Device(90, 132), Device(100, 148))  # A100, H200, B200


class Row(NamedTuple):
    """A row of the table."""

    operation: str
    architecture: int
    kind: str
    most: int  # outputs
    tile: Tile

    def __str__(self) -> str:
        upto = "any" if self.most == tiles.ANY else f"up to {self.most}"
        return f"{self.operation} sm_{self.architecture} {self.kind}, {upto} outputs"

    @property
    def key(self) -> tuple[str, int, str]:
        return self.operation, self.architecture, self.kind

    @property
    def kernel(self) -> str:
        return self.operation.removesuffix(NARROW)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.kind == tiles.HALF else torch.float32

    def candidates(self) -> list[Tile]:
        """The tile and its neighbours, which differ in one field: a size halved or doubled, other warps or stages."""
        all_of_them = self.kernel == "bn_relu_conv1x1_bwd"  # its tile holds all outputs
        named = zip(("pixels", "outputs", "channels"), self.tile[:3], strict=True)
        sizes = {name: (size // 2, size * 2) for name, size in named if name != "outputs" or not all_of_them}
        other = {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}
        found = [self.tile._replace(**{field: v}) for field, values in {**sizes, **other}.items() for v in values]
        return [self.tile, *(t for t in found if t != self.tile and min(t[:3]) >= 16 and max(t[:3]) <= 256)]

    @contextmanager
    def taking(self, tile: Tile) -> Iterator[None]:
        """`tile` for all layers of the row's key, whose kind of product is the one in force."""
        rows, precision = tiles.TABLE[self.key], torch.backends.cudnn.conv.fp32_precision
        tiles.TABLE[self.key] = ((tiles.ANY, tile),)
        plans.forget()
        torch.backends.cudnn.conv.fp32_precision = "tf32" if self.kind == tiles.TF32 else "ieee"
        try:
            yield
        finally:
            plans.forget()
            tiles.TABLE[self.key], torch.backends.cudnn.conv.fp32_precision = rows, precision

    def launched(self, run: Callable[[], Any], tile: Tile, device: Device | None = None) -> Launch | None:
        """The launch of the row's kernel among those of `run`, planned as for `device` if one is given."""
        with self.taking(tile), recorded(device) as launches:
            run()
        return next((e for e in launches if e.kernel.__name__ == f"{self.kernel}_kernel"), None)

    def outputs(self, device: Device) -> int:
        """Of a layer that takes the row's kernel."""
        for outputs in (self.most,) if self.most < tiles.ANY else WIDTHS:
            if self.launched(layer(self.operation, outputs, self.dtype, "meta"), self.tile, device):
                return outputs
        raise RuntimeError(f"{self}: no layer takes it, tried {WIDTHS} outputs")


def rows(device: Device, chosen: list[str]) -> list[Row]:
    """The rows that the device takes, of the chosen operations, or of all if none is."""
    keys = [key for key in tiles.TABLE if key[1] == tiles.family(device) and (not chosen or key[0] in chosen)]
    return [Row(*key, most, tile) for key in keys for most, tile in tiles.TABLE[key]]


def plan(row: Row, device: Device) -> dict[Tile, Launch]:
    """The launch of each candidate, on the meta device."""
    run = layer(row.operation, row.outputs(device), row.dtype, "meta")
    planned = {tile: row.launched(run, tile, device) for tile in row.candidates()}
    return {tile: entry for tile, entry in planned.items() if entry is not None}


def layer(operation: str, outputs: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    """A call that contains the operation's kernel, for a layer with so many outputs."""
    channels = FEW if operation.endswith(NARROW) else CHANNELS
    family, _, part = operation.removesuffix(NARROW).rpartition("_")
    direction = "fwd" if part == "fwd" else "bwd"
    if family == "transition":
        name, sizes = f"transition_{direction}", (channels, outputs, 1)
    elif family == "bn_relu_conv3x3":
        growth = outputs // 4 if part == "dgrad" else outputs
        name, sizes = f"conv3x3_{direction}", (channels, 4 * growth, growth)
    else:
        name, sizes = f"conv1x1_{direction}", (channels, outputs, 32)
    with torch.device(device):
        call = make(name, Geometry(BATCH, SIZE, SIZE, *sizes), dtype, room=0)
    return lambda: call.on(operations)


def microseconds(entry: Launch, architecture: int) -> float | None:
    """The time of a launch; None if its kernel does not fit on the GPU or spills."""
    compiled = entry.compile(architecture)
    try:
        compiled.run  # noqa: B018  (loads it, which counts its spills)
    except (TritonError, RuntimeError):
        return None
    if compiled.n_spills:
        return None
    start, arguments = compiled[whole(entry.grid)], [*entry.arguments.values()]
    return 1000 * do_bench(lambda: start(*arguments))


def tune(row: Row, compiling: list[Tile], device: Device) -> None:
    """Time the tiles that compile, and print the best."""
    run = layer(row.operation, row.outputs(device), row.dtype, "cuda")
    times: dict[Tile, float] = {}
    for tile in compiling:
        try:
            entry = row.launched(run, tile)
        except (TritonError, RuntimeError):  # too much shared memory
            continue
        time = entry and microseconds(entry, device.architecture)
        if time is not None:
            times[tile] = time
    if not times:
        print(f"{row}: no tile runs")
        return
    new = min(times, key=lambda tile: times[tile])
    before = f"{times[row.tile]:.1f} us" if row.tile in times else "does not run"
    print(f"{row}: old {tuple(row.tile)} {before}, new {tuple(new)} {times[new]:.1f} us", flush=True)


def tune_all(chosen: list[str], device: Device) -> None:
    """Compile the candidates of all rows that the GPU here takes, then time them, row by row."""
    print(describe(torch.device("cuda")))
    plans = {row: plan(row, device) for row in rows(device, chosen)}
    outcomes = compile_all((entry for planned in plans.values() for entry in planned.values()), device.architecture)
    print(f"{len(outcomes)} kernels compiled, {sum(why is not None for why in outcomes.values())} refused", flush=True)
    for row, planned in plans.items():
        compiling = [t for t, entry in planned.items() if outcomes[Variant.of(entry, device.architecture)] is None]
        tune(row, compiling, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", nargs="*", help="only these operations of the table")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates, time nothing")
    options = parser.parse_args()
    if options.dry_run:
        for device in DEVICES:
            for row in rows(device, options.operation):
                planned = plan(row, device)
                print(f"{row}: {len(planned)} candidates of {row.outputs(device)} outputs")
                print("  " + " ".join(str(tuple(tile)) for tile in planned))
        return
    if not torch.cuda.is_available():
        parser.error("no CUDA device: got none, expected one to time on; --dry-run lists the candidates")
    tune_all(options.operation, device_of(torch.empty(0, device="cuda")))


if __name__ == "__main__":
    main()
