"""What people do to a model between two steps, and within one: a module is read again when it has changed."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import densenet_fast
from densenet_fast.modules.reading import Readable

from .oracle import error
from .pairs import all_norms, image, pair

READ_AGAIN = 1  # steps until nothing is read anew


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Called(nn.Conv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Computed(nn.Conv2d):
    @property
    def weight(self):
        return 2 * self._parameters["weight"]


class Looked(nn.BatchNorm2d):
    def __getattr__(self, name):
        value = super().__getattr__(name)
        return 2 * value if name == "bias" else value


def layer(model):
    return model.features.denseblock1.denselayer1


def transition_norm(model):
    return model.features.transition1.norm


def no_buffer(model):
    norm = layer(model).norm1
    mean = norm.running_mean
    del norm.running_mean
    norm.running_mean = mean


def set_on(of, **attributes):
    """Attributes of the module that `of` finds in a model."""
    return lambda model: [setattr(of(model), name, value) for name, value in attributes.items()]


def another_activation(model):
    of = layer(model)
    of.bn_function = lambda inputs: of.conv1(of.norm1(torch.cat(inputs, 1)).sigmoid())


def called_twice_as_large(model):
    norm = layer(model).norm2
    norm._call_impl = lambda x: 2 * norm.forward(x)


CHANGES = {
    "a module replaced": lambda model: setattr(layer(model), "norm2", nn.BatchNorm2d(16, eps=0.1).double()),
    "a class": set_on(lambda model: layer(model).conv1, __class__=Doubled),
    "a forward on an instance": set_on(lambda model: layer(model).relu2, forward=lambda x: 2 * x),
    "an inner method on an instance": set_on(
        lambda model: layer(model).conv1, _conv_forward=lambda x, weight, bias: F.conv2d(x, 2 * weight)
    ),
    "a method that a forward calls": another_activation,
    "a class of which more is called": set_on(lambda model: layer(model).conv2, __class__=Called),
    "a call on an instance": called_twice_as_large,
    "a class that computes its weight": set_on(lambda model: layer(model).conv1, __class__=Computed),
    "a stem that computes its weight": set_on(lambda model: model.features.conv0, __class__=Computed),
    "a class that finds attributes its own way": set_on(transition_norm, __class__=Looked),
    "a forward hook": lambda model: layer(model).norm1.register_forward_hook(lambda module, inputs, y: 2 * y),
    "a forward pre-hook": lambda model: layer(model).conv2.register_forward_pre_hook(lambda module, x: (2 * x[0],)),
    "a backward hook": lambda model: layer(model).conv1.register_full_backward_hook(lambda _, dx, dy: (2 * dx[0],)),
    "a backward pre-hook": lambda model: layer(model).conv2.register_full_backward_pre_hook(lambda _, dy: (2 * dy[0],)),
    "a hook without a handle": lambda model: layer(model).norm1._forward_hooks.update({-1: lambda *of: 2 * of[-1]}),
    "a norm's mode": lambda model: layer(model).norm2.train(not model.training),
    "the mode of a transition's norm": lambda model: model.features.transition1.norm.train(not model.training),
    "the mode of a stem's norm": lambda model: model.features.norm0.train(not model.training),
    "the mode of the final norm": lambda model: model.features.norm5.train(not model.training),
    "eps": set_on(lambda model: layer(model).norm1, eps=0.1),
    "a frozen norm's statistics taken away": set_on(
        lambda model: layer(model).norm2.eval(), running_mean=None, running_var=None
    ),
    "a norm's statistics taken away": set_on(lambda model: layer(model).norm2, running_mean=None, running_var=None),
    "a counter taken away": set_on(lambda model: layer(model).norm2, num_batches_tracked=None),
    "a bias taken away": set_on(lambda model: layer(model).norm2, bias=None),
    "dilation": set_on(lambda model: layer(model).conv2, padding=(2, 2), dilation=(2, 2)),
    "dropout": set_on(layer, drop_rate=1.0),
    "dilation, as one number": set_on(lambda model: layer(model).conv2, padding=2, dilation=2),
    "padding": set_on(
        lambda model: layer(model).conv2,
        padding=0,
        kernel_size=1,
        weight=nn.Parameter(torch.ones(4, 16, 1, 1).double()),
    ),
    "a dictionary of tensors": lambda model: setattr(
        layer(model).norm1, "_buffers", {k: v.clone() for k, v in layer(model).norm1._buffers.items()}
    ),
    "all attributes": lambda model: setattr(layer(model).norm1, "__dict__", layer(model).norm1.__dict__ | {"eps": 0.1}),
    "running statistics that are no buffers": no_buffer,
    "a transition": lambda model: setattr(model.features, "transition1", copy.deepcopy(model.features.transition1)),
    "a transition's norm": lambda model: setattr(
        model.features.transition1, "norm", copy.deepcopy(transition_norm(model))
    ),
    "the momentum of a transition's norm": set_on(transition_norm, momentum=0.7),
    "a transition's norm that averages": set_on(transition_norm, momentum=None),
    "a transition's norm that tracks no more": set_on(transition_norm, track_running_stats=False),
    "a transition's norm that counts no more": set_on(transition_norm, num_batches_tracked=None),
    "the statistics of a transition's norm taken away": set_on(transition_norm, running_mean=None, running_var=None),
    "the momentum of the last norm": set_on(lambda model: model.features.norm5, momentum=0.7),
    "the last norm": lambda model: setattr(model.features, "norm5", copy.deepcopy(model.features.norm5)),
    "a pooling's rounding": set_on(lambda model: model.features.transition1.pool, ceil_mode=True),
}


def step(model, x):
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y, *[p.grad for p in model.parameters()], *model.buffers()]


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_between_two_steps(change, training):
    results, x = [], image()
    for model in pair():
        model.train(training)
        for norm in all_norms(model):
            norm.momentum = None  # for which a norm needs its counter
        for _ in range(READ_AGAIN):
            step(model, x)
        CHANGES[change](model)
        results.append(step(model, x))
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_all_modules_may_be_called_otherwise(name, monkeypatch):
    """As whoever draws or counts modules replaces it."""
    called, x = [], image()
    original = getattr(nn.Module, name)

    def call(module, *inputs):
        y = original(module, *inputs)
        called[-1] += 1
        return 1.5 * y if isinstance(module, nn.BatchNorm2d) else y

    results = []
    for model in pair():
        step(model, x)
        called.append(0)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, name, call)
            found = step(model, x)
        results.append([*found, *step(model, x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))
    assert called[0] == called[1]


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("name", ["conv2d", "batch_norm", "relu", "cat"])
def test_what_modules_call_may_be_another(name, monkeypatch):
    """As what casts, counts or simulates replaces it."""
    results, x = [], image()
    where = torch if name == "cat" else F
    original = getattr(where, name)
    for model in pair():
        step(model, x)
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda *of, **options: 1.5 * original(*of, **options))
            found = step(model, x)
        results.append([*found, *step(model, x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("library", ["torchvision", "timm", "ours"])
def test_a_method_that_all_layers_call(library, monkeypatch):
    results, x = [], image()
    for convert in (False, True):
        torch.manual_seed(0)
        model = (timm.models.densenet.DenseNet(4, (2, 1)) if library == "timm" else pair()[0]).double()
        if convert and library == "ours":
            model = pair()[1]
        elif convert:
            densenet_fast.convert(model, on_unsupported="raise")
        step(model.eval(), x)
        name = "bottleneck_fn" if library == "timm" else "bn_function"
        cls = type(layer(model))
        with monkeypatch.context() as patch:
            patch.setattr(cls, name, lambda of, inputs: of.conv1(F.silu(of.norm1(torch.cat(inputs, 1)))))
            found = step(model, x)
        results.append([*found, *step(model, x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["transition1.norm", "denseblock2.denselayer1.norm2", "norm5"])
def test_by_a_hook_in_front(name):
    """Which is called when what is behind it has been read."""
    results, x = [], image()
    for model in pair():

        def hook(*_, model=model):
            norm = model.features.get_submodule(name)
            norm.train(not norm.training)

        model.features.denseblock1.register_forward_hook(hook)
        results.append([*step(model, x), *step(model, x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:.*plain layers")
def test_a_norm_may_learn_its_size():
    results, x = [], image()
    for model in pair():
        layer(model).norm2 = nn.LazyBatchNorm2d(dtype=torch.float64)
        results.append([*step(model, x), *step(model, x)])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:.*plain layers")
def test_a_dropout_that_is_no_probability_is_refused():
    for model in pair():
        layer(model).drop_rate = 1.5
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            model(image())


IN_PLACE = {
    "a weight's dtype": (lambda of: of.conv1.weight, lambda weight: weight.float(), "which weight1 of layer 1 has"),
    "a weight's size": (lambda of: of.conv2.weight, lambda weight: weight[:, :8], "at weight2 of layer 1"),
    "a vector's size": (lambda of: of.norm2.bias, lambda bias: bias[:8], "at beta2 of layer 1"),
    "statistics' size": (lambda of: of.norm1.running_var, lambda var: var[:2], "at a BatchNorm2d, expected 2"),
}


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_tensor_in_its_place(change):
    _, model = pair()
    x = image()
    step(model, x)
    find, changed, message = IN_PLACE[change]
    tensor = find(layer(model))
    kept = tensor.data
    tensor.data = changed(kept)
    with pytest.raises((RuntimeError, ValueError), match=message):
        model(x)
    tensor.data = kept
    step(model, x)


def test_nothing_is_read_again_that_has_not_changed(monkeypatch):
    _, model = pair()
    x = image()
    for _ in range(READ_AGAIN):
        step(model, x)

    def read(module):
        raise AssertionError(f"{type(module).__name__} was read again")

    for cls in map(type, model.modules()):
        if issubclass(cls, Readable):
            monkeypatch.setattr(cls, "read", read)
    step(model, x)


METHODS = [(nn.ReLU, "forward"), (nn.Conv2d, "forward"), (nn.Conv2d, "_conv_forward"), (nn.BatchNorm2d, "forward")]


@pytest.mark.parametrize(("cls", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_of_a_class(cls, name, monkeypatch):
    """A method set on PyTorch's own class, as tools do that pad or quantise; for good, or until it is taken back."""
    theirs, ours = pair()
    x, stock = image(), getattr(cls, name)
    assert error(ours(x), theirs(x)) < 1e-10
    monkeypatch.setattr(cls, name, lambda *inputs: 0.9 * stock(*inputs))
    with pytest.warns(UserWarning, match=f"whose {name} was replaced on the class"):
        assert error(ours(x), theirs(x)) < 1e-10
    monkeypatch.undo()
    assert error(ours(x), theirs(x)) < 1e-10
    assert stages(ours(x)) == 3


def stages(y):
    """How many stages the graph of y has."""
    waiting, seen = [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return sum("StageFunction" in node.name() for node in seen)


def test_of_a_block_s_backend():
    _, model = pair()
    x = image()
    for _ in range(READ_AGAIN):
        assert stages(model(x)) == 3  # the stem, the first block with the transition, the second with the head
    model.features.denseblock2.set_backend("plain")
    assert stages(model(x)) == 2
    model.features.denseblock2.set_backend("eager")
    assert stages(model(x)) == 3
