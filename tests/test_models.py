"""Models against torchvision, timm and the paper: structure, weights, outputs, gradients, training."""

import copy
import inspect
import io
import pickle

import pytest
import timm
import torch
import torchvision.models as stock

import densenet_fast
from densenet_fast import DenseNet
from densenet_fast.stage import buffer
from densenet_fast.torchvision import DenseNet as FastTorchvision

from .oracle import away_from_start, error

SMALL = {"growth_rate": 8, "block_config": (2, 3, 2, 2), "num_init_features": 10, "num_classes": 7}
NAMES = ["densenet121", "densenet161", "densenet169", "densenet201"]


def pair(efficient=False, dtype=torch.float64):
    """Our net and torchvision's with the same weights."""
    torch.manual_seed(0)
    ours = away_from_start(FastTorchvision(**SMALL, memory_efficient=efficient).to(dtype))
    theirs = stock.DenseNet(**SMALL).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def step(model, x, cotangent):
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    y.backward(cotangent)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("name", NAMES)
def test_named_nets_have_torchvision_s_state_dict(name):
    with torch.device("meta"):
        ours, theirs = getattr(densenet_fast, name)().state_dict(), getattr(stock, name)().state_dict()
    assert list(ours) == list(theirs)
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]


@pytest.mark.parametrize(("name", "theirs"), [("torchvision", stock.DenseNet), ("torchvision", stock.densenet121)])
def test_initial_weights_are_torchvision_s(name, theirs):
    """The same seed gives the same weights, bit for bit."""
    args = {} if theirs is stock.densenet121 else {"block_config": (2, 2, 2, 2)}
    torch.manual_seed(3)
    expected = theirs(**args).state_dict()
    torch.manual_seed(3)
    got = (densenet_fast.densenet121 if not args else FastTorchvision)(**args).state_dict()
    assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_torchvision_signature():
    ours = list(inspect.signature(FastTorchvision.__init__).parameters.values())
    theirs = list(inspect.signature(stock.DenseNet.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_equals_torchvision_in_float64(efficient, training, layout):
    ours, theirs = (model.train(training) for model in pair(efficient))
    x = torch.randn(3, 3, 65, 70, dtype=torch.float64).contiguous(memory_format=layout)
    cotangent = torch.randn(3, 7, dtype=torch.float64)
    for got, expected in zip(step(ours, x, cotangent), step(theirs, x, cotangent), strict=True):
        assert error(got, expected) < 1e-10
    for (name, got), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert error(got, expected) < 1e-10, name


def test_densenet121_equals_torchvision_and_timm():
    ours = away_from_start(densenet_fast.densenet121(num_classes=5).double())
    theirs = stock.densenet121(num_classes=5).double()
    theirs.load_state_dict(ours.state_dict())
    third = timm.create_model("densenet121", num_classes=5).double()
    third.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 128, 128, dtype=torch.float64)
    cotangent = torch.randn(4, 5, dtype=torch.float64)
    got, expected = step(ours, x, cotangent), step(theirs, x, cotangent)
    for g, e in zip(got, expected, strict=True):
        assert error(g, e) < 1e-10
    assert error(got[0], third(x)) < 1e-10
    for model in (ours, theirs, third):
        model.eval()
    with torch.no_grad():
        assert error(ours(x), theirs(x)) < 1e-10
        assert error(ours(x), third(x)) < 1e-10


@pytest.mark.parametrize("efficient", [False, True])
def test_five_sgd_steps_stay_equal(efficient):
    ours, theirs = pair(efficient)
    data = [(torch.randn(4, 3, 65, 65, dtype=torch.float64), torch.randint(7, (4,))) for _ in range(5)]
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        for x, target in data:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
    for (name, got), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert error(got, expected) < 1e-9, name


def test_float32_errors_are_at_most_twice_torchvision_s():
    """Medians over seeds and over all parameters: single values are ReLU flips, in either direction."""
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        exact, _ = pair()
        x, cotangent = torch.randn(4, 3, 65, 65), torch.randn(4, 7)
        expected = step(exact, x.double(), cotangent.double())
        ours, theirs = pair(dtype=torch.float32)
        got, stock_values = step(ours, x, cotangent), step(theirs, x, cotangent)
        ratios.append(
            [error(g, e) / (error(s, e) + 1e-12) for g, s, e in zip(got, stock_values, expected, strict=True)]
        )
    assert torch.tensor(ratios).median(0).values.median() <= 2
    assert torch.tensor(ratios)[:, 0].median() <= 2  # the output


@pytest.mark.parametrize(
    "config", [{"bn_size": None}, {"compression": 1}, {"block_config": (2,)}, {"block_config": (2,) * 5}]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_configuration_equals_its_plain_layers(config, training):
    config = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 6} | config
    model = away_from_start(DenseNet(**config).double())
    plain = copy.deepcopy(model).set_backend("plain")
    x = torch.randn(3, 3, 130, 161, dtype=torch.float64)
    cotangent = torch.randn_like(model.eval()(x))
    for m in (model, plain):
        m.train(training)
    for got, expected in zip(step(model, x, cotangent), step(plain, x, cotangent), strict=True):
        assert error(got, expected) < 1e-10
    for got, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert error(got, expected) < 1e-10


def parameter_count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "millions"),
    [
        ({"block_config": (16,) * 3, "growth_rate": 12}, 0.8),
        ({"block_config": (41,) * 3, "growth_rate": 24, "num_init_features": 48}, 15.3),
        ({"block_config": (31,) * 3, "growth_rate": 40, "num_init_features": 80}, 25.6),
        (
            {"block_config": (12,) * 3, "growth_rate": 12, "num_init_features": 16, "bn_size": None, "compression": 1},
            1.0,
        ),
        (
            {"block_config": (32,) * 3, "growth_rate": 12, "num_init_features": 16, "bn_size": None, "compression": 1},
            7.0,
        ),
        (
            {"block_config": (32,) * 3, "growth_rate": 24, "num_init_features": 16, "bn_size": None, "compression": 1},
            27.2,
        ),
    ],
)
def test_paper_s_parameter_counts(arguments, millions):
    """Huang et al. 2017, table 2: DenseNet-BC and DenseNet on CIFAR-10."""
    with torch.device("meta"):
        assert round(parameter_count(DenseNet(**arguments)) / 1e6, 1) == millions


