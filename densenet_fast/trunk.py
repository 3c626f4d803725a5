"""The trunk of a DenseNet: an nn.Sequential that runs neighbours fused when nobody watches the tensor between them."""

from collections import deque
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends, functional
from .eligibility import is_hooked, is_traced, runs_as, why_not, why_not_norm, why_not_now, why_not_pool
from .functional import Stats
from .modules import DenseBlock, Fusable, Transition, norm_of, run_stage
from .running_stats import Transaction, transaction
from .uncompiled import uncompiled
from .validation import check_input

_Module = TypeVar("_Module", bound=Fusable)


class Trunk(nn.Sequential):
    """torchvision's `features`: conv0 [norm0 relu0 pool0] denseblock1 transition1 ... denseblockB norm.

    A block and the transition behind it run as one stage, and so do norm0, relu0 and pool0, and in `pooled` the last
    block with the final norm. Modules with hooks and replaced modules are called one by one. A slice (`features[:7]`)
    is a trunk too.
    """

    backend = "auto"

    def __getitem__(self, index: slice | int) -> "Trunk | nn.Module":
        part = super().__getitem__(index)
        if isinstance(part, Trunk):
            part.backend = self.backend
        return part

    def set_backend(self, backend: str) -> None:
        """Set the backend of the stem and of every block and transition."""
        self.backend = backends.check_name(backend)
        for module in self.modules():
            if isinstance(module, Fusable):
                module.set_backend(backend)

    def forward(self, x: Tensor) -> Tensor:
        """The last module's output, in the memory format of x [N, channels, H, W]."""
        if self._is_plain(x):
            return super().forward(x)
        return self._run(x, pooled=False)

    def pooled(self, x: Tensor) -> Tensor:
        """ReLU and global average of `forward`, [N, C]."""
        if self._is_plain(x) or is_hooked(self) or not runs_as(self, Trunk):
            return relu_pool(self(x))
        return self._run(x, pooled=True)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether to leave everything to the children, who know how to run plain."""
        return self.backend == "plain" or is_traced(x) or why_not_now() is not None

    @uncompiled
    def _run(self, x: Tensor, pooled: bool) -> Tensor:
        check_input(self, x)
        with transaction() as updates:
            y, is_pooled = self._run_children(x.contiguous(memory_format=torch.channels_last), updates, pooled)
        if pooled:
            return y if is_pooled else relu_pool(y)
        was_nchw = x.is_contiguous() and x.stride(1) != 1
        return y.contiguous() if was_nchw else y

    def _run_children(self, x: Tensor, updates: Transaction, pooled: bool) -> tuple[Tensor, bool]:
        """The last output, and whether the head has already pooled it."""
        waiting = deque(self.children())
        stats: Stats | None = None  # of x, where its producer has them
        following: DenseBlock | None = None  # the first of `waiting`, if it will extend x
        while waiting:
            module, block = waiting.popleft(), following
            extend, following = block is not None, None
            consumer: functional.Consumer | None
            if (norm := _stem_norm(module, waiting, x)) is not None:
                del waiting[0], waiting[0]
                consumer = functional.Stem(norm_of(norm))
            elif (block := block or _fused(module, DenseBlock, x)) is not None:
                consumer, norm = self._consumer(waiting, x, pooled)
            else:
                updates.guard(module)
                x, stats = module(x), None
                continue
            if consumer is not None and waiting:
                following = _fused(waiting[0], DenseBlock, x)
            x, stats, _ = run_stage(
                x,
                updates,
                block,
                consumer,
                norm,
                backend=self.backend if block is None else block.backend,
                stats=stats,
                extend=extend,
                following=following,
            )
            if isinstance(consumer, functional.Head):
                return x, True
        return x, False

    @staticmethod
    def _consumer(
        waiting: deque[nn.Module], x: Tensor, pooled: bool
    ) -> tuple[functional.Consumer | None, nn.BatchNorm2d | None]:
        """The consumer of a block's buffer and its norm, taken from `waiting` if the two can run as one stage."""
        if not waiting:
            return None, None
        transition = _fused(waiting[0], Transition, x)
        if transition is not None:
            waiting.popleft()
            return transition.step(), transition.norm
        norm = waiting[0]
        if pooled and len(waiting) == 1 and isinstance(norm, nn.BatchNorm2d) and why_not_norm(norm) is None:
            waiting.popleft()
            return functional.Head(norm_of(norm)), norm
        return None, None


def relu_pool(x: Tensor) -> Tensor:
    """ReLU and global average: [N, C, H, W] -> [N, C]."""
    return torch.flatten(F.adaptive_avg_pool2d(F.relu(x), (1, 1)), 1)


def _fused(module: nn.Module, cls: type[_Module], x: Tensor) -> _Module | None:
    """`module` if it is a `cls` that runs fused and whose call nobody watches; warns where its layers forbid it."""
    if isinstance(module, cls) and why_not(module, cls) is None and not module.runs_plain(x):
        return module
    return None


def _stem_norm(norm: nn.Module, behind: deque[nn.Module], x: Tensor) -> nn.BatchNorm2d | None:
    """`norm` if it and the two modules behind it are a stock BN, ReLU and 3x3 max pooling."""
    pool = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    if (
        len(behind) >= 2
        and isinstance(norm, nn.BatchNorm2d)
        and why_not_norm(norm) is None
        and why_not(behind[0], nn.ReLU) is None
        and why_not_pool(behind[1], nn.MaxPool2d, **pool) is None
        and x.shape[0] > 0
    ):
        return norm
    return None
