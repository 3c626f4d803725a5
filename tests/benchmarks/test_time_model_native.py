"""The model of the time of the native kernels: structures laid out by a C++ compiler, ways through machine code written
by hand, and how often a compiled kernel multiplies."""

import subprocess

import pytest

pytest.importorskip("triton")

from benchmarks.time_model import machine_code, model
from benchmarks.time_model.native import NATIVE, control, layouts, memory, plans, programs
from benchmarks.time_model.native.control import Control
from benchmarks.time_model.native.plans import Planned
from benchmarks.time_model.native.thread import Block
from densenet_fast import backends

from ..cuda import device

HEADER = """
// A comment; struct Not { int a; };
enum class Kind : int16_t { kNone, kSome };
template <class element_t> struct Outer {
  struct Matrix { element_t* data; int64_t stride; operator bool() const { return data != nullptr; } };
};
struct Tiling { int N, H; bool odd; int rows() const { return N * H; } };
template <class reduced_t> struct Partials { float *tiles, *groups; int C; };
using Matrix = Outer<void>::Matrix;
struct LaunchParams {
  static constexpr int kMany = 3;
  const void *x, *y;  // [M, C]
  bool accumulate;
  int64_t stride[4], M;
  int C;
  Tiling tiling[kMany];
  Matrix dx;
  Kind kind;
  double eps;
  Partials<Tiling> partials;
  float count;
};
"""
VALUES = """
#include <cstdint>
#include <cstdio>
#include "header.h"
int main() {
  LaunchParams p{(void*)7, (void*)8, true, {1, 2, 3, -4}, 1l << 40, 5};
  p.tiling[2] = {6, 9, true}, p.dx = {(void*)10, 11}, p.kind = Kind::kSome, p.eps = 0.5;
  p.partials = {(float*)12, nullptr, 13}, p.count = 1.5f;
  fwrite(&p, sizeof p, 1, stdout);
}
"""


def test_parameters_lie_where_the_compiler_has_them(tmp_path):
    (tmp_path / "header.h").write_text(HEADER)
    (tmp_path / "main.cc").write_text(VALUES)
    subprocess.run(["c++", "-std=c++17", tmp_path / "main.cc", "-o", tmp_path / "main"], check=True)
    content = subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout
    found = layouts.Layouts(tmp_path).read("LaunchParams", content)
    assert found["tiling"][2] == {"N": 6, "H": 9, "odd": True}
    expected = {"x": 7, "y": 8, "accumulate": True, "stride": [1, 2, 3, -4], "M": 1 << 40, "C": 5}
    expected |= {"dx": {"data": 10, "stride": 11}, "kind": 1, "eps": 0.5, "count": 1.5}
    expected["partials"] = {"tiles": 12, "groups": 0, "C": 13}
    assert {name: value for name, value in found.items() if name != "tiling"} == expected
    with pytest.raises(ValueError, match="LaunchParams: got"):
        layouts.Layouts(tmp_path).read("LaunchParams", content[:-8])


def test_names():
    mangled = "_ZN13densenet_fast4cuda46_GLOBAL__N__604b8da6_13_batch_norm_cu_3da36e5d20channel_stats_kernelI"
    mangled += "NS1_10NormTraitsIN3c108BFloat16EEEEEvNS1_18ChannelStatsParamsE"
    assert plans.names(mangled) == ("channel_stats_kernel", "ChannelStatsParams")


def code(*lines):
    """Machine code of instructions and labels."""
    encoded = "  /*0000*/ {} ;  /* 0x0000000000000000 */\n /* 0x000fca0000000000 */"
    return machine_code.parse("\n".join(line if line.endswith(":") else encoded.format(line) for line in lines))


def block(*parameters, x=0, last=False):
    return Block(b"".join(p.to_bytes(4, "little") for p in parameters), (100, 1, 1), 256, (x, 0, 0), last)


