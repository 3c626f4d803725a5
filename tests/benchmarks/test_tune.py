"""Every row of the table of tiles is tuned: planned here as on a GPU, its kernels neither compiled nor timed."""

import pytest
import torch

from benchmarks import tune
from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.precompile import Variant


@pytest.mark.parametrize("device", tune.DEVICES, ids=str)
def test_every_row_is_planned(device):
    """Each candidate launches the row's kernel, with its warps, stages and sizes; the table is left as it was."""
    before, precision = dict(tiles.TABLE), torch.backends.cudnn.conv.fp32_precision
    rows = tune.rows(device, [])
    assert sum(len(row) for key, row in tiles.TABLE.items() if key[1] == device.architecture) == len(rows) > 30
    for row in rows:
        planned = tune.plan(row, device)
        assert list(planned) == row.candidates(), row
        assert next(iter(planned)) == row.tile
        variants = {Variant.of(entry, device.architecture) for entry in planned.values()}
        assert len(variants) == len(planned), row
        for tile, entry in planned.items():
            assert entry.kernel.__name__ == f"{row.kernel}_kernel"
            assert (entry.num_warps, entry.num_stages) == (tile.num_warps, tile.num_stages)
    assert (tiles.TABLE, torch.backends.cudnn.conv.fp32_precision) == (before, precision)


def test_the_fastest_that_compiles_is_told(monkeypatch, capsys):
    """On a GPU stood in for by the meta device: the old tile does not compile, and one in the table is the fastest."""
    layer, device, compiled = tune.layer, tune.DEVICES[1], []

    def compile_all(launches, architecture):
        assert architecture == device.architecture
        compiled.extend(launches)
        variants = [Variant.of(entry, architecture) for entry in compiled]
        return {v: "refused" if v.num_warps == 8 and v.num_stages == 3 else None for v in variants}

    monkeypatch.setattr(tune, "layer", lambda *arguments: layer(*arguments[:-1], "meta"))
    monkeypatch.setattr(tune, "compile_all", compile_all)
    monkeypatch.setattr(tune, "describe", lambda device: "a GPU")
    monkeypatch.setattr(tune, "microseconds", lambda entry, architecture: 100.0 + entry.num_stages)
    tune.tune_all([], device)
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first == "a GPU"
    kernels = {Variant.of(entry, device.architecture) for entry in compiled}
    assert second.startswith(f"{len(kernels)} kernels compiled, ")
    for row, line in zip(tune.rows(device, []), lines, strict=True):
        before = "does not run" if row.tile[3:] == (8, 3) else f"{100.0 + row.tile.num_stages} us"
        assert line.startswith(f"{row}: old {tuple(row.tile)} {before}, new (")
        assert line.endswith("1) 101.0 us")
