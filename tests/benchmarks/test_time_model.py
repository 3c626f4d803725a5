"""The model of the time of Triton's kernels: bytes counted by hand, machine code written by hand, and what a GPU would
have measured."""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import results
from benchmarks.planned import training
from benchmarks.time_model import device, machine_code, measured, memory, model, multiprocessor, programs, recorded
from benchmarks.time_model.__main__ import table
from benchmarks.time_model.machine_code import Loop
from benchmarks.time_model.model import Bounds, Line
from benchmarks.time_model.plans import Compiled, Operand, Planned, Step, operands
from densenet_fast.backends.triton.launch import whole
from densenet_fast.backends.triton.precompile import Variant
from tools.gpucheck.triton.compiler import Compiler

HALF, LATENCY = Operand((1,), 2), multiprocessor.Latency(700, 700)


def launch(kernel, grid, **arguments):
    return Planned(f"{kernel}_kernel", "block_fwd", grid, arguments, 0)


# 300 pixels of 64 channels, 96 of the 128 outputs of a tile; three tiles of 128 pixels.
CONV1X1 = launch("bn_relu_conv1x1_fwd", (3, 1, 1), x=HALF, z=HALF, weight=HALF, M=300, C=64, K=96, BLOCK_K=128)
CONV1X1.arguments.update(BLOCK_C=32, BLOCK_M=128)
# Two images of 4x4, of which windows see 7.25 times as many values; 8 channels, two programs. And as it is today: three
# times as many, in two parts twice that.
OLD_STEM = launch("stem_bwd", (1, 2, 1), x=HALF, dy=HALF, dx=HALF, M=8, H=4, W=4, P=2, Q=2, C=8, BLOCK_M=4)
STEM = launch("stem_bwd", (1, 1, 2), x=HALF, dy=HALF, dx=HALF, columns=4, depth=2, count=32, P=2, C=8)
# 1000 values of a weight added up out of nine parts, by two programs behind which four correct 40 pixels.
CORRECT = launch("bn_relu_conv3x3_correct", (6, 1, 1), dy=HALF, y=HALF, d=HALF, M=40, G=24, D=32)
CORRECT.arguments.update(weights=HALF, dweight=HALF, splits=9, weight_stride=1000)


