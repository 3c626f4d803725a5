"""Every operation of the contract, all its calls in one step of the net, by backend, against bytes and arithmetic."""

from functools import cache

import pytest

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS

from . import operations
from .results import Book
from .rounds import take_turns
from .subjects import net

NAMES = [name for name in DECLARATIONS if name != "update_running_stats"]


@pytest.mark.parametrize("backend", backends.PREFERENCE)
@pytest.mark.parametrize("operation", NAMES)
def test_operation(show, book: Book, settings, operation: str, backend: str) -> None:
    measure_all(book, settings)
    record = next(
        (r for r in book.group("operation")["records"] if (r["case"], r["variant"]) == (operation, backend)), None
    )
    if record is None:
        pytest.skip("this net does not call it")
    show(f"operation: {operation}", record["seconds"], record["missing"], record["error"])


@cache
def measure_all(book: Book, settings) -> None:
    """Every operation by every backend, in turns."""
    device, dtype = settings.device, settings.dtype
    subject = net(settings.model, settings.image)
    of_inference, of_training = (operations.record(settings.workload(subject, training)) for training in (False, True))
    calls = of_inference | of_training
    group = book.group("operation")
    group["ceilings"] = {
        "copy_bytes_per_s": operations.copy_bandwidth(device),
        "matmul_flops_per_s": operations.matmul_rate(device, dtype),
    }
    runners = {}
    for operation in (name for name in NAMES if name in calls):
        cost = operations.total(calls[operation])
        for backend in backends.PREFERENCE:
            missing, error, check = backends.why_unavailable(backend, device, dtype), None, {}
            if missing is None:
                try:
                    check = {"results": operations.check(calls[operation], operation, backend, device, dtype)}
                    off, limit = check["results"]
                    error = None if off <= limit else f"errs by {off:.1e}, allowed {limit:.1e}"
                except Exception as failure:
                    error = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            record = {
                "case": operation,
                "phase": "operation",
                "variant": backend,
                "label": f"densenet_fast {backend}",
                "family": "ours",
                "batch": settings.batch,
                "calls": len(calls[operation]),
                "bytes": cost.bytes,
                "flops": cost.flops,
                "seconds": [],
                "check": check,
                "missing": missing,
                "error": error,
            }
            group["records"].append(record)
            if missing is None and error is None:
                runners[operation, backend] = operations.runner(calls[operation], operation, backend, device, dtype)
    turns = take_turns(runners, settings.effort.rounds, settings.effort.seconds)
    for record in group["records"]:
        key = record["case"], record["variant"]
        if key in turns.seconds:
            record["seconds"] = turns.seconds[key]["operation"]
            record |= {"dropped": turns.dropped, "others": round(turns.others, 3)}
