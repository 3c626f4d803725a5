"""What code around a model sees, as torchvision's model shows it: memory formats, values, tensors it may change."""

import copy
import subprocess
import sys

import pytest
import torch
import torchvision.models as stock
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import densenet_fast.torchvision
from benchmarks.memory import measure
from densenet_fast import DenseNet, backends
from densenet_fast.buffer import memory_format
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import away_from_start, error

CONFIG = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 6, "num_classes": 5}
WATCHED = (
    *("", "features", "features.conv0", "features.norm0", "features.relu0", "features.pool0", "features.denseblock1"),
    *("features.denseblock1.denselayer2", "features.denseblock1.denselayer1.norm1", "features.transition1"),
    *("features.transition1.conv", "features.denseblock2", "features.norm5"),
)


BACKENDS = [
    pytest.param(name, marks=[pytest.mark.skipif(reason is not None, reason=str(reason))])
    for name in ("eager", "native")
    for reason in [backends.why_unavailable(name, torch.device("cpu"))]
]


def pair(**changes):
    """torchvision's net and ours with the same weights, in float64 on the eager backend."""
    torch.manual_seed(0)
    theirs = away_from_start(stock.DenseNet(**(CONFIG | changes)).double())
    ours = Ours(**(CONFIG | changes)).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def image(n=2, h=33, w=40, dtype=torch.float64):
    return torch.randn(n, 3, h, w, dtype=dtype)


LAYOUTS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "crop": lambda x: x[:, :, 1:, 3:],
    "crop of channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 3:],
    "gray": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "every second": lambda x: x[::2],
}


def tensors(value):
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else [value]


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hooks_see_what_they_see_in_torchvision(layout, weights):
    """Inputs and outputs of every kind of module: strides at the time of the call, values after it."""
    x = LAYOUTS[layout](image())
    for name in WATCHED:
        seen = []
        for model in pair():
            model.to(memory_format=weights)
            calls = []

            def look(_, inputs, output, calls=calls):
                calls.extend((t, t.stride()) for t in tensors([inputs, output]))

            model.get_submodule(name).register_forward_hook(look)
            y = model(x)
            seen.append([*calls, (y, y.stride())])
        for (theirs, expected), (ours, got) in zip(*seen, strict=True):
            assert got == expected, name
            assert error(ours.detach(), theirs.detach()) < 1e-10, name


class Recorder(nn.GroupNorm):
    """A norm that is not ours, and notes the strides it is given."""

    def forward(self, x):
        self.seen = x.stride()
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:.*plain layers")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "features.norm0",
        "features.denseblock1.denselayer1.norm1",
        "features.denseblock1.denselayer2.norm2",
        "features.transition1.norm",
        "features.norm5",
    ],
)
def test_replaced_norms_get_the_memory_format_they_get_in_torchvision(name, layout):
    seen = []
    for model in pair():
        old = model.get_submodule(name)
        model.set_submodule(name, Recorder(1, old.num_features).double())
        model(LAYOUTS[layout](image()))
        seen.append(model.get_submodule(name).seen)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_have_the_memory_format_they_have_in_torchvision(layout):
    """Of the image, and of tensors between modules called one by one."""
    seen = []
    for model in pair():
        x = LAYOUTS[layout](image()).requires_grad_()
        strides = [torch.autograd.grad(model(x).sum(), x)[0].stride()]
        tensors = [x]
        for module in model.features:
            tensors.append(module(tensors[-1]))
        cotangent = torch.randn_like(tensors[-1])
        seen.append(strides + [g.stride() for g in torch.autograd.grad(tensors[-1], tensors[:-1], cotangent)])
    assert seen[0] == seen[1]


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


def all_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("efficient", [False, True])
def test_statistics_written_before_backward_change_no_gradient(backend, efficient):
    """One backward of a forward in eval mode and of another in training, which updates what the first has read."""
    model = Ours(**CONFIG, backend=backend, memory_efficient=efficient)
    apart = copy.deepcopy(model)
    x = image(dtype=torch.float32)
    first = model.eval()(x).square().sum()
    second = model.train()(2 * x).square().sum()
    (first + second).backward()
    apart.eval()(x).square().sum().backward()
    apart.train()(2 * x).square().sum().backward()
    for got, expected in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_layers_do_not_mind_a_fused_step_before_their_backward(backend, momentum):
    """PyTorch's BatchNorm saves its running statistics, and its own updates give them no new version."""
    model = Ours(**CONFIG)
    for norm in all_norms(model):
        norm.momentum = momentum
    x = image(dtype=torch.float32)
    plain = model.set_backend("plain")(x).square().sum()
    (plain + model.set_backend(backend)(x).square().sum()).backward()


@pytest.mark.parametrize("name", ["features.denseblock1", "features.transition1", "features.denseblock2"])
def test_hooks_may_change_outputs_in_place(name):
    results, x = [], image()
    for model in pair(growth_rate=3, num_init_features=5):
        model.get_submodule(name).register_forward_hook(lambda _, __, output: output.mul_(2).add_(0.1))
        model(x).square().sum().backward()
        model.features[:5](x).relu_().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


def test_saved_tensors_may_be_laid_out_anew():
    """As offloading through other libraries does: strides are lost on the way."""
    results, x = [], image()
    for model in pair(growth_rate=3):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t
        ):
            y = model(x)
        y.square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


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


