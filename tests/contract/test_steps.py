"""What may be done with a net between, around and instead of single training steps."""

import copy

import pytest
import torch
from torch import nn

from densenet_fast import backends

from .nets import (
    Shape,
    buffers,
    check_step,
    cumulative,
    gradients,
    images,
    net,
    norms,
    own_eps,
    trio,
    untracked,
)

TWO_LAYERS = Shape((2,), 6, False, ())


def outputs(nets, x, run=lambda model, x: model(x)):
    """Of each net, from the images in its dtype, without a gradient."""
    return [{"output": run(model, x.to(model.classifier.weight.dtype)).detach()} for model in nets]


def test_running_statistics_move_once_for_each_training_forward(backend):
    """With a gradient, with none, under inference_mode; and in eval they stay."""
    nets = trio(backend, cumulative)
    x = images(nets.exact)
    check_step(backend, nets, x)
    with torch.no_grad():
        backend.check(*outputs(nets, x + 1))
    with torch.inference_mode():
        backend.check(*outputs(nets, 2 * x))
    backend.check(*map(buffers, nets))
    assert {int(norm.num_batches_tracked) for norm in norms(nets.ours)} == {3}
    before = copy.deepcopy(buffers(nets.ours))
    nets.ours.eval()(x.to(backend.dtype))
    assert all(torch.equal(before[name], value) for name, value in buffers(nets.ours).items())


def test_a_shared_norm_is_updated_for_each_use(backend):
    def share(model):
        first, second = model.features.denseblock1.values()
        second.norm2 = first.norm2

    nets = trio(backend, share, TWO_LAYERS)
    check_step(backend, nets, images(nets.exact, TWO_LAYERS))
    assert int(nets.ours.features.denseblock1.denselayer1.norm2.num_batches_tracked) == 2


def test_shared_running_statistics_are_updated_for_each_norm(backend):
    def share(model):
        first, second = model.features.denseblock1.values()
        second.norm2.running_mean, second.norm2.running_var = first.norm2.running_mean, first.norm2.running_var

    nets = trio(backend, lambda model: None, TWO_LAYERS)
    for model in nets:  # behind a conversion, which parts them
        share(model)
    for _ in range(2):
        check_step(backend, nets, images(nets.exact, TWO_LAYERS))


def test_a_counter_of_another_dtype_counts(backend):
    """As PyTorch's own addition takes it."""

    def shorten(model):
        model.features.denseblock1.denselayer1.norm2.num_batches_tracked = torch.tensor(0, dtype=torch.int32)

    nets = trio(backend, shorten)
    check_step(backend, nets, images(nets.exact))
    assert {int(norm.num_batches_tracked) for norm in norms(nets.ours)} == {1}


def test_gradients_accumulate(backend):
    nets = trio(backend)
    for seed in range(2):
        x = images(nets.exact, seed=seed)
        for model in nets:
            model(x.to(model.classifier.weight.dtype)).sum().backward()
    backend.check(*map(gradients, nets))


def some_train(model):
    model.eval()
    for norm in norms(model)[1::2]:
        norm.train()


def the_last_trains(model):
    model.eval()
    norms(model)[-1].train()


def some_untracked(model):
    model.eval()
    untracked(model.features.denseblock1.denselayer1)


@pytest.mark.parametrize("change", [own_eps, some_train, the_last_trains, some_untracked])
def test_without_gradients(backend, change):
    """Norms that take statistics of the batch behind others that do not, as under no_grad and inference_mode."""
    nets = trio(backend, change)
    x = images(nets.exact)
    with torch.no_grad():
        backend.check(*outputs(nets, x))
    with torch.inference_mode():
        backend.check(*outputs(nets, x))
    backend.check(*map(buffers, nets))
    nets.ours.requires_grad_(False)
    assert not nets.ours(x.to(backend.dtype)).requires_grad


def test_training_continues_after_inference_mode(backend):
    nets = trio(backend)
    x = images(nets.exact)
    for model in nets:
        with torch.inference_mode():
            model.eval()(x.to(model.classifier.weight.dtype))
        model.train()
    check_step(backend, nets, x)


def test_two_forwards_and_one_backward(backend):
    """In eval, then in training, which moves the statistics that the first is still to be differentiated by. PyTorch's
    own layers are not right here: they get a backward after each."""
    nets = trio(backend)
    x = images(nets.exact)
    for model in nets:
        images_ = x.to(model.classifier.weight.dtype)
        first = 3 * model.eval()(images_).square().sum()
        if model is not nets.ours:
            first.backward()
        second = model.train()(2 * images_ + 1).square().sum()
        (first + second if model is nets.ours else second).backward()
    backend.check(*map(gradients, nets))


@pytest.mark.parametrize("training", [True, False])
def test_a_block_without_layers_on_one_image(backend, training):
    nets = trio(backend, lambda model: model.train(training), Shape((0,), 6, False, ()))
    x, cotangent = images(nets.exact)[:1], torch.randn(1, 6, 6, 6, device=backend.device)
    for model in nets:
        dtype = model.classifier.weight.dtype
        (model.features(x.to(dtype)) * cotangent.to(dtype)).sum().backward()
    backend.check(*map(gradients, nets))
    backend.check(*outputs(nets, x, lambda model, x: model.features.denseblock1(model.features.conv0(x))))


@pytest.mark.parametrize("pack", [torch.clone, lambda t: t.clone(memory_format=torch.contiguous_format)])
def test_saved_tensors_may_go_elsewhere(backend, pack):
    """And come back with other strides."""
    nets = trio(backend)
    x = images(nets.exact)
    for model in nets:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: pack(t.detach()), lambda t: t):
            y = model(x.to(model.classifier.weight.dtype))
        y.square().sum().backward()
    backend.check(*map(gradients, nets))


@pytest.mark.parametrize("training", [True, False])
def test_memory_formats_agree(backend, training):
    shape = Shape((1,), 12, True, ())
    nets = trio(backend, lambda model: model.train(training), shape)
    x = images(nets.exact, shape)
    nhwc = {"memory_format": torch.channels_last}
    first, second = (copy.deepcopy(nets.ours)(x.to(backend.dtype, **given)) for given in ({}, nhwc))
    assert torch.equal(first, second)
    nets.ours.to(**nhwc)
    backend.check(*outputs(nets, x))


@pytest.mark.parametrize("plain", [False, True])
def test_a_failing_forward_changes_nothing(backend, monkeypatch, plain):
    """Out of memory in the last stage: every running statistic is as before, also of a block on its plain layers."""
    shape = Shape((1, 1), 6, False, ())
    model = backend.put(net(shape))
    if plain:
        model.features.denseblock1.set_backend("plain")
    x = images(model, shape, margin=0.0).to(backend.dtype)
    before = copy.deepcopy(model.state_dict())

    def fail(*args):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(backends.operations(backend.name, backend.device, backend.dtype), "head_fwd", fail)
        with pytest.raises(torch.OutOfMemoryError):
            model(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(x)
    assert {int(norm.num_batches_tracked) for norm in norms(model)} == {1}


def test_two_training_runs_are_bitwise_equal():
    def train():
        torch.manual_seed(5)
        model = net(TWO_LAYERS, drop_rate=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(2):
            optimizer.zero_grad()
            x = images(model, seed=seed, margin=0.0)
            nn.functional.cross_entropy(model(x), torch.arange(2)).backward()
            optimizer.step()
        return model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[name], second[name]) for name in first)
