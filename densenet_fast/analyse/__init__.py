"""How strongly a trained DenseNet's layers are connected: the mean absolute weight of each on each of its inputs.

Huang et al. 2017, section 5, "Feature Reuse", and figure 5. Only the weights are looked at, so any file with the keys
of torchvision, timm, MONAI, efficient_densenet_pytorch or ours will do.

    for block in analyse.blocks(analyse.load("checkpoint.pth")):
        block.strengths()  # [sources, targets]
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LAYER = re.compile(r"denseblock(\d+)\.(?:layers\.)?denselayer(\d+)\.(?:layers\.)?(conv\.?[12])\.weight$")
_TRANSITION = re.compile(r"transition(\d+)\.conv\.weight$")
_CLASSIFIERS = ("classifier.weight", "class_layers.out.weight", "head.weight", "fc.weight")


class Target(NamedTuple):
    """Who reads a block's channels: a layer, the transition or the classifier; its weight is [outputs, inputs, ...]."""

    name: str
    weight: Tensor


class Block(NamedTuple):
    """A dense block, as its weights show it.

    Attributes:
        name: "denseblock1".
        sources: channels of the block's input, and those that each layer adds.
        targets: its layers in turn, and behind them the transition or the classifier, if there is one.
    """

    name: str
    sources: tuple[int, ...]
    targets: tuple[Target, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources."""
        return ("input", *(f"layer {i}" for i in range(1, len(self.sources))))

    def strengths(self) -> Tensor:
        """[sources, targets]: the mean absolute weight of a target on the channels of a source; NaN where a source
        comes behind a layer."""
        found = torch.full((len(self.sources), len(self.targets)), torch.nan)
        for column, target in enumerate(self.targets):
            of_channel = target.weight.detach().double().abs().transpose(0, 1).flatten(1).mean(1)
            read = self.sources[: column + 1]
            for row, part in enumerate(of_channel.split(read)):
                found[row, column] = part.mean()
        return found

    def relative(self) -> Tensor:
        """`strengths` with the largest of each target 1: the colours of the heat map."""
        found = self.strengths()
        return found / found.nan_to_num().amax(0).clamp_min(torch.finfo(found.dtype).tiny)


def load(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: torch.save's, of a state dict or of a checkpoint that has one (Lightning's), or
    safetensors'. No code in it is run.

    Raises:
        ValueError: the file cannot be read, or has no state dict.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint: got {path}, which does not exist, expected a file") from None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch advises to trust it
            reason = "more than weights is in it"
        raise ValueError(f"checkpoint: got {path}, which cannot be read as weights: {reason}") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"checkpoint: got {path}, which has no tensors by name, expected a state dict")
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


def blocks(state_dict: Mapping[str, Tensor]) -> list[Block]:
    """The dense blocks of a state dict, whatever stands before their names.

    Raises:
        ValueError: there are none, or their sizes do not fit together.
    """
    layers: dict[int, dict[int, dict[str, Tensor]]] = {}
    behind: dict[int, Target] = {}
    classifier: Target | None = None
    for key, weight in state_dict.items():
        if match := _LAYER.search(key):
            of_block = layers.setdefault(int(match[1]), {})
            of_block.setdefault(int(match[2]), {})[match[3].replace(".", "")] = weight
        elif match := _TRANSITION.search(key):
            behind[int(match[1])] = Target("transition", weight)
        elif key.endswith(_CLASSIFIERS) and weight.dim() >= 2:
            classifier = Target("classifier", weight)
    if not layers:
        raise ValueError(
            "checkpoint: got no keys as denseblock1.denselayer1.conv1.weight, expected those of a DenseNet"
        )
    last = max(layers)
    if classifier is not None:
        behind.setdefault(last, classifier)
    return [_block(number, layers[number], behind.get(number)) for number in sorted(layers)]


def _block(number: int, layers: dict[int, dict[str, Tensor]], behind: Target | None) -> Block:
    targets = [Target(f"layer {i}", layers[i]["conv1"]) for i in sorted(layers) if "conv1" in layers[i]]
    added = [layers[i].get("conv2", layers[i].get("conv1")) for i in sorted(layers)]
    sources = [targets[0].weight.shape[1] if targets else 0, *(len(w) for w in added if w is not None)]
    if behind is not None:
        targets.append(behind)
    expected = [sum(sources[: i + 1]) for i in range(len(targets))]
    inputs = [target.weight.shape[1] for target in targets]
    if sorted(layers) != list(range(1, len(layers) + 1)) or inputs != expected:
        raise ValueError(
            f"checkpoint: got denseblock{number} whose convolutions read {_list(inputs)} channels, expected "
            f"{_list(expected)}, what comes before each of them"
        )
    return Block(f"denseblock{number}", tuple(sources), tuple(targets))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
