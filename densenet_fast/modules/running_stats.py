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
from torch.nn.modules.lazy import LazyModuleMixin

from .. import backends
from ..stage import Alike

Columns = tuple[int, int]  # from, to


class Tracked:
    """Norms of a stage, each of them once, that track statistics in their present mode, and the columns of the stage's
    `stats` that each of them takes."""

    def __init__(self, norms: Sequence[Any], columns: Sequence[Columns]):
        self.norms = list(norms)  # BatchNorm2d or SyncBatchNorm
        buffers = [norm._buffers for norm in norms]  # found ten times as fast as attributes
        running = [i for i, of in enumerate(buffers) if of["running_mean"] is not None]
        moving = [i for i in running if norms[i].momentum is not None]
        counting = [i for i, of in enumerate(buffers) if of["num_batches_tracked"] is not None]
        self._counted = [buffers[i] for i in counting]
        self._moving_count = all(_is_counter(buffers[i]["num_batches_tracked"]) for i in moving)
        self._others_counted = [buffers[i] for i in counting if i not in moving]
        self._running = [buffers[i] for i in running]
        self._sizes = [columns[i][1] - columns[i][0] for i in running for _ in range(2)]
        self._moving = [buffers[i] for i in moving]
        self._begins = [columns[i][0] for i in moving]
        self._momenta = [norms[i].momentum for i in moving]
        self._checked: Alike | None = None
        self._averaged = [(norms[i], slice(*columns[i])) for i in running if norms[i].momentum is None]

    def check(self, stats: Tensor) -> None:
        """Refuse running statistics that do not fit, of whose number of channels no weight has told before.

        Raises:
            ValueError: a norm is one of another number of channels.
            RuntimeError: its running statistics are on another device.
        """
        device, checked, is_compiling = stats.device, self._checked, torch.compiler.is_compiling()
        running = [each for of in self._running for each in (of["running_mean"], of["running_var"])]
        if not is_compiling and checked is not None and checked.devices == {device} and checked.are(running):
            return
        fit = [each.numel() for each in running] == self._sizes
        if fit and [each.device for each in running] == [device] * len(running):
            if not is_compiling:
                self._checked = Alike(running)
            return
        for each, size in zip(running, self._sizes, strict=True):
            if each.numel() != size:
                raise ValueError(
                    f"wrong number of channels: got {size} at a BatchNorm2d, expected {each.numel()}, as many as "
                    "its running statistics have"
                )
            if each.device != device:
                raise RuntimeError(
                    f"wrong device: got running statistics on {each.device}, expected {device}, where the "
                    "activations are"
                )

    def write(self, stats: Tensor, count: int | None, backend: str) -> None:
        """As `Transaction.report` says. Of an empty batch they are only counted, as PyTorch does it."""
        counted = self._counted
        if self._moving and count != 0:
            counters = [of["num_batches_tracked"] for of in self._moving] if self._moving_count else []
            counted = self._others_counted if counters else counted
            arguments = (
                [of["running_mean"] for of in self._moving],
                [of["running_var"] for of in self._moving],
                counters,
                stats,
                self._begins,
                _MANY if count is None else count,
                self._momenta,
            )
            if torch.compiler.is_compiling():
                torch.ops.densenet_fast.update_running_stats.default(*arguments, backend)
            else:
                ops = backends.operations(backend, stats.device, stats.dtype, False)  # nobody is told of these few sums
                are_shared = len({*map(id, arguments[0])}) < len(self._moving)
                parts = [slice(i, i + 1) for i in range(len(self._moving))] if are_shared else [slice(None)]
                for part in parts:  # norms that share them update them one after the other
                    of_part: Any = [each[part] if isinstance(each, list) else each for each in arguments]
                    ops.update_running_stats(*of_part)
        if counted:
            torch._foreach_add_([of["num_batches_tracked"] for of in counted], 1)
        if count != 0:
            for norm, columns in self._averaged:
                mean, var = stats[:, columns]
                _average(norm, mean, var if count is None else var * (count / (count - 1)))


def _is_counter(counter: Tensor | None) -> bool:
    """Whether the operation takes it, which PyTorch's own addition does of any dtype."""
    return counter is not None and counter.dtype == torch.int64


def tracked(norms: Sequence[Any], taken: Sequence[Columns | None]) -> list[Tracked]:
    """Of the norms that took columns of `stats` and track them; in parts, if several layers share a norm, which is
    updated for each of them."""
    found = [
        (norm, columns)
        for norm, columns in zip(norms, taken, strict=True)
        if columns is not None and norm.training and norm.track_running_stats
    ]
    if len({id(norm) for norm, _ in found}) == len(found):
        return [Tracked([norm for norm, _ in found], [columns for _, columns in found])] if found else []
    return [Tracked([norm], [columns]) for norm, columns in found]


class _Update(NamedTuple):
    norms: Tracked
    stats: Tensor
    values: int | None  # of a channel; as `count` of `Transaction.report`
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

    def report(self, norms: Tracked, stats: Tensor, count: int | None, backend: str) -> None:
        """What the norms of a stage took from the batch: columns of `stats` [2, S], mean and biased variance, over
        `count` values for each channel, or with `count` None the unbiased variance; to be written by `backend`.

        Raises:
            ValueError, RuntimeError: as `Tracked.check`.
        """
        norms.check(stats)
        self._updates.append(_Update(norms, stats, count, backend))

    def guard(self, module: nn.Module) -> None:
        """Write what was reported so far, which `module`, about to be called, may read, and remember its own running
        statistics, to restore them on failure."""
        self.write()
        for norm in module.modules():
            has_own = isinstance(norm, nn.modules.batchnorm._NormBase) and not isinstance(norm, LazyModuleMixin)
            if norm.training and has_own:
                self._remember(norm)

    def write(self) -> None:
        """Write what was reported so far, before somebody looks; restored on failure."""
        for update in self._updates:
            for norm in update.norms.norms:
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
            for norms, stats, count, backend in updates:
                norms.write(stats, count, backend)


_MANY = 1 << 53  # values of which the biased variance is the unbiased one: count / (count - 1) rounds to 1


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
