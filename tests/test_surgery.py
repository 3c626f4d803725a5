"""What people do to a model: modules replaced, frozen, parametrized, cut, hooked, as torchvision's model takes it."""

import copy
import warnings

import pytest
import torch
import torchvision.models as stock
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import densenet_fast.torchvision
from benchmarks.memory import measure
from densenet_fast import DenseNet

from .oracle import away_from_start, error
from .pairs import all_norms, image, pair


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("name", ["norm1", "relu1", "norm2", "conv1"])
def test_a_layer_with_a_child_replaced_by_identity_leaves_its_input_alone(name):
    """Called by hand and within the block, whose layers share their inputs."""
    results = []
    for model in pair(bn_size=1, num_init_features=4):
        block = model.features.denseblock1
        setattr(block.denselayer1, name, nn.Identity())
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        before = x.clone()
        results.append([block(x), block.denselayer1(x)])
        assert torch.equal(x, before)
    assert all(error(ours, theirs) < 1e-12 for theirs, ours in zip(*results, strict=True))


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("bn_size", [4, None])
def test_one_norm_takes_the_batch_s_statistics_without_gradients(bn_size, tracked):
    """Whatever norms stand before it: the output and every running statistic."""
    for i in range(len(all_norms(DenseNet(4, (2, 1), num_init_features=6, small_inputs=False, bn_size=bn_size)))):
        model = away_from_start(DenseNet(4, (2, 1), num_init_features=6, small_inputs=False, bn_size=bn_size).double())
        model.eval()
        for norm in all_norms(model):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
        norm = all_norms(model)[i]
        if tracked:
            norm.train()
        else:
            norm.running_mean = norm.running_var = None
        plain = copy.deepcopy(model).set_backend("plain")
        x = image()
        with torch.no_grad():
            assert error(model(x), plain(x)) < 1e-10
        for got, expected in zip(model.buffers(), plain.buffers(), strict=True):
            assert error(got, expected) < 1e-10


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("new", [nn.Identity, lambda: nn.AvgPool2d(3, 1), lambda: nn.Sequential(nn.AvgPool2d(2))])
def test_a_transition_may_pool_in_other_ways(new):
    results, x = [], image()
    for model in pair():
        model.features.transition1.pool = new()
        results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(6, 6, 3, padding="same"), nn.MaxPool2d(2, ceil_mode=True)]
)
def test_a_stem_may_pool_in_other_ways(pool):
    """Sizes that the check of images cannot tell are PyTorch's to refuse."""
    results, x = [], image(2, 34, 33)
    for model in pair():
        model.features.pool0 = copy.deepcopy(pool).double()
        results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


@pytest.mark.parametrize("name", ["features.norm0", "features.denseblock1.denselayer1.norm2", "features.norm5"])
def test_a_norm_of_another_number_of_channels_is_refused(name):
    """Also one without weights, on statistics of the batch: no running statistic is broadcast."""
    _, ours = pair()
    ours.set_submodule(name, nn.BatchNorm2d(1, affine=False).double())
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=r"wrong number of channels: got \d+ at a BatchNorm2d, expected 1"):
        ours(image())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_a_block_without_layers_is_torchvisions():
    """Also at batch 1, where its strides could mean anything."""
    theirs, ours = pair(block_config=(0, 1))
    for x in (image(1), image(2)):
        results = []
        for model in (theirs, ours):
            y = model.features.denseblock1(model.features[:4](x))
            z = model.features(x)
            loss = (z * torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1))).sum()
            model.zero_grad()
            loss.backward()
            results.append((y.stride(), [y, *[p.grad for p in model.features.parameters()]]))
        (strides, expected), (got_strides, got) = results
        assert got_strides == strides
        assert all(error(a, b) < 1e-10 for a, b in zip(got, expected, strict=True))


