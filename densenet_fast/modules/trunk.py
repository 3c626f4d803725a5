"""The trunk of a DenseNet: an nn.Sequential that runs neighbours fused when nobody watches the tensor between them."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .. import backends
from ..stage.buffer import channels_last, convolved_format, memory_format
from ..uncompiled import uncompiled
from .block import FusableBlock
from .eligibility import (
    MAX_POOLS,
    has_activation,
    is_convolution,
    is_hooked,
    is_stem_convolution,
    is_traced,
    runs_as,
    why_not,
    why_not_norm,
    why_not_now,
    why_not_pool,
)
from .fusable import Fusable
from .reading import BlockReading, Readable, Reading, is_synchronised
from .running_stats import Transaction, transaction
from .staging import Consumer, run_stage
from .transition import FusableTransition
from .validation import check_input, first_convolution


class Trunk(Readable["_TrunkReading"], nn.Sequential):
    """torchvision's `features`: conv0 [norm0 relu0 pool0] denseblock1 transition1 ... denseblockB norm.

    A block and the transition behind it run as one stage, and so do conv0, norm0, relu0 and pool0, and in `pooled` the
    last block with the final norm. Modules with hooks and replaced modules are called one by one. A slice
    (`features[:7]`) is a trunk too.
    """

    backend = "auto"

    def __getitem__(self, index: slice | int) -> "Trunk | nn.Module":
        part = super().__getitem__(index)
        if isinstance(part, Trunk):
            part.backend, part.spatial_dims = self.backend, self.spatial_dims
        return part

    def set_backend(self, backend: str) -> None:
        """Set the backend of the stem and of every block and transition."""
        self.backend = backends.check_name(backend)
        for module in self.modules():
            if isinstance(module, Fusable):
                module.set_backend(backend)

    def forward(self, input: Tensor) -> Tensor:
        """The last module's output, in the memory format that PyTorch's layers give it for [N, channels, H, W]."""
        if self._is_plain(input):
            return super().forward(input)
        return self._run(input, pooled=False)

    def pooled(self, x: Tensor) -> Tensor:
        """ReLU and global average of `forward`, [N, C]."""
        if self._is_plain(x) or is_hooked(self) or not runs_as(self, Trunk):
            return relu_pool(self(x), self, *list(self.children())[-1:], dims=self.spatial_dims)
        return self._run(x, pooled=True)

    def intermediates(
        self, x: Tensor, names: Collection[str], until: str | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward`, or the output of child `until`, and by their names what children return.

        The output of a block is the buffer that is kept for backward, not a copy: NHWC memory, not to be changed in
        place.
        """
        trunk, taps = self if until is None else self[: list(self._modules).index(until) + 1], dict.fromkeys(names)
        assert isinstance(trunk, Trunk)
        if trunk._is_plain(x):
            for name, child in trunk.named_children():
                x = child(x)
                if name in taps:
                    taps[name] = x
            return x, taps  # type: ignore[return-value]
        return trunk._run(x, pooled=False, taps=taps), taps  # type: ignore[return-value]

    def _is_plain(self, x: Tensor) -> bool:
        """Whether to leave everything to the children, who know how to run plain."""
        if self.backend == "plain" or is_traced(x) or why_not_now() is not None:
            return True
        return x.shape[:1] == (0,) and not is_synchronised(self)

    def _run(self, x: Tensor, pooled: bool, taps: "dict[str, Any] | None" = None) -> Tensor:
        with transaction(self) as updates:  # out of which the compiler goes where it cannot follow what is called
            run = self._read_and_run if torch.compiler.is_compiling() else self._run_uncompiled
            y, is_pooled = run(x, updates, pooled, taps)
        if not pooled or is_pooled:
            return y
        return relu_pool(y, self, *list(self.children())[-1:], dims=self.spatial_dims)

    def _read_and_run(
        self, x: Tensor, updates: Transaction, pooled: bool, taps: "dict[str, Any] | None"
    ) -> tuple[Tensor, bool]:
        if torch.compiler.is_compiling():
            steps = (self._steps(0, pooled),) * 2  # what is traced twice takes twice as long
            reading = _TrunkReading(steps, first_convolution(self), set())
        else:
            reading = self.reading()
        check_input(self, x, reading.first, reading.passed)
        return self._run_steps(x, reading.steps[int(pooled)], updates, pooled, taps)

    _run_uncompiled = uncompiled(_read_and_run)

    def _run_steps(
        self, x: Tensor, steps: "list[_Step]", updates: Transaction, pooled: bool, taps: "dict[str, Any] | None"
    ) -> tuple[Tensor, bool]:
        """The last output, and whether the head has already pooled it. taps: by their names, what children return; to
        be filled in."""
        names = list(self._modules)
        if taps is not None:
            steps = _tapped(self, steps, taps)
        layout = memory_format(x)  # in which others see what stages return, as PyTorch's layers would return it
        stats: Tensor | None = None  # of x, where its producer has them
        extend = False  # whether x is the head of the buffer of the stage to come
        waiting = deque(steps)
        while waiting:
            step = waiting.popleft()
            if step.convolution is not None and x.requires_grad and torch.is_grad_enabled():
                alone, step = step.apart()  # a stage takes images for constants
                waiting.appendleft(step)
                step = alone
            next_block = waiting[0].block if waiting else None
            if step.called is not None:
                module, stats, extend = step.called, None, False
                updates.guard(module)
                is_tapped = taps is not None and names[step.begin] in taps
                if waiting and waiting[0].called is None and not is_tapped and _is_seen_by_a_stage_alone(module, x):
                    layout = convolved_format(layout, module.weight)
                    x = module(x.contiguous(memory_format=channels_last(x)))
                    continue
                x = module(x)
                layout = memory_format(x) if isinstance(x, Tensor) else layout  # what comes next may take anything
                if not is_convolution(module):  # it may have changed those behind it
                    behind = self._steps(step.behind, pooled)
                    waiting = deque(behind if taps is None else _tapped(self, behind, taps))
                if taps is not None and is_tapped:
                    taps[names[step.begin]] = x
                continue
            following = next_block if step.consumer is not None else None
            is_last = step.consumer is None and taps is not None
            x, stats, layout, buffer = run_stage(
                x,
                updates,
                step.block,
                step.consumer,
                convolution=step.convolution,
                backend=self.backend if step.block is None else step.block.module.backend,
                layout=layout,
                x_stats=stats,
                extend=extend,
                following=following,
                tapped=step.tapped,
                is_read=is_last and (len(waiting) == 0 or _only_reads(waiting[0].called, x)),
            )
            extend = following is not None
            if taps is not None:
                if step.tapped:
                    taps[names[step.behind - 2]] = buffer
                if names[step.behind - 1] in taps:
                    taps[names[step.behind - 1]] = x
            if step.consumer is not None and step.consumer.kind == "head":
                return x, True
        return x, False

    def read(self) -> "_TrunkReading":
        return _TrunkReading((self._steps(0, False), self._steps(0, True)), first_convolution(self), set())

    def _steps(self, begin: int, pooled: bool) -> "list[_Step]":
        """What to run in turn from child number `begin` on; warns where a block's layers forbid a stage."""
        children = list(self.children())
        found: list[_Step] = []
        while begin < len(children):
            found.append(_step(children, begin, pooled)._replace(begin=begin))
            begin = found[-1].behind
        return found


