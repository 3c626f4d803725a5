"""The published nets by name, against what their papers and torchvision print of them."""

from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision.models as stock

import densenet_fast
from densenet_fast import nets
from densenet_fast.configurations import LARGE_IMAGES, NAMES, SMALL_IMAGES
from densenet_fast.nets import size

PAGE = Path(__file__).parents[1] / "docs" / "configurations.md"
size_of = cache(nets.size_of)

# Huang et al. 2017, table 2: millions of parameters, and the error on CIFAR-10 with augmentation in %.
PRINTED = {
    "densenet_40_12": ("1.0", "5.24"),
    "densenet_100_12": ("7.0", "4.10"),
    "densenet_100_24": ("27.2", "3.74"),
    "densenet_bc_100_12": ("0.8", "4.51"),
    "densenet_bc_250_24": ("15.3", "3.62"),
    "densenet_bc_190_40": ("25.6", "3.46"),
}
RESNETS = ("resnet34", "resnet50", "resnet101", "resnet152")


@cache
def size_of_resnet(name: str) -> nets.Size:
    with torch.device("meta"):
        return size(stock.get_model(name), (3, 224, 224))


def rows() -> list[str]:
    """The lines of the tables in docs/configurations.md."""
    found = []
    for name in SMALL_IMAGES:
        millions, error = PRINTED.get(name, ("-", "-"))
        parameters, multiply_adds = size_of(name)
        found.append(f"| `{name}` | {parameters / 1e6:.2f} | {millions} | {multiply_adds / 1e9:.2f} | {error} |")
    for name in (*LARGE_IMAGES, *RESNETS):
        parameters, multiply_adds = size_of(name) if name in LARGE_IMAGES else size_of_resnet(name)
        shown = f"{parameters / 1e6:.2f} | {multiply_adds / 1e9:.2f}"
        told = "- | - | -"
        if name in stock.list_models():
            meta = stock.get_model_weights(name).IMAGENET1K_V1.meta
            accuracy = meta["_metrics"]["ImageNet-1K"]["acc@1"]
            told = f"{meta['num_params'] / 1e6:.2f} | {meta['_ops']:.2f} | {accuracy:.1f}"
        found.append(f"| `{name}` | {shown} | {told} |")
    return found


@pytest.mark.thorough
def test_the_tables_in_the_docs():
    """What the nets have, and what torchvision prints; `python -m tests.test_configurations` prints all lines."""
    page = PAGE.read_text().splitlines()
    assert [line for line in page if line.startswith(("| `dense", "| `resnet"))] == rows()


@pytest.mark.parametrize("name", PRINTED)
def test_nets_for_small_images_have_the_paper_s_parameters(name):
    assert f"{size_of(name).parameters / 1e6:.1f}" == PRINTED[name][0]


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_nets_for_large_images_are_torchvision_s(name):
    meta = stock.get_model_weights(name).DEFAULT.meta
    found = size_of(name)
    assert found.parameters == meta["num_params"]
    assert round(found.multiply_adds / 1e9, 3) == meta["_ops"]
    with torch.device("meta"):
        ours, theirs = densenet_fast.create(name), stock.get_model(name)
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_names_tell_the_depth(name):
    """Convolutions and the classifier, as the paper counts layers. DenseNet-264 and 232 have by this count one more,
    with the layers that table 1 gives the former."""
    with torch.device("meta"):
        model = densenet_fast.create(name)
    layers = sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in model.modules())
    depth = layers - (name in ("densenet264", "densenet232"))
    assert str(depth) in (name.removeprefix("densenet"), *name.split("_"))


def test_overrides_replace_the_net_s_own_arguments():
    model = densenet_fast.create("densenet_bc_22_4", num_classes=100, drop_rate=0.2, efficient=True, backend="eager")
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 100)
    assert model.features.denseblock3.efficient
    assert {layer.drop_rate for layer in model.features.denseblock1.values()} == {0.2}


def test_weights_are_torchvision_s(monkeypatch):
    with torch.device("meta"):
        state = stock.densenet121().state_dict()
    published = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    monkeypatch.setattr(stock.DenseNet121_Weights, "get_state_dict", lambda *_, **__: published)
    model = densenet_fast.create("densenet121", weights="IMAGENET1K_V1", efficient=True)
    assert all(torch.equal(tensor, published[name]) for name, tensor in model.state_dict().items())
    assert model.features.denseblock1.efficient


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("densenet_bc_101_12", {}, r"of depth 101, expected a depth of 6n \+ 4"),
        ("densenet_41_12", {}, r"of depth 41, expected a depth of 3n \+ 4"),
        ("densenet_4_12", {}, "of depth 4"),
        ("resnet50", {}, "got 'resnet50', expected densenet121, "),
        ("densenet264", {"weights": "DEFAULT"}, "DenseNet-264, expected None"),
        ("densenet232", {"weights": "DEFAULT"}, "densenet232, expected None"),
    ],
)
def test_what_there_is_not_is_said(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        densenet_fast.create(name, **arguments)


def test_counting_leaves_a_model_as_it_was():
    """A layer counted by hand: 3 * 3 * 3 products for each of 4 channels of 5 * 6 pixels, and a norm."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert size(model, (3, 5, 6)) == (4 * 27 + 4 + 8, 4 * 27 * 30)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


if __name__ == "__main__":
    print("\n".join(rows()))
