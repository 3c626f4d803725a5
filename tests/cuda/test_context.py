"""csrc's own context and launches, whole (device guard, stream, workspace, attributes of launches), on a stub of the
CUDA runtime: each launch of a training step is the one that the PTX machine runs. Nothing is computed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from densenet_fast import backends

from .device import CXX, NVCC, ROOT, TORCH
from .launches import H200
from .step import training_step

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no CUDA")
FAULTS = {  # a file, the text changed and what becomes of it
    "a stream of another device": ("cuda_context.cpp", "cuda_stream(check.device().index(), ", "cuda_stream(0, "),
    "a workspace of another device": (
        "cuda_context.cpp",
        "workspace(check.device())",
        "workspace({check.device().type(), 0})",
    ),
    "no device guard": ("cuda_context.cpp", "guard(check.device().index())", "guard(0)"),
    "the device asked for at each call": ("cuda/device.cu", "d.multiprocessors == 0", "true"),
    "shared memory not asked for": ("cuda/device.cu", "dynamic_bytes <= allowed[at]", "dynamic_bytes > 0"),
    "shared memory asked for at each launch": ("cuda/device.cu", "  allowed[at] = dynamic_bytes;\n", ""),
    "static shared memory not counted": ("cuda/device.cu", " - static_cast<int>(attributes.sharedSizeBytes)", ""),
    "one allowance for all devices": ("cuda/device.cu", "make_pair(kernel, device.index)", "make_pair(kernel, 0)"),
}


def on_stub(folder: Path, library: Path, facts: dict):
    """What `tests.cuda.on_stub` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.on_stub", str(library)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(folder / "libcuda.so.1")},
        input=json.dumps(facts),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Plan(NamedTuple):
    """The launches of a step on the PTX machine, and what a driver knows of their kernels."""

    folder: Path  # of the machine's libraries
    launches: list[dict]
    facts: dict


@pytest.fixture(scope="module")
def planned(_machine):
    _machine.reset()
    _machine.device = H200
    _machine.set(tf32=False)
    _machine.set_idle(True)
    _machine.noting = True
    torch.use_deterministic_algorithms(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "operations", lambda *_: _machine.operations)
        training_step(_machine.operations, torch.device("cpu"))()
    launches = [
        {"kernel": run.kernel, "launch": [*run.grid, *run.block, run.shared], "parameters": parameters}
        for run, parameters in zip(_machine.launches, _machine.parameters, strict=True)
    ]
    facts = {run.kernel: _machine.facts(run.kernel) for run in _machine.launches}
    _machine.reset()
    return Plan(_machine.folder, launches, facts)


def broken(found: dict, launches: list[dict]) -> list[str]:
    """What does not hold of a step on the stub."""
    if "refused" in found:
        return [found["refused"]]
    calls = {step: [c for c in found[step] if isinstance(c, str)] for step in ("first", "second", "side", "other")}
    seen = {step: [c for c in found[step] if not isinstance(c, str)] for step in (*calls, "thread")}
    asked = [calls[step].count("cudaFuncSetAttribute") for step in ("first", "other")]
    holds = {
        **{f"{step}: its launches": [{k: c[k] for k in launches[0]} for c in seen[step]] == launches for step in calls},
        "nothing but launches on the second step": set(calls["second"]) <= {"copy on the device"},
        "no second request for shared memory": "cudaFuncSetAttribute" not in calls["side"],
        "shared memory is asked for on each device": asked[0] == asked[1] > 0,
        "the current stream": {c["stream"] for c in seen["side"]} == {found["stream"]},
        "the default stream": {c["stream"] for step in ("first", "other", "thread") for c in seen[step]} == {0},
        "the device of the tensors": all(
            {c["device"] for c in seen[step]} == {device} and all(c["memory"] == [device] for c in seen[step])
            for step, device in (("first", 0), ("second", 0), ("side", 0), ("other", 1), ("thread", 1))
        ),
        "the current device afterwards": found["current"] == 0,
        "a launch that fails is one sentence": found["failed"] == "densenet_fast: CUDA: refused by the stub",
        "no error is left behind": found["after"] == "",
        "the built library ends at the driver": found.get("built", "densenet_fast: CUDA: ").startswith(
            "densenet_fast: CUDA: "
        ),
    }
    return [what for what, it_does in holds.items() if not it_does]


def test_a_training_step_on_the_runtime(planned):
    assert len(planned.launches) > 50
    assert max(run["launch"][-1] for run in planned.launches) > 48 * 1024
    assert broken(on_stub(planned.folder, planned.folder / "context.so", planned.facts), planned.launches) == []


def test_a_pytorch_without_the_stream_is_told(planned):
    told = on_stub(planned.folder, planned.folder / "alone.so", planned.facts)["refused"]
    assert told.startswith("densenet_fast: CUDA: the PyTorch that is loaded lacks aoti_torch_get_current_cuda_stream")


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(planned, fault, tmp_path):
    file, old, new = FAULTS[fault]
    text = (ROOT / "csrc" / file).read_text()
    assert text.count(old) == 1, f"{text.count(old)} places to change"
    source, library = tmp_path / Path(file).name, tmp_path / "context.so"
    source.write_text(text.replace(old, new))
    compiler, replaced = (NVCC, "device.cu.o") if file.endswith(".cu") else (CXX, "context.o")
    objects = [
        o for o in planned.folder.glob("*.o") if o.name not in (replaced, "launches.o", "operands.o", "runtime.o")
    ]
    compile_it = f"{compiler} -I{ROOT / 'csrc/cuda'} -c {source} -o {source}.o"
    subprocess.run(shlex.split(compile_it), cwd=planned.folder, check=True)
    subprocess.run(["c++", "-shared", *objects, f"{source}.o", *shlex.split(TORCH), "-o", library], check=True)
    assert broken(on_stub(planned.folder, library, planned.facts), planned.launches) != []
