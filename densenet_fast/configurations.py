"""The published nets by name, and nets for small images by their type, depth and growth rate.

Huang et al., "Densely Connected Convolutional Networks", CVPR 2017 (tables 1 and 2), and DenseNet-232, whose weights
were published with Pleiss et al., "Memory-Efficient Implementation of DenseNets", arXiv 1707.06990.
"""

import re
from typing import Any, NamedTuple


class Configuration(NamedTuple):
    """The arguments of `densenet_fast.DenseNet` that make a net, and the side of the images that it was made for."""

    growth_rate: int
    block_config: tuple[int, ...]
    num_init_features: int
    bn_size: int | None = 4
    compression: float = 0.5
    image: int = 224

    def arguments(self) -> dict[str, Any]:
        """Of `densenet_fast.DenseNet`."""
        found = self._asdict()
        del found["image"]
        return found


# Made by `configuration` from their names.
SMALL_IMAGES = (
    "densenet_40_12",
    "densenet_100_12",
    "densenet_100_24",
    "densenet_b_100_12",
    "densenet_c_100_12",
    "densenet_bc_100_12",
    "densenet_bc_250_24",
    "densenet_bc_190_40",
)
LARGE_IMAGES = {
    "densenet121": Configuration(32, (6, 12, 24, 16), 64),
    "densenet169": Configuration(32, (6, 12, 32, 32), 64),
    "densenet201": Configuration(32, (6, 12, 48, 32), 64),
    "densenet264": Configuration(32, (6, 12, 64, 48), 64),
    "densenet161": Configuration(48, (6, 12, 36, 24), 96),
    "densenet232": Configuration(48, (6, 12, 48, 48), 96),
}
NAMES = (*SMALL_IMAGES, *LARGE_IMAGES)


def configuration(name: str) -> Configuration:
    """The net of a name: one of `NAMES`, or `densenet_<depth>_<growth rate>` for images of 32x32 in three blocks, with
    `b` (bottlenecks), `c` (compression by a half) or `bc` (both) behind `densenet_`.

    Raises:
        ValueError: there is no such net.
    """
    if name in LARGE_IMAGES:
        return LARGE_IMAGES[name]
    match = re.fullmatch(r"densenet_(?:(b|c|bc)_)?([1-9]\d*)_([1-9]\d*)", name)
    if match is None:
        raise ValueError(
            f"net: got {name!r}, expected {', '.join(LARGE_IMAGES)} or, for small images, densenet_<depth>_<growth "
            "rate> with b_, c_ or bc_ before the depth, as densenet_bc_100_12"
        )
    kind, depth, growth = match[1] or "", int(match[2]), int(match[3])
    in_a_block = 6 if "b" in kind else 3
    if depth <= 4 or (depth - 4) % in_a_block:
        raise ValueError(
            f"net: got {name!r} of depth {depth}, expected a depth of {in_a_block}n + 4: "
            f"{'two convolutions' if 'b' in kind else 'one'} a layer in three blocks of n layers, and four beside them"
        )
    layers = ((depth - 4) // in_a_block,) * 3
    first = 2 * growth if kind == "bc" else 16
    return Configuration(growth, layers, first, 4 if "b" in kind else None, 0.5 if "c" in kind else 1.0, 32)