def test_conv0_may_convert_its_input_and_its_weight():
    """A Sequential that takes bytes; a hook that brings the weight from another dtype, as offloading does."""
    theirs, ours = pair()
    x = torch.randint(0, 256, (2, 3, 33, 40), dtype=torch.uint8)

    class ToFloat(nn.Module):
        def forward(self, x):
            return x.double() / 255

    for model in (theirs, ours):
        model.features.conv0 = nn.Sequential(ToFloat(), model.features.conv0)
    assert error(ours(x), theirs(x)) < 1e-10

    for model in pair():
        weight = model.features.conv0.weight
        weight.data = weight.data.to(torch.float16)
        model.features.conv0.register_forward_pre_hook(
            lambda conv, _: setattr(conv.weight, "data", conv.weight.double())
        )
        assert model(image()).shape == (2, 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_frozen_norms_of_detection_backbones_run_fused(recwarn, every, training):
    """torchvision's FrozenBatchNorm2d in place of all norms or of every second: the same results, and no more memory
    than BatchNorm in eval mode takes."""
    results, x = [], image()
    for model in pair():
        names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        for name in names[::every]:
            norm = model.get_submodule(name)
            frozen = FrozenBatchNorm2d(norm.num_features, norm.eps).double()
            frozen.load_state_dict(norm.state_dict())
            frozen.running_mean += torch.linspace(-1, 1, norm.num_features).double()
            model.set_submodule(name, frozen)
        y = model.train(training)(x)
        y.square().sum().backward()
        results.append([y, *[p.grad for p in model.parameters()], *model.buffers()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))
    evaluated = pair()[1].eval()
    if every == 1:
        assert measure(model, x).live <= measure(evaluated, x).live
    assert not recwarn.list


@pytest.mark.parametrize(
    "wrap",
    [lambda f: nn.Sequential(*f.children()), lambda f: nn.Sequential(f, nn.Dropout(0.0)), nn.DataParallel],
    ids=["taken apart", "wrapped", "DataParallel"],
)
def test_features_may_be_replaced(wrap):
    results, x = [], image()
    for model in pair():
        model.features = wrap(model.features)
        if isinstance(model, DenseNet):
            model.set_backend("eager")
        y = model(x)
        y.square().sum().backward()
        results.append([y, *[p.grad for p in model.parameters()]])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.parametrize(
    "name", ["conv0", "denseblock1.denselayer1.conv1", "transition1.conv", "denseblock2.denselayer1.conv2"]
)
@pytest.mark.parametrize("hooked", [False, True])
def test_a_parametrized_weight_is_evaluated_once(name, hooked):
    """Spectral norm turns its vectors at each evaluation."""
    results, x = [], image()
    for model in pair():
        torch.manual_seed(0)
        parametrizations.spectral_norm(model.features.get_submodule(name))
        if hooked:
            model.features.transition1.register_forward_hook(lambda *_: None)
        y = model(x)
        y.square().sum().backward()
        results.append([y, *[p.grad for p in model.parameters()], *model.buffers()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("name", ["conv0", "denseblock1", "transition1.norm", "pool0"])
def test_hooks_may_resize(name):
    results, x = [], image(2, 8, 8)
    for model in pair():
        model.features.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs: (nn.functional.interpolate(inputs[0], scale_factor=4),)
        )
        results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


@pytest.mark.parametrize("change", [lambda w: nn.Parameter(w.detach().sum(1, keepdim=True)), lambda w: w.data[:, :1]])
def test_the_first_weight_may_be_for_other_images(change):
    """Of which `in_channels` does not tell."""
    x, results = image()[:, :1], []
    for model in pair():
        conv = model.features.conv0
        new = change(conv.weight)
        if isinstance(new, nn.Parameter):
            conv.weight = new
        else:
            conv.weight.data = new
        y = model(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))
    with pytest.raises(ValueError, match=r"got 3 in input \[2, 3, 33, 40\], expected 1"):
        model(image())


def test_a_module_may_return_more_than_a_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class First(nn.Module):
        def forward(self, x):
            return x[0]

    results, x = [], image()
    for model in pair():
        model.features.pool0.return_indices = True
        found = [*model.features[:4](x)]
        model.features.pool0.return_indices = False
        model.features.transition1 = nn.Sequential(model.features.transition1, Pair())
        model.features.denseblock2 = nn.Sequential(First(), model.features.denseblock2)
        model.features.norm5 = Pair()
        results.append([*found, *model.features(x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["norm0", "denseblock1.denselayer2.norm2", "transition1.norm", "norm5"])
@pytest.mark.filterwarnings("ignore:.*plain layers")
def test_an_eps_that_is_not_positive_is_refused_as_in_torchvision(name):
    for model in pair():
        model.features.get_submodule(name).eps = 0.0
        with pytest.raises(ValueError, match="eps must be positive"):
            model(image())


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.filterwarnings("ignore:.*plain layers")
def test_a_norm_that_has_lost_one_statistic_is_refused_as_in_torchvision(name, training):
    for model in pair():
        setattr(model.train(training).features.denseblock1.denselayer2.norm1, name, None)
        with pytest.raises((ValueError, RuntimeError), match=r"running_(mean|var)"):
            model(image())


@pytest.mark.parametrize("steps", [0, 3])
def test_a_pruned_width_counts_by_its_weight(steps):
    """Where somebody cuts a layer's weights, also between two steps, and leaves the numbers on the modules."""
    results, x = [], image()
    for model in pair(block_config=(1, 1)):
        for _ in range(steps):
            model(x)
        layer, transition = model.features.denseblock1.denselayer1, model.features.transition1
        layer.conv2.weight = nn.Parameter(layer.conv2.weight[:3])
        for name in ("weight", "bias"):
            setattr(transition.norm, name, nn.Parameter(getattr(transition.norm, name)[:9]))
        for name in ("running_mean", "running_var"):
            setattr(transition.norm, name, getattr(transition.norm, name)[:9])
        transition.conv.weight = nn.Parameter(transition.conv.weight[:, :9])
        results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


@pytest.mark.parametrize("arguments", [(None,), (False,), (None, False)])
def test_weights_may_come_by_position(arguments):
    """As torchvision takes them, with a warning."""
    for package in (stock, densenet_fast.torchvision):
        with pytest.warns(UserWarning, match="position|weight enum|pretrained"):
            model = package.densenet121(*arguments, num_classes=3)
        assert model.classifier.out_features == 3
    with pytest.raises(TypeError, match="densenet121: got 3 positional arguments"):
        densenet_fast.torchvision.densenet121(None, True, 3)


WRAPPERS = {
    "compiled": lambda module, x: torch.compile(module, backend="eager"),
    "traced": lambda module, x: torch.jit.trace(module, x),
}


@pytest.mark.filterwarnings("ignore")  # of torch.jit, which is deprecated, and that layers run plain
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["denseblock1", "denseblock1.denselayer1.conv1", "norm0", "transition1.pool"])
def test_parts_may_be_compiled_or_traced(name, wrapper):
    """Each by itself: torch.compile's wrapper and torch.jit's modules have not what others have."""
    torch.compiler.reset()
    results, x = [], image()
    for model in pair():
        seen, part = [], model.eval().features.get_submodule(name)
        handle = part.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].clone()))
        model(x)
        handle.remove()
        above, _, last = name.rpartition(".")
        setattr(model.features.get_submodule(above), last, WRAPPERS[wrapper](part, seen[0]))
        results.append([model(x), model(x)])
    assert max(map(error, results[1], results[0])) < 1e-10


