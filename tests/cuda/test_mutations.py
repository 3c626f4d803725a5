"""Faults sown into the kernels' sources: each must be found by the interpreter or show in a result."""

import re
import shutil
import subprocess
from functools import cached_property

import pytest
import torch

from tools.gpucheck import ptx
from tools.gpucheck.cuda.launches import stem

from ..native.cases import Geometry, error, run
from .cases import make
from .device import INCLUDE, ROOT

FWD, BWD, STATS = "bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd", "channel_stats"
GEOMETRY = {  # more tiles of k than stages, more rows than one tile, a part of a tile
    FWD: Geometry(2, 11, 7, 176, 128, 32),
    BWD: Geometry(2, 11, 7, 176, 128, 32),
    STATS: Geometry(2, 29, 23, 40, 16, 4),
}

FILES = {STATS: "batch_norm"}

# Operation, file, the text changed and what becomes of it.

MUTATIONS = {
    "a wait one group too short": (
        FWD,
        "bn_relu_conv1x1_fwd.cu",
        "cp_async_wait<Traits::kStages - 2>",
        "cp_async_wait<Traits::kStages - 1>",
    ),
    "no barrier before the products": (
        FWD,
        "bn_relu_conv1x1_fwd.cu",
        "cp_async_wait<Traits::kStages - 2>();\n    __syncthreads();",
        "cp_async_wait<Traits::kStages - 2>();",
    ),
    "a stage filled again too early": (
        FWD,
        "bn_relu_conv1x1_fwd.cu",
        "load(k_tile + Traits::kStages - 1);\n    cp_async_commit();\n    const",
        "load(k_tile + Traits::kStages);\n    cp_async_commit();\n    const",
    ),
    "rows past the end in the statistics": (
        FWD,
        "bn_relu_conv1x1_fwd.cu",
        "if (row0 + i * 16 + g + h * 8 < rows) sum",
        "sum",
    ),
    "a result overwritten before it is stored": (
        FWD,
        "bn_relu_conv1x1_fwd.cu",
        "  __syncthreads();\n  input_t* const z",
        "  input_t* const z",
    ),
    "two registers of an operand exchanged": (
        FWD,
        "mma.cuh",
        "first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];\n}\n// The same",
        "first[0] = r[0], first[1] = r[2], second[0] = r[1], second[1] = r[3];\n}\n// The same",
    ),
    "no fence before the ticket": (STATS, "common.cuh", "    __threadfence();\n    is_last", "    is_last"),
    "no barrier before the ticket": (
        STATS,
        "common.cuh",
        "  __syncthreads();\n  if (threadIdx.x == 0) {",
        "  if (threadIdx.x == 0) {",
    ),
    "a counter that is not left at zero": (
        STATS,
        "common.cuh",
        "atomicInc(counter, count - 1)",
        "atomicAdd(counter, 1u)",
    ),
    "products begun before all of dz is there": (
        BWD,
        "bn_relu_conv1x1_bwd.cu",
        "    __syncthreads();\n    if (tile + 1",
        "    if (tile + 1",
    ),
    "dweight begun before the activations are there": (
        BWD,
        "bn_relu_conv1x1_bwd.cu",
        "    __syncthreads();\n    if (p.dweight_partials",
        "    if (p.dweight_partials",
    ),
    "a wait for all but the tile needed": (
        BWD,
        "bn_relu_conv1x1_bwd.cu",
        "    cp_async_wait<0>();\n    if (p.z",
        "    cp_async_wait<1>();\n    if (p.z",
    ),
    "rows past the end with a gradient": (
        BWD,
        "bn_relu_conv1x1_bwd.cu",
        "const bool inside = r < left;",
        "const bool inside = true;",
    ),
    "an operand read untransposed": (BWD, "mma.cuh", "ldmatrix_x4_trans(raw, tile +", "ldmatrix_x4(raw, tile +"),
    "partials not all added": (
        BWD,
        "bn_relu_conv1x1_bwd.cu",
        "split < p.splits; split++",
        "split < p.splits - 1; split++",
    ),
}


def mutated(operation: str, file: str, old: str, new: str, folder) -> dict[str, "_Lazy"]:
    """The operation's kernels with the fault, by stem."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    source = folder / "csrc/cuda" / file
    text = source.read_text()
    assert text.count(old) == 1, f"{text.count(old)} places to change"
    source.write_text(text.replace(old, new))
    common = folder / "csrc/cuda/common.cuh"  # the faults are looked for in bf16: other kernels need no compiling
    common.write_text(re.sub(r"    (case Math::k(?!BFloat16)\w+|default): return.*\n", "", common.read_text()))
    kernels, out = folder / "csrc/cuda" / f"{FILES.get(operation, operation)}.cu", folder / "kernels.ptx"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-arch=compute_80", f"-I{INCLUDE}"]
    subprocess.run(["nvcc", *flags, "-ptx", kernels, "-o", out], check=True)
    return {stem(name): _Lazy(out.read_text(), name) for name in ptx.entries(out.read_text())}


class _Lazy:
    """A kernel parsed when it is first asked for."""

    def __init__(self, text, name):
        self.text, self.name = text, name

    @cached_property
    def launch(self):
        return ptx.Launch(self.text, self.name)

    def __getattr__(self, name):
        return getattr(self.launch, name)


def caught(machine, eager, name) -> bool:
    case = make(name, GEOMETRY[name], torch.bfloat16)
    for i, argument in enumerate(case.args):  # corrections that show where they do not belong
        if isinstance(argument, torch.Tensor) and argument.dim() == 1 and i in (6, 7):
            argument.mul_(5)
    exact, _ = run(getattr(eager, name), case, torch.float64)
    theirs, _ = run(getattr(eager, name), case)
    try:
        ours, _ = run(getattr(machine.operations, name), case)
        machine.order = lambda n: reversed(range(n))
        again, _ = run(getattr(machine.operations, name), case)
    except (ptx.Fault, AssertionError):
        return True
    if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
        return True
    bounds = (2 * error(b, e) + torch.finfo(a.dtype).eps for a, b, e in zip(ours, theirs, exact, strict=True))
    return not all(error(a, e) <= bound for a, e, bound in zip(ours, exact, bounds, strict=True))


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_kernels_as_they_are_pass(machine, eager, name):
    assert not caught(machine, eager, name)


@pytest.mark.parametrize("fault", MUTATIONS)
def test_fault_is_caught(machine, eager, fault, tmp_path):
    operation, *change = MUTATIONS[fault]
    machine.replacement = mutated(operation, *change, tmp_path)
    assert caught(machine, eager, operation)


def test_stems_tell_kernels_apart(machine):
    stems = [stem(name) for name in machine.texts]
    assert len(set(stems)) == len(stems)
    assert not any(re.search("GLOBAL", s) for s in stems)
