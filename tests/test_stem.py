"""The first convolution, which runs inside the stem's stage where nobody watches it, against torchvision's layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.memory import measure
from densenet_fast import DenseNet

from .oracle import error
from .pairs import BACKENDS, LAYOUTS, image, pair

OTHER = {"stride": 2, "padding": 3}


def put(*arguments, **options):
    """In the place of conv0."""

    def change(model):
        torch.manual_seed(1)
        model.features.conv0 = nn.Conv2d(*arguments, **options).double()

    return change


def freeze(*names):
    return lambda model: [model.features.get_submodule(name).requires_grad_(False) for name in names]


def evaluate(model):
    model.features.norm0.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    model.features.norm0.eval()


class Doubled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


def doubled(model):
    model.features.conv0.__class__ = Doubled


# Changes of the net behind which a stage does what conv0 does,
SEEN_BY_A_STAGE = {
    "as it is": lambda model: None,
    "a bias": put(3, 6, 7, **OTHER),
    "a frozen weight beside a bias": lambda model: [
        put(3, 6, 7, **OTHER)(model),
        model.features.conv0.weight.requires_grad_(False),
    ],
    "groups, dilation, another size in each direction": put(
        3, 6, (5, 3), (2, 1), (3, 2), dilation=(1, 2), groups=3, bias=False
    ),
    "frozen": freeze("conv0"),
    "frozen norm0": freeze("norm0"),
    "frozen stem": freeze("conv0", "norm0"),
    "norm0 in evaluation": evaluate,
    "all in evaluation": lambda model: model.eval(),
}
# and those behind which conv0 is called.
WATCHED = {
    "a hook on conv0": lambda model: model.features.conv0.register_forward_hook(lambda *_: None),
    "a backward hook on conv0": lambda model: model.features.conv0.register_full_backward_hook(lambda *_: None),
    "a convolution of another class": doubled,
    "reflected padding": put(3, 6, 7, **OTHER, padding_mode="reflect"),
    "padding by name": put(3, 6, 7, padding="same"),
    "a parametrized weight": lambda model: parametrizations.weight_norm(model.features.conv0),
}
WITHOUT_A_STAGE = {"a hook on norm0": lambda model: model.features.norm0.register_forward_hook(lambda *_: None)}
CHANGES = SEEN_BY_A_STAGE | WATCHED | WITHOUT_A_STAGE


def step(model, x, call=None):
    """Output, gradients, and buffers after a step, that `call` runs if it is not the model itself."""
    y = (model if call is None else call)(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y.detach(), *[p.grad for p in model.parameters()], *model.buffers(), x.grad]


def check(ours, theirs, tolerance=1e-9):
    """Where a gradient cancels, as a bias' does in front of a norm, rounding is measured by 1."""
    for got, expected in zip(ours, theirs, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert (got - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    ("change", "layout"),
    [*((c, "crop") for c in CHANGES), *(("a bias", layout) for layout in LAYOUTS if layout != "crop")],
)
def test_a_step_is_torchvisions(change, layout):
    """To 1e-9 in float64, and the same bits whether its output is recomputed or kept."""
    theirs, ours = pair()
    x = LAYOUTS[layout](image(4))
    for model in (theirs, ours):
        CHANGES[change](model)
    efficient = copy.deepcopy(ours).set_efficient()
    kept = step(ours, x)
    check(kept, step(theirs, x))
    # In evaluation a layer that keeps no bottleneck has norm2 in conv1's weights.
    check(step(efficient, x), kept, 1e-12 if change == "all in evaluation" else 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", ["as it is", "a bias", "frozen", "norm0 in evaluation"])
def test_recomputed_bits_are_those_of_the_forward(backend, change):
    _, ours = pair()
    SEEN_BY_A_STAGE[change](ours)
    ours.float().set_backend(backend)
    x = image(dtype=torch.float32)
    check(step(copy.deepcopy(ours).set_efficient(), x), step(ours, x), 0.0)


def saved(model, x):
    """Shapes of what a forward keeps for backward beyond the images themselves."""
    shapes, own = [], x.untyped_storage().data_ptr()

    def pack(t):
        if t.untyped_storage().data_ptr() != own:
            shapes.append(t.shape)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return shapes


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("change", SEEN_BY_A_STAGE | WATCHED)
def test_its_output_is_kept_only_where_somebody_may_look(change, layout):
    """Else neither that nor a copy of the images is, unless it is not to be recomputed."""
    _, model = pair()
    CHANGES[change](model)
    x = LAYOUTS[layout](image())
    output, learns = model.features.conv0(x).shape, change != "frozen stem"
    kept, recomputed = saved(model, x), saved(model.set_efficient(), x)
    assert (output in kept) == learns
    assert (output in recomputed) == (change in WATCHED)
    if change in SEEN_BY_A_STAGE:
        assert x.shape not in [*kept, *recomputed]


@pytest.mark.parametrize("change", ["as it is", "a bias", "frozen", "norm0 in evaluation"])
def test_gradients_of_gradients(change):
    results, x = [], image()
    for model in pair():
        SEEN_BY_A_STAGE[change](model)
        if isinstance(model, DenseNet):
            model.set_efficient()
        wanted = [p for p in model.parameters() if p.requires_grad]
        first = torch.autograd.grad(model(x).square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append([*first, *second])
    check(results[1], results[0])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_images_may_need_gradients(layout, frozen):
    """In the memory format that torchvision's layers give them."""
    results = []
    for model in pair():
        if isinstance(model, DenseNet):
            model.set_efficient()
        model.requires_grad_(not frozen)
        x = LAYOUTS[layout](torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(3)).double())
        results.append((step(model, x.requires_grad_()), x.grad.stride()))
    (theirs, strides), (ours, own_strides) = results
    check(ours, theirs)
    assert own_strides == strides


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Of the stem alone, whose output others see, and of a step."""
    theirs, ours = (model.float() for model in pair())
    exact, x = copy.deepcopy(theirs).double(), image(4, dtype=torch.float32)
    ours.set_efficient()
    results = []
    for model in (exact, theirs, ours):
        with torch.autocast("cpu", dtype=dtype, enabled=model is not exact):
            y = model.features[:4](x.double() if model is exact else x)
        y.float().square().sum().backward()
        results.append((y, model.features.conv0.weight.grad))
    for expected, their, our in zip(*results, strict=True):
        assert (our.dtype, our.stride()) == (their.dtype, their.stride())
        bound = 2 * error(their.double(), expected) + torch.finfo(dtype).eps
        assert error(our.double(), expected) <= bound


@pytest.mark.parametrize("efficient", [False, True])
def test_who_changes_the_images_before_backward_is_told(efficient):
    """As with PyTorch's layers, which have saved them too."""
    theirs, ours = pair()
    for model in (theirs, ours.set_efficient(efficient)):
        x = image()
        y = model(x)
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.thorough
def test_a_compiled_step_is_that_of_the_net_itself():
    """The bits, and what is kept, of a convolution with a bias."""
    torch.compiler.reset()
    _, model = pair(block_config=(1, 1))
    CHANGES["a bias"](model)
    model.float().set_backend("eager").set_efficient()
    compiled, x = copy.deepcopy(model), image(dtype=torch.float32)
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    check(step(compiled, x, call), step(model, x), 0.0)
    assert measure(compiled, x, call=call).live <= 1.01 * measure(model, x).live


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims):
    model = DenseNet(4, (2, 1), num_init_features=6, small_inputs=False, spatial_dims=dims, backend="eager").double()
    plain, efficient = (copy.deepcopy(model) for _ in range(2))
    x = torch.randn(3, 3, *[20] * dims, dtype=torch.float64)
    kept = step(model, x)
    check(kept, step(plain.set_backend("plain"), x))
    check(step(efficient.set_efficient(), x), kept, 0.0)
    output = efficient.features.conv0(x).shape
    assert output in saved(model, x)
    assert output not in saved(efficient, x)


def test_a_tap_of_conv0_is_its_output():
    results, x = [], image()
    for model in pair():
        if isinstance(model, DenseNet):
            y, taps = model.set_efficient().features.intermediates(x, ["conv0", "denseblock1"])
        else:
            taps = {"conv0": model.features.conv0(x), "denseblock1": model.features[:5](x)}
            y = model.features(x)
        sum(t.square().sum() for t in (y, *taps.values())).backward()
        results.append([y, *taps.values(), model.features.conv0.weight.grad])
    check(results[1], results[0])
