"""Where the fused path does not apply: plain layers, the same results, and one warning with the reason."""

import copy
import re
import warnings

import onnxruntime
import pytest
import torch
import torchvision
from functorch.compile import aot_module, nop
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize

from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.modules import DenseBlock, DenseLayer

from .oracle import away_from_start, error


def net(**changes):
    torch.manual_seed(0)
    config = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 6} | changes
    return away_from_start(DenseNet(**config).double())


def image():
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def replace(module, name, new):
    setattr(module, name, new.double())


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


SURGERY = {
    "another norm": (lambda layer: replace(layer, "norm1", nn.GroupNorm(2, 6)), "denselayer1.norm1 is GroupNorm"),
    "InstanceNorm2d": (
        lambda layer: replace(layer, "norm2", nn.InstanceNorm2d(16)),
        "denselayer1.norm2 is InstanceNorm2d",
    ),
    "another activation": (lambda layer: replace(layer, "relu1", nn.SiLU()), "denselayer1.relu1 is SiLU"),
    "dilation of one side": (
        lambda layer: replace(layer, "conv2", nn.Conv2d(16, 4, 3, padding=(2, 1), dilation=(2, 1), bias=False)),
        "denselayer1.conv2 is not",
    ),
    "groups": (
        lambda layer: replace(layer, "conv2", nn.Conv2d(16, 4, 3, padding=1, groups=2, bias=False)),
        "denselayer1.conv2 is not",
    ),
    "padding mode": (
        lambda layer: replace(layer, "conv2", nn.Conv2d(16, 4, 3, padding=1, padding_mode="reflect", bias=False)),
        "denselayer1.conv2 is not",
    ),
    "bias": (lambda layer: replace(layer, "conv1", nn.Conv2d(6, 16, 1)), "denselayer1.conv1 is not a plain 1x1"),
    "own convolution": (
        lambda layer: replace(layer, "conv1", Scaled(6, 16, 1, bias=False)),
        "denselayer1.conv1 is Scaled",
    ),
    "another's convolution": (  # as PEFT's LoRA has them
        lambda layer: replace(layer, "conv1", type("Conv2d", (nn.Sequential,), {})(nn.Conv2d(6, 16, 1))),
        f"denselayer1.conv1 is {__name__}.Conv2d, not Conv2d",
    ),
    "another's class of the same name": (
        lambda layer: replace(layer, "conv1", type("Conv2d", (Scaled,), {})(6, 16, 1, bias=False)),
        f"denselayer1.conv1 is {__name__}.Conv2d, whose forward is not Conv2d's",
    ),
    "hook": (lambda layer: layer.norm1.register_forward_hook(lambda *_: None), "denselayer1.norm1 has hooks"),
    "hook that is always called": (
        lambda layer: layer.conv2.register_forward_hook(lambda *_: None, always_call=True),
        "denselayer1.conv2 has hooks",
    ),
    "layer hook": (lambda layer: layer.register_forward_pre_hook(lambda *_: None), "denselayer1 has hooks"),
    "backward hook": (
        lambda layer: layer.conv1.register_full_backward_hook(lambda *_: None),
        "denselayer1.conv1 has hooks",
    ),
    "patched forward": (
        lambda layer: setattr(layer, "forward", lambda x: DenseLayer.forward(layer, x)),
        "denselayer1 has a forward that was replaced on the instance",
    ),
}


@pytest.mark.parametrize("case", SURGERY)
def test_changed_layers_run_plain_and_say_so_once(case):
    change, reason = SURGERY[case]
    model = net()
    change(model.features.denseblock1.denselayer1)
    x = image()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = [model(x) for _ in range(3)]
    assert len(seen) == 1
    assert reason in str(seen[0].message)
    fresh = net()
    change(fresh.features.denseblock1.denselayer1)
    fresh.set_backend("plain")
    expected = [fresh(x) for _ in range(3)]
    for g, e in zip(got, expected, strict=True):
        assert error(g, e) < 1e-10
    for (name, g), e in zip(model.named_buffers(), fresh.buffers(), strict=True):
        assert error(g, e) < 1e-10, name


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("pool", lambda: nn.MaxPool2d(2), "pool is MaxPool2d"),
        ("pool", lambda: nn.AvgPool2d(3, 2), "pool has kernel_size=3"),
        ("conv", lambda: nn.Conv2d(14, 7, 1, stride=2, bias=False), "conv is not a plain 1x1 convolution"),
        ("conv", lambda: nn.Conv2d(14, 7, 1, padding=1, bias=False), "conv is not a plain 1x1 convolution"),
    ],
    ids=["maximum", "larger average", "stride", "padding"],
)
def test_a_changed_transition_runs_plain(name, other, reason):
    model = net()
    replace(model.features.transition1, name, other())
    expected = copy.deepcopy(model).set_backend("plain")(x := image())
    message = rf"Transition runs its plain layers .*: {reason}.*; set_backend\('plain'\) silences this"
    with pytest.warns(UserWarning, match=message):
        assert error(model(x), expected) < 1e-10


