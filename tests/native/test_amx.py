"""When AMX is used: by what the processor and the system say, on a machine that says what a test wants it to say. What
its kernels compute every test of kernels tells, on `portable_amx_bf16`."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from densenet_fast import _C
from tools.library import surroundings

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.entry

# As Intel's manual has it, volume 1, "Programming with Intel AMX", and Linux' Documentation/arch/x86/xstate.rst.
BF16, TILES, INT8 = 1 << 22, 1 << 24, 1 << 25  # CPUID 7, edx
PALETTE = 8 << 16 | 64  # CPUID 1d, ebx: tiles, bytes of a row
SHAPES, DATA = 1 << 17, 1 << 18  # XCR0
SAPPHIRE_RAPIDS = {"features": BF16 | TILES | INT8, "palette": PALETTE, "kept": SHAPES | DATA | 0xE7}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    built = tmp_path_factory.mktemp("amx") / "amx"
    sources = ("tests/native/amx.cpp", "csrc/amx.cpp")
    subprocess.run([*surroundings.compiler(), "-std=c++17", *sources, "-o", str(built)], cwd=ROOT, check=True)
    return built


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "state permission product "),
        ({"features": 0}, "the processor, or its hypervisor, does not offer it"),
        ({"features": TILES | INT8}, "the processor, or its hypervisor, does not offer it"),
        ({"features": BF16}, "the processor, or its hypervisor, does not offer it"),
        ({"palette": 0}, "its tiles are not of 16 rows of 64 bytes"),
        ({"palette": 16 << 16 | 64}, "its tiles are not of 16 rows of 64 bytes"),
        ({"kept": 0}, "state the system does not keep its tiles (Linux does since 5.16)"),
        ({"kept": SHAPES}, "state the system does not keep its tiles (Linux does since 5.16)"),
        ({"kept": DATA}, "state the system does not keep its tiles (Linux does since 5.16)"),
        ({"error": 22}, "state permission the system does not permit it (arch_prctl: Invalid argument)"),
        ({"product": 0}, "state permission product a trial product came out wrong, which is worth a report"),
    ],
    ids=str,
)
def test_nothing_runs_that_the_machine_does_not_offer(program, answers, said):
    asked = {**SAPPHIRE_RAPIDS, "error": 0, "product": 1, **answers}
    done = subprocess.run([program, *map(str, asked.values())], check=True, capture_output=True, text=True)
    assert done.stdout == f"{said}\n"


@pytest.mark.skipif("amx_bf16" not in _C.compiled_instruction_sets(), reason="the compiler does not know AMX")
def test_tiles_are_released_where_they_were_taken():
    """In the machine code: no function leaves them to others, and no other instruction set has any."""
    command = ["objdump", "-d", "--no-show-raw-insn", _C.__file__]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Counter[str]] = {}
    for function, body in re.findall(r"^[0-9a-f]+ <(.+?)(?:\.cold)?>:\n((?:.+\n)+)", said, re.MULTILINE):
        if tiles := re.findall(r"\t(tdp\w+|tile\w+|ldtilecfg)\b", body):
            found.setdefault(function, Counter()).update(tiles)
    assert sum(tiles["tdpbf16ps"] > 0 for tiles in found.values()) > 1  # the kernels, and the trial
    for function, tiles in found.items():
        assert "amx_bf16_bfloat16" in function or "amx_bf16_float" in function
        assert "portable" not in function
        assert tiles["ldtilecfg"], function
        assert tiles["tilerelease"], function


def test_the_library_says_why_not():
    assert (_C.why_not_amx() is None) == ("amx_bf16" in _C.instruction_sets())


def test_the_trial_product_comes_out_right_on_tiles_that_do_as_the_manual_says():
    assert "portable_amx_bf16" in _C.instruction_sets()