# The block's share of c[0x210] tiles among c[0x214] blocks, divided as nvcc divides; then a round for each.
SHARE = code(
    "LDC R4, c[0x0][0x214]",
    "I2F.U32.RP R0, R4",
    "MUFU.RCP R0, R0",
    "VIADD R2, R0, 0xffffffe",
    "F2I.FTZ.U32.TRUNC.NTZ R3, R2",
    "IMAD.MOV.U32 R2, RZ, RZ, RZ",
    "IADD3 R5, RZ, -R4, RZ",
    "IMAD R5, R5, R3, RZ",
    "IMAD.HI.U32 R3, R3, R5, R2",
    "LDC R6, c[0x0][0x210]",
    "IMAD.HI.U32 R3, R3, R6, RZ",
    "IADD3 R7, -R3, RZ, RZ",
    "IMAD R7, R4, R7, R6",
    "ISETP.GE.U32.AND P0, PT, R7, R4, PT",
    "@P0 IADD3 R7, -R4, R7, RZ",
    "@P0 VIADD R3, R3, 0x1",
    "ISETP.GE.U32.AND P0, PT, R7, R4, PT",
    "@P0 VIADD R3, R3, 0x1",
    ".L_x_1:",
    "LDG.E R9, desc[UR4][R10.64]",
    "FADD R8, R8, R9",
    "VIADD R3, R3, 0xffffffff",
    "ISETP.GT.AND P1, PT, R3, RZ, PT",
    "@P1 BRA `(.L_x_1)",
    "EXIT",
)