def test_defaults_follow_the_paper():
    with torch.device("meta"):
        small, large = DenseNet(), DenseNet(32, (6, 12, 24, 16), num_init_features=64)
    assert list(dict(small.features.named_children()))[:2] == ["conv0", "denseblock1"]
    assert small.classifier.out_features == 10
    assert hasattr(small.features, "norm_final")
    with torch.device("meta"):
        theirs = stock.DenseNet(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64)
    assert list(large.state_dict()) == list(theirs.state_dict())
    assert large.classifier.out_features == 1000


def test_initialisation_of_the_small_nets():
    """Convolutions have variance 2 / (out_channels * kernel area), biases are 0, norms 1 and 0."""
    model = DenseNet(growth_rate=24, block_config=(4, 4), num_init_features=48)
    for name, value in model.named_parameters():
        if "conv" in name:
            expected = 2 / (value.shape[0] * value.shape[2] * value.shape[3])
            assert abs(value.var().item() / expected - 1) < 6 * (2 / value.numel()) ** 0.5, name
        elif "norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all()
    assert (model.classifier.bias == 0).all()


def test_densenet264_and_other_channels():
    with torch.device("meta"):
        model = densenet_fast.densenet264(in_channels=1, num_classes=18)
    assert [len(b) for n, b in model.features.named_children() if n.startswith("denseblock")] == [6, 12, 64, 48]
    assert model.features.conv0.in_channels == 1
    assert model.classifier.out_features == 18


def test_memory_efficient_is_efficient():
    assert DenseNet(memory_efficient=True).features.denseblock1.efficient
    assert densenet_fast.densenet121(memory_efficient=True).features.denseblock1.efficient
    model = DenseNet(efficient=True)
    model.features.denseblock2.set_efficient(False)
    assert [m.efficient for m in model.features if hasattr(m, "efficient")] == [True, False, True]
    assert not model.set_efficient(False).features.denseblock1.efficient


