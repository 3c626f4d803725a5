"""Running statistics, updated once per step, together, and only when the whole forward has succeeded.

Stages never touch a module's buffers: they report what each norm took from the batch. A `transaction` collects the
reports and writes them, one operation for each stage, when it closes; if the forward fails, nothing has changed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backends


class _Update(NamedTuple):
    """A stage's report: norm i took columns of `stats` [2, S] from begins[i] on, over `values` a channel; None if their
    variances are unbiased already."""

    norms: list[Any]  # BatchNorm2d or SyncBatchNorm
    stats: Tensor
    begins: list[int]
    values: int | None
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

    def report(
        self,
        norms: Sequence[Any],
        stats: Tensor,
        taken: Sequence[tuple[int, int] | None],
        count: int | None,
        backend: str,
    ) -> None:
        """What the norms of a stage took from the batch: columns of `stats` [2, S], mean and biased variance, over
        `count` values for each channel, or with `count` None the unbiased variance; to be written by `backend`.

        Dropped for a norm that does not track them in its present mode; one without running statistics is counted.

        Raises:
            ValueError: a norm is one of another number of channels, which no weight of it has told before.
            RuntimeError: its running statistics are on another device.
        """
        moving: list[Any] = []
        begins: list[int] = []
        for norm, columns in zip(norms, taken, strict=True):
            if columns is None or not (norm.training and norm.track_running_stats):
                continue
            buffers, (begin, end) = norm._buffers, columns  # found ten times as fast as attributes
            for each in (buffers["running_mean"], buffers["running_var"]):
                if each is None:
                    continue
                if each.shape[0] != end - begin:
                    raise ValueError(
                        f"wrong number of channels: got {end - begin} at a BatchNorm2d, expected {norm.num_features}"
                    )
                if each.device != stats.device:
                    raise RuntimeError(
                        f"wrong device: got running statistics on {each.device}, expected {stats.device}, where the "
                        "activations are"
                    )
            moving.append(norm)
            begins.append(begin)
        if moving:
            self._updates.append(_Update(moving, stats, begins, count, backend))

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
            for norm in update.norms:
                self._remember(norm)
        self.commit()

    def _remember(self, norm: nn.Module) -> None:
        self._former += [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]

    def roll_back(self) -> None:
        with torch.no_grad():
            for buffer, former in reversed(self._former):
                buffer.copy_(former)

    def commit(self) -> None:
        """Write all reports, in order."""
        updates, self._updates = self._updates, []
        with torch.no_grad():
            for update in updates:
                for part in _of_different_norms(update):
                    _write(part)


def _of_different_norms(update: _Update) -> list[_Update]:
    """The report in parts in which each norm appears once; a norm that several layers share is updated for each."""
    norms, stats, begins, count, backend = update
    if len({id(norm) for norm in norms}) == len(norms):
        return [update]
    return [_Update([norm], stats, [begin], count, backend) for norm, begin in zip(norms, begins, strict=True)]


_MANY = 1 << 53  # values of which the biased variance is the unbiased one: count / (count - 1) rounds to 1


def _write(update: _Update) -> None:
    norms, stats, begins, count, backend = update
    # Without running statistics, or of an empty batch, only counted, as PyTorch does it.
    tracked = [norm._buffers["running_mean"] is not None and count != 0 for norm in norms]
    moving = [i for i, norm in enumerate(norms) if tracked[i] and norm.momentum is not None]
    if moving:
        arguments = (
            [norms[i]._buffers["running_mean"] for i in moving],
            [norms[i]._buffers["running_var"] for i in moving],
            stats,
            [begins[i] for i in moving],
            _MANY if count is None else count,
            [norms[i].momentum for i in moving],
        )
        if torch.compiler.is_compiling():
            torch.ops.densenet_fast.update_running_stats.default(*arguments, backend)
        else:
            chosen = backends.choose(backend, stats.device, stats.dtype)  # by name: nobody is told of these few sums
            backends.operations(chosen, stats.device, stats.dtype).update_running_stats(*arguments)
    counted = [norm._buffers["num_batches_tracked"] for norm in norms]
    counters = [counter for counter in counted if counter is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    for norm, begin, is_tracked in zip(norms, begins, tracked, strict=True):
        if is_tracked and norm.momentum is None:
            mean, var = stats[:, begin : begin + len(norm.running_mean)]
            _average(norm, mean, var if count is None else var * (count / (count - 1)))


def _average(norm: Any, mean: Tensor, var: Tensor) -> None:
    """momentum=None: the running statistics are the average over all batches, whose number is on the device."""
    assert norm.num_batches_tracked is not None, "eligibility.why_not_norm lets no such norm run fused"
    weight = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    for running, batch in ((norm.running_mean, mean), (norm.running_var, var)):
        assert running is not None, "`_write` averages what is tracked"
        running.data.copy_(torch.lerp(running.to(batch.dtype), batch, weight))


_current: ContextVar[Transaction | None] = ContextVar("running statistics", default=None)


@contextmanager
def transaction(module: nn.Module) -> Iterator[Transaction]:
    """The enclosing transaction if `module` is a part of its owner; else a new one, owned by `module`, that commits at
    the end and rolls back on an exception."""
    if torch.compiler.is_compiling():  # a graph that fails leaves nothing half done
        new = Transaction(module)
        yield new
        new.commit()
        return
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
