"""The machine code of the kernels, without a GPU: one variant of each (all of them: variants.py)."""

import os
import subprocess
import sys

import pytest
import torch

from densenet_fast.backends.triton import tiles
from densenet_fast.backends.triton.precompile import Variant
from tools.gpucheck.triton import sass
from tools.gpucheck.triton.compiler import Compiler

from . import plans


def test_kernels_compile_fit_and_use_the_tensor_cores():
    """In a process in which Triton compiles; the last lines of its table name what is wrong."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.gpucheck.triton.aot", "tests.triton.variants:one_of_each"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    wrong = [line for line in result.stdout.splitlines() if line.startswith("[") and not line.endswith(" ok")]
    assert result.returncode == 0, "\n".join([*wrong, result.stderr[-2000:]])


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


def test_three_programs_of_the_3x3_forward_are_on_a_multiprocessor():
    """Of strips of four pixels: ptxas keeps to the registers that the launch allows."""
    device, net = plans.DEVICES[90], plans.Net(256, 28, 128, 32, None, layers=1)
    forward, _ = plans.step(net, device, plans.FORMS["bf16"], True)
    (variant,) = {Variant.of(launch, 90) for launch in forward if launch.arguments.get("STRIP") == 4}
    compiler = Compiler()
    made = compiler.compile(variant)
    compiler.close()
    registers, stack, _ = sass.usage(made.cubin)
    assert 3 * 4 * 32 * registers <= 65536
    assert not stack
    assert 3 * (made.shared + 1024) <= 228 << 10
