"""What ptxas makes of the kernels, for the default architectures but 9.0, which tests/test_build.py reads of the build.
What launches ask for: test_limits.py."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.gpucheck import ptx
from tools.gpucheck import ptxas as said

from . import device

SOURCES = [file for file in device.kernels() if "__global__" in file.read_text()]
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas"),
    pytest.mark.parametrize("source", SOURCES, ids=[file.stem for file in SOURCES]),
]
USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def registers(command: list[str | Path]) -> dict[str, int]:
    """Those of each kernel that the command compiles; none may spill, or let a product wait for another."""
    told = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert not said.serialised(told.stderr)
    found = USED.findall(told.stderr)
    assert len(found) == told.stderr.count("Compiling entry function") > 0
    for kernel, *bytes_, _ in found:
        assert bytes_ == ["0", "0", "0"], kernel
    return {kernel: int(used) for kernel, *_, used in found}


def limit(text: str, kernel: str) -> int:
    """Registers that a thread may have, by the kernel's launch bounds."""
    bounds = re.search(rf"\.entry {kernel}\([^{{]*", text)[0]
    threads = math.prod(map(int, re.search(r"\.maxntid ([\d, ]+)", bounds)[1].split(",")))
    blocks = re.search(r"\.minnctapersm (\d+)", bounds)
    return min(255, 65536 // (threads * int(blocks[1]) if blocks else threads))


def test_no_kernel_spills(machine, source):
    """On sm_80; and on sm_86 and sm_89, which have its PTX and its registers, those that come near their limit."""
    (file,) = (file for file in machine.files if file.stem == source.stem)
    text, ptxas = file.read_text(), ["ptxas", "-v", file]
    used = registers([*ptxas, "-arch=sm_80"])
    assert {*used} == {*ptx.entries(text)}
    near = [kernel for kernel in used if used[kernel] >= 0.85 * limit(text, kernel)]
    for architecture in ("86", "89") if near else ():
        registers([*ptxas, f"-arch=sm_{architecture}", *(option for kernel in near for option in ("--entry", kernel))])


def test_no_kernel_spills_on_sm_100(machine, source):
    """Whose PTX is another."""
    registers(["nvcc", *device.FLAGS, "-cubin", "-Xptxas=-v", "-arch=sm_100", source])
