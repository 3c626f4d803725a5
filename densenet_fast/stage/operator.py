"""A stage as one functional operator, for graphs: torch.compile takes it as it is, with its backward.

    densenet_fast::stage, densenet_fast::stage_backward   as `schedule.forward` and `backward`
    densenet_fast::update_running_stats                   the contract's, of the backend that is named
    densenet_fast::dropout_seeds                          a fresh seed for each layer

Graphs are kept on disk and run by other processes, so that everything that is no tensor travels in the arguments: a
spec as two lists of numbers. Results share no memory with arguments or each other: a stage returns what its backward
needs, and where nothing is wanted an empty tensor. No stage extends what another has returned.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..contract import accumulator
from . import schedule
from .buffer import dense, handed_out, laid_out, row_stride
from .schedule import Stage, Wanted
from .spec import ConsumerSpec, LayerSpec, StageSpec

_KINDS = ("transition", "stem", "head")
_OF_STAGE = "int[] sizes, float[] numbers, str backend"
_library = torch.library.Library("densenet_fast", "FRAGMENT")


def encoded(spec: StageSpec) -> tuple[list[int], list[float]]:
    """`sizes`, `numbers` of a spec."""
    sizes, numbers = [spec.channels, len(spec.layers)], []
    for width, growth, eps1, eps2, batch1, batch2, drop_rate, _, _ in spec.layers:
        sizes += [width, growth, int(batch1), int(batch2)]
        numbers += [eps1, eps2, drop_rate]
    if spec.consumer is None:
        return [*sizes, -1, *spec.slots], numbers
    kind, outputs, eps, batch, _ = spec.consumer
    return [*sizes, _KINDS.index(kind), outputs, int(batch), *spec.slots], [*numbers, eps]


@lru_cache(maxsize=256)
def decoded(sizes: tuple[int, ...], numbers: tuple[float, ...]) -> StageSpec:
    rest, of_norms = iter(sizes), iter(numbers)
    channels, count = next(rest), next(rest)
    layers = []
    for _ in range(count):
        width, growth, batch1, batch2 = (next(rest) for _ in range(4))
        eps1, eps2, drop_rate = (next(of_norms) for _ in range(3))
        layers.append(LayerSpec(width, growth, eps1, eps2, bool(batch1), bool(batch2), drop_rate))
    kind, consumer = next(rest), None
    if kind >= 0:
        outputs, batch = next(rest), bool(next(rest))
        consumer = ConsumerSpec(_KINDS[kind], outputs, next(of_norms), batch)  # type: ignore[arg-type]
    return StageSpec(channels, tuple(layers), consumer, tuple(rest))


def run(
    spec: StageSpec,
    x: Tensor,
    tensors: Sequence[Tensor],
    seeds: Tensor | None,
    *,
    backend: str,
    wanted: Wanted,
    x_stats: Tensor | None,
    efficient: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, its statistics and `stats`, as `function.Result`; x has the dtype that the stage computes in."""
    tensors = [tensor.to(dtype) for tensor, dtype in zip(tensors, spec.dtypes(x.dtype), strict=True)]
    if not spec.layers:  # x itself is the buffer
        x = x.contiguous(memory_format=torch.channels_last)
    keep = torch.is_grad_enabled() and (x.requires_grad or any(tensor.requires_grad for tensor in tensors))
    nhwc = wanted.layout is None or wanted.layout == torch.channels_last
    sizes, numbers = encoded(spec)
    y, y_stats, _, stats, _, _ = torch.ops.densenet_fast.stage.default(
        x, x_stats, tensors, seeds, sizes, numbers, backend, wanted.stats, nhwc, keep, keep and not efficient
    )
    return y, y_stats.detach() if wanted.stats else None, stats.detach()


def _stage(
    x: Tensor,
    x_stats: Tensor | None,
    tensors: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    backend: str,
    wants_stats: bool,
    nhwc: bool,
    keep: bool,
    keep_z: bool,
) -> tuple[Tensor, ...]:
    layout = torch.channels_last if nhwc else torch.contiguous_format
    stage = _of(sizes, numbers, backend, x, Wanted(wants_stats, layout=layout))
    spec = stage.spec
    y, y_stats, buffer, stats, z, _ = schedule.forward(stage, x, x_stats, tensors, seeds, keep_z)
    if y.dim() == 4:
        y = handed_out(y, layout, shared=keep and spec.consumer is None)
    n, _, h, w = x.shape
    row = row_stride(spec.total, x.dtype)
    given = [tensors[i] for i in spec.given] if keep else []
    return (
        y,
        stats.new_empty(0) if y_stats is None else y_stats,
        buffer.as_strided((n, row, h, w), buffer.stride()) if keep and spec.layers else x.new_empty(0),
        stats,
        x.new_empty(0) if z is None else z,
        torch.cat(given) if given else stats.new_empty(0),
    )


