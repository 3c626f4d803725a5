"""PyTorch's own engines around a net, in two processes with batches of unlike sizes: what one process gives."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from .processes import Step, batch, chosen, devices, in_parts, net, run

SIZES = (1, 3)
synchronised = nn.SyncBatchNorm.convert_sync_batchnorm
OPTIONS = (
    {},
    {"static_graph": True},
    {"find_unused_parameters": True},
    {"gradient_as_bucket_view": True},
    {"bucket_cap_mb": 0.001, "gradient_as_bucket_view": True, "static_graph": True},
)


def pair(rank, sync):
    """A net with SyncBatchNorm, or with norms that take each process's batch by itself; and the same in one process."""
    ours = net()
    one = copy.deepcopy(ours)
    if sync:
        return synchronised(ours), one.set_backend("plain")
    return ours, in_parts(one, SIZES, rank, lambda _: [[0], [1]])


def unwrapped(step):
    """The step with the bare model's names."""
    return step._replace(
        gradients={name.removeprefix("module."): g for name, g in step.gradients.items()},
        buffers={name.removeprefix("module."): b for name, b in step.buffers.items()},
    )


def compare(rank, wrapped, one, whole=lambda gradient: gradient):
    """Two steps: the second one with DDP's buckets as they will stay. Both engines average over processes."""
    x, cotangent, own = batch(SIZES, rank)
    for _ in range(2):
        wrapped.zero_grad()
        one.zero_grad()
        step = unwrapped(Step.of(wrapped, x[own], cotangent[own]))
        step = step._replace(gradients={name: whole(g) * len(SIZES) for name, g in step.gradients.items()})
        step.check(Step.of(one, x, cotangent).of_part(own))


def ddp(rank):
    for options in OPTIONS:
        ours, one = pair(rank, sync=False)
        # Its running statistics are then every process's own, as those of the norms in parts.
        compare(rank, DistributedDataParallel(ours, broadcast_buffers=False, **options), one)


def ddp_of_synchronised_norms(rank):
    """On CPUs DDP refuses SyncBatchNorm, because PyTorch's own refuses them."""
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
    for options in OPTIONS:
        ours, one = pair(rank, sync=True)
        compare(rank, DistributedDataParallel(ours, **options), one)


def ddp_leaves_a_block_out(rank):
    """find_unused_parameters: nobody waits for gradients that do not come."""
    ours, one = pair(rank, sync=False)
    for model in (ours, one):
        model.features.denseblock2.register_forward_hook(lambda module, inputs, y: y.detach())
    wrapped = DistributedDataParallel(ours, broadcast_buffers=False, find_unused_parameters=True)
    x, cotangent, own = batch(SIZES, rank)
    wrapped(x[own]).backward(cotangent[own])
    one(x).backward(cotangent)
    for (name, p), exact in zip(ours.named_parameters(), one.parameters(), strict=True):
        assert (exact.grad is None) == (p.grad is None or not p.grad.any()), name


def shard(model, names):
    mesh = init_device_mesh(torch.get_default_device().type, (2,))
    for name in names:
        module = model.get_submodule(name)
        # It refuses a container such as a ModuleDict, which torchvision's blocks are, but for one in a list.
        fully_shard([module] if isinstance(module, nn.ModuleDict) else module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def layers(model):
    return [name for name, _ in model.named_modules() if name.split(".")[-1].startswith("denselayer")]


SHARDED = {
    "the model": lambda model: [],
    "features": lambda model: ["features"],
    "blocks and transitions": lambda model: [
        f"features.{name}" for name in ("denseblock1", "transition1", "denseblock2")
    ],
}


def fsdp(rank):
    for names in SHARDED.values():
        ours, one = pair(rank, sync=False)
        compare(rank, shard(ours, names(ours)), one, lambda gradient: gradient.full_tensor())


def fsdp_of_layers(rank):
    """Their parameters are gathered by a hook, which a fused block would not call."""
    ours, one = pair(rank, sync=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compare(rank, shard(ours, layers(ours)), one, lambda gradient: gradient.full_tensor())
    assert sum("denselayer1 has hooks" in str(warning.message) for warning in seen) == 2  # blocks


def fsdp_of_synchronised_norms(rank):
    for names in ([], ["features.transition1"]):
        ours, one = pair(rank, sync=True)
        compare(rank, shard(ours, names), one, lambda gradient: gradient.full_tensor())


CHECKS = (ddp, ddp_of_synchronised_norms, ddp_leaves_a_block_out, fsdp, fsdp_of_layers, fsdp_of_synchronised_norms)


@pytest.fixture(scope="module", params=devices(len(SIZES)))
def outcomes(request):
    return run(chosen(CHECKS, request.session.items), len(SIZES), request.param)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_two_processes_give_what_one_gives(outcomes, check):
    assert outcomes[check] == ""
