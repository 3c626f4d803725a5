"""The largest batch that a training step of the net fits into 24 GB, weights and gradients included.

From the peaks at two batches, which lie on a line; on a GPU that size is then tried, under a limit of 24 GB, and made
smaller until it runs. (What a step keeps and its peak at one batch stand beside its time.)
"""

import pytest
import torch

from .compare import Step, Workload, build, weigh
from .results import Record
from .subjects import net
from .variants import BY_NAME, VARIANTS

CAPACITY = 24e9  # bytes


@pytest.mark.peers(*(v.name for v in VARIANTS if v.compile is None and not v.graph))
def test_largest_batch(book, settings, variant: str) -> None:
    chosen = BY_NAME[variant]
    subject = net(settings.model, settings.image)
    missing = chosen.why_not(subject, settings.device, settings.dtype)
    record: Record = {
        "case": subject.name,
        "phase": "largest batch",
        "variant": variant,
        "label": chosen.label,
        "family": chosen.family,
        "missing": missing,
        "error": None,
    }
    book.group("largest-batch")["records"].append(record)
    if missing is not None:
        pytest.skip(missing)
    batches = max(1, settings.batch // 4), max(2, settings.batch // 2)
    works = [settings.workload(subject, True, batch) for batch in batches]
    steps = [build(chosen, work) for work in works]
    low, high = (weigh(step).peak for step in steps)
    each = (high - low) / (batches[1] - batches[0])
    if each <= 0:
        record["error"] = f"a peak of {low} bytes at batch {batches[0]} and {high} at {batches[1]}: too small to tell"
        pytest.fail(record["error"], pytrace=False)
    weights = sum(p.numel() * p.element_size() for p in steps[0].module.parameters())
    most = int((CAPACITY - weights - low + each * batches[0]) / each)
    if settings.device.type == "cuda":
        del steps
        most = _largest_that_runs(most, works[0], variant)
    record["largest"] = most


def _largest_that_runs(batch: int, workload: Workload, variant: str) -> int:
    total = torch.cuda.get_device_properties(workload.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAPACITY / total), workload.device)
    try:
        while batch and not _runs(build(BY_NAME[variant], workload._replace(batch=batch))):
            batch = batch * 19 // 20
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, workload.device)
    return batch


def _runs(step: Step) -> bool:
    try:
        step()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        step.forget_gradients()
        torch.cuda.empty_cache()
    return True