def _fake_stage(
    x: Tensor,
    x_stats: Tensor | None,
    tensors: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    backend: str,
    wants_stats: bool,
    nhwc: bool,
    keep: bool,
    keep_z: bool,
) -> tuple[Tensor, ...]:
    spec = decoded(tuple(sizes), tuple(numbers))
    n, _, h, w = x.shape
    wide = accumulator(x.dtype)
    channels = spec.total if spec.consumer is None else spec.consumer.outputs
    shape: tuple[int, ...] = (n, channels, h, w)
    if spec.consumer is not None:
        of_kind = {"head": (), "transition": (h // 2, w // 2), "stem": ((h + 1) // 2, (w + 1) // 2)}
        shape = (n, channels, *of_kind[spec.consumer.kind])
    y = x.new_empty(shape)
    if nhwc and y.dim() == 4:
        y = dense(shape, x)
    has_stats = wants_stats and spec.consumer is not None and spec.consumer.kind != "head"
    return (
        y,
        x.new_empty((2, channels) if has_stats else 0, dtype=wide),
        dense((n, row_stride(spec.total, x.dtype), h, w), x) if keep and spec.layers else x.new_empty(0),
        x.new_empty((2, spec.statistics), dtype=wide),
        x.new_empty(spec.z_size(n * h * w) if keep_z and spec.layers else 0),
        x.new_empty(sum(spec.shapes[i][0] for i in spec.given) if keep else 0, dtype=wide),
    )


def _stage_backward(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    z: Tensor,
    given: Tensor,
    learnt: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    backend: str,
    needs_x: bool,
    needs: list[bool],
) -> list[Tensor]:
    """x: the whole buffer; learnt: the tensors that are no statistics. The gradients that are needed, x's first."""
    stage = _of(sizes, numbers, backend, x, Wanted())
    spec = stage.spec
    statistics = iter(given.split([spec.shapes[i][0] for i in spec.given]))
    rest, are_given = iter(learnt), set(spec.given)
    tensors = [next(statistics if i in are_given else rest) for i in range(len(spec.slots))]
    kept_z = z if z.numel() else None
    buffer = laid_out(x[:, : spec.total])
    dx, gradients = schedule.backward(stage, buffer, stats, kept_z, tensors, seeds, dy, needs_x, tuple(needs))
    return [gradient for gradient in (dx, *gradients) if gradient is not None]


def _fake_stage_backward(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    z: Tensor,
    given: Tensor,
    learnt: list[Tensor],
    seeds: Tensor | None,
    sizes: list[int],
    numbers: list[float],
    backend: str,
    needs_x: bool,
    needs: list[bool],
) -> list[Tensor]:
    spec = decoded(tuple(sizes), tuple(numbers))
    dtypes = spec.dtypes(x.dtype)
    n, _, h, w = x.shape
    found = [dense((n, spec.channels, h, w), x)] if needs_x else []
    return found + [x.new_empty(spec.shapes[i], dtype=dtypes[i]) for i, need in enumerate(needs) if need]


def _of(sizes: list[int], numbers: list[float], backend: str, x: Tensor, wanted: Wanted) -> Stage:
    spec = decoded(tuple(sizes), tuple(numbers))
    return Stage(spec, backends.operations(backend, x.device, x.dtype), x.dtype, wanted, False, False)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, tensors, seeds, *ctx.of_stage, _, _, _, _ = inputs
    _, _, buffer, stats, z, given = output
    spec = decoded(*map(tuple, ctx.of_stage[:2]))
    learnt = [tensor for i, tensor in enumerate(tensors) if i not in spec.given]
    ctx.save_for_backward(buffer if spec.layers else x, stats, z, given, seeds, *learnt)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    needs_x, _, needs = ctx.needs_input_grad[:3]
    found: list[Tensor] = []
    if dy is not None:
        x, stats, z, given, seeds, *learnt = ctx.saved_tensors
        found = torch.ops.densenet_fast.stage_backward.default(
            dy, x, stats, z, given, learnt, seeds, *ctx.of_stage, needs_x, needs
        )
    each = iter(found)
    dx = next(each) if needs_x and found else None
    gradients = [next(each) if need and found else None for need in needs]
    return dx, None, gradients, *[None] * 8


def _update_running_stats(
    running_mean: list[Tensor],
    running_var: list[Tensor],
    stats: Tensor,
    begins: list[int],
    count: int,
    momentum: list[float],
    backend: str,
) -> None:
    ops = backends.operations(backends.choose(backend, stats.device, stats.dtype), stats.device, stats.dtype)
    ops.update_running_stats(running_mean, running_var, stats, begins, count, momentum)


def dropout_seeds(layers: int, device: torch.device) -> Tensor:
    """A fresh seed for each layer, int64 [layers]. A compiler leaves the drawing to PyTorch: the same under a seed."""
    if torch.compiler.is_compiling():
        return torch.ops.densenet_fast.dropout_seeds.default(layers, device)
    return _dropout_seeds(layers, device)


def _dropout_seeds(layers: int, device: torch.device) -> Tensor:
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (layers,), device=device)


def _register() -> None:
    def operator(name: str, schema: str, real: Any, fake: Any, tags: Sequence[torch.Tag] = ()) -> None:
        _library.define(f"{name}{schema}", tags=tags)
        _library.impl(name, real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"densenet_fast::{name}", fake, lib=_library)

    operator(
        "stage",
        f"(Tensor x, Tensor? x_stats, Tensor[] tensors, Tensor? seeds, {_OF_STAGE}, bool wants_stats, bool nhwc, "
        "bool keep, bool keep_z) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _stage,
        _fake_stage,
    )
    operator(
        "stage_backward",
        f"(Tensor dy, Tensor x, Tensor stats, Tensor z, Tensor given, Tensor[] learnt, Tensor? seeds, {_OF_STAGE}, "
        "bool needs_x, bool[] needs) -> Tensor[]",
        _stage_backward,
        _fake_stage_backward,
    )
    operator(
        "update_running_stats",
        "(Tensor(a!)[] running_mean, Tensor(b!)[] running_var, Tensor stats, int[] begins, SymInt count, "
        "float[] momentum, str backend) -> ()",
        _update_running_stats,
        lambda *_: None,
    )
    operator(
        "dropout_seeds",
        "(int layers, Device device) -> Tensor",
        _dropout_seeds,
        lambda layers, device: torch.empty(layers, dtype=torch.int64, device=device),
        [torch.Tag.nondeterministic_seeded],
    )
    torch.library.register_autograd("densenet_fast::stage", _backward, setup_context=_setup_context, lib=_library)


_register()
