"""csrc's own context and launches on the stub runtime, which must be preloaded: `python -m tests.cuda.on_stub LIBRARY`,
run as a process of its own. Reads what is known of each kernel, and prints what the runtime saw, as JSON."""

import json
import os
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import torch

from densenet_fast import backends
from densenet_fast.backends import operations as operations_of  # of every backend
from tools.gpucheck.cuda.runtime import Runtime

from ..calls import Geometry, make
from .device import define
from .step import training_step

HERE, OTHER = torch.device("cuda:0"), torch.device("cuda:1")


def refused(run: Callable[[], None]) -> str:
    try:
        run()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def channel_stats(operations: SimpleNamespace, device: torch.device) -> Callable[[], None]:
    call = make("channel_stats", Geometry(2, 5, 7, 24, 16, 4), torch.bfloat16).copy(device=device)
    return lambda: call.on(operations)


def in_a_thread(run: Callable[[], None]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def everything(operations: SimpleNamespace, runtime: Runtime) -> dict:
    found, seen = {}, runtime.seen
    backends.operations = lambda *_: operations
    step = training_step(operations, HERE)
    found["first"], found["second"] = seen(step), seen(step)
    stream = torch.cuda.Stream(HERE)
    with torch.cuda.stream(stream):
        found["side"], found["stream"] = seen(step), stream.cuda_stream
        found["other"] = seen(training_step(operations, OTHER))
        found["current"] = torch.cuda.current_device()
    stats = channel_stats(operations, OTHER)
    found["thread"] = seen(lambda: in_a_thread(stats))
    runtime.fail_launches(True)
    found["failed"] = refused(stats)
    runtime.fail_launches(False)
    found["after"] = refused(stats)
    if backends.why_unavailable("native", HERE) is None:
        found["built"] = refused(channel_stats(operations_of("native", HERE), HERE))
    return found


def main(library: str) -> None:
    runtime = Runtime(json.load(sys.stdin))
    _schemas, operations = define()
    torch.ops.load_library(library)
    try:
        found = everything(operations, runtime)
    except RuntimeError as error:
        found = {"refused": str(error).partition("\n")[0]}
    print(json.dumps(found), flush=True)
    os._exit(0)  # PyTorch's own end would ask the runtime for more than the stub has


if __name__ == "__main__":
    main(sys.argv[1])
