"""csrc's own context and launches, whole (device guard, stream, workspace, attributes of launches), on a stub of the
CUDA runtime: each launch of a training step is the one that the PTX machine runs. Nothing is computed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from densenet_fast import backends

from .device import ROOT
from .launches import H200
from .step import training_step

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch has no CUDA")


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
