"""A stage as one functional operator, for graphs: torch.compile takes it as it is, with its backward.

    densenet_fast::stage, densenet_fast::stage_backward   as `schedule.forward` and `backward`
    densenet_fast::update_running_stats                   the contract's, of the backend that is named

Graphs are kept on disk and run by other processes, so that everything that is no tensor travels in the arguments: a
spec as lists of numbers and of process groups' names. Results share no memory with arguments or each other: a stage
returns what its backward needs, and where nothing is wanted an empty tensor. No stage extends what another has
returned.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..contract import accumulator
from . import mixed, schedule
from .buffer import channels_last, dense, handed_out, laid_out, row_stride
from .halves import IDLE
from .schedule import Stage, Wanted
from .spec import ConsumerSpec, ConvolutionSpec, LayerSpec, StageSpec

# Of the operators' arguments and results, backwards' too, of which a graph that is kept tells nothing: raised whenever
# one of them changes, so that graphs that another version of the package has left on disk are not found.
_FORM = 3
_KINDS = ("transition", "stem", "head")
_OF_STAGE = "int[] sizes, float[] numbers, str groups, str backend"
_library = torch.library.Library("densenet_fast", "FRAGMENT")


def encoded(spec: StageSpec) -> tuple[list[int], list[float], str]:
    """`sizes`, `numbers`, `groups` of a spec; groups: of processes, a line for each norm if any is synchronised."""
    sizes, numbers = [_FORM, spec.dims, spec.channels, len(spec.layers)], []
    for width, growth, eps1, eps2, batch1, batch2, drop_rate, _, _, dilation, drops_channels in spec.layers:
        sizes += [width, growth, int(batch1), int(batch2), dilation, int(drops_channels)]
        numbers += [eps1, eps2, drop_rate]
    groups = "\n".join([group or "" for group in spec.group_of_norms]) if spec.synchronised else ""
    if spec.consumer is None:
        return [*sizes, -1, *spec.slots], numbers, groups
    kind, outputs, eps, batch, _, pools = spec.consumer
    sizes += [_KINDS.index(kind), outputs, int(batch), int(pools), int(spec.convolution is not None)]
    if spec.convolution is not None:
        in_channels, *each, in_groups = spec.convolution
        sizes += [in_channels, *[size for of_dims in each for size in of_dims], in_groups]
    return [*sizes, *spec.slots], [*numbers, eps], groups


@lru_cache(maxsize=256)
def decoded(sizes: tuple[int, ...], numbers: tuple[float, ...], groups: str) -> StageSpec:
    rest, of_norms, of_groups = iter(sizes), iter(numbers), iter(groups.split("\n"))
    _, dims, channels, count = (next(rest) for _ in range(4))
    layers = []
    for _ in range(count):
        width, growth, batch1, batch2, dilation, drops_channels = (next(rest) for _ in range(6))
        eps1, eps2, drop_rate = (next(of_norms) for _ in range(3))
        group1 = next(of_groups, "") or None
        group2 = next(of_groups, "") or None if width else None
        modes = bool(batch1), bool(batch2), drop_rate, group1, group2, dilation, bool(drops_channels)
        layers.append(LayerSpec(width, growth, eps1, eps2, *modes))
    kind, consumer = next(rest), None
    convolution: ConvolutionSpec | None = None
    if kind >= 0:
        outputs, batch, pools = next(rest), bool(next(rest)), bool(next(rest))
        group = next(of_groups, "") or None
        consumer = ConsumerSpec(_KINDS[kind], outputs, next(of_norms), batch, group, pools)  # type: ignore[arg-type]
        if next(rest):
            in_channels = next(rest)
            kernel, steps, padding, dilations = [tuple([next(rest) for _ in range(dims)]) for _ in range(4)]
            convolution = ConvolutionSpec(in_channels, kernel, steps, padding, dilations, next(rest))
    return StageSpec(channels, tuple(layers), consumer, tuple(rest), dims, convolution)


def run(
    spec: StageSpec,
    x: Tensor,
    dtype: torch.dtype,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    *,
    backend: str,
    wanted: Wanted,
    x_stats: Tensor | None,
    efficient: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """As `function.Result`; x has the dtype that the stage computes in, unless it is images for a convolution."""
    tensors = [tensor.to(fitting) for tensor, fitting in zip(tensors, spec.dtypes(dtype), strict=True)]
    if not spec.layers and spec.convolution is None:  # x itself is the buffer
        x = _nhwc(x)
    learns = torch.is_grad_enabled() and (x.requires_grad or any(tensor.requires_grad for tensor in tensors))
    keep_z = learns and not efficient and spec.layers_learn(x.requires_grad, [t.requires_grad for t in tensors])
    nhwc, keep = wanted.layout != torch.contiguous_format, learns or wanted.buffer
    keep_buffer = keep and (len(spec.layers) > 0 if spec.convolution is None else not efficient)
    y, y_stats, buffer, stats, _, _, reported = torch.ops.densenet_fast.stage.default(
        x, x_stats, tensors, seeds, *encoded(spec), backend, wanted.stats, nhwc, keep, keep_buffer, keep_z
    )
    if keep and (spec.consumer is None or wanted.buffer) and buffer.shape[1] != spec.total:
        buffer = buffer[:, : spec.total].clone()  # of who changes a view in place the compiler would tell nobody
    if spec.consumer is None and keep:
        y = buffer if wanted.layout is None else buffer.clone(memory_format=wanted.layout)
    reported = reported if spec.synchronised else stats
    return y, y_stats.detach() if wanted.stats else None, reported.detach(), buffer if wanted.buffer else None


def _nhwc(x: Tensor) -> Tensor:
    if x.dim() == 3:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous(memory_format=channels_last(x))


def _stage(
    x: Tensor,
    x_stats: Tensor | None,
    tensors: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    groups: str,
    backend: str,
    wants_stats: bool,
    nhwc: bool,
    keep: bool,
    keep_buffer: bool,
    keep_z: bool,
) -> tuple[Tensor, ...]:
    layout = channels_last(x) if nhwc else torch.contiguous_format
    spec = decoded(tuple(sizes), tuple(numbers), groups)
    dtype = _dtype(spec, x, tensors)
    stage = _of(spec, backend, x, dtype, Wanted(wants_stats, layout=layout))
    y, y_stats, buffer, stats, z, reported = schedule.forward(stage, x, x_stats, tensors, seeds, keep_z)
    if spec.consumer is None and keep:
        y = x.new_empty((0,))  # the buffer is returned
    elif y.dim() > 3 or (y.dim() == 3 and not nhwc):
        y = handed_out(y, layout, shared=False)
    given = [tensors[i] for i in spec.given] if keep else []
    return (
        y,
        stats.new_empty((0,)) if y_stats is None else y_stats,
        (_with_rests(buffer) if spec.layers else buffer) if keep_buffer else y.new_empty((0,)),
        stats,
        y.new_empty((0,)) if z is None else z,
        torch.cat(given) if given else stats.new_empty((0,)),
        reported if spec.synchronised else stats.new_empty((0,)),
    )


def _with_rests(buffer: Tensor) -> Tensor:
    """A buffer with what lies between the channels of one pixel and the next."""
    n, channels, *size = buffer.shape
    row = row_stride(channels, buffer.dtype)
    return buffer if row == channels else buffer.as_strided((n, row, *size), buffer.stride())


def _fake_stage(
    x: Tensor,
    x_stats: Tensor | None,
    tensors: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    groups: str,
    backend: str,
    wants_stats: bool,
    nhwc: bool,
    keep: bool,
    keep_buffer: bool,
    keep_z: bool,
) -> tuple[Tensor, ...]:
    spec = decoded(tuple(sizes), tuple(numbers), groups)
    n, size = x.shape[0], spec.size(x)
    dtype = _dtype(spec, x, tensors)
    wide = accumulator(dtype)
    channels = spec.total if spec.consumer is None else spec.consumer.outputs
    shape: tuple[int, ...] = (n, channels, *size)
    if spec.consumer is not None:
        of_transition = [s // 2 for s in size] if spec.consumer.pools else size
        of_kind = {"head": [], "transition": of_transition, "stem": [(s + 1) // 2 for s in size]}
        shape = (n, channels, *of_kind[spec.consumer.kind])
    y = x.new_empty((0,) if spec.consumer is None and keep else shape, dtype=dtype)
    if nhwc and y.dim() > 2:
        y = dense(shape, y)
    row = row_stride(spec.total, dtype) if spec.layers else spec.total
    has_stats = wants_stats and spec.consumer is not None and spec.consumer.kind != "head"
    return (
        y,
        x.new_empty((2, channels) if has_stats else (0,), dtype=wide),
        dense((n, row, *size), y) if keep_buffer else y.new_empty((0,)),
        x.new_empty((2, spec.statistics), dtype=wide),
        y.new_empty((spec.z_size(n * prod(size)) if keep_z and spec.layers else 0,)),
        x.new_empty((sum(spec.shapes[i][0] for i in spec.given) if keep else 0,), dtype=wide),
        x.new_empty((2, spec.statistics) if spec.synchronised else (0,), dtype=wide),
    )


def _dtype(spec: StageSpec, x: Tensor, tensors: Sequence[Tensor]) -> torch.dtype:
    """That the stage computes in."""
    return x.dtype if spec.convolution is None else tensors[spec.of_convolution[0]].dtype


def _stage_backward(
    dy: Tensor | None,
    dbuffer: Tensor | None,
    x: Tensor,
    images: Tensor | None,
    stats: Tensor,
    z: Tensor,
    given: Tensor,
    learnt: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    groups: str,
    backend: str,
    needs_x: bool,
    needs: list[bool],
) -> list[Tensor]:
    """x: the whole buffer, empty where `images` make it again; dbuffer: the gradient of it if it was read; learnt: the
    tensors that are no statistics. The gradients that are needed, x's first."""
    spec = decoded(tuple(sizes), tuple(numbers), groups)
    stage = _of(spec, backend, x if images is None else images, x.dtype, Wanted())
    statistics = iter(given.split([spec.shapes[i][0] for i in spec.given]))
    rest, are_given = iter(learnt), set(spec.given)
    tensors = [next(statistics if i in are_given else rest) for i in range(len(spec.slots))]
    kept_z = z if z.numel() else None
    buffer = laid_out(x[:, : spec.total]) if x.dim() > 1 else None
    if dbuffer is not None:
        dbuffer = dbuffer[:, : spec.total]
    dx, gradients = schedule.backward(
        stage, buffer, images, stats, kept_z, tensors, seeds, dy, needs_x, tuple(needs), dbuffer
    )
    return [gradient for gradient in (dx, *gradients) if gradient is not None]


