"""Image files of every kind of pixels give the net one picture, or a sentence."""

import csv

import numpy as np
import pytest
from PIL import Image

from densenet_fast import cli
from densenet_fast.train.checkpoints import LAST
from densenet_fast.train.files import load

from .test_data import PHOTOGRAPHS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def photograph():
    return Image.open(PHOTOGRAPHS / "flower.jpg").crop((200, 100, 320, 180))


def sixteen_bits(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def with_hidden_black(image):
    """Its left half black, and transparent."""
    found = image.convert("RGBA")
    found.paste((0, 0, 0, 0), (0, 0, 60, 80))
    return found


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    found = image.transpose(Image.Transpose.ROTATE_90)
    found.info["exif"] = exif.tobytes()
    return found


KINDS = {  # how the file is made, its name's end, what is seen of it, and by how much that may differ
    "RGB": (lambda im: im, "png", lambda im: im, 0),
    "grey": (lambda im: im.convert("L"), "png", lambda im: im.convert("L").convert("RGB"), 0),
    "grey with alpha": (lambda im: im.convert("LA"), "png", lambda im: im.convert("L").convert("RGB"), 0),
    "16 bits, PNG": (sixteen_bits, "png", lambda im: im.convert("L").convert("RGB"), 0),
    "16 bits, TIFF": (sixteen_bits, "tif", lambda im: im.convert("L").convert("RGB"), 0),
    "16 bits, PGM": (sixteen_bits, "pgm", lambda im: im.convert("L").convert("RGB"), 0),
    "a palette": (lambda im: im.quantize(256), "png", lambda im: im.quantize(256).convert("RGB"), 0),
    "black and white": (lambda im: im.convert("1"), "png", lambda im: im.convert("1").convert("RGB"), 0),
    "four colours of ink": (lambda im: im.convert("CMYK"), "tif", lambda im: im, 1),
    "turned by its EXIF": (turned, "png", lambda im: im, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_what_a_viewer_shows(kind, photograph, tmp_path):
    make, end, seen, slack = KINDS[kind]
    made = make(photograph)
    path = tmp_path / f"image.{end}"
    made.save(path, **({"exif": made.info["exif"]} if "EXIF" in kind else {}))
    found, expected = (np.asarray(image).astype(int) for image in (load(path), seen(photograph)))
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= slack
    assert load(path, "L").mode == "L"


def test_what_is_transparent_is_white(photograph, tmp_path):
    with_hidden_black(photograph).save(tmp_path / "image.png")
    found = np.asarray(load(tmp_path / "image.png"))
    assert (found[:, :60] == 255).all()
    assert (found[:, 60:] == np.asarray(photograph)[:, 60:]).all()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_no_known_scale_are_refused(mode, photograph, tmp_path):
    photograph.convert("L").convert(mode).save(tmp_path / "image.tif")
    with pytest.raises(cli.Refused, match=r"^images: got .*image.tif, which .* expected those of 8 or 16 bits\)$"):
        load(tmp_path / "image.tif")


def test_one_unreadable_file_among_many_is_told_beside_the_others(trained, tmp_path, capsys):
    (tmp_path / "damaged.jpg").write_bytes((PHOTOGRAPHS / "china.jpg").read_bytes()[:5000])
    files = [PHOTOGRAPHS / "china.jpg", tmp_path / "damaged.jpg", PHOTOGRAPHS / "flower.jpg"]
    table = tmp_path / "out.csv"
    options = [f"--ckpt_path={trained / 'checkpoints' / LAST}", "--accelerator=cpu", "--top=1", f"--csv={table}"]
    assert cli.main(["predict", *map(str, files), *options]) == 1
    told = capsys.readouterr()
    assert [line.split()[1] for line in told.out.splitlines()] == ["china", "flower"]
    assert told.err.startswith(f"densenet-fast predict: images: got {files[1]}, which cannot be read as an image (")
    assert told.err.count("\n") == 1
    with open(table, newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(files[0]), str(files[2])]
