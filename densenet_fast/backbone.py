"""What those do with a net who build on it: its features and its head apart, other heads, frozen parts, groups of
parameters. The names are timm's."""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from .modules import DenseBlock, Transition, Trunk, pools, relu_pool


class Backbone(nn.Module):
    """A net of a trunk `features`, ReLU, average over the image, and a `classifier`."""

    features: Any  # a Trunk, or what it was replaced by or wrapped in
    classifier: nn.Module
    spatial_dims = 2
    _frozen: tuple[str, ...] = ()  # children of `features`

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> class scores [N, num_classes], or pooled features [N, C] without a classifier."""
        features = self.features
        if isinstance(features, Trunk):
            return self.classifier(features.pooled(x))
        return self.classifier(relu_pool(features(x), features, dims=self.spatial_dims))  # replaced, or wrapped

    def forward_features(self, x: Tensor) -> Tensor:
        """The rectified features, [N, C, H / 32, W / 32] of four blocks; `features(x)` are those before the ReLU."""
        return F.relu(self.features(x))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The features that `forward_intermediates` returns: their channels `num_chs`, their stride `reduction`, and
        the `module` whose output they are: the stem in front of its pooling, each block but the last, and the last
        norm, rectified."""
        found: list[dict[str, Any]] = []
        stride, channels = 1, 0
        children: list[tuple[str, Any]] = list(self._trunk().named_children())
        for i, (name, child) in enumerate(children):
            if isinstance(child, DenseBlock):
                channels += sum(list(layer.children())[-1].out_channels for layer in child.children())  # type: ignore[misc]
            elif isinstance(child, Transition):
                channels = child.conv.out_channels
                stride *= 2 if pools(child) else 1
            elif name == "conv0":
                channels = child.out_channels
                stride *= _first(child.stride)
            elif isinstance(child, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
                stride *= _first(child.stride)
            is_last = i + 1 == len(children)
            block_goes_on = isinstance(child, DenseBlock) and i + 2 < len(children)
            if name == "relu0" or block_goes_on or is_last:
                found.append({"num_chs": channels, "reduction": stride, "module": f"features.{name}"})
        return found

    def _trunk(self) -> Trunk:
        if not isinstance(self.features, Trunk):
            raise TypeError(
                f"features: got {type(self.features).__name__}, expected the trunk that the model was made with, whose "
                "parts alone are known"
            )
        return self.features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Iterable[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """`forward_features`, and features on the way to it, as timm's method of this name returns them.

        The output of a block is the buffer that is kept for backward, not a copy: it lies in NHWC memory
        (channels_last), and changing it in place is an error in backward.

        Args:
            x: [N, in_channels, H, W].
            indices: which of `feature_info`, in whose order they come; a number: so many of the last; None: all.
            norm: is of no effect, as in timm: the last of the features is normalised, others are not.
            stop_early: run nothing behind the last that is wanted.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.

        Returns:
            The rectified features, or with `stop_early` the output where it stopped, and the list of tensors.

        Raises:
            ValueError: an index that there is not, another format.
            TypeError: `features` was replaced or wrapped.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: got {output_fmt!r}, expected 'NCHW'")
        trunk = self._trunk()
        modules = [info["module"].removeprefix("features.") for info in self.feature_info]
        names = [modules[i] for i in _taken(indices, len(modules))]
        last = max(names, key=modules.index)
        until = last if stop_early and last != modules[-1] else None
        y, taps = trunk.intermediates(x, names, until)
        if until is None and not isinstance(trunk.get_submodule(modules[-1]), DenseBlock):  # a norm
            y = F.relu(y)
            taps |= {name: y for name in names if name == modules[-1]}
        found = [taps[name] for name in names]
        return found if intermediates_only else (y, found)

    def prune_intermediate_layers(
        self, indices: int | Iterable[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take away what `forward_intermediates` does not need for features of these `indices`, for good: the children
        of `features` behind the last, and the classifier if any are taken or `prune_head`.

        prune_norm: is of no effect, as in timm: the last of the features is the norm's.

        Returns:
            The indices, of which negative ones are counted from the end that was.

        Raises:
            ValueError, TypeError: as `forward_intermediates`.
        """
        trunk = self._trunk()
        modules = [info["module"].removeprefix("features.") for info in self.feature_info]
        taken = _taken(indices, len(modules))
        behind = list(trunk._modules)[list(trunk._modules).index(modules[taken[-1]]) + 1 :]
        for name in behind:
            delattr(trunk, name)
        if behind or prune_head:
            self.reset_classifier(0)
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward` makes of `features(x)` or `forward_features(x)`; pre_logits: without the classifier."""
        pooled = F.relu(x).flatten(2).mean(2)
        return pooled if pre_logits else self.classifier(pooled)

    @property
    def num_features(self) -> int:
        """Channels C of the features."""
        return self.feature_info[-1]["num_chs"]

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one of `num_classes` outputs, or for 0 by nn.Identity.

        Raises:
            ValueError: num_classes below 0.
        """
        like = next(self.features.parameters())
        self.classifier = new_classifier(self.num_features, num_classes).to(like.device, like.dtype)
        self.classifier.train(self.training)

    def freeze(self, until: str | None) -> Self:
        """Freeze the children of `features` up to and with `until`, for instance "transition2"; returns self.

        Their parameters require no gradients and their norms keep to their running statistics, which no longer move,
        also behind a `train()`. What is frozen keeps nothing for backward, which ends where it begins. Parts that were
        frozen before and are not among them train again; None: all of them.

        Raises:
            ValueError: `features` has no such child.
        """
        before, self._frozen = self._frozen_children(), ()
        if until is not None:
            if until not in self.features._modules:
                names = ", ".join(self.features._modules)
                raise ValueError(f"until: got {until!r}, expected None or a child of features: {names}")
            children = list(self.features._modules)
            self._frozen = tuple(children[: children.index(until) + 1])
        for child in before:
            child.requires_grad_()
        for child in self._frozen_children():
            child.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, but for what is frozen."""
        super().train(mode)
        for child in self._frozen_children():
            child.eval()
        return self

    def _frozen_children(self) -> list[nn.Module]:
        """Also where `features` is wrapped by now."""
        if not self._frozen:
            return []
        return [m for name, m in self.features.named_modules() if name.rpartition(".")[2] in self._frozen]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What timm's optimizers take to give parameters near the image a smaller learning rate (`layer_decay`)."""
        # timm's mark for: in the group of the layer before.
        from timm.models._manipulate import MATCH_PREV_GROUP

        layers = [
            (r"^features\.denseblock(\d+)\.denselayer(\d+)", None),
            (r"^features\.transition(\d+)", MATCH_PREV_GROUP),
        ]
        return {
            "stem": r"^features\.(?:conv|norm)0",
            "blocks": r"^features\.(?:denseblock|transition)(\d+)" if coarse else layers,
        }


class FeatureInfo:
    """Of the features that a net has, and of those that are taken; as timm's class of this name.

    Attributes:
        info: of all features, as `Backbone.feature_info` has them.
        out_indices: of those that are taken.
    """

    def __init__(self, info: list[dict[str, Any]], out_indices: Iterable[int]):
        self.info, self.out_indices = info, tuple(out_indices)

    def channels(self) -> list[int]:
        """Of the features that are taken."""
        return [self.info[i]["num_chs"] for i in self.out_indices]

    def reduction(self) -> list[int]:
        """The strides of the features that are taken."""
        return [self.info[i]["reduction"] for i in self.out_indices]

    def module_name(self) -> list[str]:
        """The names of the modules whose output they are."""
        return [self.info[i]["module"] for i in self.out_indices]

    def get_dicts(self) -> list[dict[str, Any]]:
        """All that is known of the features that are taken."""
        return [self.info[i] for i in self.out_indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class FeatureNet(nn.Module):
    """A net that returns features of several strides, as timm's `create_model(..., features_only=True)` makes one.

    Args:
        model: one of densenet_fast's nets; what the features do not need is taken away from it, for good.
        out_indices: which of `model.feature_info`; a number: so many of the last; None: all.

    Shapes: [N, in_channels, H, W] -> a list of [N, num_chs, H / reduction, W / reduction], in `forward_intermediates`'
        order. Blocks' are the very buffers that are kept for backward: changing them in place is an error there.

    Attributes:
        model: the rest of it.
        feature_info: a `FeatureInfo`.

    Raises:
        ValueError, TypeError: as `forward_intermediates`.
    """

    def __init__(self, model: Backbone, out_indices: int | Iterable[int] | None = None):
        super().__init__()
        info = model.feature_info
        taken = model.prune_intermediate_layers(len(info) if out_indices is None else out_indices)
        self.model, self.feature_info = model, FeatureInfo(info, taken)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features that are taken."""
        return self.model.forward_intermediates(x, self.feature_info.out_indices, intermediates_only=True)


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def _taken(indices: int | Iterable[int] | None, count: int) -> list[int]:
    """Numbers among `count` in their order; negative ones are from the end."""
    if indices is None or isinstance(indices, int):
        last = count if indices is None else indices
        if not 0 < last <= count:
            raise ValueError(f"indices: got the last {last}, expected 1 to {count} of them")
        return list(range(count - last, count))
    numbers = [int(i) for i in indices]
    if not numbers or not all(-count <= i < count for i in numbers):
        raise ValueError(f"indices: got {numbers}, expected some from {-count} to {count - 1}")
    return sorted({i % count for i in numbers})


def new_classifier(channels: int, num_classes: int) -> nn.Module:
    """nn.Linear with a bias of 0, or nn.Identity for no classes.

    Raises:
        ValueError: num_classes below 0.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 0")
    if num_classes == 0:
        return nn.Identity()
    classifier = nn.Linear(channels, num_classes)
    nn.init.zeros_(classifier.bias)
    return classifier