@pytest.mark.parametrize(("tiles", "blocks"), [(3136, 132), (7, 7), (1000, 3), (131, 132), (12544, 57)])
def test_parameters_tell_how_often_a_thread_goes_round(tiles, blocks):
    (runs,) = Control(SHARE).way(block(tiles, blocks), [0])
    assert sum(first <= 18 <= last for first, last in runs) == max(1, tiles // blocks)


# 64-bit sums, of which the upper half decides.
WIDE = code(
    "LDC.64 R2, c[0x0][0x210]",
    "IADD3 R4, P0, -R2, UR6, RZ",
    "ULDC.64 UR6, c[0x0][0x218]",
    "IADD3 R4, P0, -R2, UR6, RZ",
    "IADD3.X R5, ~R3, UR7, RZ, P0, !PT",
    "ISETP.LT.U32.AND P1, PT, R4, 0x80, PT",
    "ISETP.LT.AND.EX P1, PT, R5, RZ, PT, P1",
    "@P1 BRA `(.L_x_1)",
    "NOP",
    ".L_x_1:",
    "EXIT",
)


@pytest.mark.parametrize("rest", [0, 1, 127, 128, 1 << 31, 1 << 32, (1 << 32) - 1, -1])
@pytest.mark.parametrize("first", [0, 5, 1 << 32, (1 << 32) - 1])
def test_the_upper_half_decides(first, rest):
    both = [first, (first + rest) % (1 << 64)]
    parameters = block(*(part for value in both for part in (value & 0xFFFFFFFF, value >> 32)))
    (runs,) = Control(WIDE).way(parameters, [0])
    assert (runs[0] == (0, 7)) == (rest < 128)


# Each block counts itself; the flag goes through shared memory to the threads that did not count.
COUNTED = code(
    "S2R R0, SR_TID.X",
    "ISETP.NE.AND P0, PT, R0, RZ, PT",
    "@P0 BRA `(.L_x_1)",
    "LDC R5, c[0x0][0x210]",
    "ATOMG.E.INC.STRONG.GPU PT, R4, desc[UR4][R2.64], R5",
    "ISETP.EQ.AND P1, PT, R4, R5, PT",
    "SEL R6, RZ, 0x1, !P1",
    "STS.U8 [UR8+-0x10], R6",
    ".L_x_1:",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDS.U8 R7, [UR8+-0x10]",
    "ISETP.NE.AND P2, PT, R7, RZ, PT",
    "@!P2 EXIT",
    "NOP",
    "EXIT",
)
COUNTED.instructions.insert(0, code("UMOV UR8, 0x400").instructions[0])
COUNTED.instructions[3] = COUNTED.instructions[3]._replace(target=9)


@pytest.mark.parametrize("last", [False, True])
def test_all_threads_of_the_last_block_know_it(last):
    counted, other = Control(COUNTED).way(block(7, last=last), [0, 128])
    assert counted == ([(0, 14)] if last else [(0, 12)])
    assert other == [(0, 3), (9, 14 if last else 12)]


def test_what_is_unknown_leads_past_no_work():
    load = "LDG.E R2, desc[UR4][R10.64]", "FSETP.NEU.AND P0, PT, R2, RZ, PT"
    data = code(*load, "@!P0 BRA `(.L_x_1)", "NOP", ".L_x_1:", "EXIT")
    assert Control(data).way(block(), [0]) == [[(0, 4)]]


def test_divisions_call_no_function_that_rare_ones_need():
    function = ("EXIT", "$__slow:", "NOP", "MOV R2, R45", "RET.REL.NODEC R2 `(kernel)")
    asked = code("FCHK P0, R2, R7", "@!P0 BRA `(.L_x_1)", "CALL.REL.NOINC `($__slow)", ".L_x_1:", *function)
    assert Control(asked).way(block(), [0]) == [[(0, 1), (3, 3)]]
    called = code("MOV R45, 0x20", "CALL.REL.NOINC `($__slow)", *function)
    assert Control(called).way(block(), [0]) == [[(0, 1), (3, 5), (2, 2)]]


def test_a_long_loop_loses_rounds_of_its_middle(monkeypatch):
    """Two warps, one of which comes a round later; an inner loop stays in the outer one's rounds."""
    monkeypatch.setattr(programs, "LONG", 0)
    nested = code("NOP", ".L_x_1:", "NOP", ".L_x_2:", "NOP", "@P0 BRA `(.L_x_2)", "@P1 BRA `(.L_x_1)", "EXIT")
    inner, outer = (2, 3), (2, 4)

    def runs(times):
        return [(0, 3), inner, outer, *[(1, 3), inner, outer] * (times - 2), (1, 3), inner, (2, 5)]

    found = programs.way(nested, [runs(9), runs(8)])
    assert dict(found.items())[1, 0] == 8  # the last round belongs to what follows
    kernel = object.__new__(programs.Kernel)
    kernel.code = nested
    lengths = [len(places) for places in kernel.places(found)]
    assert lengths == [1 + 9 * 8 + 1, 1 + 8 * 8 + 1]
    few = found | {(1, 0): 4}
    assert [len(places) for places in kernel.places(few)] == [length - 4 * 8 for length in lengths]
    assert dict(few.items())[1, 0] == 4


TILING = {"N": 2, "H": 6, "W": 10, "run_rows": 4, "image_runs": 2, "runs": 3, "columns": 8, "column_tiles": 2}
TILING["row_tiles"] = 2


def planned(kernel, grid, **arguments):
    return Planned(kernel, "block_fwd", grid, arguments, 0, 2, 256, b"")


@pytest.mark.parametrize(
    ("launch", "dram", "l2"),
    [
        # Three tiles of rows by two of columns: x twice, statistics of 96 columns (three values, written and read).
        (
            planned("bn_relu_conv1x1_fwd_kernel", (6, 1, 1), M=300, C=64, K=96, partials={"tile_count": 3, "C": 96}),
            (300 * 64 + 300 * 96) * 2,
            (2 * 300 * 64 + 300 * 96 + 6 * 64 * 48) * 2 + 2 * 3 * 3 * 96 * 4,
        ),
        # The same by two blocks for each column: the weight is read once for each tile, statistics are left by two.
        (
            planned(
                "bn_relu_conv1x1_fwd_kernel",
                (4, 1, 1),
                M=300,
                C=64,
                K=96,
                tiles=3,
                splits=2,
                column_blocks=2,
                partials={"tile_count": 2, "C": 96},
            ),
            (300 * 64 + 300 * 96) * 2,
            (2 * 300 * 64 + 300 * 96 + 6 * 64 * 48) * 2 + 2 * 2 * 3 * 96 * 4,
        ),
        # Rows of the two images 0-3, 4-5 and 0-3 in the first tile, with neighbours 6 and 5; 3-5 in the second; columns
        # 0-8 and 7-9.
        (
            planned("bn_relu_conv3x3_wgrad_kernel", (2, 1, 1), tiling=TILING, C=32, G=16),
            2 * 6 * 10 * (32 + 16) * 2 + 2 * 9 * 16 * 32 * 4,
            ((6 + 5 + 3) * (9 + 3) * 32 + 2 * 6 * 10 * 16) * 2 + 2 * 9 * 16 * 32 * 4,
        ),
    ],
    ids=lambda value: value.kernel if isinstance(value, Planned) else "",
)
def test_bytes(launch, dram, l2):
    assert memory.moved(launch)[:2] == (dram, pytest.approx(l2, abs=2))


def why_no_machine_code():
    """For sm_90, of the kernels in the compiled library."""
    if (reason := backends.why_no_library()) is not None:
        return reason
    from densenet_fast import _C

    built = _C.build_facts().get("architectures", "").split()
    return None if {"9.0", "9.0+PTX"} & {*built} else "the compiled library has no machine code for sm_90"


@pytest.fixture(scope="module")
def step():
    """Of a small net whose images fill every tile."""
    if (reason := device.why_not() or why_no_machine_code()) is not None:
        pytest.skip(reason)
    return plans.step(device.ROOT, "bc-10-16", 32, 8, "bfloat16")


def launches(step, kernel):
    return [launch for launch in step.launches if launch.kernel == kernel]


PRODUCTS = {
    "bn_relu_conv1x1_fwd_kernel": lambda a: a["M"] * a["C"] * 64 * -(-a["K"] // 64),
    "bn_relu_conv3x3_wgrad_kernel": lambda a: 8 * a["tiling"]["H"] * a["tiling"]["W"] * a["C"] * a["G"] * 9,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_machine_code_multiplies_as_often_as_the_convolution(step, name):
    launch = launches(step, name)[0]
    kernel = NATIVE.kernel(step.variants[launch.variant])
    (found,) = NATIVE.programs(launch, kernel)
    instructions = kernel.code.instructions
    each = [sum(instructions[i].name.startswith("HMMA") for i in places) for places in kernel.places(found.trips)]
    done = found.number * kernel.warps * sum(each) / len(each) * 16 * 8 * 16
    assert done == PRODUCTS[name](launch.arguments)


def test_ways_are_those_of_all_instructions(step, monkeypatch):
    """Nothing that decides is left out."""
    first = {launch.kernel: launch for launch in step.launches}
    assert len(first) >= 12

    def ways():
        kernels = {name: NATIVE.kernel(step.variants[launch.variant]) for name, launch in first.items()}
        return {name: [kind[1:] for kind in NATIVE.programs(launch, kernels[name])] for name, launch in first.items()}

    expected = ways()
    monkeypatch.setattr(control, "needed", lambda code: {*range(len(code.instructions))})
    assert ways() == expected


def test_a_launch_takes_no_less_than_any_of_its_bounds(step):
    for line in model.lines(step, NATIVE):
        *each, programs_, time = line.bounds
        assert 0 < programs_ < time < 1e-2, line.kernel
        assert max(each[2:]) <= programs_ * 1.01, line.kernel


def test_of_a_switch_the_case_behind_the_jump_is_gone_through():
    table = 'BRX R8 -0x1a0 (*"BRANCH_TARGETS .L_x_1"*)'
    assert Control(code(table, "NOP", "EXIT", ".L_x_1:", "EXIT")).way(block(), [0]) == [[(0, 2)]]
