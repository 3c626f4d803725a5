"""What blocks and transitions share: a backend, a fused run, and plain layers with one warning for each reason."""

import warnings
from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import Self

from .. import backends
from ..uncompiled import constant, uncompiled
from .eligibility import is_traced, why_not_now
from .reading import Readable, Reading, is_synchronised
from .running_stats import Transaction, transaction


@constant
def _warn(name: str, cost: str, reason: str) -> None:
    warnings.warn(
        f"{name} runs its plain layers (same results, {cost}): {reason}; set_backend('plain') silences this",
        stacklevel=3,
    )


class Fusable(Readable[Reading]):
    """What blocks and transitions share: a backend, a fused run, and plain layers with one warning for each reason."""

    backend: str
    _warned: set[str]

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backends.check_name(backend)
        self._warned = set()

    def set_backend(self, backend: str) -> Self:
        """Run on `backend`: "auto", "native", "triton", "eager", or "plain" for the plain layers; returns self.

        Raises:
            ValueError: an unknown backend. One that cannot run here is refused by the forward, with a RuntimeError.
        """
        self.backend = backends.check_name(backend)
        return self

    def _call(self, x: Tensor) -> Tensor:
        """`forward`, whose argument has the name that it has in torchvision: graphs and keywords show it."""
        if self.backend == "plain" or is_traced(x):
            return self.plain(x)
        with transaction(self) as updates:  # out of which the compiler goes where it cannot follow what is called
            return (self._run if torch.compiler.is_compiling() else self._run_uncompiled)(x, updates)

    def _run(self, x: Tensor, updates: Transaction) -> Tensor:
        is_empty = x.shape[:1] == (0,) and not is_synchronised(self)
        reading = None if is_empty else self.fusable()
        if reading is None:
            updates.guard(self)
            return self.plain(x)
        return self.fused(x, reading, updates)

    _run_uncompiled = uncompiled(_run)

    def fusable(self) -> Reading | None:
        """The module's reading if it runs fused; if not, warns, once for each reason, unless that was asked for."""
        if self.backend == "plain":
            return None
        reading = self.reading()
        reason = why_not_now() or reading.why_plain
        if reason is not None:
            if torch.compiler.is_compiling():
                _warn(type(self).__name__, self.cost(), reason)
            elif reason not in self._warned:
                self._warned.add(reason)
                _warn(type(self).__name__, self.cost(), reason)
        return reading if reason is None else None

    def cost(self) -> str:
        """What the plain layers cost, in words."""
        return "more memory and time"

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """The layers one by one under ordinary autograd."""

    @abstractmethod
    def fused(self, x: Tensor, reading: Reading, updates: Transaction) -> Tensor:
        """The layers as one stage; what their norms took from the batch goes to `updates`."""
