"""What compiles beside the first checks, on half the cores: all variants of Triton's kernels, and torch.compile's net.

The variants are those that the checks and the nets launch, planned on the meta device for the card's architecture, so
nothing here touches the GPU. They end up in Triton's cache on disk, where every later process finds them.
"""

import os
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS
from tests.calls import Geometry, make

from . import blocks, smoke, speed
from .children import Lost
from .runner import Run
from .settings import Settings

FEW = 2  # launches whose variants a rehearsal compiles


def background(run: Run, peers: bool) -> None:
    """Begin both, or without `peers` the variants alone, and go on."""
    if find_spec("triton") is None:
        run.journal.line("variants", verdict="not run", why="triton is not installed")
    else:
        # Before CUDA is known the rehearsal plans for what this is meant for, an H200.
        card = run.facts.get("machine", {})
        device = card.get("architecture", 90), card.get("processors", 132)
        run.facts["variants"] = run.child("triton variants", lambda pipe: compile_variants(pipe, run.settings, device))
    if peers:
        speed.begin_compiling(run)


def hear_of_variants(run: Run) -> None:
    """What has become of Triton's variants."""
    child = run.facts.pop("variants", None)
    if child is not None:
        try:
            facts = child.receive(run.until)
        except Lost as lost:
            late = lost.verdict == "hung"
            facts = {"verdict": "not run" if late else "dead", "why": "not compiled in time" if late else lost.why}
        finally:
            run.end(child)
        run.journal.line("variants", **facts)


def compile_variants(pipe: Connection, settings: Settings, device: tuple[int, int]) -> None:
    """In a child: compile every variant in a pool of processes."""
    from densenet_fast.backends.triton.precompile import compile_all

    begun = time.monotonic()
    launches = launches_of(settings, device)
    if not settings.on_gpu:
        launches = launches[:FEW]
    outcomes = compile_all(launches, device[0], processes=max(1, (os.cpu_count() or 2) // 2))
    wrong = [f"{variant.kernel}: {why.partition(chr(10))[0]}" for variant, why in outcomes.items() if why]
    facts = {"count": len(outcomes), "seconds": round(time.monotonic() - begun, 1)}
    if wrong:
        pipe.send({"verdict": "failed", "error": f"{len(wrong)} of {len(outcomes)}: {wrong[0]}", **facts})
    else:
        pipe.send({"verdict": "right", **facts})


def launches_of(settings: Settings, device: tuple[int, int]) -> list[Any]:
    """Those of a step and an inference of each net, of the blocks that are checked, and of the other checks; their last
    ones first, for they themselves compile what they meet until then."""
    from densenet_fast.backends import triton
    from densenet_fast.backends.triton.launch import Device, recorded

    from ..planned import planned

    card = Device(*device)
    nets = ((settings.model, settings.image, settings.large), *settings.checked)
    launches = [launch for net in nets for launch in planned(*net, torch.bfloat16, card)]
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # as the checks have it
    meta, functions = torch.device("meta"), SimpleNamespace(**{name: getattr(triton, name) for name in DECLARATIONS})
    # Operators have fakes that launch nothing; the functions behind them plan.
    with recorded(card) as of_blocks, patch.object(backends, "operations", lambda *_: functions):
        for case in blocks.cases(settings._replace(device=torch.device("cuda")), "triton"):
            blocks.step(meta, "triton", case["shape"], getattr(torch, case["dtype"]), case.get("option"))
    with recorded(card) as checks, torch.no_grad(), meta:
        for operation in reversed(smoke.NAMES[1:]):
            for case in smoke.cases(settings._replace(device=torch.device("cuda")), "triton", operation):
                options = next((o for o in smoke.OPTIONS.get(operation, ()) if case.get("option") in o), {})
                make(operation, Geometry(*case["shape"]), getattr(torch, case["dtype"]), **options).on(triton)
    return launches + of_blocks + checks
