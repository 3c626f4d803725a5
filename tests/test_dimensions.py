"""Nets for volumes and for signals: as their plain layers under PyTorch's autograd, with linear memory."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.memory import Step
from densenet_fast.modules import DenseBlock, DenseLayer, Transition

from .contract.backends import Backend
from .contract.nets import buffers, gradients
from .oracle import away_from_start, error, rms_error
from .pairs import BACKENDS
from .rows import thorough

DIMS = (1, 3)
SIZE = {1: (45,), 2: (22, 19), 3: (18, 17, 14)}
CONFIGS = {
    "small stem": {},
    "large stem": {"small_inputs": False},
    "recomputing": {"small_inputs": False, "efficient": True},
    "without bottleneck": {"bn_size": None},
    "without bottleneck, recomputing": {"bn_size": None, "efficient": True},
}


def net(dims, **config):
    torch.manual_seed(0)
    config = {"block_config": (2, 3), "num_init_features": 5, "growth_rate": 4} | config
    model = away_from_start(DenseNet(spatial_dims=dims, **config))
    if hasattr(model.features, "norm0"):  # else its maxima are all positive, and the next norms take its bias out
        model.features.norm0.bias.data.sub_(1.5)
    return model


def images(dims, n=2, dtype=torch.float64):
    return torch.randn(n, 3, *SIZE[dims], dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(model, x, cotangent):
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(cotangent)
    return y.detach(), {"images": x.grad, **gradients(model)}, dict(model.named_buffers())


def check(ours, plain, x):
    """A training step, and inference on the statistics that it left."""
    cotangent = torch.randn(plain(x).shape, dtype=x.dtype)
    plain.load_state_dict(ours.state_dict())
    (y, grads, stats), (exact, exact_grads, exact_stats) = (step(model, x, cotangent) for model in (ours, plain))
    assert error(y, exact) < 1e-10
    for found, expected in ((grads, exact_grads), (stats, exact_stats)):
        for name, value in found.items():
            assert (value is None) == (expected[name] is None), name
            assert value is None or error(value, expected[name]) < 1e-9, name
    with torch.no_grad():
        assert error(ours.eval()(x), plain.eval()(x)) < 1e-10


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def freeze_every_second(model):
    for norm in norms(model)[::2]:
        norm.eval()


def freeze_all(model):
    for norm in norms(model):
        norm.eval()


def untracked(model):
    for norm in norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def averaging(model):
    for norm in norms(model):
        norm.momentum = None


def without_affine(model):
    for norm in norms(model):
        norm.weight = norm.bias = None


def frozen_weights(model):
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)


def dropping_all(model):
    for module in model.modules():
        if isinstance(module, DenseLayer):
            module.drop_rate = 1.0


MODES = (freeze_every_second, freeze_all, untracked, averaging, without_affine, frozen_weights, dropping_all)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dims", DIMS)
def test_a_step_is_that_of_the_plain_layers(dims, config):
    ours = net(dims, **CONFIGS[config]).double()
    check(ours, copy.deepcopy(ours).set_backend("plain"), images(dims))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", MODES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_modes_of_the_norms_and_weights(dims, efficient, change):
    ours = net(dims, small_inputs=False, efficient=efficient).double()
    change(ours)
    check(ours, copy.deepcopy(ours).set_backend("plain"), images(dims))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_float32_is_as_exact_as_the_plain_layers(dims, efficient, backend):
    ours = net(dims, small_inputs=False, efficient=efficient)
    plain, exact = (copy.deepcopy(ours).set_backend("plain") for _ in range(2))
    x, cotangent = images(dims, dtype=torch.float32), torch.randn(2, 10)
    found = []
    for model in (ours.set_backend(backend), plain, exact.double()):
        dtype = model.classifier.weight.dtype
        found.append((*step(model, x.to(dtype), cotangent.to(dtype))[1:2], buffers(model)))
    for values in zip(*found, strict=True):
        Backend(backend).check(*values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dims", DIMS)
def test_autocast(dims):
    """With images that stay large: of 2x2x2 pixels oneDNN's weight gradients in bfloat16 are now and then arbitrary."""
    models = _, plain, exact = [net(dims) for _ in range(3)]
    plain.set_backend("plain")
    exact.double().set_backend("plain")
    x, found = images(dims), []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=model is not exact):
            y = model(x.to(model.classifier.weight.dtype))
        y.backward(torch.ones_like(y))
        found.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
        assert y.dtype == (torch.float64 if model is exact else torch.bfloat16)
    assert rms_error(found[0], found[2]) <= 2 * rms_error(found[1], found[2])


