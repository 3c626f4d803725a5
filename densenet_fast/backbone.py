"""What those do with a net who build on it: its features and its head apart, other heads, frozen parts, groups of
parameters. The names are timm's."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from .modules import Trunk, relu_pool


class Backbone(nn.Module):
    """A net of a trunk `features`, ReLU, average over the image, and a `classifier`."""

    features: nn.Sequential
    classifier: nn.Module
    spatial_dims = 2
    _frozen: str | None = None  # the last child of `features` that is frozen

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> class scores [N, num_classes], or pooled features [N, C] without a classifier."""
        features = self.features
        if isinstance(features, Trunk):
            return self.classifier(features.pooled(x))
        return self.classifier(relu_pool(features(x), features, dims=self.spatial_dims))  # replaced, or wrapped

    def forward_features(self, x: Tensor) -> Tensor:
        """The rectified features, [N, C, H / 32, W / 32] of four blocks; `features(x)` are those before the ReLU."""
        return F.relu(self.features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward` makes of `features(x)` or `forward_features(x)`; pre_logits: without the classifier."""
        pooled = F.relu(x).flatten(2).mean(2)
        return pooled if pre_logits else self.classifier(pooled)

    @property
    def num_features(self) -> int:
        """Channels C of the features."""
        return next(p.shape[0] for p in reversed(list(self.features.parameters())))

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one of `num_classes` outputs, or for 0 by nn.Identity."""
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
        before, self._frozen = self._frozen_children(), None
        if until is not None:
            if until not in self.features._modules:
                names = ", ".join(self.features._modules)
                raise ValueError(f"until: got {until!r}, expected None or a child of features: {names}")
            self._frozen = until
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
        if self._frozen is None:
            return []
        children = list(self.features._modules)
        return list(self.features.children())[: children.index(self._frozen) + 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What timm's optimizers take to give parameters near the image a smaller learning rate (`layer_decay`)."""
        from timm.models._manipulate import (
            MATCH_PREV_GROUP,
        )  # by which they know a transition as part of the block before it

        layers = [
            (r"^features\.denseblock(\d+)\.denselayer(\d+)", None),
            (r"^features\.transition(\d+)", MATCH_PREV_GROUP),
        ]
        return {
            "stem": r"^features\.(?:conv|norm)0",
            "blocks": r"^features\.(?:denseblock|transition)(\d+)" if coarse else layers,
        }


def new_classifier(channels: int, num_classes: int) -> nn.Module:
    """nn.Linear with a bias of 0, or nn.Identity for no classes."""
    if num_classes == 0:
        return nn.Identity()
    classifier = nn.Linear(channels, num_classes)
    nn.init.zeros_(classifier.bias)
    return classifier
