"""Connection strengths of trained nets: against convolutions that were cut by hand, from every library's files."""

import csv
import sys

import pytest
import timm
import torch
import torchvision.models as stock
from safetensors.torch import save_file

import densenet_fast
from densenet_fast import DenseNet, cli
from densenet_fast.analyse import blocks, load


@pytest.fixture(scope="module")
def model():
    return densenet_fast.create("densenet_bc_16_4", num_classes=3)


def test_strengths_are_mean_absolute_weights_on_each_source(model):
    """A pixel of the heat map is the mean of the weights that tie one layer to another: here of a layer that has 2 on
    the block's input, -3 on layer 1, and a classifier that has layer number i on layer i."""
    first, *_, last = (m for n, m in model.features.named_children() if n.startswith("denseblock"))
    with torch.no_grad():
        first.denselayer2.conv1.weight[:, :8] = 2
        first.denselayer2.conv1.weight[:, 8:] = -3
        model.classifier.weight.zero_()
        for i in (1, 2):
            inputs = last.denselayer1.conv1.in_channels
            model.classifier.weight[:, inputs + 4 * (i - 1) : inputs + 4 * i] = -i
    found = blocks(model.state_dict())
    assert [[t.name for t in block.targets] for block in found] == [
        ["layer 1", "layer 2", "transition"],
        ["layer 1", "layer 2", "transition"],
        ["layer 1", "layer 2", "classifier"],
    ]
    assert found[0].sources == (8, 4, 4)
    assert found[0].strengths()[:2, 1].tolist() == [2, 3]
    assert found[0].relative()[:2, 1].tolist() == pytest.approx([2 / 3, 1])
    assert found[0].strengths()[2, :2].isnan().all()
    assert found[2].strengths()[:, 2].tolist() == [0, 1, 2]


def test_layers_without_bottleneck_have_strengths_too():
    model = DenseNet(4, (3,), bn_size=None, num_init_features=6)
    (block,) = blocks(model.state_dict())
    weight = model.features.denseblock1.denselayer3.conv1.weight
    assert block.sources == (6, 4, 4, 4)
    assert block.strengths()[2, 2].item() == pytest.approx(weight[:, 10:14].abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "Lightning", "DataParallel", "compiled", "safetensors", "old names"])
def test_files_of_all_kinds_have_the_same_strengths(kind, model, tmp_path):
    state = model.state_dict()
    path = tmp_path / "net.pth"
    if kind == "Lightning":
        torch.save({"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    elif kind in ("DataParallel", "compiled"):
        prefix = {"DataParallel": "module.", "compiled": "_orig_mod."}[kind]
        torch.save({prefix + k: v for k, v in state.items()}, path)
    elif kind == "safetensors":
        path = tmp_path / "net.safetensors"
        save_file(state, path)
    elif kind == "old names":
        torch.save({k.replace("conv1.", "conv.1.").replace("conv2.", "conv.2."): v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    expected, found = blocks(state), blocks(load(path))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.strengths().nan_to_num(-1), other.strengths().nan_to_num(-1))


def test_nets_of_torchvision_and_timm_are_read():
    with torch.device("meta"):
        states = [stock.densenet121().state_dict(), timm.create_model("densenet121").state_dict()]
    for state in states:
        found = blocks(state)
        assert [block.sources[0] for block in found] == [64, 128, 256, 512]
        assert [len(block.sources) - 1 for block in found] == [6, 12, 24, 16]
        assert [block.targets[-1].name for block in found] == ["transition"] * 3 + ["classifier"]


def test_the_command_writes_what_it_computes(model, tmp_path, capsys):
    path = tmp_path / "net.pth"
    torch.save(model.state_dict(), path)
    assert cli.main(["analyse", str(path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "denseblock3, classifier" in told
    rows = list(csv.DictReader((tmp_path / "out" / "net-strengths.csv").read_text().splitlines()))
    assert len(rows) == 3 * (1 + 2 + 3)
    first = blocks(model.state_dict())[0]
    row = next(r for r in rows if (r["block"], r["target"], r["source"]) == ("denseblock1", "transition", "layer 2"))
    assert float(row["mean_abs_weight"]) == pytest.approx(first.strengths()[2, 2].item(), rel=1e-5)
    assert float(row["of_the_column_s_largest"]) == pytest.approx(first.relative()[2, 2].item(), abs=1e-4)
    assert (tmp_path / "out" / "net-strengths.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_table_remains(model, tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.pth"
    torch.save(model.state_dict(), path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "densenet_fast.analyse.picture", raising=False)
    assert cli.main(["analyse", str(path), "--out", str(tmp_path)]) == 0
    assert "matplotlib is not installed; type: " in capsys.readouterr().out
    assert not (tmp_path / "net-strengths.png").exists()


def test_what_is_no_checkpoint_is_said(tmp_path, capsys):
    def told(contents) -> str:
        path = tmp_path / "net.pth"
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        else:
            torch.save(contents, path)
        assert cli.main(["analyse", str(path)]) == 1
        found = capsys.readouterr().err
        assert found.count("\n") == 1
        return found

    assert "which cannot be read as weights" in told(b"PK\x03\x04 cut off")
    assert "more than weights is in it" in told({"model": print})
    assert "expected a state dict" in told({"epoch": 3})
    assert "expected those of a DenseNet" in told({"layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)})
    state = DenseNet(4, (2,)).state_dict()
    del state["features.denseblock1.denselayer1.conv2.weight"]
    assert "denseblock1 whose convolutions read 24, 28, 32 channels" in told(state)
    assert cli.main(["analyse", str(tmp_path / "none.pth")]) == 1
    assert "which does not exist" in capsys.readouterr().err
