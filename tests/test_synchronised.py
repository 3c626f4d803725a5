"""nn.SyncBatchNorm: several processes give what one gives with the whole batch."""

import copy
import time
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn

import densenet_fast
from densenet_fast import backends

from .contract import nets
from .contract.backends import Backend
from .oracle import away_from_start, error
from .processes import Step, all_norms, batch, chosen, devices, in_parts, net, run

synchronised = nn.SyncBatchNorm.convert_sync_batchnorm


def compare(rank, sizes, change=lambda model: None, **config):
    """A training step, and inference on the statistics that it left."""
    ours = net(**config)
    change(ours)
    one = copy.deepcopy(ours).set_backend("plain")
    ours = synchronised(ours)
    x, cotangent, own = batch(sizes, rank)
    Step.of(ours, x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))
    with torch.no_grad():
        if sizes[rank]:
            assert error(ours.eval()(x[own]), one.eval()(x[own])) < 1e-9


def uneven(rank):
    compare(rank, (1, 3, 2))


def uneven_recomputing(rank):
    compare(rank, (1, 3, 2), efficient=True)


def without_bottleneck(rank):
    compare(rank, (1, 3, 2), bn_size=None)
    compare(rank, (1, 3, 2), bn_size=None, small_inputs=True, efficient=True)


def an_empty_batch(rank):
    compare(rank, (2, 0, 3))
    compare(rank, (2, 0, 3), efficient=True, small_inputs=True)


def one_value_per_channel(rank):
    """Of one process; of all there are more."""
    model = net(small_inputs=True, block_config=(1,))
    one = copy.deepcopy(model).set_backend("plain")
    x, cotangent, own = batch((1, 1, 1), rank)
    x = x[:, :, :1, :1]
    Step.of(synchronised(model), x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))


def volumes(rank):
    for config in ({}, {"efficient": True}, {"bn_size": None}):
        sizes = (1, 0, 2)
        ours = net(small_inputs=True, spatial_dims=3, **config)
        one = copy.deepcopy(ours).set_backend("plain")
        _, cotangent, own = batch(sizes, rank)
        x = torch.randn(3, 3, 7, 6, 8, dtype=torch.float64)
        Step.of(synchronised(ours), x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))


def modes(rank):
    for change in nets.MODES:
        compare(rank, (1, 3, 2), change, efficient=change in nets.MODES[::2])


def mixed_groups(rank):
    """Norms of one stage over all processes, over a part of them, and by themselves."""
    parts = {"all": [[0, 1, 2]], "pair": [[0, 1], [2]], "alone": [[0], [1], [2]]}
    pair = next(group for ranks in parts["pair"] if rank in ranks for group in [_groups()[tuple(ranks)]])
    sizes = (1, 3, 2)
    x, cotangent, own = batch(sizes, rank)
    for orders in (("all", "alone"), ("pair", "all", "alone", "all", "pair"), ("alone", "pair", "pair")):
        for config in ({}, {"efficient": True}, {"bn_size": None}):
            ours = net(**config)
            one = in_parts(copy.deepcopy(ours), sizes, rank, lambda i, orders=orders: parts[orders[i % len(orders)]])
            for i, (name, norm) in enumerate(all_norms(ours)):
                kind = orders[i % len(orders)]
                if kind != "alone":
                    ours.set_submodule(name, synchronised(norm, pair if kind == "pair" else None))
            Step.of(ours, x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))


@cache
def _groups():
    return {ranks: dist.new_group(list(ranks)) for ranks in ((0, 1), (2,))}


def float32_backends(rank):
    """As exact as PyTorch's layers are in float32 in one process."""
    sizes = (1, 3, 2)
    device = torch.get_default_device()
    for name in ("native", "eager") if device.type == "cpu" else backends.PREFERENCE:
        if backends.why_unavailable(name, device) is not None:
            continue
        backend = Backend(name, device)
        for efficient in (False, True):
            shape = nets.SHAPES["stem"]._replace(batch=sum(sizes))
            nets_of = nets.trio(backend, shape=shape, efficient=efficient)
            x = nets.images(nets_of.exact, shape)
            cotangent = torch.randn(sum(sizes), 10, generator=torch.Generator(device).manual_seed(1))
            begin = sum(sizes[:rank])
            own = slice(begin, begin + sizes[rank])
            found = []
            for model in nets_of:
                part = own if model is nets_of.ours else slice(None)
                model = synchronised(model) if model is nets_of.ours else model
                output, gradients = nets.step(model, x[part], cotangent[part])
                if part is own:
                    for gradient in gradients.values():
                        if gradient is not None:
                            dist.all_reduce(gradient)
                else:
                    output = {"output": output["output"][own]}
                del gradients["images"]
                found.append((output, gradients, nets.buffers(model)))
            for ours, stock, exact in zip(*found, strict=True):
                backend.check(ours, stock, exact)


def parts_by_hand(rank):
    """A block and a transition that are called by themselves; images that need no gradient, or alone need one."""
    sizes = (1, 3, 2)
    *_, own = batch(sizes, rank)
    for name, channels in (("denseblock1", 7), ("transition1", 19)):
        ours = net().features.get_submodule(name)
        one = copy.deepcopy(ours).set_backend("plain")
        x = torch.randn(6, channels, 8, 9, dtype=torch.float64)
        cotangent = torch.randn(one(x).shape, dtype=torch.float64)
        one = copy.deepcopy(ours).set_backend("plain")
        Step.of(synchronised(ours), x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))
    compare(rank, sizes, lambda model: model.features.conv0.requires_grad_(False))
    compare(rank, sizes, lambda model: model.requires_grad_(False))