@pytest.mark.parametrize(
    ("case", "dram", "l2", "new"),
    [
        # x, the last pixel again to the tiles' end, and z; for each program a slab of the weight, 64 x 128; mean and
        # squares of 96 outputs in float32.
        (CONV1X1, (300 * 64 + 300 * 96) * 2, (384 * 64 + 300 * 96 + 3 * 64 * 128) * 2 + 3 * 96 * 2 * 4, 300 / 384),
        (OLD_STEM, 576 * 2, (256 * 29 // 4 + 64 * 9 + 256) * 2 + 2 * 8 * 2 * 4, 320 / (256 * 29 / 4 + 64 * 9)),
        (STEM, 576 * 2, (256 * 6 + 64 * 4 + 256) * 2 + 2 * 8 * 2 * 4, 320 / (256 * 6 + 64 * 4)),
        (CORRECT, 40 * (24 + 24 + 32) * 2, 40 * (24 + 24 + 32) * 2 + 9 * 1000 * 4, 1),
    ],
    ids=lambda case: case.kernel if isinstance(case, Planned) else "",
)
def test_bytes(case, dram, l2, new):
    assert memory.moved(case) == (dram, l2, pytest.approx(new))


def test_what_programs_share_but_far_apart_comes_from_memory_again():
    grid = (200, 2, 1)  # programs of both halves of the outputs, 200 launched between them
    far = CONV1X1._replace(grid=grid, arguments={**CONV1X1.arguments, "M": 200 * 128})
    assert memory.moved(far).dram == 200 * 128 * (2 * 64 + 96) * 2


SASS = """
.L_x_1:
        /*0000*/  @P0 BRA `(.L_x_3) ;  /* 0x0000000000000000 */
                                       /* 0x000fea0003800000 */
.L_x_2:
        /*0010*/  LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000000000000 */
                                       /* 0x000ea2000c1e1d00 */
        /*0020*/  FADD R0, R0, R4 ;  /* 0x0000000000000000 */
                                       /* 0x004fc80000000000 */
        /*0030*/  @!P1 BRA `(.L_x_2) ;  /* 0x0000000000000000 */
                                       /* 0x000fea000383ffff */
.L_x_3:
        /*0040*/  @P2 BRA `(.L_x_5) ;  /* 0x0000000000000000 */
                                       /* 0x000fea0003800000 */
.L_x_4:
        /*0050*/  FMUL R0, R0, R4 ;  /* 0x0000000000000000 */
                                       /* 0x000fc80000000000 */
        /*0060*/  @P3 BRA `(.L_x_4) ;  /* 0x0000000000000000 */
                                       /* 0x000fea000383ffff */
.L_x_5:
        /*0070*/  EXIT ;  /* 0x0000000000000000 */
                                       /* 0x000fea0003800000 */
.L_x_6:
        /*0080*/  BRA `(.L_x_6);  /* 0x0000000000000000 */
                                       /* 0x000fc0000383ffff */
"""


def test_machine_code():
    code = machine_code.parse(SASS)
    assert [i.name for i in code.instructions] == [
        "BRA",
        "LDG.E.128",
        "FADD",
        "BRA",
        "BRA",
        "FMUL",
        "BRA",
        "EXIT",
        "BRA",
    ]
    assert code.loops == [Loop(1, 3), Loop(5, 6)]
    _, load, add, *_ = code.instructions
    assert (load.stall, load.written, load.read, load.waits) == (1, 2, 7, 0)
    assert (add.stall, add.written, add.waits) == (4, 7, 0b100)  # for the load


def test_a_program_goes_through_its_loops_and_past_those_of_others():
    code = machine_code.parse(SASS)
    first, second = code.loops
    assert machine_code.trace(code, {first: 3}) == [0, *[1, 2, 3] * 3, 4, 7]
    assert machine_code.trace(code, {second: 2}) == [0, 4, 5, 6, 5, 6, 7]
    assert machine_code.trace(code, {first: 1, second: 1}) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_program_takes_the_branch_to_its_loop():
    """Of the two kinds of programs of one kernel, neither executes what the other does."""
    code = machine_code.parse(SASS)
    last = code.instructions[7]
    both = [code.instructions[0]._replace(target=3), code.instructions[2], last, *code.instructions[1:4], last]
    both[5] = both[5]._replace(target=3)
    loop = Loop(3, 5)
    kinds = machine_code.Code(both, [loop])
    assert machine_code.trace(kinds, {loop: 2}) == [0, 3, 4, 5, 3, 4, 5, 6]
    assert machine_code.trace(kinds, {}) == [0, 1, 2]


def instruction(text, stall=1, written=7, waits=0):
    return machine_code.Instruction(text, False, stall, written, 7, waits)


def cycles(code, programs=1, warps=1, resident=1):
    operations = [multiprocessor.operation(i, LATENCY) for i in code]
    return multiprocessor.cycles([[operations] * warps] * programs, resident)


def test_waves_and_their_tail():
    """Ten cycles each, in which two wait together but for the cycle of the other; a third takes as long again."""
    code = [instruction("NOP", stall=9), instruction("EXIT")]
    assert [cycles(code, n, resident=2) for n in (1, 2, 3, 4, 5)] == [10, 11, 21, 22, 32]


def test_a_load_is_waited_for_where_the_code_waits():
    load, use = instruction("LDG.E R4", written=2), instruction("FADD R0", waits=0b100)
    one = device.SCHEDULERS + LATENCY.load + 1
    assert cycles([load, use]) == one
    assert cycles([load, *[instruction("NOP")] * 100, use]) == one
    assert cycles([load, use, load, use]) == 2 * one
    assert cycles([load, use, load, use], programs=2, resident=2) < 2 * one + 20  # hidden behind the other's


def test_copies_and_products_run_meanwhile():
    copy, closed, landed = (instruction(t) for t in ("LDGSTS.E.128 [R3]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x1"))
    assert cycles([copy, closed, landed]) < 20
    assert cycles([copy, closed, copy, closed, landed]) > LATENCY.copy
    product, done = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", instruction("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    work = [instruction("FADD R0")] * 60
    apart = cycles([instruction(product), done, *work])
    assert apart == 64 + device.PRODUCT_LATENCY + 1 + 60  # 64 x 128 x 16 on a fourth of 4096 a cycle
    assert cycles([instruction(product), *work, done]) == apart - 60
    assert cycles([instruction(product)] * 4 + [done]) == 4 * 64 + device.PRODUCT_LATENCY + 1


def test_warps_wait_for_each_other():
    code = [instruction("MUFU.RSQ R0", written=0), instruction("BAR.SYNC 0x0", waits=1), instruction("EXIT")]
    behind = device.SPECIAL + device.SPECIAL + device.SPECIAL_LATENCY  # the other warp's function goes first
    assert cycles(code, warps=2) == behind + device.BARRIER_LATENCY + 2


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "fit"),
    [(181, 8, 101376, 1), (128, 8, 0, 2), (129, 8, 0, 1), (168, 4, 0, 3), (32, 4, 75 << 10, 3), (16, 1, 0, 32)],
)
def test_programs_that_fit(registers, warps, shared, fit):
    assert model.resident(registers, warps, shared) == fit


