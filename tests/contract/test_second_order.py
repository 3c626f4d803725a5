"""Gradients of gradients, and batches of gradients, as PyTorch's own layers give them."""

import pytest
import torch

from ..rows import thorough
from .nets import freeze_every_second, frozen_weights, images, trio


def penalised(model, x):
    """A step with WGAN-GP's penalty (Gulrajani et al. 2017) of the images' gradient, which is differentiated again."""
    x = x.to(model.classifier.weight.dtype, copy=True).requires_grad_()
    y = model(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    loss = (first.flatten(1).norm(dim=1) - 1).square().mean() + y.mean()
    wanted = {"images": x, **{n: p for n, p in model.named_parameters() if p.requires_grad}}
    second = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {"images' first": first.detach()}, dict(zip(wanted, second, strict=True))


@pytest.mark.parametrize(
    "change",
    [thorough(lambda model: None), freeze_every_second, thorough(frozen_weights)],
    ids=["", "norms", "weights"],
)
def test_a_gradient_penalty(backend, change, shape):
    nets = trio(backend, change, shape)
    x = images(nets.exact, shape)
    for ours, stock, exact in zip(*(penalised(model, x) for model in nets), strict=True):
        backend.check(ours, stock, exact)


def test_a_batch_of_gradients(backend):
    nets = trio(backend)
    x, cotangents, found = images(nets.exact), torch.randn(3, 2, 10, device=backend.device), []
    for model in nets:
        dtype = model.classifier.weight.dtype
        wanted = dict(model.named_parameters())
        y = model(x.to(dtype))
        got = torch.autograd.grad(y, list(wanted.values()), cotangents.to(dtype), is_grads_batched=True)
        found.append(dict(zip(wanted, got, strict=True)))
    backend.check(*found)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_vectorised_jacobian(backend, create_graph):
    nets = trio(backend, lambda model: model.eval())
    x, found = images(nets.exact), []
    for model in nets:
        jacobian = torch.autograd.functional.jacobian(
            model, x.to(model.classifier.weight.dtype), create_graph=create_graph, vectorize=True
        )
        assert jacobian.requires_grad == create_graph
        found.append({"jacobian": jacobian.detach()})
    backend.check(*found)