class _Step(NamedTuple):
    """A part of a trunk: a module to be called, or a stage."""

    behind: int  # number of the first child behind it
    begin: int = 0  # and of its own first child
    called: nn.Module | None = None
    block: BlockReading | None = None
    consumer: Consumer | None = None
    convolution: _ConvNd | None = None  # the first child, of a stem that begins with it
    tapped: bool = False  # whether the block's output is wanted, too

    def apart(self) -> "tuple[_Step, _Step]":
        """The convolution, and the stem without it."""
        behind = self.begin + 1
        return _Step(behind, self.begin, self.convolution), self._replace(begin=behind, convolution=None)


class _TrunkReading(NamedTuple):
    steps: tuple[list[_Step], list[_Step]]  # for the trunk's own output, and for what is pooled of it
    first: _ConvNd | None  # as `validation.first_convolution`
    passed: set[tuple[int, ...]]  # shapes N, H, W of images that are known to be large enough


def _step(children: list[nn.Module], i: int, pooled: bool) -> _Step:
    """The step that begins with child i."""
    block = _fused(children[i])
    if isinstance(block, BlockReading):
        if i + 1 < len(children):
            following = children[i + 1]
            if isinstance(following, FusableTransition) and _fused(following, block.module.spatial_dims) is not None:
                return _Step(i + 2, block=block, consumer=following.consumer())
            dims = block.module.spatial_dims
            if pooled and i + 2 == len(children) and why_not_norm(following, dims) is None:
                return _Step(i + 2, block=block, consumer=Consumer.of("head", following, dims=dims))
        return _Step(i + 1, block=block)
    for norm in (i, i + 1):
        stem = _stem(children, norm)
        if stem is not None and (norm == i or is_stem_convolution(children[i], stem[1])):
            behind, dims = stem
            convolution = None if norm == i else cast(_ConvNd, children[i])
            consumer = Consumer.of("stem", children[norm], dims=dims)
            return _Step(behind, consumer=consumer, convolution=convolution)
    return _Step(i + 1, called=children[i])


