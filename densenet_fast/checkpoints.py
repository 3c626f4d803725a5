"""State dicts of other DenseNets: the spellings that loading accepts."""

import re

import torch
from torch import Tensor, nn

_OLD_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # norm.1.weight -> norm1.weight
_LAST_NORM = re.compile(r"^features\.(norm5|norm_final)\.")


def rename_keys(state_dict: dict[str, Tensor], prefix: str, features: nn.Sequential) -> None:
    """Rename in place the entries under `prefix` to the names of the model with this trunk, in their order.

    Accepted: `norm5` for `norm_final` and the other way round, `norm.1` for `norm1`, a `module.` in front (of
    nn.DataParallel), and files that have no `num_batches_tracked` at all. Everything else is left to strict loading.
    """
    last_norm = next((n for n, _ in features.named_children() if _LAST_NORM.match(f"features.{n}.")), None)
    entries = list(state_dict.items())
    wrapped = prefix + "module."
    unwrap = bool(entries) and all(k.startswith(wrapped) for k, _ in entries if k.startswith(prefix))
    state_dict.clear()
    for key, value in entries:
        if key.startswith(prefix):
            name = key[len(wrapped if unwrap else prefix) :]
            name = _OLD_LAYER.sub(r"\1\2", name)
            if last_norm is not None:
                name = _LAST_NORM.sub(f"features.{last_norm}.", name)
            key = prefix + name
        state_dict[key] = value
    _add_counters(state_dict, prefix, features)


def _add_counters(state_dict: dict[str, Tensor], prefix: str, features: nn.Sequential) -> None:
    """Zero `num_batches_tracked` beside the `running_var` of norms that count, if the file has none."""
    own = [key for key in state_dict if key.startswith(prefix)]
    if any(key.endswith(".num_batches_tracked") for key in own):
        return
    for name, _ in features.named_buffers(f"{prefix}features"):
        norm, _, buffer = name.rpartition(".")
        if buffer == "num_batches_tracked" and f"{norm}.running_var" in state_dict:
            state_dict[name] = torch.tensor(0, dtype=torch.long)