def test_programs_of_a_launch():
    code = machine_code.parse(SASS)
    (conv,) = programs.programs(CONV1X1, code._replace(loops=code.loops[:1]))
    assert conv == (3, {code.loops[0]: 2}, None)
    (unrolled,) = programs.programs(CONV1X1, code._replace(loops=[]))
    assert unrolled == (3, {}, None)
    adding, correcting = programs.programs(CORRECT, code._replace(loops=code.loops[:1]))
    assert adding == (2, {code.loops[0]: 2}, None)
    assert correcting == (4, {}, None)
    with pytest.raises(ValueError, match="got 2 loops, expected 1"):
        programs.programs(CONV1X1, code)
    with pytest.raises(ValueError, match="nothing is known of its loops"):
        programs.programs(launch("new", (1, 1, 1)), code)


def test_long_loops_and_many_programs_are_extrapolated():
    """Everything takes as long each time: what is not simulated is exact."""
    kernel = object.__new__(model.Kernel)
    kernel.code, kernel.warps, kernel.registers, kernel.shared, kernel._cycles = machine_code.parse(SASS), 4, 255, 0, {}
    assert kernel.resident == 2
    (loop, _), operations = kernel.code.loops, kernel.operations
    for trips, number in (({loop: 50}, 1), ({loop: 3}, 40), ({loop: 20}, 31)):
        exact = multiprocessor.cycles([operations(trips, LATENCY)] * number, kernel.resident)
        assert kernel.cycles([(trips, number)], LATENCY) == pytest.approx(exact, rel=1e-3)


@pytest.fixture(scope="module")
def compiled():
    """A launch of each in DenseNet-121's first block, with its machine code."""
    compiler = Compiler()
    found = {}
    for operation, made in recorded.training("densenet121", 224, 8, torch.bfloat16):
        name = made.kernel.fn.__name__
        if name in PRODUCTS and name not in found and made.arguments.get("H", 56) == 56:
            planned = Planned(name, operation, whole(made.grid), operands(recorded.plain(made.arguments)), 0)
            found[name] = planned, Variant.of(made, 90)
    yield {
        name: Step([launch], [Compiled(code.cubin, code.shared, variant.num_warps)])
        for name, (launch, variant) in found.items()
        for code in [compiler.compile(variant)]
    }
    compiler.close()