def _tapped(trunk: nn.Sequential, steps: "list[_Step]", taps: Collection[str]) -> "list[_Step]":
    """`steps` in which nothing is swallowed that is tapped."""
    children, found = list(trunk.named_children()), []
    for step in _convolutions_apart(children, steps, taps):
        if not any(name in taps for name, _ in children[step.begin : step.behind - 1]):
            found.append(step)
        elif step.block is not None and step.block.layers:
            found.append(step._replace(tapped=True))
        else:
            apart = [_Step(i + 1, i, called=children[i][1]) for i in range(step.begin, step.behind)]
            found += apart if step.block is None else [_Step(step.begin + 1, step.begin, block=step.block), apart[-1]]
    return found


def _convolutions_apart(
    children: list[tuple[str, nn.Module]], steps: "list[_Step]", taps: Collection[str]
) -> "Iterator[_Step]":
    """`steps` in which no stem begins with a convolution that is tapped."""
    for step in steps:
        tapped = step.convolution is not None and children[step.begin][0] in taps
        yield from step.apart() if tapped else (step,)


def _only_reads(module: nn.Module | None, x: Tensor) -> bool:
    """Whether `module` is a norm, which neither changes x nor hands it on."""
    return module is not None and why_not_norm(module, x.dim() - 2) is None


def relu_pool(x: Tensor, *producers: nn.Module, dims: int = 2) -> Tensor:
    """ReLU and global average: [N, C, H, W] -> [N, C].

    In place as in torchvision, so that who keeps what the `producers` of x return finds it rectified; not where a full
    backward hook returned it, which autograd does not let anybody change.
    """
    inplace = not any(module._backward_hooks or module._backward_pre_hooks for module in producers)
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 1]
    return torch.flatten(pool(F.relu(x, inplace), (1,) * dims), 1)


def _fused(module: nn.Module, dims: int | None = None) -> Reading | None:
    """The reading of a block or transition, of images of `dims` dimensions, that runs fused and whose call nobody
    watches; warns where its layers forbid it."""
    if not isinstance(module, FusableBlock | FusableTransition):
        return None
    if why_not(module, FusableBlock if isinstance(module, FusableBlock) else FusableTransition) is not None:
        return None
    reading = module.fusable()
    return reading if dims in (None, module.spatial_dims) else None


def _is_seen_by_a_stage_alone(module: nn.Module, x: Tensor) -> TypeGuard[_ConvNd]:
    """Whether `module`, with a stage behind it, which reads channels_last, is a convolution of which nobody else sees
    input and output. Gradients of x would show, and so would a parametrization that is evaluated once more."""
    return (
        is_convolution(module) and "weight" in module._parameters and not (x.requires_grad and torch.is_grad_enabled())
    )


def find_stem(children: Sequence[nn.Module]) -> int | None:
    """The number of the first child of what a trunk of these children would run as its stem."""
    for norm in range(len(children)):
        if (stem := _stem(children, norm)) is not None:
            return norm - 1 if norm and is_stem_convolution(children[norm - 1], stem[1]) else norm
    return None


def _stem(children: Sequence[nn.Module], i: int) -> tuple[int, int] | None:
    """If a BN, ReLU and 3x3 max pooling begin with child i: the number of the child behind them, and of how many
    dimensions their images are."""
    pool = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    if i >= len(children):
        return None
    last = i + 1 if has_activation(children[i]) else i + 2
    if last >= len(children) or (last == i + 2 and why_not(children[i + 1], nn.ReLU) is not None):
        return None
    for dims, cls in MAX_POOLS.items():
        if why_not_pool(children[last], cls, **pool) is None and why_not_norm(children[i], dims) is None:
            return last + 1, dims
    return None
