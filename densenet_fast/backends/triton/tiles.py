"""Which tile a kernel takes: a committed table, and rules for what it does not hold. Nothing is timed at run time.

A row is keyed by operation, architecture and kind of product, and holds for layers up to so many outputs: of the
product, so that the gradient of a 3x3 convolution's input counts that input's channels. Rows come from what compiles
without spilling and fills the machine (`python -m tools.gpucheck.triton.aot`); `python -m benchmarks.tune` times
them on the GPU at hand.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import cdiv
from .launch import Device

HALF, TF32, FP32 = "half", "tf32", "fp32"  # kinds of product: 16-bit operands, TF32, three TF32 products
ANY = 1 << 30  # outputs


class Tile(NamedTuple):
    """One program's part of a convolution, forward or backward; warps; stages of the software pipeline."""

    pixels: int
    outputs: int  # channels of what the convolution makes
    channels: int  # of what it takes
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def unpipelined(self) -> "Tile":
        """A smaller tile with one stage, for rows that are not copied asynchronously."""
        return self._replace(pixels=max(16, self.pixels // 2), num_stages=1)

    def spread(self, device: Device, pixels: int, outputs: int) -> "Tile":
        """Smaller tiles, with more channels on their way, where these leave half of the multiprocessors idle."""
        tile = self
        if 2 * tile.programs(pixels, outputs) <= device.processors:
            tile = tile._replace(pixels=tile.pixels // 2, channels=tile.channels * 2)
        if 2 * tile.programs(pixels, outputs) <= device.processors:
            tile = tile._replace(pixels=tile.pixels // 2, outputs=tile.outputs // 2)
        return tile

    def programs(self, pixels: int, outputs: int) -> int:
        return cdiv(pixels, self.pixels) * cdiv(outputs, self.outputs)

    def blocks(self, precision: str) -> dict[str, Any]:
        """The constants of a 1x1 kernel."""
        return {"PRECISION": precision, "BLOCK_M": self.pixels, "BLOCK_K": self.outputs, "BLOCK_C": self.channels}


Rows = tuple[tuple[int, Tile], ...]  # (most outputs, tile), fewest first

TABLE: dict[tuple[str, int, str], Rows] = {}
for _architecture in (80, 90, 100):
    TABLE |= {
        # 1x1 forward: all outputs of up to 256 in one program, so that x is read once.
        ("bn_relu_conv1x1_fwd", _architecture, HALF): (
            (64, Tile(128, 64, 64, 8, 3)),
            (128, Tile(128, 128, 64, 8, 3)),
            (ANY, Tile(64, 256, 64, 8, 3)),
        ),
        ("bn_relu_conv1x1_fwd", _architecture, TF32): (
            (64, Tile(128, 64, 32, 4 if _architecture == 90 else 8, 3)),
            (128, Tile(128, 128, 32, 8, 3)),
            (ANY, Tile(64, 256, 32, 8, 3)),
        ),
        ("bn_relu_conv1x1_fwd", _architecture, FP32): (
            (64, Tile(64, 64, 32, 4, 2)),
            (ANY, Tile(64, 128, 32, 8, 2)),
        ),
        ("bn_relu_conv1x1_grads", _architecture, HALF): ((ANY, Tile(64, 64, 128, 8, 2)),),
        ("bn_relu_conv1x1_grads", _architecture, TF32): ((ANY, Tile(32, 64, 128, 8, 2)),),
        ("bn_relu_conv1x1_grads", _architecture, FP32): ((ANY, Tile(32, 32, 128, 8, 2)),),
        ("transition_fwd", _architecture, HALF): (
            (64, Tile(64, 64, 64, 4, 2)),
            (ANY, Tile(64, 128, 64, 8, 2)),
        ),
        ("transition_fwd", _architecture, TF32): ((ANY, Tile(64, 128, 32, 8, 2)),),
        ("transition_fwd", _architecture, FP32): ((ANY, Tile(32, 128, 32, 8, 2)),),
        ("transition_dgrad", _architecture, HALF): ((ANY, Tile(64, 64, 64, 8, 2)),),
        ("transition_dgrad", _architecture, TF32): ((ANY, Tile(64, 32, 64, 8, 2)),),
        ("transition_dgrad", _architecture, FP32): ((ANY, Tile(32, 32, 64, 8, 2)),),
        ("transition_wgrad", _architecture, HALF): (
            (64, Tile(64, 64, 64, 8, 2)),
            (ANY, Tile(64, 128, 64, 8, 2)),
        ),
        ("transition_wgrad", _architecture, TF32): ((ANY, Tile(32, 128, 64, 8, 2)),),
        ("transition_wgrad", _architecture, FP32): ((ANY, Tile(32, 64, 64, 8, 2)),),
    }
for _architecture, _stages in ((90, 3), (100, 2)):
    # 1x1 backward in one pass: two slabs of the weight in registers, too much for sm_80 and for three TF32 products.
    TABLE |= {
        ("bn_relu_conv1x1_bwd", _architecture, HALF): (
            (64, Tile(64, 64, 64, 8, _stages)),
            (128, Tile(32, 128, 128, 8, _stages)),
            (256, Tile(32, 256, 64, 8, _stages)),
        ),
        ("bn_relu_conv1x1_bwd", _architecture, TF32): (
            (64, Tile(32, 64, 64, 8, _stages)),
            (128, Tile(32, 128, 64, 8, _stages)),
        ),
    }
# sm_80 spills with 32 channels at a time of rows that are not copied asynchronously.
TABLE["transition_fwd", 80, TF32] = ((64, Tile(64, 64, 32, 8, 2)), (ANY, Tile(64, 128, 16, 8, 2)))
# tcgen05 needs registers of its own for the tile it transforms.
TABLE["transition_fwd", 100, HALF] = ((64, Tile(64, 64, 64, 4, 2)), (ANY, Tile(64, 128, 32, 8, 2)))
TABLE["transition_fwd", 100, FP32] = ((64, Tile(64, 64, 32, 8, 2)), (ANY, Tile(32, 128, 32, 8, 2)))


# 3x3: the forward has strips of pixels for pixels (bn_relu_conv3x3_fwd.py), the gradient of the input all nine taps'
# outputs in a row for outputs. Tensor memory (sm_100) holds one stage of the weight gradient's nine products.
for _architecture, _stages in ((80, 2), (90, 2), (100, 1)):
    TABLE |= {
        ("bn_relu_conv3x3_fwd", _architecture, HALF): (
            (32, Tile(64, 32, 32, 8 if _architecture == 80 else 4, 2)),
            (ANY, Tile(64, 64, 32, 8, 2)),
        ),
        ("bn_relu_conv3x3_fwd", _architecture, TF32): (
            (32, Tile(64, 32, 16, 8 if _architecture == 100 else 4, 2)),
            (ANY, Tile(64, 64, 16, 8, 2)),
        ),
        ("bn_relu_conv3x3_fwd", _architecture, FP32): ((ANY, Tile(64, 32, 16 if _architecture == 80 else 32, 8, 2)),),
        ("bn_relu_conv3x3_dgrad", _architecture, HALF): (
            (64, Tile(128, 64, 64, 8, 3)),
            (ANY, Tile(128, 64, 128, 8, 3)),
        ),
        ("bn_relu_conv3x3_dgrad", _architecture, TF32): ((ANY, Tile(64, 32, 64, 8, 2)),),
        ("bn_relu_conv3x3_dgrad", _architecture, FP32): ((ANY, Tile(64, 32, 64, 8, 2)),),
        ("bn_relu_conv3x3_wgrad", _architecture, HALF): (
            (32, Tile(64, 32, 128, 8, _stages)),
            (ANY, Tile(64, 64, 64, 8, _stages)),
        ),
        ("bn_relu_conv3x3_wgrad", _architecture, TF32): (
            (32, Tile(32, 32, 64, 8, _stages)),
            (ANY, Tile(32, 64, 64, 8, _stages)),
        ),
        ("bn_relu_conv3x3_wgrad", _architecture, FP32): (
            (ANY, Tile(16 if _architecture == 80 else 32, 32, 64, 8, _stages)),
        ),
    }

# On sm_90 the copies of a loop with two stages mostly start behind its last product and are waited for at once: three,
# where as many programs are then on a multiprocessor as with two. What must be otherwise: tests/triton/variants.py.
TABLE |= {
    # Half of the channels, for two programs on a multiprocessor, where conv1x1_bwd finds that it pays.
    ("bn_relu_conv1x1_bwd_narrow", 90, HALF): ((128, Tile(32, 128, 64, 4, 3)),),
    # With four warps of 255 registers two programs are on a multiprocessor.
    ("bn_relu_conv1x1_fwd", 90, HALF): (
        (64, Tile(128, 64, 64, 8, 3)),
        (128, Tile(128, 128, 64, 4, 3)),
        (ANY, Tile(64, 256, 64, 8, 3)),
    ),
    ("bn_relu_conv1x1_fwd", 90, FP32): ((64, Tile(64, 64, 32, 4, 2)), (ANY, Tile(64, 128, 32, 8, 3))),
    ("bn_relu_conv1x1_grads", 90, HALF): ((ANY, Tile(64, 64, 128, 8, 3)),),
    ("bn_relu_conv1x1_grads", 90, TF32): ((ANY, Tile(32, 64, 128, 8, 3)),),
    ("bn_relu_conv1x1_grads", 90, FP32): ((ANY, Tile(32, 32, 128, 8, 3)),),
    # With half of the channels at a time two programs are on a multiprocessor.
    ("transition_fwd", 90, HALF): ((64, Tile(64, 64, 64, 4, 3)), (ANY, Tile(64, 128, 32, 8, 3))),
    # Half as many warps and pixels: three programs on a multiprocessor instead of one.
    ("transition_dgrad", 90, HALF): ((ANY, Tile(32, 64, 64, 4, 3)),),
    ("transition_dgrad", 90, FP32): ((ANY, Tile(32, 32, 64, 8, 3)),),
    ("transition_wgrad", 90, HALF): ((64, Tile(64, 64, 64, 8, 3)), (ANY, Tile(64, 128, 64, 8, 2))),
    ("transition_wgrad", 90, FP32): ((ANY, Tile(32, 64, 64, 8, 3)),),
    ("bn_relu_conv3x3_fwd", 90, HALF): ((32, Tile(64, 32, 32, 4, 3)), (ANY, Tile(64, 64, 32, 8, 3))),
    ("bn_relu_conv3x3_fwd", 90, TF32): ((32, Tile(64, 32, 16, 4, 3)), (ANY, Tile(64, 64, 16, 8, 3))),
    ("bn_relu_conv3x3_fwd", 90, FP32): ((ANY, Tile(64, 32, 32, 8, 3)),),
    ("bn_relu_conv3x3_dgrad", 90, HALF): ((64, Tile(128, 64, 64, 8, 3)), (ANY, Tile(128, 64, 128, 4, 3))),
    # Three stages: 48 KiB exactly, which are too many beside sm_90's own and which Triton does not ask for.
    ("bn_relu_conv3x3_dgrad", 90, FP32): ((ANY, Tile(64, 32, 64, 8, 4)),),
    ("bn_relu_conv3x3_wgrad", 90, HALF): ((32, Tile(64, 32, 128, 8, 3)), (ANY, Tile(32, 64, 64, 8, 3))),
    ("bn_relu_conv3x3_wgrad", 90, TF32): ((32, Tile(32, 32, 64, 8, 3)), (ANY, Tile(16, 64, 64, 8, 3))),
    ("bn_relu_conv3x3_wgrad", 90, FP32): ((ANY, Tile(32, 32, 64, 8, 3)),),
}


def kind_of(x: Tensor) -> str:
    """The kind of product for activations like x: as PyTorch's convolutions, TF32 only where they may use it."""
    if x.dtype != torch.float32:
        return HALF
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return TF32 if allowed else FP32


PRECISION = {HALF: "tf32", TF32: "tf32", FP32: "tf32x3"}  # tl.dot's name; 16-bit operands have one way whatever it is


def family(device: Device) -> int:
    """The architecture whose rows a device takes: sm_90's and sm_100's need their 227 KB of shared memory."""
    return {9: 90, 10: 100}.get(device.architecture // 10, 80)


def find(operation: str, device: Device, kind: str, outputs: int) -> Tile | None:
    """The table's tile, None if it has none."""
    rows = TABLE.get((operation, family(device), kind), ())
    return next((tile for most, tile in rows if outputs <= most), None)


def choose(operation: str, device: Device, kind: str, outputs: int) -> Tile:
    """The table's tile, for operations that have one for any number of outputs."""
    tile = find(operation, device, kind, outputs)
    assert tile is not None, (operation, device, kind)
    return tile


# Bytes of partial results that stay in the L2 cache, 40 MB on an A100, until a later launch adds them up.
CACHED = 16 << 20


def partial(most: int, dweight: Tensor) -> int:
    """How many partial gradients of a weight there may be: `most`, beyond which they would outweigh the work, or what
    the L2 cache keeps."""
    return max(most, CACHED // (4 * dweight.numel()))


def splits(device: Device, slabs: int, pixels: int, block: int, most: int, resident: int = 1) -> int:
    """Into how many parts the pixels are divided so that `slabs` programs each fill the machine once, `resident` to a
    multiprocessor: at most `most`."""
    return max(1, min(resident * device.processors // slabs, -(-pixels // block), most))
