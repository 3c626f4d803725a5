"""One autograd.Function per stage: a dense block together with what consumes its buffer.

The buffer is born and dies inside the Function, so every norm that reads it, the consumer's too, defers its correction
into one pair of vectors, and saved tensors are freed stage by stage. docs/internals/algorithm.md, "Stages".
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends, contract
from ..uncompiled import uncompiled
from . import mixed, operator, recompute, schedule
from .alike import Alike
from .buffer import channels_last, handed_out, laid_out, lay_out_as, memory_format
from .checks import check_stage, compute_dtype
from .halves import IDLE
from .schedule import Stage, Wanted
from .spec import StageSpec


class Result(NamedTuple):
    y: Tensor
    y_stats: Tensor | None  # [2, K], if they were wanted
    stats: Tensor  # [2, S], of which `StageSpec.taken_over` says which norm took what
    buffer: Tensor | None = None  # [N, C_total, H, W], if it was wanted: the very one that is kept for backward


def run(
    spec: StageSpec,
    x: Tensor,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    *,
    backend: str,
    wanted: Wanted,
    x_stats: Tensor | None = None,
    extend: bool = False,
    efficient: bool = False,
    alike: Alike | None = None,
    layout: torch.memory_format | None = None,
) -> Result:
    """A stage's forward: x [N, C0, H, W] of `spec.channels`; differentiable where anything needs it. Images that a
    stem convolves are taken for constants. alike: as `checks.check_stage` has it. layout: the memory format that
    PyTorch's layers give x, if it is not that of x.

    Raises:
        ValueError, RuntimeError: as `checks.check_stage`; the backend is not available.
    """
    check_stage(spec, x, tensors, alike)
    dtype = compute_dtype(x, spec.convolves)
    promoted = dtype  # as of any convolution
    if spec.convolution is None and x.dtype != dtype:
        promoted, x = torch.promote_types(x.dtype, dtype), x.to(dtype)
    if torch.compiler.is_compiling() and (spec.layers or spec.consumer is not None):
        result = Result(
            *operator.run(
                spec,
                x,
                dtype,
                tensors,
                seeds,
                backend=backend,
                wanted=wanted,
                x_stats=x_stats,
                efficient=efficient,
            )
        )
        return _promoted(result, spec, wanted, promoted)
    ops = backends.operations(backend, x.device, dtype) if x.shape[0] else IDLE
    if ops is not IDLE:
        ops = mixed.operations(ops, spec)
    dtypes = [t.dtype for t in tensors] if alike is None else alike.dtypes
    stage = Stage(spec, ops, dtype, wanted, extend and promoted == dtype, efficient, dtypes)
    return _promoted(_run(stage, x, x_stats, tensors, seeds, layout), spec, wanted, promoted)


def _promoted(result: Result, spec: StageSpec, wanted: Wanted, dtype: torch.dtype) -> Result:
    if result.buffer is not None:
        result = result._replace(buffer=result.buffer.to(dtype))
    if wanted.layout is None or (spec.consumer is not None and spec.consumer.kind == "transition"):
        return result  # for a stage, or the end of a convolution
    return result if result.y.dtype == dtype else result._replace(y=result.y.to(dtype))


def _run(
    stage: Stage,
    x: Tensor,
    x_stats: Tensor | None,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    layout: torch.memory_format | None,
) -> Result:
    if not stage.spec.layers and stage.spec.consumer is None:
        copy = x.clone(memory_format=stage.wanted.layout or channels_last(x))
        return Result(copy, None, x.new_empty((2, 0)))
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        x = torch._C._functorch.unwrap_if_dead(x)
        differing, fitting = _fitting(stage)
        edges = recompute.edges(x, tensors, [*stage.spec.given, *differing])
        prepared = Prepared(stage, edges, differing, fitting, memory_format(x) if layout is None else layout)
        return Result(*_apply(prepared, x, x_stats, seeds, *tensors))
    with _without_autocast(x):
        fitted = _converted(tensors, *_fitting(stage))
        passed = schedule.forward(stage, x, x_stats, fitted, seeds, keep_z=False)
        y = _for_others(stage, passed.y, shared=False)
        return Result(y, passed.y_stats, passed.reported, passed.x if stage.wanted.buffer else None)


class Prepared(NamedTuple):
    """A stage whose gradients are wanted."""

    stage: Stage
    edges: list[Tensor | None]  # as `recompute.edges`
    differing: list[int]  # which of the tensors are to be converted
    fitting: list[torch.dtype]  # to these dtypes
    layout: torch.memory_format  # that PyTorch's layers give x


class StageFunction(torch.autograd.Function):
    """(prepared, x, its statistics, seeds, *tensors) -> y, y's statistics, stats, buffer.

    Statistics and images are not differentiable. A buffer that is returned shares its version with the one that is
    kept: who changes it in place is told in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, prepared: Prepared, x: Tensor, x_stats: Tensor | None, seeds: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        stage, ctx.edges, differing, fitting, ctx.layout = prepared
        with _without_autocast(x):
            fitted = _converted(_with_own_statistics(stage, tensors), differing, fitting)
            _, needs_x, _, _, *needs = ctx.needs_input_grad
            keep_z = not stage.efficient and stage.spec.layers_learn(needs_x, needs)
            passed = schedule.forward(stage, x, x_stats, fitted, seeds, keep_z)
            y = _for_others(stage, passed.y, shared=stage.spec.consumer is None)
            y = y.detach() if y is passed.x else y
        kept: Tensor | None = passed.x
        images: Tensor | None = None
        if stage.spec.convolution is not None:
            kept = None if stage.efficient else passed.x
            images = x if stage.efficient or any(needs[i] for i in stage.spec.of_convolution) else None
        ctx.stage, ctx.of_x = stage, memory_format(x)
        ctx.converted = differing, stage.dtypes
        ctx.save_for_backward(kept, images, passed.stats, passed.z, seeds, *fitted)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(s for s in (passed.y_stats, passed.reported) if s is not None))
        return y, passed.y_stats, passed.reported, passed.x.detach() if stage.wanted.buffer else None

    @staticmethod
    @uncompiled  # the engine may call it inside a frame that torch.compile traces
    def backward(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, dbuffer = others
        if dy is None and dbuffer is None:
            return (None,) * len(ctx.needs_input_grad)
        x, images, stats, z, seeds, *tensors = ctx.saved_tensors
        _, needs_x, _, _, *needs = ctx.needs_input_grad
        contract.serve_modes()
        is_batched = recompute.is_batched(dy, dbuffer)
        with _without_autocast(stats):
            if torch.is_grad_enabled() or is_batched:
                convolves = images is not None
                head = images if convolves else x[:, : ctx.stage.spec.channels]
                dx, *gradients = recompute.backward(
                    ctx, ctx.stage, head, convolves, ctx.layout, tensors, seeds, dy, dbuffer
                )
            else:
                x = None if x is None else laid_out(x)
                dx, gradients = schedule.backward(
                    ctx.stage, x, images, stats, z, tensors, seeds, dy, needs_x, needs, dbuffer
                )
                lay_out_as(tensors, gradients, ctx.stage.spec.weights)
                gradients = _converted(gradients, *ctx.converted)
        if dx is not None and not is_batched:
            dx = handed_out(dx, ctx.of_x, shared=False)
        return None, dx, None, None, *gradients


def _apply(prepared: Prepared, x: Tensor, *tensors: Tensor | None) -> Any:
    """StageFunction.apply, which besides would look at every parameter for what torch.func has left behind."""
    if torch._C._are_functorch_transforms_active():
        return StageFunction.apply(prepared, x, *tensors)  # refuses
    return _apply_to_tensors(prepared, x, *tensors)


_apply_to_tensors: Any = super(torch.autograd.Function, StageFunction).apply


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """The operations convert nothing by themselves: `run` has chosen all dtypes."""
    device = x.device.type
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return _WithoutAutocast(device) if active else _AS_IT_IS


class _WithoutAutocast:
    """torch.autocast(device, enabled=False) where autocast is active, at a tenth of its cost."""

    def __init__(self, device: str):
        self.device = device

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self.device, False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled(self.device, True)


_AS_IT_IS = nullcontext()


def _for_others(stage: Stage, y: Tensor, shared: bool) -> Tensor:
    if stage.wanted.layout is None or y.dim() == 2:
        return y
    return handed_out(y, stage.wanted.layout, shared)


def _with_own_statistics(stage: Stage, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors with copies of the statistics given to norms: before a backward reads them, another forward may have
    updated the running statistics that they are."""
    given = stage.spec.given
    if not given:
        return tensors
    found = list(tensors)
    vectors = [tensors[i] for i in given]
    for i, copy in zip(given, torch.cat(vectors).split([v.shape[0] for v in vectors]), strict=True):
        found[i] = copy
    return found


def _fitting(stage: Stage) -> tuple[list[int], list[torch.dtype]]:
    """Which of the tensors are to be converted, and the dtypes that operations take: weights in the activations',
    vectors in the accumulator's."""
    fitting = stage.spec.dtypes(stage.dtype)
    if stage.dtypes == fitting:
        return [], fitting
    return [i for i, (own, other) in enumerate(zip(stage.dtypes, fitting, strict=True)) if own is not other], fitting


def _converted(tensors: Sequence[Any], differing: Sequence[int], dtypes: Sequence[torch.dtype]) -> Any:
    """The tensors, of which those that there are among the `differing` are converted to these dtypes in one
    operation."""
    places = [i for i in differing if tensors[i] is not None]
    if not places:
        return tensors
    found = list(tensors)
    sources = [found[i] for i in places]
    targets = [torch.empty_like(t, dtype=dtypes[i]) for i, t in zip(places, sources, strict=True)]
    torch._foreach_copy_(targets, sources)
    for i, target in zip(places, targets, strict=True):
        found[i] = target
    return found
