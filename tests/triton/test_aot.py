"""The machine code of the kernels, without a GPU: one variant of each (all of them: python -m tests.triton.aot)."""

import os
import subprocess
import sys

import pytest
import torch

from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.launch import Launch
from densenet_fast.backends.triton.precompile import Variant

from . import aot, hazard, plans


def test_kernels_compile_fit_and_use_the_tensor_cores():
    """In a process in which Triton compiles; the last lines of its table name what is wrong."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.aot", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    wrong = [line for line in result.stdout.splitlines() if line.startswith("[") and not line.endswith(" ok")]
    assert result.returncode == 0, "\n".join([*wrong, result.stderr[-2000:]])


def product(compiler, safe: bool):
    """A kernel with the hazard, or without, as compiled for sm_90."""
    x, w, z = (torch.empty(256, 256, dtype=torch.bfloat16, device="meta") for _ in range(3))
    arguments = {"x": x, "w": w, "z": z, "M": 256, "C": 256, "K": 256, "SAFE": safe, "BLOCK": 128}
    return compiler.compile(Variant.of(Launch(hazard.naive_kernel, (2, 2), arguments, 8, 3), 90))


def test_the_scan_finds_the_hazard(compiler):
    _, wrong = aot.findings(product(compiler, safe=False), 90)
    assert wrong
    assert all(finding.startswith("hazard: ") for finding in wrong)
    assert aot.findings(product(compiler, safe=True), 90)[1] == []


def test_the_gate_can_fail(compiler, monkeypatch):
    good = product(compiler, safe=True)
    assert aot.findings(good._replace(ptx=""), 80)[1] == ["no tensor core"]
    assert aot.findings(good._replace(shared=164 << 10), 80)[1] == ["shared memory over 163 KiB"]
    monkeypatch.setattr(aot.sass, "usage", lambda cubin: aot.sass.Usage(255, 16))
    assert aot.findings(good, 80)[1] == ["16 bytes of stack"]


@pytest.mark.parametrize("form", plans.FORMS)
@pytest.mark.parametrize("architecture", plans.DEVICES)
def test_the_plans_take_every_row_of_the_table(architecture, form, monkeypatch):
    taken = set()
    find = tiles.find
    monkeypatch.setattr(tiles, "find", lambda *key: (found := find(*key), taken.add((key[0], found)))[0])
    device, kind = plans.DEVICES[architecture], plans.FORMS[form]
    plans.everything(device, kind)
    name = tiles.HALF if kind.dtype != torch.float32 else {"tf32": tiles.TF32, "ieee": tiles.FP32}[kind.precision]
    for (operation, of, product), rows in tiles.TABLE.items():
        for most, tile in rows if (of, product) == (architecture, name) else ():
            fused = operation.replace("_grads", "_bwd")  # where both gradients fit in one program, it goes before
            assert (operation, tile) in taken or (fused != operation and find(fused, device, name, most))