def _fake_stage_backward(
    dy: Tensor | None,
    dbuffer: Tensor | None,
    x: Tensor,
    images: Tensor | None,
    stats: Tensor,
    z: Tensor,
    given: Tensor,
    learnt: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    groups: str,
    backend: str,
    needs_x: bool,
    needs: list[bool],
) -> list[Tensor]:
    spec = decoded(tuple(sizes), tuple(numbers), groups)
    dtypes = spec.dtypes(x.dtype)
    found = [dense((x.shape[0], spec.channels, *x.shape[2:]), x)] if needs_x else []
    return found + [x.new_empty(spec.shapes[i], dtype=dtypes[i]) for i, need in enumerate(needs) if need]


def _of(spec: StageSpec, backend: str, of_batch: Tensor, dtype: torch.dtype, wanted: Wanted) -> Stage:
    ops = mixed.operations(backends.operations(backend, of_batch.device, dtype), spec) if of_batch.shape[0] else IDLE
    return Stage(spec, ops, dtype, wanted, False, False, spec.dtypes(dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, tensors, seeds, *ctx.of_stage, _, _, _, _, _ = inputs
    _, _, buffer, stats, z, given, _ = output
    sizes, numbers, groups, _ = ctx.of_stage
    spec = decoded(tuple(sizes), tuple(numbers), groups)
    learnt = [tensor for i, tensor in enumerate(tensors) if i not in spec.given]
    kept, images = (buffer if spec.layers else x), None
    if spec.convolution is not None:
        learns = any(tensors[i].requires_grad for i in spec.of_convolution)
        kept, images = buffer, (x if buffer.dim() == 1 or learns else None)
    ctx.save_for_backward(kept, images, stats, z, given, seeds, *learnt)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: None, dbuffer: Tensor | None, *__: Tensor | None) -> tuple[Any, ...]:
    needs_x, _, needs = ctx.needs_input_grad[:3]
    if dy is None:  # nothing comes from the consumer
        sizes, numbers, groups, _ = ctx.of_stage
        needs = decoded(tuple(sizes), tuple(numbers), groups).of_layers(needs)
    found: list[Tensor] = []
    if dy is not None or dbuffer is not None:
        x, images, stats, z, given, seeds, *learnt = ctx.saved_tensors
        found = torch.ops.densenet_fast.stage_backward.default(
            dy, dbuffer, x, images, stats, z, given, learnt, seeds, *ctx.of_stage, needs_x, needs
        )
    each = iter(found)
    dx = next(each) if needs_x and found else None
    gradients = [next(each) if need and found else None for need in needs]
    return dx, None, gradients, *[None] * 10


def _update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    num_batches_tracked: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    momentum: list[float],
    backend: str,
) -> None:
    ops = backends.operations(backend, stats.device, stats.dtype, False)  # as `Tracked.write`
    ops.update_running_stats(running_mean, running_var, num_batches_tracked, stats, begins, count, momentum)


