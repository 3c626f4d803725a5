"""A stage of a DenseNet: a dense block and what consumes its buffer, as one differentiable step.

spec.py says what a stage is, checks.py what it refuses, alike.py whether tensors have changed, function.py makes it one
autograd.Function, schedule.py runs its passes on operations, buffer.py knows how activations lie in memory, halves.py
runs a layer half by half (SyncBatchNorm), mixed.py gives it convolutions that no kernel has, convolution.py is that of
a stem, dropout.py draws, recompute.py differentiates again, operator.py is the stage in graphs.
"""

from .alike import Alike
from .checks import check_image, check_weight, is_autocast
from .dropout import drawn
from .function import Result, run
from .schedule import Wanted
from .spec import ConsumerSpec, ConvolutionSpec, LayerSpec, StageSpec

__all__ = [
    "Alike",
    "ConsumerSpec",
    "ConvolutionSpec",
    "LayerSpec",
    "Result",
    "StageSpec",
    "Wanted",
    "check_image",
    "check_weight",
    "drawn",
    "is_autocast",
    "run",
]
