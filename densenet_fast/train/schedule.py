"""The learning rate against the step."""

import math
from collections.abc import Sequence


def factor(
    step: int, total: float, warmup: float, schedule: str, milestones: Sequence[float] = (), gamma: float = 0.1
) -> float:
    """What the learning rate is multiplied by in an optimizer's step, counted from 0.

    Args:
        step: 0 to `total` - 1.
        total: steps of the run.
        warmup: steps in which it rises from 0 to 1.
        schedule: "step" multiplies by `gamma` at each of `milestones`, parts of `total`; "cosine" falls to 0.
    """
    if step < warmup:
        return step / warmup
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup)))) / 2
    return gamma ** sum(step >= milestone * total for milestone in milestones)
