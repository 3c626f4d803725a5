"""DenseNets (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017): the model class and named nets."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import backends
from .backbone import Backbone, new_classifier
from .checkpoints import rename_keys
from .modules import DenseBlock, Fusable, Transition, Trunk
from .modules.eligibility import CONVOLUTIONS, MAX_POOLS, NORMS
from .modules.layer import check_dims


class DenseNet(Backbone):
    """DenseNet-BC, with one preallocated concatenation buffer per dense block.

    Positional order, defaults, small stem and initialisation are those of efficient_densenet_pytorch's class; the
    module tree and the state_dict are torchvision's.

    Args:
        growth_rate: channels k that each layer adds.
        block_config: layers in each dense block; any number of blocks.
        compression: a transition keeps this fraction of its input channels, in (0, 1]; 1 is DenseNet without -C.
        num_init_features: channels of the first convolution.
        bn_size: bottleneck width in units of k; None for layers without bottleneck (DenseNet without -B).
        drop_rate: dropout probability behind each layer.
        num_classes: outputs of the classifier; 0: none, the model returns pooled features; None: 10 for nets of fewer
            than four blocks, else 1000.
        small_inputs: True for a 3x3 stem (images of about 32x32), False for 7x7, stride 2, and pooling; None: True for
            nets of fewer than four blocks, as in the paper. The last norm is `features.norm_final` with the small stem
            and `features.norm5` with the large one.
        efficient: recompute the bottleneck outputs in backward instead of keeping them, and with the large stem the
            first convolution's output. Memory is linear in depth either way; `set_efficient` switches later.
        memory_efficient: torchvision's name for `efficient`; overrides it if given.
        in_channels: channels of the image.
        spatial_dims: dimensions of the image: 2, 3 for volumes or 1 for signals, whose nets have three-dimensional or
            one-dimensional kernels and norms under the same names.
        backend: "auto" (the best that runs), "native", "triton", "eager", or "plain" for the layers under ordinary
            autograd; `set_backend` switches later.
        output_stride: of the features, for segmentation: transitions do not pool once it is reached, and in the blocks
            behind them the 3x3 convolutions are dilated, by 2 and then by 4. A net of four blocks with the large stem
            has 32, also where it is None, and may have 16, 8 or 4. Parameters stay those of the net without it.

    Shapes: [N, in_channels, H, W] -> [N, num_classes], H and W any size the poolings leave a pixel of; with
        spatial_dims=3 [N, in_channels, D, H, W], with spatial_dims=1 [N, in_channels, L].

    Attributes:
        features: the trunk, an nn.Sequential of stem, blocks and transitions, and the last norm.
        classifier: nn.Linear, or nn.Identity where num_classes is 0.

    Raises:
        ValueError: compression outside (0, 1] or so small that it leaves no channel, a count below 1 (layers: below 0),
            a probability outside [0, 1], spatial_dims that are none of 1, 2, 3, an output_stride that the net cannot
            have, an unknown backend.
    """

    block_class: type[DenseBlock] = DenseBlock

    def __init__(
        self,
        growth_rate: int = 12,
        block_config: Sequence[int] = (16, 16, 16),
        compression: float = 0.5,
        num_init_features: int = 24,
        bn_size: int | None = 4,
        drop_rate: float = 0,
        num_classes: int | None = None,
        small_inputs: bool | None = None,
        efficient: bool = False,
        *,
        memory_efficient: bool | None = None,
        in_channels: int = 3,
        spatial_dims: int = 2,
        backend: str = "auto",
        output_stride: int | None = None,
    ):
        super().__init__()
        if not 0 < compression <= 1:
            hint = ""
            if compression > 1 and compression == int(compression):
                hint = (
                    "; the third argument here is compression: for torchvision's order (growth_rate, block_config, "
                    "num_init_features) use densenet_fast.torchvision.DenseNet, or keywords"
                )
            raise ValueError(f"compression: got {compression}, expected a number in (0, 1]{hint}")
        if num_init_features < 1:
            raise ValueError(f"num_init_features: got {num_init_features}, expected at least 1")
        few_blocks = len(block_config) < 4
        small_inputs = few_blocks if small_inputs is None else small_inputs
        num_classes = (10 if few_blocks else 1000) if num_classes is None else num_classes
        efficient = efficient if memory_efficient is None else memory_efficient

        self.spatial_dims = check_dims(spatial_dims)
        self.features = Trunk()
        self.features.backend = backends.check_name(backend)
        self.features.spatial_dims = spatial_dims
        for name, module in _stem(in_channels, num_init_features, small_inputs, spatial_dims):
            self.features.add_module(name, module)
        pooling = _pooling_transitions(len(block_config), small_inputs, output_stride)
        dilation, channels = 1, num_init_features
        for i, num_layers in enumerate(block_config, 1):
            block = self.block_class(
                num_layers,
                channels,
                bn_size,
                growth_rate,
                drop_rate,
                efficient,
                backend=backend,
                spatial_dims=spatial_dims,
                dilation=dilation,
            )
            self.features.add_module(f"denseblock{i}", block)
            channels += num_layers * growth_rate
            if i < len(block_config):
                kept = int(channels * compression)
                if kept == 0:
                    raise ValueError(
                        f"compression: got {compression}, which leaves none of the {channels} channels of block {i}"
                    )
                transition = Transition(channels, kept, backend, spatial_dims, pools=i in pooling)
                self.features.add_module(f"transition{i}", transition)
                channels = kept
                dilation *= 1 if i in pooling else 2
        self.features.add_module("norm_final" if small_inputs else "norm5", NORMS[spatial_dims](channels))
        self.classifier = new_classifier(channels, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Convolutions normal with variance 2 / (out_channels * kernel area), norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                with torch.no_grad():
                    module.weight.normal_().mul_(math.sqrt(2 / fan_out))

    def set_efficient(self, efficient: bool = True) -> "DenseNet":
        """Recompute the bottleneck outputs of every block, and the first convolution's of the large stem, in backward
        (True) or keep them (False); returns self.

        `model.features.denseblock1.set_efficient(True)` does it for one block; the first one's stem goes with it.
        """
        for module in self.modules():
            if isinstance(module, DenseBlock):
                module.set_efficient(efficient)
        return self

    def set_backend(self, backend: str) -> "DenseNet":
        """Switch the backend of every part, see `backend` above; returns self."""
        backends.check_name(backend)
        for module in self.modules():
            if isinstance(module, Trunk | Fusable):
                module.set_backend(backend)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        rename_keys(state_dict, prefix, self.features)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _pooling_transitions(blocks: int, is_small: bool, output_stride: int | None) -> range:
    """The numbers of the transitions that pool, so that the features of a net have `output_stride`."""
    strides = [(1 if is_small else 4) << i for i in range(max(1, blocks))]
    if output_stride is None:
        return range(1, blocks)
    if output_stride not in strides:
        raise ValueError(
            f"output_stride: got {output_stride}, expected {', '.join(map(str, strides))} or None in a net of {blocks} "
            f"blocks with the {'small' if is_small else 'large'} stem"
        )
    return range(1, 1 + strides.index(output_stride))


def _stem(in_channels: int, features: int, is_small: bool, dims: int) -> list[tuple[str, nn.Module]]:
    conv, norm, pool = CONVOLUTIONS[dims], NORMS[dims], MAX_POOLS[dims]
    if is_small:
        return [("conv0", conv(in_channels, features, 3, padding=1, bias=False))]
    return [
        ("conv0", conv(in_channels, features, 7, stride=2, padding=3, bias=False)),
        ("norm0", norm(features)),
        ("relu0", nn.ReLU(inplace=True)),
        ("pool0", pool(3, stride=2, padding=1)),
    ]
