"""What ptxas makes of the kernels' PTX, for the default architectures but 9.0, which tests/test_build.py reads of the
build; and what launches ask for."""

import re
import shutil
import subprocess

import pytest
import torch

from . import launches
from .device import FLAGS, ROOT

ARCHITECTURES = ("80", "86", "89", "100")


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(machine, architecture):
    target = [f"-arch=sm_{architecture}", "-o", "/dev/null"]
    if architecture == "100":  # whose PTX is another
        files, compiler = (ROOT / "csrc/cuda").glob("*.cu"), ["nvcc", *FLAGS, "-cubin", "-Xptxas=-v"]
    else:
        files, compiler = machine.folder.glob("*.cu.o.d/*.ptx"), ["ptxas", "-v"]
    for file in sorted(files):
        told = subprocess.run([*compiler, *target, file], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", told.stderr)
        assert len(kernels) == len(re.findall("Compiling entry function", told.stderr))
        assert all(found == ("0", "0", "0") for found in kernels), file.stem


@pytest.mark.parametrize("device", [(108, 166912), (72, 101376), launches.H200], ids=str)
def test_launches_fit_the_device(machine, device):
    """Its shared memory, with a flag of static memory beside the dynamic, and the extents of a grid."""
    machine.device = device
    machine.set(tf32=False)
    for size in (5, 7, 14, 28, 33, 56):
        for growth, dtype in ((12, torch.bfloat16), (48, torch.float32)):
            geometry = launches.Geometry(2, size, size, 70, 4 * growth, growth)
            for name in launches.NAMES:
                for run in launches.launches(machine, name, geometry, dtype):
                    assert run.shared <= max(48 * 1024, device[1]) - 16
                    assert max(run.grid[1:]) < 2**16
