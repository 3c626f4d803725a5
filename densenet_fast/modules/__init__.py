"""The modules of a DenseNet, with torchvision's names and children, that run fused where they can.

Every module also runs as its plain layers under ordinary autograd: when `backend="plain"`, when a graph is traced, and
when the fused path does not apply (eligibility.py), then with a warning that gives the reason.

trunk.py runs the children of `features` as stages; block.py, layer.py and transition.py are those children; reading.py
takes specs and tensors out of them, running_stats.py puts statistics back; validation.py refuses wrong inputs.
"""

from .block import DenseBlock
from .fusable import Fusable
from .layer import DenseLayer
from .transition import Transition
from .trunk import Trunk, relu_pool
from .views import pools

__all__ = ["DenseBlock", "DenseLayer", "Fusable", "Transition", "Trunk", "pools", "relu_pool"]
