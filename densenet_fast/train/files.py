"""Image files as a net is given them: eight bits a channel, upright, on white where they are transparent."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..cli import Refused


def load(path: str | Path, mode: str = "RGB", option: str = "images") -> Image.Image:
    """The image in a file. mode: "RGB", or "L" for grey; option: who named the file.

    Raises:
        Refused: it is no image, or damaged, or its pixels are of an unknown scale.
    """
    try:
        with Image.open(path) as image:
            return _eight_bits(ImageOps.exif_transpose(image), image.format).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"{option}: got {path}, which cannot be read as an image ({error})") from None


def _eight_bits(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and format == "PPM"):
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        what = "floating-point numbers" if image.mode == "F" else "of 32 bits"
        raise ValueError(f"its pixels are {what}, whose scale is not known, expected those of 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
