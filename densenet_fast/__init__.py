"""DenseNets for PyTorch with one concatenation buffer per dense block: linear memory, fused operations.

    model = densenet_fast.DenseNet(growth_rate=12, block_config=(16, 16, 16))
    model = densenet_fast.densenet121(weights="IMAGENET1K_V1")
    from densenet_fast.torchvision import DenseNet  # torchvision's signature
    model = densenet_fast.create("densenet_bc_100_12", num_classes=100)  # a published net by name
    densenet_fast.convert(model)  # of torchvision, timm, MONAI or torchxrayvision, in place

Layers of the code: docs/internals/code-and-contract.md.
"""

from . import functional, plan, torchvision
from ._version import __version__
from .backbone import FeatureNet
from .conversion import convert, revert
from .models import DenseNet
from .modules import DenseBlock, DenseLayer, Transition
from .nets import create
from .torchvision import densenet121, densenet161, densenet169, densenet201, densenet264

__all__ = [
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "FeatureNet",
    "Transition",
    "__version__",
    "convert",
    "create",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "functional",
    "plan",
    "revert",
    "torchvision",
]
