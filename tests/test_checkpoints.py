"""Weights of other DenseNets, in all the spellings they are found in."""

from collections import OrderedDict

import pytest
import torch
import torchvision.models as stock
from torch import nn

import densenet_fast
from densenet_fast import DenseNet

CONFIG = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 6}


def source(**changes):
    model = DenseNet(**(CONFIG | changes))
    model(torch.randn(2, 3, 48, 48))
    return model


def old_names(state_dict):
    """As in torchvision's downloadable files: norm.1 for norm1, no num_batches_tracked."""
    renamed = OrderedDict()
    for key, value in state_dict.items():
        if not key.endswith("num_batches_tracked"):
            for name in ("norm", "conv"):
                for i in "12":
                    if "denselayer" in key:
                        key = key.replace(f".{name}{i}.", f".{name}.{i}.")
            renamed[key] = value
    return renamed


def assert_loaded(model, original):
    for (name, got), expected in zip(model.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(got, expected), name
    for (name, got), expected in zip(model.named_buffers(), original.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(got, expected), name


SPELLINGS = {
    "own": lambda d: d,
    "other last norm": lambda d: OrderedDict((k.replace("norm_final", "norm5"), v) for k, v in d.items()),
    "norm.1": old_names,
    "module.": lambda d: OrderedDict(("module." + k, v) for k, v in d.items()),
    "all at once": lambda d: OrderedDict(
        ("module." + k.replace("norm_final", "norm5"), v) for k, v in old_names(d).items()
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling):
    original = source()
    state_dict = SPELLINGS[spelling](original.state_dict())
    kept = list(state_dict)
    model = DenseNet(**CONFIG)
    model.load_state_dict(state_dict)
    assert_loaded(model, original)
    assert list(state_dict) == kept  # the caller's dict is left alone


def test_norm_final_loads_into_norm5():
    original = source(small_inputs=False)
    state_dict = {k.replace("norm5", "norm_final"): v for k, v in original.state_dict().items()}
    model = DenseNet(**CONFIG, small_inputs=False)
    model.load_state_dict(state_dict)
    assert_loaded(model, original)


def test_inside_another_module():
    original, outer = nn.Sequential(source(), nn.ReLU()), nn.Sequential(DenseNet(**CONFIG), nn.ReLU())
    outer.load_state_dict(old_names(original.state_dict()))
    assert_loaded(outer, original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("features.conv0.weight"), 'Missing key.*"features.conv0.weight"'),
        (lambda d: d.update({"features.extra": torch.zeros(1)}), 'Unexpected key.*"features.extra"'),
        (lambda d: d.update({"classifier.bias": torch.zeros(3)}), "size mismatch for classifier.bias"),
        (lambda d: d.pop("features.norm_final.num_batches_tracked"), "Missing key.*num_batches_tracked"),
    ],
)
def test_everything_else_is_the_usual_strict_error(change, message):
    state_dict = source().state_dict()
    change(state_dict)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        DenseNet(**CONFIG).load_state_dict(state_dict)


@pytest.mark.parametrize(
    "name", ["IMAGENET1K_V1", "DEFAULT", "DenseNet121_Weights.IMAGENET1K_V1", "enum", "pretrained"]
)
def test_pretrained_weights_come_through_torchvision(name, monkeypatch):
    """The download is replaced by a file of the downloadable kind; everything else is the real path."""
    theirs = stock.densenet121()
    asked = []

    def get_state_dict(self, progress, check_hash):
        asked.append((self, progress, check_hash))
        return old_names(theirs.state_dict())

    monkeypatch.setattr(stock.DenseNet121_Weights, "get_state_dict", get_state_dict)
    if name == "pretrained":
        with pytest.warns(UserWarning, match="pretrained is deprecated.*: use weights="):
            ours = densenet_fast.densenet121(pretrained=True, progress=False)
    else:
        weights = stock.DenseNet121_Weights.DEFAULT if name == "enum" else name
        ours = densenet_fast.densenet121(weights=weights, progress=False)
    assert asked == [(stock.DenseNet121_Weights.IMAGENET1K_V1, False, True)]
    assert_loaded(ours, theirs)


def test_weights_enums_are_torchvision_s():
    from densenet_fast.torchvision import DenseNet121_Weights

    assert DenseNet121_Weights is stock.DenseNet121_Weights


def test_norms_that_count_no_batches_make_the_round_trip():
    """num_batches_tracked is None where somebody has taken it away; a state dict has no key for it."""
    model = source()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.num_batches_tracked = None
    other = DenseNet(**CONFIG)
    other.features.norm_final.num_batches_tracked = None
    with pytest.raises(RuntimeError, match=r"Unexpected key.*norm_final\.num_batches_tracked"):
        other.load_state_dict(source().state_dict())
    other.load_state_dict(model.state_dict())
    model.load_state_dict(model.state_dict())
    loaded = other.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