def _register() -> None:
    def operator(name: str, schema: str, real: Any, fake: Any) -> None:
        _library.define(f"{name}{schema}")
        _library.impl(name, real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"densenet_fast::{name}", fake, lib=_library)

    operator(
        "stage",
        f"(Tensor x, Tensor? x_stats, Tensor[] tensors, Tensor? seeds, {_OF_STAGE}, bool wants_stats, bool nhwc, "
        "bool keep, bool keep_buffer, bool keep_z) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _stage,
        _fake_stage,
    )
    operator(
        "stage_backward",
        "(Tensor? dy, Tensor? dbuffer, Tensor x, Tensor? images, Tensor stats, Tensor z, Tensor given, "
        f"Tensor[] learnt, Tensor? seeds, {_OF_STAGE}, bool needs_x, bool[] needs) -> Tensor[]",
        _stage_backward,
        _fake_stage_backward,
    )
    operator(
        "update_running_stats",
        "(Tensor(a!)[] running_mean, Tensor(b!)[] running_var, Tensor(c!)[] num_batches_tracked, Tensor stats, "
        "int[] begins, SymInt count, float[] momentum, str backend) -> ()",
        _update_running_stats,
        lambda *_: None,
    )
    torch.library.register_autograd("densenet_fast::stage", _backward, setup_context=_setup_context, lib=_library)


_register()
