"""The readers, on archives in the data sets' own formats and on real photographs; what a net is given of them."""

import hashlib
import io
import pickle
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import torchvision
from scipy.io import savemat

from densenet_fast.cli import Refused
from densenet_fast.train.datasets import CIFAR10, CIFAR100, SVHN, Digits, ImageFolder, Synthetic
from densenet_fast.train.order import Images, Key, Order

PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"  # china.jpg and flower.jpg
RANDOM = np.random.default_rng(0)


def pixels(number):
    return RANDOM.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)


def write_cifar(kind, root, monkeypatch, parts, meta):
    """The archive of Alex Krizhevsky's page, of a few images, and its checksums in torchvision."""
    with tarfile.open(root / kind.filename, "w:gz") as archive:
        sums = {}
        for name, content in {**parts, kind.meta["filename"]: meta}.items():
            data = pickle.dumps(content, protocol=2)
            sums[name] = hashlib.md5(data).hexdigest()
            info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5((root / kind.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


def write_cifar10(root, monkeypatch, number=4):
    images = {name: pixels(number) for name, _ in [*torchvision.datasets.CIFAR10.train_list, ("test_batch", "")]}
    parts = {n: {"data": x.reshape(number, -1), "labels": [i % 10 for i in range(number)]} for n, x in images.items()}
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    write_cifar(torchvision.datasets.CIFAR10, root, monkeypatch, parts, {"label_names": names})
    return images, names


def test_cifar10(tmp_path, monkeypatch):
    images, names = write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path), download=True)
    data.prepare_data()
    train, test = data.read(train=True), data.read(train=False)
    assert (len(train), len(test), list(data.class_names)) == (20, 4, names)
    assert [train[i][1] for i in range(5)] == [0, 1, 2, 3, 0]
    prepared = Images(test, data.transform(augment=False), seed=0)[Key(0, 2)][0]
    scaled = images["test_batch"][2] / 255.0
    for channel, mean, std in zip(range(3), (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616), strict=True):
        np.testing.assert_allclose(prepared[channel], (scaled[channel] - mean) / std, rtol=1e-4, atol=1e-5)


def test_the_paper_s_augmentation_shifts_by_four_and_mirrors(tmp_path, monkeypatch):
    images, _ = write_cifar10(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path), download=True)
    data.mean, data.std = (0.0,) * 3, (1.0,) * 3
    data.prepare_data()
    padded = np.pad(images["data_batch_1"][0], ((0, 0), (4, 4), (4, 4)))
    windows = {hash(padded[:, y : y + 32, x : x + 32].tobytes()): (y, x) for y in range(9) for x in range(9)}
    drawn = Images(data.read(train=True), data.transform(augment=True), seed=0)
    seen, mirrored = set(), 0
    for epoch in range(60):
        image = (drawn[Key(epoch, 0)][0] * 255).round().byte()
        window, flipped = (windows.get(hash(x.numpy().tobytes())) for x in (image, image.flip(2).contiguous()))
        assert (window is None) != (flipped is None)
        mirrored += flipped is not None
        seen.add(window or flipped)
    assert len(seen) > 30
    assert 15 < mirrored < 45
    torch.testing.assert_close(drawn[Key(7, 0)][0], drawn[Key(7, 0)][0], rtol=0, atol=0)


def test_cifar100(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR100
    parts = {n: {"data": pixels(3).reshape(3, -1), "fine_labels": [7, 0, 99]} for n in ("train", "test")}
    write_cifar(kind, tmp_path, monkeypatch, parts, {"fine_label_names": [f"class {i}" for i in range(100)]})
    data = CIFAR100(str(tmp_path), download=True, held_out=1)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_images) == 2
    assert len(data.test_images) == 1
    data.setup("validate")
    assert [label for _, label in data.test_images] == [7, 0, 99]
    assert data.class_names[99] == "class 99"