def test_hooks_on_blocks_and_features_fire_without_leaving_the_fused_path(recwarn):
    model, seen = net(small_inputs=False), {}

    def record(name):
        return lambda module, args, output: seen.setdefault(name, output)

    for name in ("norm0", "denseblock1", "transition1", "denseblock2", "norm5"):
        getattr(model.features, name).register_forward_hook(record(name))
    model.features.register_forward_hook(record("features"))
    x = torch.randn(4, 3, 48, 48, dtype=torch.float64)
    got = model(x)
    assert seen.keys() == {"norm0", "denseblock1", "transition1", "denseblock2", "norm5", "features"}
    assert "StageFunction" in type(seen["denseblock1"].grad_fn).__name__
    assert not recwarn.list
    assert error(got, net(small_inputs=False)(x)) < 1e-10


def test_grad_cam_on_the_last_block_and_norm():
    """Full backward hooks, which stock DenseNets refuse because of their in-place ReLU."""
    model, gradients = net(), {}
    for name in ("denseblock2", "norm_final"):
        module = getattr(model.features, name)
        module.register_full_backward_hook(lambda m, i, o, name=name: gradients.update({name: o[0]}))
    model(image())[:, 3].sum().backward()
    assert gradients["denseblock2"].shape == (4, 15, 8, 8)
    assert gradients["norm_final"].abs().sum() > 0


@pytest.mark.parametrize("efficient", [False, True])
def test_the_warning_tells_what_is_kept(efficient):
    block, pixels = DenseBlock(4, 16, 4, 8, efficient=efficient, backend="eager"), 3 * 32 * 32
    x = torch.randn(3, 16, 32, 32)
    fused = measure(block, x).live / (4 * pixels)
    block.denselayer2.norm1.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="values kept for each pixel") as caught:
        block(x)
    told = re.search(r"([\d,]+) values kept for each pixel instead of ([\d,]+)", str(caught[0].message)).groups()
    of_plain, of_fused = (int(number.replace(",", "")) for number in told)
    plain = measure(block, x).live / (4 * pixels)
    output = block(x).shape[1]  # alive, too
    assert abs(plain - output - of_plain) < 0.02 * plain
    assert abs(fused - output - of_fused) < 0.02 * fused


def test_global_hooks_are_served():
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: calls.append(type(m)))
    try:
        with pytest.warns(UserWarning, match="has hooks"):
            net()(image())
    finally:
        handle.remove()
    assert calls.count(nn.Conv2d) == 1 + 8 + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func.jvp uses torch.jit.script inside
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
def test_function_transforms(transform):
    model = net().eval()
    plain = copy.deepcopy(model).set_backend("plain")
    x = image()

    def run(m):
        def loss(p):
            return torch.func.functional_call(m, p, (x,)).square().sum()

        parameters = dict(m.named_parameters())
        if transform == "grad":
            return torch.func.grad(loss)(parameters)["features.conv0.weight"]
        if transform == "vmap":
            return torch.vmap(lambda i: m(i[None])[0])(x)
        if transform == "jvp":
            return torch.func.jvp(m, (x,), (torch.ones_like(x),))[1]
        with torch.autograd.forward_ad.dual_level():
            y = m(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    with pytest.warns(UserWarning, match="transform is active|forward-mode"):
        got = run(model)
    assert error(got, run(plain)) < 1e-10


def test_parametrized_weights_stay_fused(recwarn):
    model = net()
    parametrizations.weight_norm(model.features.denseblock1.denselayer1.conv1)
    assert parametrize.is_parametrized(model.features.denseblock1.denselayer1.conv1)
    x = image()
    y = model(x)
    y.sum().backward()
    assert not recwarn.list
    assert error(y, copy.deepcopy(model).set_backend("plain")(x)) < 1e-10
    assert model.features.denseblock1.denselayer1.conv1.parametrizations.weight.original0.grad is not None


class Doubled(torch.Tensor):
    """A weight that counts double in a convolution or norm."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function in (torch.conv2d, torch.batch_norm):
            arguments = [2 * torch.Tensor(v) if isinstance(v, cls) else v for v in arguments]
            return function(*arguments, **(options or {}))
        return super().__torch_function__(function, types, arguments, options or {})


class Quantized(torch.Tensor):
    """A weight that is kept in eight bits, and made anew for every operator of PyTorch's."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, strides=weight.stride())

    def __init__(self, weight):
        self.scale = weight.abs().max() / 127
        self.values = (weight / self.scale).round().to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, operator, types, arguments=(), options=None):
        if operator is torch.ops.aten.detach.default:
            return arguments[0]
        assert operator.namespace == "aten", f"no operator of PyTorch's: {operator}"
        made = [v.values * v.scale if isinstance(v, cls) else v for v in arguments]
        return operator(*made, **(options or {}))