# Multiplications for each pixel; the input gradient's reduced axis is filled up to 5 x 64.
PRODUCTS = {
    "bn_relu_conv1x1_fwd_kernel": 64 * 128,
    "bn_relu_conv3x3_fwd_kernel": 9 * 128 * 32,
    "bn_relu_conv3x3_dgrad_kernel": 5 * 64 * 128,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_machine_code_multiplies_as_often_as_the_convolution(compiled, name):
    step = compiled[name]
    (launch,), kernel = step.launches, model.Kernel(step.variants[0])
    *_, own = programs.programs(launch, kernel.code)
    each = kernel.work(own.trips).tensor * device.TENSOR_MACS * kernel.warps
    assert own.number * each == 8 * 56 * 56 * PRODUCTS[name]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_launch_takes_no_less_than_any_of_its_bounds(compiled, name):
    (found,) = model.lines(compiled[name])
    *each, programs_, time = found.bounds
    assert (found.launches, list(found.by_operation.values())) == (1, [time])
    assert 0 < max(each) < programs_ < time < 1e-3


def line(kernel, time, **by_operation):
    return Line(kernel, 1, Bounds(0, 0, 0, 0, 0, time, time), 1, 1, by_operation)


LINES = [line("conv", 0.004, block_fwd=0.003, block_bwd=0.001), line("head", 0.001, head_fwd=0.001)]
SETTINGS = {"model": "densenet121", "image": 224, "batch": 256, "dtype": "bfloat16"}


@pytest.fixture
def measurement(tmp_path):
    """Files as a GPU's benchmark writes them: the forward took twice as long as modelled, the backward half."""

    def save(date, seconds, **facts):
        machine = {"model": f"Card of {date}", "device": "cuda", "date": date, "commit": "abc", "threads": 1} | facts
        book = results.Book(tmp_path, machine, "densenet121-224-256-bfloat16", SETTINGS | {"rounds": 3})
        for case, variant, each in seconds:
            book.group("operation")["records"].append({"case": case, "variant": variant, "seconds": each})
        book.save()

    save("2026-12-02", [("block_fwd", "triton", [0.005, 0.006, 0.09]), ("block_fwd", "native", [1.0])])
    save("2026-12-01", [("block_fwd", "triton", [7.0])])
    save("2026-12-03", [("block_fwd", "triton", [7.0])], device="cpu")
    save("2026-12-04", [("block_fwd", "triton", [])])
    return tmp_path


def test_what_a_gpu_has_measured_corrects_the_model(measurement):
    found = measured.find(SETTINGS, "triton", measurement)
    assert found == ("Card of 2026-12-02, 2026-12-02, commit abc", {"block_fwd": 0.006})
    correction = measured.correct(found, LINES)
    assert correction.factors == {"block_fwd": pytest.approx(2)}
    assert [correction.corrected(line) for line in LINES] == pytest.approx([0.007, 0.001])
    *_, last = table(LINES, None, correction).rows
    assert last[-2:] == ["1.60", "8.000"]
    assert measured.find(SETTINGS, "native", measurement).seconds == {"block_fwd": 1.0}
    assert measured.find(SETTINGS | {"batch": 32}, "triton", measurement) is None


def test_the_table_has_both_checkouts():
    made = table(LINES, [line("conv", 0.008), line("merge", 0.002)], None)
    assert [row[-2:] for row in made.rows] == [["8.000", "0.50"], ["-", "-"], ["2.000", "-"], ["10.000", "0.500"]]
    assert all(len(row) == len(made.header) for row in made.rows)


def test_the_launches_are_those_that_are_planned():
    def described(launches):
        return [(each.kernel.fn.__name__, each.grid, each.specialization, each.options) for each in launches]

    found = recorded.training("bc-10-4", 8, 2, torch.bfloat16)
    expected = training("bc-10-4", 8, 2, torch.bfloat16, recorded.H200)
    assert described(each for _, each in found) == described(expected)
    assert {operation for operation, _ in found} >= {"block_fwd", "block_bwd", "transition_bwd", "head_fwd"}
