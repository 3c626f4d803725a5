"""Running statistics, updated once per step, together, and only when the whole forward has succeeded.

Stages never touch a module's buffers: they report what each norm took from the batch. A `transaction` collects the
reports and writes them in one operation when it closes; if the forward fails, nothing has changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import backends


class _Update(NamedTuple):
    """One norm's report."""

    norm: nn.BatchNorm2d
    mean: Tensor
    var: Tensor
    size: int
    backend: str


class Transaction:
    """Reports of the norms that ran fused, and the former buffers of the norms that ran as plain modules."""

    def __init__(self, owner: nn.Module) -> None:
        self._owner = owner
        self._updates: list[_Update] = []
        self._former: list[tuple[Tensor, Tensor]] = []

    def covers(self, module: nn.Module) -> bool:
        """Whether `module` is called for the sake of the owner, not by a hook that runs another model."""
        return any(module is part for part in self._owner.modules())

    def report(self, norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int, backend: str) -> None:
        """Batch `mean` and biased `var` [C] over `count` values, to be written by `backend`.

        Dropped if the norm does not track them in its present mode.

        Raises:
            ValueError: the norm is one of another number of channels, which no weight of it has told before.
        """
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            if norm.running_mean.shape != mean.shape:
                raise ValueError(
                    f"wrong number of channels: got {mean.shape[0]} at a BatchNorm2d, expected {norm.num_features}"
                )
            self._updates.append(_Update(norm, mean, var, count, backend))

    def guard(self, module: nn.Module) -> None:
        """Write what was reported so far, which `module`, about to be called, may read, and remember its own running
        statistics, to restore them on failure."""
        self.write()
        for norm in module.modules():
            if norm.training and isinstance(norm, nn.modules.batchnorm._NormBase):
                self._remember(norm)

    def write(self) -> None:
        """Write what was reported so far, before somebody looks; restored on failure."""
        for update in self._updates:
            self._remember(update.norm)
        self._write_in_order(self._updates)
        self._updates = []

    def _remember(self, norm: nn.Module) -> None:
        self._former += [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]

    def roll_back(self) -> None:
        with torch.no_grad():
            for buffer, former in reversed(self._former):
                buffer.copy_(former)

    def commit(self) -> None:
        """Write all reports."""
        self._write_in_order(self._updates)

    @staticmethod
    @torch.no_grad()
    def _write_in_order(pending: list[_Update]) -> None:
        """A norm that reported more than once is updated in that order."""
        while pending:
            first_of_each: list[_Update] = []
            again: list[_Update] = []
            seen = set()
            for update in pending:
                (again if id(update.norm) in seen else first_of_each).append(update)
                seen.add(id(update.norm))
            for backend in dict.fromkeys(update.backend for update in first_of_each):
                _write(backend, [update for update in first_of_each if update.backend == backend])
            pending = again


def _write(backend: str, updates: list[_Update]) -> None:
    """Write the reports of different norms."""
    buffers = [u.norm._buffers for u in updates]  # found ten times as fast as attributes
    moving = [(u, b) for u, b in zip(updates, buffers, strict=True) if u.norm.momentum is not None]
    if moving:
        ops = backends.operations(backend, updates[0].mean.device, updates[0].mean.dtype)
        ops.update_running_stats(
            [b["running_mean"] for _, b in moving],
            [b["running_var"] for _, b in moving],
            [u.mean for u, _ in moving],
            [u.var for u, _ in moving],
            [u.size for u, _ in moving],
            [u.norm.momentum for u, _ in moving],
        )
    counters = [n for b in buffers if (n := b["num_batches_tracked"]) is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    for update in updates:
        if update.norm.momentum is None:
            _average(update)


def _average(update: _Update) -> None:
    """momentum=None: the running statistics are the average over all batches, whose number is on the device."""
    norm, mean, var, size, _ = update
    assert norm.num_batches_tracked is not None, "eligibility.why_not_norm lets no such norm run fused"
    weight = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    for running, batch in ((norm.running_mean, mean), (norm.running_var, var * (size / (size - 1)))):
        assert running is not None, "`report` drops what is not tracked"
        running.data.copy_(torch.lerp(running.to(batch.dtype), batch, weight))


_current: ContextVar[Transaction | None] = ContextVar("running statistics", default=None)


@contextmanager
def transaction(module: nn.Module) -> Iterator[Transaction]:
    """The enclosing transaction if `module` is a part of its owner; else a new one, owned by `module`, that commits at
    the end and rolls back on an exception."""
    outer = _current.get()
    if outer is not None and outer.covers(module):
        yield outer
        outer.write()  # hooks on `module` come next
        return
    new = Transaction(module)
    token = _current.set(new)
    try:
        yield new
        new.commit()
    except BaseException:
        new.roll_back()
        raise
    finally:
        _current.reset(token)