def test_svhn(tmp_path, monkeypatch):
    """Images lie along the last dimension, and the digit 0 has the label 10."""
    splits, images = {}, {}
    for split, number in (("train", 3), ("extra", 2), ("test", 2)):
        images[split] = pixels(number)
        file = tmp_path / f"{split}_32x32.mat"
        savemat(file, {"X": images[split].transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9]][:number])})
        splits[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    data = SVHN(str(tmp_path))
    train = data.read(train=True)
    assert [label for _, label in train] == [0, 1, 9, 0, 1]
    prepared = Images(train, data.transform(augment=False), seed=0)[Key(0, 4)][0]
    np.testing.assert_allclose(prepared, images["extra"][1] / 255.0, rtol=1e-6)
    assert len(SVHN(str(tmp_path), extra=False).read(train=True)) == 3


def photographs(root):
    """Two real JPEGs as two classes, of training and of validation."""
    for part in ("train", "val"):
        for name in ("china", "flower"):
            (root / part / name).mkdir(parents=True)
            shutil.copy(PHOTOGRAPHS / f"{name}.jpg", root / part / name)


def test_folders_of_jpegs_are_scaled_and_cropped_as_torchvision_s_weights_want_it(tmp_path):
    photographs(tmp_path)
    data = ImageFolder(str(tmp_path))
    assert (data.num_classes, data.class_names) == (2, ["china", "flower"])
    image, label = data.read(train=False)[1]
    assert label == 1
    preset = torchvision.transforms._presets.ImageClassification(crop_size=224, resize_size=256)
    ours = data.transform(augment=False)(image)
    torch.testing.assert_close(ours, preset(image), rtol=0, atol=0.03)  # PIL's antialiasing, or a tensor's
    crops = ImageFolder(str(tmp_path), ten_crop=True).transform(augment=False)(image)
    assert crops.shape == (10, 3, 224, 224)
    torch.testing.assert_close(crops[4], ours)
    torch.testing.assert_close(crops[5], crops[1].flip(2), rtol=0, atol=1e-6)
    augmented = Images([(image, 0)], data.transform(augment=True), seed=0)
    assert not torch.equal(augmented[Key(0, 0)][0], augmented[Key(1, 0)][0])


def test_digits_are_normalised_and_split_by_class():
    data = Digits()
    train, test = data.read(train=True), data.read(train=False)
    assert (len(train), len(test)) == (1437, 360)
    images = torch.stack([data.transform(augment=False)(image) for image, _ in train[::5]])
    assert images.shape[1:] == (1, 32, 32)
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02
    smaller = Digits(image_size=16, augment=True)
    assert Images(smaller.read(train=False), smaller.transform(augment=True), 0)[Key(0, 0)][0].shape == (1, 16, 16)
    counts = np.bincount([label for _, label in test])
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_order_is_of_the_seed_and_the_epoch_and_shared_among_processes():
    def keys(processes, rank, epoch, seed=0):
        order = Order(range(12), processes, rank, seed=seed)
        order.set_epoch(epoch)
        return list(order)

    whole = keys(1, 0, epoch=3)
    assert sorted(key.image for key in whole) == list(range(12))
    assert {key.epoch for key in whole} == {3}
    assert [key for pair in zip(keys(2, 0, 3), keys(2, 1, 3), strict=True) for key in pair] == whole
    assert keys(1, 0, epoch=4) != whole
    assert keys(1, 0, epoch=3, seed=1) != whole


def test_classes_are_folders_and_the_same_in_both_parts(tmp_path):
    photographs(tmp_path)
    (tmp_path / "train" / "labels.txt").write_text("no class")
    assert ImageFolder(str(tmp_path)).class_names == ["china", "flower"]
    (tmp_path / "val" / "flower").rename(tmp_path / "val" / "tree")
    with pytest.raises(Refused, match=r"got tree in .*val, expected flower, as in .*train"):
        ImageFolder(str(tmp_path)).read(train=False)


@pytest.mark.parametrize("data", [CIFAR10, SVHN])
def test_an_archive_that_cannot_be_fetched(data, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(Refused, match=r"data.download: the archive could not be fetched: .*no network"):
        data(str(tmp_path), download=True).prepare_data()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda root: CIFAR10(root).read(True), "cifar-10-batches-py"),
        (lambda root: CIFAR100(root).read(True), "cifar-100-python"),
        (lambda root: SVHN(root).read(False), "test_32x32.mat"),
        (lambda root: ImageFolder(root).num_classes, "train"),
        (lambda root: Synthetic(batch_size=0), "data.batch_size: got 0"),
        (lambda root: Digits(held_out=2000).setup("fit"), "data.held_out: got 2000, expected less than the 1437"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(data, told, tmp_path):
    with pytest.raises(Refused, match=told):
        data(str(tmp_path))
