"""What ptxas makes of the kernels' PTX, for every architecture that is built by default."""

import re
import shutil
import subprocess

import pytest

ARCHITECTURES = ("80", "86", "89", "90", "100")


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(machine, architecture):
    for file in sorted(machine.folder.glob("*.cu.o.d/*.ptx")):
        told = subprocess.run(
            ["ptxas", "-v", f"-arch=sm_{architecture}", file, "-o", "/dev/null"], capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", told.stderr)
        assert len(kernels) == len(re.findall("Compiling entry function", told.stderr))
        assert all(found == ("0", "0", "0") for found in kernels), file.stem
