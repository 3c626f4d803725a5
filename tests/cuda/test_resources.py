"""What ptxas makes of the kernels' PTX, for the default architectures but 9.0, which tests/test_build.py reads of the
build. What launches ask for: test_limits.py."""

import re
import shutil
import subprocess

import pytest

from . import device

ARCHITECTURES = ("80", "86", "89", "100")


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(machine, architecture):
    target = [f"-arch=sm_{architecture}", "-o", "/dev/null"]
    if architecture == "100":  # whose PTX is another
        files, compiler = device.kernels(), ["nvcc", *device.FLAGS, "-cubin", "-Xptxas=-v"]
    else:
        files, compiler = machine.files, ["ptxas", "-v"]
    for file in sorted(files):
        told = subprocess.run([*compiler, *target, file], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", told.stderr)
        assert len(kernels) == len(re.findall("Compiling entry function", told.stderr))
        assert all(found == ("0", "0", "0") for found in kernels), file.stem
