"""Bad input: one sentence with what was got, what was expected and what to do, and nothing changed."""

import copy

import pytest
import torch
from torch import nn

import densenet_fast
from densenet_fast import DenseNet, backends
from densenet_fast.functional import Head, dense_stage

from .oracle import make_norm, make_stage


@pytest.fixture(params=[True, False], ids=["small", "large"])
def model(request):
    return DenseNet(4, (2, 2), small_inputs=request.param)


BAD = {
    "channels": (
        torch.zeros(2, 4, 40, 40),
        ValueError,
        r"channels: got 4 in input \[2, 4, 40, 40\], expected 3 \(.*in_channels\)",
    ),
    "unbatched": (
        torch.zeros(3, 40, 40),
        ValueError,
        r"dimensions: got \[3, 40, 40\], expected \[N, C, H, W\] \(one image: x\[None\]\)",
    ),
    "integers": (
        torch.zeros(2, 3, 40, 40, dtype=torch.uint8),
        RuntimeError,
        r"got input torch.uint8, expected a floating dtype \(x\.float\(\)\)",
    ),
    "dtype": (
        torch.zeros(2, 3, 40, 40).double(),
        RuntimeError,
        r"got input torch.float64, expected torch.float32.*\(model\.to\(dtype\), x\.to\(dtype\) or torch\.autocast\)",
    ),
    "device": (torch.zeros(2, 3, 40, 40, device="meta"), RuntimeError, "got input on meta, expected cpu"),
    "image": (torch.zeros(2, 3, 1, 40), ValueError, r"too small .*got 1x40, .* expected at least \d+x\d+"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_has_changed(model, case):
    x, error, message = BAD[case]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message) as caught:
        model(x)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("backend", "message"), [("plain", "no operations: got backend 'plain'"), ("foo", "unknown backend: got 'foo'")]
)
def test_a_stage_runs_on_a_backend(backend, message):
    with pytest.raises(ValueError, match=message):
        dense_stage(torch.zeros(2, 6, 4, 4), *make_stage(6, (4,), None, dtype=torch.float32), backend=backend)


@pytest.mark.parametrize("name", ["foo", "plain", "auto"])
def test_whether_a_backend_runs_is_known_of_those_that_there_are(name):
    expected = f"^unknown backend: got '{name}', expected one of native, triton, eager$"
    with pytest.raises(ValueError, match=expected):
        backends.why_unavailable(name, torch.device("cpu"))


@pytest.mark.parametrize("name", ["denseblock1", "transition1"])
def test_modules_called_by_hand_refuse_other_dimensions(model, name):
    with pytest.raises(ValueError, match=r"dimensions: got \[24, 8, 8\], expected \[N, C, H, W\] .*x\[None\]"):
        model.features.get_submodule(name)(torch.zeros(24, 8, 8))


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("part", ["norm0", "denseblock1.denselayer1.norm2", "transition1.norm", "norm5"])
@pytest.mark.parametrize("buffer", [None, "running_var"])
def test_a_norm_left_on_the_meta_device_is_refused(backend, part, buffer):
    """Its tensors alone would send operations to their fakes, which compute nothing."""
    model = DenseNet(4, (2, 2), small_inputs=False, backend=backend)
    norm = model.features.get_submodule(part)
    if buffer is None:
        norm.to("meta")
    else:
        setattr(norm, buffer, getattr(norm, buffer).to("meta"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(torch.randn(2, 3, 48, 48))
    assert all(value.is_meta or torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_half_of_a_norms_statistics_is_refused():
    (layer,), _ = make_stage(6, (4,), None, dtype=torch.float32)
    layer = layer._replace(norm1=layer.norm1._replace(mean=torch.zeros(6)))
    with pytest.raises(ValueError, match="half of the statistics: got mean or var alone in layer 1"):
        dense_stage(torch.zeros(2, 6, 4, 4), [layer])


def test_smallest_images():
    """torchvision's smallest image is 29x29; ours says so, and takes it."""
    model = densenet_fast.densenet121(num_classes=2).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 29, 29)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"got 28x28, .*transition3, expected at least 29x29"):
        model(torch.zeros(1, 3, 28, 28))


def test_one_value_per_channel_in_training():
    model = DenseNet(4, (2, 2))
    before = copy.deepcopy(model.state_dict())
    message = r"one value per channel: got batch size 1 and a 1x1 image at denseblock2 .*; use .*, or model\.eval\(\)"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, 2, 2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"one value per channel: got \[1, 24, 1, 1\]"):
        model.features.denseblock1(torch.zeros(1, 24, 1, 1))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert model(torch.zeros(1, 3, 2, 2)).shape == (1, 10)


def test_parts_called_by_hand_check_their_input():
    features = DenseNet(4, (2, 2)).features
    with pytest.raises(ValueError, match=r"channels: got 7 at .* of layer 1, expected 24"):
        features.denseblock1(torch.zeros(2, 7, 8, 8))
    with pytest.raises(ValueError, match="too small to pool: got 1x8, expected at least 2x2"):
        features.transition1(torch.zeros(2, 32, 1, 8))
    with pytest.raises(
        RuntimeError, match=r"got input torch.float64, expected torch.float32, which weight1 of layer 1"
    ):
        features.denseblock1(torch.zeros(2, 24, 8, 8).double())


def test_functional_checks_every_step():
    steps = make_stage(6, (4, 4), "transition", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"channels: got 5 at gamma1 of layer 1, expected 6"):
        dense_stage(torch.zeros(2, 5, 4, 4), *steps)
    with pytest.raises(ValueError, match=r"channels: got 14 at gamma of the head, expected 9"):
        dense_stage(torch.zeros(2, 6, 4, 4), steps[0], Head(make_norm(9, torch.float32)))
    wrong = steps[0][0]._replace(weight2=torch.zeros(4, 15, 3, 3))
    with pytest.raises(ValueError, match="channels: got 16 at weight2 of layer 1, expected 15"):
        dense_stage(torch.zeros(2, 6, 4, 4), [wrong])


def test_unknown_backend():
    for call in (lambda: DenseNet(backend="cuda"), lambda: DenseNet().set_backend("cuda")):
        with pytest.raises(
            ValueError, match="unknown backend: got 'cuda', expected one of auto, native, triton, eager"
        ):
            call()


def test_unavailable_backend_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = DenseNet(4, (2, 2), backend="triton")
    with pytest.raises(
        RuntimeError, match=r"backend 'triton' is not available on cpu: .+; .*'(native|eager)'.*densenet_fast\.info"
    ) as caught:
        model(torch.zeros(2, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_drop_rate():
    with pytest.raises(ValueError, match=r"drop_rate: got 1.5, expected a probability in \[0, 1\]"):
        DenseNet(drop_rate=1.5)


def test_weights():
    with pytest.raises(ValueError, match="got weights for DenseNet-264, expected None"):
        densenet_fast.densenet264(weights="DEFAULT")
    with pytest.raises(ValueError, match=r"num_classes: got 10, expected 1000, .*replace model\.classifier"):
        densenet_fast.densenet121(weights="DEFAULT", num_classes=10)
    with pytest.raises(KeyError):
        densenet_fast.densenet121(weights="IMAGENET1K_V9")
