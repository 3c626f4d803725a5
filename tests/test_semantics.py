"""BatchNorm's modes, dropout, precision, grad modes and failures, as PyTorch's own layers have them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from densenet_fast import DenseNet, backends

from .oracle import away_from_start, error


def net(**changes):
    torch.manual_seed(0)
    config = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 6} | changes
    return away_from_start(DenseNet(**config).double())


def both(change=lambda model: None, **changes):
    """A net and the same net on its plain layers, both changed."""
    model = net(**changes)
    change(model)
    return model, copy.deepcopy(model).set_backend("plain")


def image(n=4, size=16, channels=3, dtype=torch.float64):
    return torch.randn(n, channels, size, size, dtype=dtype)


def assert_same_step(model, plain, x, tolerance=1e-10):
    cotangent = torch.randn_like(model(x).detach())
    plain(x)  # one step each: the running statistics stay level
    for m in (model, plain):
        m.zero_grad()
        m(x).backward(cotangent)
    pairs = zip(model.named_parameters(), plain.parameters(), strict=True)
    for (name, got), expected in pairs:
        assert (got.grad is None) == (expected.grad is None), name
        assert got.grad is None or error(got.grad, expected.grad) < tolerance, name
    for (name, got), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert error(got, expected) < tolerance, name


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def freeze_every_second(model):
    for norm in norms(model)[::2]:
        norm.running_mean.normal_()
        norm.eval()


def freeze_all(model):
    for norm in norms(model):
        norm.eval()


def cumulative(model):
    for norm in norms(model):
        norm.momentum = None


def mixed_momenta(model):
    for i, norm in enumerate(norms(model)):
        norm.momentum = [None, 0.1, 0.5, 0.0, 1.0][i % 5]


def untracked(model):
    for norm in norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def without_affine(model):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(child.num_features, affine=False, dtype=torch.float64))


def own_eps(model):
    for i, norm in enumerate(norms(model)):
        norm.eps = 10.0 ** -(1 + i % 5)


def frozen_weights(model):
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)


def frozen_first_block(model):
    model.features.conv0.requires_grad_(False)
    model.features.denseblock1.requires_grad_(False)


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        freeze_every_second,
        freeze_all,
        cumulative,
        mixed_momenta,
        untracked,
        without_affine,
        own_eps,
        frozen_weights,
        frozen_first_block,
    ],
)
def test_modes_of_the_norms_and_weights(change, small, efficient):
    model, plain = both(change, small_inputs=small, efficient=efficient)
    assert_same_step(model, plain, image(size=16 if small else 48))
    for m in (model, plain):
        m.eval()
    with torch.no_grad():
        x = image(size=16 if small else 48)
        assert error(model(x), plain(x)) < 1e-10


@pytest.mark.parametrize("efficient", [False, True])
def test_running_statistics_are_updated_once_per_step(efficient):
    model = net(efficient=efficient)
    for steps in (1, 2, 3):
        model(image()).sum().backward()
        assert {int(norm.num_batches_tracked) for norm in norms(model)} == {steps}
    model.eval()(image())
    with torch.no_grad():
        model.train()(image())
    assert {int(norm.num_batches_tracked) for norm in norms(model)} == {4}


def test_shared_module_is_updated_once_for_each_use():
    model, plain = both(
        lambda m: setattr(m.features.denseblock1.denselayer2, "norm2", m.features.denseblock1.denselayer1.norm2)
    )
    assert_same_step(model, plain, image())
    assert int(model.features.denseblock1.denselayer1.norm2.num_batches_tracked) == 4


def test_gradients_accumulate():
    model, plain = both()
    for _ in range(2):
        x = image()
        for m in (model, plain):
            m(x).square().sum().backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert error(got.grad, expected.grad) < 1e-10


@pytest.mark.parametrize("efficient", [False, True])
def test_dropout_is_reproducible_and_leaves_no_trace_in_eval(efficient):
    model = net(drop_rate=0.3, efficient=efficient)
    x = image()
    outputs, gradients = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(outputs[0], outputs[1])
    assert all(map(torch.equal, gradients[0], gradients[1]))
    assert not torch.equal(outputs[0], outputs[2])
    model.eval()
    plain = copy.deepcopy(model).set_backend("plain")
    assert error(model(x), plain(x)) < 1e-10


def test_dropout_drops_on_average_nothing():
    """The mean over many masks is the output without dropout: the block is linear in its last layer's channels."""
    model = net(drop_rate=0.5, block_config=(1,), num_init_features=3).train()
    block = model.features.denseblock1
    for norm in norms(block):
        norm.eval()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        samples = torch.stack([block(x) for _ in range(2000)])
        expected = block.eval()(x)
    deviation = samples.std(0) / 2000**0.5
    assert ((samples.mean(0) - expected).abs() <= 5 * deviation + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("efficient", [False, True])
def test_autocast(dtype, efficient):
    """Errors against float64 at most twice those of the plain layers under the same autocast; float32 gradients."""
    exact = net(small_inputs=False)
    x = image(size=48, dtype=torch.float32)
    cotangent = torch.randn(4, 10)
    exact(x.double()).backward(cotangent.double())
    errors = []
    for backend in ("auto", "plain"):
        model = net(small_inputs=False, efficient=efficient).float().set_backend(backend)
        with torch.autocast("cpu", dtype=dtype):
            y = model(x)
        assert y.dtype == dtype
        y.backward(cotangent.to(dtype))
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        assert {b.dtype for b in model.buffers()} == {torch.float32, torch.int64}
        errors.append([error(p.grad, q.grad) for p, q in zip(model.parameters(), exact.parameters(), strict=True)])
    ours, stock = (torch.tensor(e) for e in errors)
    assert (ours <= 2 * stock + torch.finfo(dtype).eps).float().mean() > 0.9  # the rest: ReLU flips in either
    assert ours.median() <= 2 * stock.median()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model = net().to(dtype)
    x = image(dtype=dtype)
    y = model(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert {p.grad.dtype for p in model.parameters()} == {dtype}
    plain = net().to(dtype).set_backend("plain")
    assert error(y, plain(x)) < 30 * torch.finfo(dtype).eps
    assert all(error(a, b) < 8 * torch.finfo(dtype).eps for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_grad_modes_agree():
    model = net().eval()
    x = image()
    expected = model(x)
    with torch.no_grad():
        assert error(model(x), expected) < 1e-12
    with torch.inference_mode():
        assert error(model(x), expected) < 1e-12
    model.requires_grad_(False)
    assert not model(x).requires_grad
    assert model(x.requires_grad_()).requires_grad
    model.train()
    with torch.inference_mode():
        assert model(image()).shape == (4, 10)


def test_training_continues_after_inference_mode():
    model = net()
    with torch.inference_mode():
        model.eval()(image())
    model.train()(image()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_memory_formats_agree(training):
    model = net(small_inputs=False).train(training)
    x = image(size=48)
    expected = copy.deepcopy(model)(x)
    assert torch.equal(copy.deepcopy(model)(x.contiguous(memory_format=torch.channels_last)), expected)
    assert error(copy.deepcopy(model).to(memory_format=torch.channels_last)(x), expected) < 1e-12


@pytest.mark.parametrize("plain_blocks", [False, True])
def test_a_failing_forward_changes_nothing(monkeypatch, plain_blocks):
    """Out of memory in the last stage: every running statistic is as before, whichever path ran."""
    model = net(block_config=(2, 2, 2))
    if plain_blocks:
        model.features.denseblock1.set_backend("plain")
        model.features.transition1.set_backend("plain")
    before = copy.deepcopy(model.state_dict())
    operations = backends.operations("eager", torch.device("cpu"))
    original, calls = operations.bn_relu_conv3x3_fwd, []

    def fail(*args):
        calls.append(args)
        if len(calls) == (3 if plain_blocks else 5):
            raise torch.OutOfMemoryError("out of memory")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(operations, "bn_relu_conv3x3_fwd", fail)
        with pytest.raises(torch.OutOfMemoryError):
            model(image())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(image())
    assert not torch.equal(model.features.norm_final.running_mean, before["features.norm_final.running_mean"])


def test_two_training_runs_are_bitwise_equal():
    def train():
        torch.manual_seed(5)
        model = DenseNet(6, (2, 2), num_init_features=8, drop_rate=0.1)
        data = TensorDataset(torch.randn(24, 3, 16, 16), torch.randint(10, (24,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, target in DataLoader(data, batch_size=8, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        return model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_saved_tensors_can_be_offloaded():
    model, plain = both()
    x = image()
    with torch.autograd.graph.save_on_cpu():
        y = model(x)
    y.square().sum().backward()
    plain(x).square().sum().backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert error(got.grad, expected.grad) < 1e-10