def dropout(rank):
    """What is dropped once is dropped again where it is recomputed, on the statistics that were kept."""
    sizes = (1, 3, 2)
    x, cotangent, own = batch(sizes, rank)
    steps = []
    for efficient in (False, True):
        model = synchronised(net(drop_rate=0.4, efficient=efficient))
        torch.manual_seed(5 + rank)
        steps.append(Step.of(model, x[own], cotangent[own]))
    steps[0].check(steps[1])


def without_gradients(rank):
    """A forward in training mode moves running statistics, and keeps nothing."""
    sizes = (1, 3, 2)
    model = net()
    one = copy.deepcopy(model).set_backend("plain")
    x, _, own = batch(sizes, rank)
    ours = synchronised(model)
    with torch.no_grad():
        assert error(ours(x[own]), one(x)[own]) < 1e-9
    for name, buffer in ours.named_buffers():
        assert error(buffer, one.get_buffer(name)) < 1e-9, name


def reductions(rank):
    """One behind each half, one at the head of each stage, and as many in backward."""
    x, cotangent, own = batch((1, 3, 2), rank)
    model = synchronised(net())
    calls = []
    former = dist.all_gather_into_tensor, dist.all_reduce
    dist.all_gather_into_tensor = lambda *args, **kwargs: (calls.append("gather"), former[0](*args, **kwargs))
    dist.all_reduce = lambda *args, **kwargs: (calls.append("reduce"), former[1](*args, **kwargs))
    try:
        model(x[own]).backward(cotangent[own])
    finally:
        dist.all_gather_into_tensor, dist.all_reduce = former
    layers, stages = 2 + 3, 3
    assert (calls.count("gather"), calls.count("reduce")) == (2 * layers + stages, 2 * layers + stages)


def alone_in_its_group(rank):
    """As nn.BatchNorm2d: nobody to wait for."""
    sizes = (2, 2, 2)
    groups = [dist.new_group([r]) for r in (1, 1, 2)]  # the first is not process 0's
    alone = groups[rank]
    x, cotangent, own = batch(sizes, rank)
    model = net(small_inputs=True)  # behind a stem's pooling the gradient of norm0's bias cancels in these images
    one = copy.deepcopy(model).set_backend("plain")
    Step.of(synchronised(model, alone), x[own], cotangent[own]).check(Step.of(one, x[own], cotangent[own]))


def a_converted_model(rank):
    """timm's, whose own conversion keeps the activation in the norm."""
    import timm  # by one of three processes' checks alone

    sizes = (1, 3, 2)
    torch.manual_seed(0)
    ours = away_from_start(timm.models.densenet.DenseNet(6, (2, 3), num_classes=10).double())
    one = copy.deepcopy(ours)
    densenet_fast.convert(ours, on_unsupported="raise")
    ours = timm.layers.convert_sync_batchnorm(ours)
    for name in ("features.norm0", "features.norm5"):  # called by themselves: PyTorch's own refuses CPUs
        norm = one.get_submodule(name)
        ours.set_submodule(name, in_eval(norm))
        one.set_submodule(name, in_eval(norm))
    x, cotangent, own = batch(sizes, rank)
    Step.of(ours, x[own], cotangent[own]).summed().check(Step.of(one, x, cotangent).of_part(own))


def in_eval(norm):
    """A norm that stays in evaluation."""
    frozen = copy.deepcopy(norm).eval()
    frozen.train = lambda mode=True: frozen
    return frozen


def differentiated_twice(rank):
    """Refused, as PyTorch's own does it, and not computed from the statistics of one process."""
    x, _, own = batch((1, 3, 2), rank)
    model = synchronised(net())
    with pytest.raises(RuntimeError, match="SyncBatchNorm"):
        torch.autograd.grad(model(x[own]).sum(), [model.features.conv0.weight], create_graph=True)


def compiled(rank):
    """As one graph, in which every process makes the same reductions."""
    ours = synchronised(net(block_config=(1,), small_inputs=True, efficient=True))
    graph = torch.compile(copy.deepcopy(ours), backend="aot_eager", fullgraph=True)
    x, _, own = batch((1, 3, 2), rank)
    for model in (ours, graph):
        model(x[own]).square().sum().backward()
    for got, right in zip(graph.parameters(), ours.parameters(), strict=True):
        assert torch.equal(got.grad, right.grad)
    assert all(map(torch.equal, graph.buffers(), ours.buffers()))


CHECKS = (
    *(
        uneven,
        uneven_recomputing,
        without_bottleneck,
        an_empty_batch,
        one_value_per_channel,
        volumes,
        modes,
        mixed_groups,
    ),
    *(float32_backends, parts_by_hand, dropout, without_gradients, reductions, alone_in_its_group),
    *(a_converted_model, differentiated_twice, compiled),
)


@pytest.fixture(scope="module", params=devices(3))
def outcomes(request):
    return run(chosen(CHECKS, request.session.items), 3, request.param)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_three_processes_give_what_one_gives(outcomes, check):
    assert outcomes[check] == ""


def a_process_dies(rank):
    model = synchronised(net())
    x, cotangent, own = batch((2, 2), rank)
    Step.of(model, x[own], cotangent[own])
    if rank == 1:
        dist.destroy_process_group()
        raise SystemExit("dies")
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?i)gloo|connection|timed out"):
        model(x[own])
    assert time.monotonic() - begin < 30


def test_a_process_that_dies_is_an_error_in_the_others():
    outcome = run([a_process_dies], 2, timeout=10)["a_process_dies"]
    assert "rank 0" not in outcome
    assert "SystemExit: dies" in outcome


def test_without_a_process_group_it_is_batch_norm():
    model = net()
    one = copy.deepcopy(model).set_backend("plain")
    x, cotangent, _ = batch((2,), 0)
    Step.of(synchronised(model), x, cotangent).check(Step.of(one, x, cotangent))