def test_names_that_people_import():
    """torchvision's private classes, with its arguments, by which projects build nets of their own."""
    ours, theirs = densenet_fast.torchvision, stock.densenet
    x, results = torch.randn(2, 8, 8, 8), []
    for package in (theirs, ours):
        torch.manual_seed(0)
        layer = package._DenseLayer(8, 4, 2, 0.0, True)
        block = package._DenseBlock(2, 12, 2, 4, 0.0, memory_efficient=True)
        parts = [layer, block, package._Transition(20, 10)]
        y = torch.cat([x, layer([x])], 1)
        results.append([y, block(y), parts[2](block(y)), *[p for part in parts for p in part.parameters()]])
    for got, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, right)

    class Weights:
        def get_state_dict(self, **options):
            return theirs.DenseNet(4, (1,), 4).state_dict()

    ours._load_state_dict(ours.DenseNet(4, (1,), 4), Weights(), progress=False)


def test_models_consist_of_the_names_that_people_import():
    """Who looks for layers by their class finds them, and may tell each to recompute."""
    found = []
    for package in (stock.densenet, densenet_fast.torchvision):
        model = package.DenseNet(4, (2, 1), 8)
        kinds = package._DenseLayer, package._DenseBlock, package._Transition
        found.append([[name for name, m in model.named_modules() if isinstance(m, kind)] for kind in kinds])
        found[-1] += [[type(m).__name__ for m in model.features.denseblock1.modules()]]
        layer, x = model.features.denseblock1.denselayer1, torch.ones(1, 8, 2, 2)
        assert torch.equal(layer.bn_function([x]), layer.conv1(layer.relu1(layer.norm1(x))))
    assert found[0] == found[1]
    assert not model.features.denseblock1.efficient
    layer.memory_efficient = True
    assert model.features.denseblock1.efficient
    assert not model.set_efficient(False).features.denseblock1.efficient
    assert not layer.memory_efficient
    assert model.set_efficient().features.denseblock2.denselayer1.memory_efficient


def test_weights_may_be_elsewhere_until_they_are_needed():
    """As offloading has them: on the meta device, but while a forward that was set on the instance runs."""
    results, x = [], image()
    for model in pair():
        for module in [m for m in model.modules() if not list(m.children())]:
            held, forward = dict(module.named_parameters()), module.forward

            def call(*inputs, module=module, held=held, forward=forward):
                away = dict(module._parameters)
                module._parameters.update(held)
                y = forward(*inputs)
                module._parameters.update(away)
                return y

            for name, parameter in held.items():
                module._parameters[name] = nn.Parameter(parameter.to("meta"))
            module.forward = call
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*plain layers")
            results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


def test_a_replica_runs_on_its_own_tensors():
    """nn.DataParallel copies a module's attributes, what was read of it among them, and then sets other tensors."""
    model = densenet_fast.DenseNet(4, (2, 2), num_init_features=8, backend="eager").eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(1.5)
        replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
        for (module, replica), source in zip(replicas.items(), other.modules(), strict=True):
            for name, child in module.named_children():
                setattr(replica, name, replicas[child])
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, source._parameters[name].detach())
        assert torch.equal(replicas[model](x), other(x))