def test_parts_work_when_called_by_hand():
    ours, theirs = pair()
    x = torch.randn(2, 3, 65, 65, dtype=torch.float64)
    f, g = ours.features, theirs.features
    for training in (True, False):
        theirs.load_state_dict(ours.state_dict())
        ours.train(training)
        theirs.train(training)
        assert error(f(x), g(x)) < 1e-10
        assert error(f[:7](x), g[:7](x)) < 1e-10
        h, k = x, x
        for name, child in f.named_children():
            h, k = child(h), getattr(g, name)(k)
            assert error(h, k) < 1e-10, name
        first = f[:4](x)
        layer, their_layer = f.denseblock1.denselayer1, g.denseblock1.denselayer1
        assert error(layer(first), their_layer(first)) < 1e-10
        second, their_second = f.denseblock1.denselayer2, g.denseblock1.denselayer2
        new = layer(first)
        assert error(second([first, new]), their_second([first, new])) < 1e-10
        assert error(second((first, new)), their_second((first, new))) < 1e-10
        t = f[:5](x)
        for part in ("norm", "relu", "conv", "pool"):
            t = getattr(f.transition1, part)(t)
        assert error(t, g[:6](x)) < 1e-9
    assert f(x).is_contiguous()
    assert f(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_gradients_flow_through_parts_called_by_hand():
    ours, theirs = pair()
    x = torch.randn(2, 3, 65, 65, dtype=torch.float64)
    cotangent = torch.randn(2, 33, 2, 2, dtype=torch.float64)
    values = []
    for model in (ours, theirs):
        f = model.features
        middle = f.denseblock2(f.transition1(f.denseblock1(f[:4](x))))
        last = f.norm5(f.denseblock4(f.transition3(f.denseblock3(f.transition2(middle)))))
        (middle.square().mean() + (last * cotangent).sum()).backward()
        values.append([p.grad for p in model.features.parameters()])
    for got, expected in zip(*values, strict=True):
        assert error(got, expected) < 1e-9


def test_copies_and_files():
    model = DenseNet(4, (2, 2))
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()
    expected = model.eval()(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
    for module in model.modules():  # nothing but parameters and buffers outlives a step
        held = [v for k, v in vars(module).items() if isinstance(v, torch.Tensor)]
        assert not held


def test_shapes_without_data():
    """The meta device and fake tensors, with which memory and sharding are planned."""
    with torch.device("meta"):
        assert densenet_fast.densenet121()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    with torch._subclasses.FakeTensorMode():
        model = DenseNet(4, (2, 2))
        model(torch.randn(2, 3, 16, 16)).sum().backward()
        assert model.features.conv0.weight.grad.shape == (24, 3, 3, 3)


def test_slices_keep_the_backend():
    assert DenseNet(4, (2, 2), backend="eager").features[:2].backend == "eager"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"bn_size": 0}, "bn_size: got 0, expected at least 1"),
        ({"growth_rate": -2}, "growth_rate: got -2, expected at least 1"),
        ({"block_config": (2, -1)}, "num_layers: got -1, expected at least 0"),
        ({"num_init_features": 0}, "num_init_features: got 0, expected at least 1"),
        ({"compression": 0.05}, "compression: got 0.05, which leaves none of the 10 channels of block 1"),
        ({"drop_rate": 1.5}, r"drop_rate: got 1.5, expected a probability in \[0, 1\]"),
    ],
    ids=str,
)
def test_sizes_that_make_no_net_are_refused(argument, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DenseNet(**{"growth_rate": 4, "block_config": (2, 2), "num_init_features": 2} | argument)


def test_compression_outside_its_range():
    with pytest.raises(ValueError, match=r"compression: got 0, expected a number in \(0, 1\]"):
        DenseNet(12, (2, 2), 0)
    with pytest.raises(ValueError, match=r"got 64.*densenet_fast\.torchvision\.DenseNet"):
        DenseNet(32, (6, 12, 24, 16), 64)


@pytest.mark.parametrize(("hooked", "copies"), [(None, 0), ("denseblock2", 2), ("transition1", 1), ("pool0", 1)])
def test_a_block_extends_the_output_before_it(monkeypatch, hooked, copies):
    """Nothing is copied between stages, unless somebody holds the tensor between them."""
    model = DenseNet(4, (2, 2, 2), small_inputs=False)
    if hooked is not None:
        getattr(model.features, hooked).register_forward_hook(lambda *_: None)
    copied, started = [], buffer.started

    def spy(x0, *arguments):
        x = started(x0, *arguments)
        copied.append(x.data_ptr() != x0.data_ptr())
        return x

    monkeypatch.setattr(buffer, "started", spy)
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert sum(copied) == copies