@pytest.mark.parametrize("dims", DIMS)
def test_what_is_recomputed_drops_the_same(dims):
    x, found = images(dims), []
    for efficient in (False, True):
        model = net(dims, drop_rate=0.4, efficient=efficient).double()
        torch.manual_seed(3)
        found.append(step(model, x, torch.ones(2, 10, dtype=x.dtype)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(error(value, found[1][1][name]) < 1e-12 for name, value in found[0][1].items())


@pytest.mark.parametrize("dims", DIMS)
def test_some_of_the_new_channels_are_dropped_and_others_scaled(dims):
    block = DenseBlock(1, 4, 4, 8, drop_rate=0.3, spatial_dims=dims).double()
    whole = copy.deepcopy(block)
    whole.denselayer1.drop_rate = 0.0
    x = torch.randn(2, 4, *SIZE[dims], dtype=torch.float64)
    dropped, kept = block(x)[:, 4:], whole(x)[:, 4:]
    is_dropped = dropped == 0
    assert 0.2 < is_dropped.double().mean() < 0.4
    assert error(dropped[~is_dropped], kept[~is_dropped] / 0.7) < 1e-12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dims", DIMS)
def test_blocks_and_transitions_by_hand(dims):
    """Contiguous as what their plain layers return, and tensors of their own."""
    for make in (lambda: DenseBlock(2, 6, 4, 3, spatial_dims=dims), lambda: Transition(6, 4, spatial_dims=dims)):
        ours = away_from_start(make().double())
        plain = copy.deepcopy(ours).set_backend("plain")
        x = torch.randn(2, 6, *SIZE[dims], dtype=torch.float64)
        outputs = []
        for module in (ours, plain):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.mul_(2)
            (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
            outputs.append((y.detach(), leaf.grad, *[p.grad for p in module.parameters()]))
        assert all(error(a, b) < 1e-10 for a, b in zip(*outputs, strict=True))
        assert all(t.is_contiguous() for t in outputs[0])


@pytest.mark.parametrize("small_inputs", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_outputs_of_the_trunk_lie_as_the_plain_layers_do(layout, small_inputs):
    ours = net(3, small_inputs=small_inputs).double()
    plain, x = copy.deepcopy(ours).set_backend("plain"), images(3).contiguous(memory_format=layout)
    for end in range(1, len(ours.features) + 1):
        y, exact = ours.features[:end](x), plain.features[:end](x)
        assert error(y, exact) < 1e-10
        if layout == torch.contiguous_format:  # of the others PyTorch's convolutions keep some
            assert y.stride() == exact.stride(), end


@pytest.mark.parametrize("dims", DIMS)
def test_blocks_against_layers_that_are_not_ours(dims):
    """Batch normalisation, convolution and concatenation by torch.nn.functional, from the weights alone."""
    block = away_from_start(DenseBlock(3, 5, 4, 3, spatial_dims=dims).double())
    conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    x = torch.randn(2, 5, *SIZE[dims], dtype=torch.float64)
    y = x
    for layer in block.values():
        a = F.relu(F.batch_norm(y, None, None, layer.norm1.weight, layer.norm1.bias, True))
        a = F.batch_norm(conv(a, layer.conv1.weight), None, None, layer.norm2.weight, layer.norm2.bias, True)
        y = torch.cat([y, conv(F.relu(a), layer.conv2.weight, padding=1)], 1)
    cotangent = torch.randn_like(y)
    expected = torch.autograd.grad(y, block.parameters(), cotangent)
    got = block(x)
    assert error(got, y) < 1e-10
    grads = torch.autograd.grad(got, block.parameters(), cotangent)
    assert all(error(a, b) < 1e-9 for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(
    "config", [thorough({}), {"small_inputs": False, "growth_rate": 16}, {"bn_size": None}], ids=str
)
@pytest.mark.parametrize("dims", DIMS)
def test_live_bytes_are_exactly_those_that_must_be_kept(dims, config, efficient):
    model = DenseNet(block_config=(3, 3), spatial_dims=dims, efficient=efficient, backend="eager", **config)
    x = torch.randn(2, 3, *SIZE[dims])
    assert measure(model, x).live == Step.of(model, x.shape).kept()


@pytest.mark.parametrize(("efficient", "ratio"), [thorough(False, 3), (True, 7)])
def test_densenet121_of_volumes_keeps_a_fraction(efficient, ratio):
    x = torch.randn(2, 1, 32, 32, 32)

    def live(**config):
        shape = {"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64, "in_channels": 1}
        return measure(DenseNet(**shape, spatial_dims=3, **config), x).live

    assert live(backend="plain") > ratio * live(backend="eager", efficient=efficient)


def test_names_and_initial_weights_are_those_of_two_dimensions():
    plane, volume, signal = (net(dims, small_inputs=False) for dims in (2, 3, 1))
    assert [*plane.state_dict()] == [*volume.state_dict()] == [*signal.state_dict()]
    for dims, model in ((3, volume), (1, signal)):
        weight = DenseNet(32, (4,), num_init_features=64, spatial_dims=dims).features.conv0.weight
        assert weight.shape == (64, 3, *[3] * dims)
        assert weight.std().item() == pytest.approx((2 / (64 * 3**dims)) ** 0.5, rel=0.1)
        copied = pickle.loads(pickle.dumps(model.eval()))
        x = images(dims, dtype=torch.float32)
        assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("dims", DIMS)
def test_an_empty_batch(dims):
    model = net(dims, small_inputs=False).double()
    assert model(images(dims)[:0]).shape == (0, 10)


@pytest.mark.parametrize("dims", DIMS)
def test_what_does_not_fit_is_refused(dims):
    model = net(dims, small_inputs=False)
    with pytest.raises(
        ValueError, match=r"wrong number of dimensions: got \[2, 3, 8, 8\], expected \[N, C, (D, H, W|L)\]"
    ):
        model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=f"image too small for the poolings.*at least {'x'.join(['5'] * dims)}$"):
        model(torch.randn(2, 3, *[4] * dims))
    with pytest.raises(ValueError, match="wrong number of channels"):
        model(torch.randn(2, 4, *[16] * dims))
    with pytest.raises(ValueError, match="image too small to pool: got 1"):
        Transition(3, 2, spatial_dims=dims)(torch.randn(2, 3, *[1] * dims))
    with pytest.raises(ValueError, match="wrong number of dimensions"):
        DenseBlock(1, 3, 4, 2, spatial_dims=dims)(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("make", [DenseNet, DenseBlock, DenseLayer, Transition])
def test_images_have_one_to_three_dimensions(make):
    arguments = {DenseNet: (), DenseBlock: (1, 3, 4, 2), DenseLayer: (3, 2), Transition: (3, 2)}[make]
    with pytest.raises(ValueError, match="spatial_dims: got 4, expected 1, 2 or 3"):
        make(*arguments, spatial_dims=4)


def test_a_norm_of_other_dimensions_runs_plain():
    model = net(3).double()
    model.features.denseblock1.denselayer1.norm2 = nn.InstanceNorm3d(16).double()
    with pytest.warns(UserWarning, match=r"denselayer1\.norm2 is InstanceNorm3d, not BatchNorm3d"):
        model(images(3))
    model.features.denseblock1.denselayer1 = DenseLayer(5, 4).double()
    with pytest.warns(UserWarning, match="denselayer1 is for images of 2 dimensions"):
        assert model.features.denseblock1.fusable() is None