def test_first_calls_come_from_several_threads():
    """In a process of its own: operators are registered once, whoever comes first."""
    program = """
import sys, threading, torch
from benchmarks.memory import measure
from densenet_fast import DenseNet
sys.setswitchinterval(1e-6)
failures, start = [], threading.Barrier(8)
def call(backend):
    model, x = DenseNet(4, (2,), num_init_features=8, backend=backend), torch.randn(1, 3, 16, 16)
    start.wait()
    try:
        model(x).sum().backward()
    except Exception as error:
        failures.append(repr(error))
threads = [threading.Thread(target=call, args=[("eager", "auto")[i % 2]]) for i in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
sys.exit("; ".join(failures) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_memory_formats_are_pytorchs():
    """Of any strides: those of a convolution's output, and of an elementwise operation's on dense tensors."""
    shapes = [
        (2, 3, 4, 5),
        (1, 3, 4, 5),
        (2, 1, 4, 5),
        (2, 3, 1, 1),
        (2, 1, 1, 1),
        (1, 1, 1, 4),
        (1, 1, 4, 1),
        (3, 2, 1, 4),
    ]
    for shape in shapes:
        for layout in (torch.contiguous_format, torch.channels_last):
            whole = torch.randn(shape).contiguous(memory_format=layout).clone(memory_format=layout)
            wide = torch.randn(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=layout)
            for x in (whole, wide[:, : shape[1]], wide[:, ::2], whole.flip(0).transpose(2, 3), whole[..., :1]):
                # An average over one pixel, which gives its output the memory format that PyTorch takes x's for.
                expected = nn.functional.avg_pool2d(x, 1).stride()
                assert torch.empty(x.shape, memory_format=memory_format(x)).stride() == expected, (x.shape, x.stride())


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_under_autocast_are_torchvisions(dtype):
    """Of every module called by hand on float32, and of a net whose first convolution gives float32."""
    theirs, ours = (model.float() for model in pair())
    exact, x = copy.deepcopy(theirs).double(), image(dtype=torch.float32)

    class InFloat32(nn.Conv2d):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)

    for model in (theirs, ours):
        conv = model.features.conv0
        model.features.conv0 = InFloat32(3, conv.out_channels, 7, 2, 3, bias=False)
        model.features.conv0.weight = conv.weight
    exact.features.conv0 = copy.deepcopy(theirs.features.conv0).double()
    children = {"the stem": slice(0, 4), "a block": slice(4, 5), "a transition": slice(5, 6), "features": slice(0, 8)}
    for name, part in children.items():
        results = []
        for model in (exact, theirs, ours):
            y = model.features[: part.start](x.to(model.classifier.weight.dtype)).detach()
            with torch.autocast("cpu", dtype=dtype, enabled=model is not exact):
                results.append(model.features[part](y))
        expected, their, our = results
        assert our.dtype == their.dtype, name
        assert error(our.double(), expected) <= 2 * error(their.double(), expected) + torch.finfo(dtype).eps, name


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


def test_a_pruned_width_counts_by_its_weight():
    """Where somebody cuts a layer's weights and leaves the numbers on the modules as they were."""
    results, x = [], image()
    for model in pair(block_config=(1, 1)):
        layer, transition = model.features.denseblock1.denselayer1, model.features.transition1
        layer.conv2.weight = nn.Parameter(layer.conv2.weight[:3])
        for name in ("weight", "bias"):
            setattr(transition.norm, name, nn.Parameter(getattr(transition.norm, name)[:9]))
        for name in ("running_mean", "running_var"):
            setattr(transition.norm, name, getattr(transition.norm, name)[:9])
        transition.conv.weight = nn.Parameter(transition.conv.weight[:, :9])
        results.append(model(x))
    assert error(results[1], results[0]) < 1e-10


def test_a_batch_of_gradients_says_what_to_do():
    _, ours = pair()
    x = image().requires_grad_()
    y = ours(x)
    cotangents = torch.stack([torch.ones_like(y), -torch.ones_like(y)])
    with pytest.raises(RuntimeError, match=r"one gradient at a time.*set_backend\('plain'\)"):
        torch.autograd.grad(y, x, cotangents, is_grads_batched=True)


def test_hooks_see_running_statistics_as_far_as_the_forward_has_come():
    seen = []
    for model in pair():
        states, norms = [], all_norms(model)
        for name in ("denseblock1", "transition1", "norm5"):
            model.features.get_submodule(name).register_forward_hook(
                lambda *_, states=states, norms=norms: states.append([int(norm.num_batches_tracked) for norm in norms])
            )
        model(image())
        seen.append(states)
    assert seen[0] == seen[1]


def test_another_model_may_run_in_a_hook():
    """A teacher in training and then in eval mode, which reads what its own training step has written."""
    results, x = [], image()
    for student, teacher in zip(pair(), pair(growth_rate=3), strict=True):

        def hook(*_, teacher=teacher, results=results):
            teacher.train()(x)
            results.append(teacher.eval()(x))

        student.features.denseblock1.register_forward_hook(hook)
        results.append(student(x))
        results += teacher.buffers()
    half = len(results) // 2
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(results[:half], results[half:], strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which Dynamo reads
def test_a_whole_step_may_be_compiled():
    """Backward inside what torch.compile traces."""
    results, x = [], image()
    for model in pair():

        def step(model=model):
            loss = model(x).square().sum()
            loss.backward()
            return loss

        loss = torch.compile(step, backend="eager")()
        results.append([loss, *[p.grad for p in model.parameters()]])
    assert all(error(ours, theirs) < 1e-10 for theirs, ours in zip(*results, strict=True))


@pytest.mark.parametrize("arguments", [(None,), (False,), (None, False)])
def test_weights_may_come_by_position(arguments):
    """As torchvision takes them, with a warning."""
    for package in (stock, densenet_fast.torchvision):
        with pytest.warns(UserWarning, match="position|weight enum|pretrained"):
            model = package.densenet121(*arguments, num_classes=3)
        assert model.classifier.out_features == 3
    with pytest.raises(TypeError, match="densenet121: got 3 positional arguments"):
        densenet_fast.torchvision.densenet121(None, True, 3)