@pytest.mark.parametrize("make", [lambda w: w.as_subclass(Doubled), Quantized], ids=["Doubled", "Quantized"])
@pytest.mark.parametrize(
    "name", ["denseblock1.denselayer2.conv1", "denseblock1.denselayer1.norm2", "transition1.conv", "norm5", "conv0"]
)
def test_weights_of_another_class_are_used_as_it_says(make, name):
    """Also where they come behind the first step."""
    model = net(small_inputs=False).eval()
    stock = torchvision.models.DenseNet(4, (2, 2), 6, num_classes=10).double().eval()
    stock.load_state_dict(model.state_dict())
    x = image()
    assert error(model(x), stock(x)) < 1e-10
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*plain layers.*weight of class")
        for m in (model, stock):
            module = m.features.get_submodule(name)
            module.weight = nn.Parameter(make(module.weight.detach()), requires_grad=False)
        assert error(torch.Tensor(model(x)), torch.Tensor(stock(x))) < 1e-10


def test_parameters_and_tensors_are_of_one_kind(monkeypatch):
    """Between functional_call and a call, nothing is read anew."""
    model, x = net().eval(), image()
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = model(x)
    monkeypatch.setattr(type(model.features), "read", None)
    assert error(torch.func.functional_call(model, tensors, x), expected) < 1e-10


def test_a_subclass_with_its_own_forward_is_called():
    class Loud(DenseBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    model = net()
    block = Loud(2, 6, 4, 4).double()
    block.load_state_dict(model.features.denseblock1.state_dict())
    expected = 2 * model.features.denseblock1(x := torch.randn(2, 6, 8, 8, dtype=torch.float64))
    assert error(block(x), expected) < 1e-12


def test_export_trace_and_fx_record_the_plain_layers(recwarn):
    model = net().eval()
    x = image()
    expected = model(x)
    strict, exported = (torch.export.export(model, (x,), strict=strict).module() for strict in (True, False))
    traced = torch.fx.symbolic_trace(model)
    for graph in (strict, exported, traced):
        assert not any("densenet_fast" in str(node.target) for node in graph.graph.nodes)
        assert error(graph(x), expected) < 1e-10
    assert not [w for w in recwarn.list if "plain layers" in str(w.message)]


@pytest.mark.parametrize("tracing_mode", ["real", "symbolic"])
def test_make_fx_records_the_plain_layers(tracing_mode, recwarn):
    model = net().eval()
    graph = make_fx(lambda x: model(x), tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(image())
    assert not any("densenet_fast" in str(node.target) for node in graph.graph.nodes)
    x = image()
    assert error(graph(x), model(x)) < 1e-10
    assert not [w for w in recwarn.list if "plain layers" in str(w.message)]


@pytest.mark.filterwarnings("ignore")  # of functorch's own
def test_aot_autograd_without_dynamo_records_the_plain_layers():
    """Forward, backward and what happens to running statistics."""
    model = net()
    plain = copy.deepcopy(model).set_backend("plain")
    recorded, x = aot_module(model, nop), image()
    for run in (recorded, plain):
        run(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert error(ours.grad, theirs.grad) < 1e-9
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert error(ours, theirs) < 1e-10


@pytest.mark.filterwarnings("ignore")  # of the exporter and of torch.jit, both deprecated in parts
def test_jit_trace_and_onnx(tmp_path):
    model = net().eval().float()
    x = image().float()
    expected = model(x)
    assert error(torch.jit.trace(model, x)(x), expected) < 1e-5
    file = tmp_path / "net.onnx"
    torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    assert error(torch.from_numpy(got), expected) < 1e-5


def test_empty_batches_are_served_as_by_pytorch():
    model = net()
    plain = copy.deepcopy(model).set_backend("plain")
    x = torch.empty(0, 3, 16, 16, dtype=torch.float64)
    assert model.eval()(x).shape == plain.eval()(x).shape == (0, 10)
    results = []
    for m in (model.train(), plain.train()):
        try:
            results.append(m(x).shape)
        except (RuntimeError, ValueError) as error_:
            results.append(type(error_))
    assert results[0] == results[1]
    for got, expected in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
