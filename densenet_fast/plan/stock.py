"""What torchvision's layers keep, with `torch.cat` and without or with checkpointing, of the same net and images.

The bytes are exact for torchvision 0.26 with PyTorch 2.11 in float32 (tests/test_plan.py): a layer keeps its
concatenation, what BatchNorm and ReLU make of it, its bottleneck and what they make of that; checkpointing, all inputs
once instead of the former two, and a state of the generator.
"""

from math import prod

from ..contract import accumulator
from ..memory import Stage, Step

GENERATOR = 5056  # bytes of the CPU generator's state, which checkpointing saves for each layer


def kept(step: Step, checkpointed: bool) -> int:
    """Bytes alive after a forward of the net of `step` on stock layers."""
    half = step.stages[0].dtype.itemsize == 2
    return (
        step.outputs
        + (step.copy if half and step.first else 0)
        + sum(_kept(stage, checkpointed) for stage in step.stages)
    )


def peak(step: Step, checkpointed: bool) -> int:
    """The most bytes at any moment of the step, to about 8 %: a stage begins with all that it has kept, and its layers'
    gradients come as what they have kept goes."""
    most, before = 0, 0
    for i, stage in enumerate(step.stages):
        before += _kept(stage, checkpointed)
        gradients = step.classifier + sum(behind.parameters for behind in step.stages[i + 1 :])
        most = max(most, before + gradients + _beside(stage, checkpointed))
    return step.outputs + most


def _kept(stage: Stage, checkpointed: bool) -> int:
    item, wide = stage.dtype.itemsize, accumulator(stage.dtype).itemsize
    if stage.consumer == "stem":
        pooled = stage.images * stage.channels * prod(stage.output_size)
        return 2 * stage.pixels * stage.channels * item + pooled * 8 + 2 * stage.channels * wide
    values = sum(2 * width for width in stage.widths)  # conv1's output, and relu2's
    vectors = 2 * (sum(stage.inputs) + sum(stage.widths) + stage.total)
    states = 0
    if checkpointed:
        values += stage.channels + sum(growth for _, growth in stage.layers[:-1])
        states = GENERATOR * len(stage.layers)
        vectors -= 2 * sum(stage.inputs)
    else:
        values += 2 * sum(stage.inputs)
    values += 2 * stage.total + (stage.outputs if stage.consumer == "transition" else 0)
    return values * stage.pixels * item + vectors * wide + states + stage.converted


def _beside(stage: Stage, checkpointed: bool) -> int:
    """Of a stage's backward: gradients of its features and of a layer's inputs, which checkpointing makes again."""
    if stage.consumer == "stem":
        return 2 * stage.pixels * stage.channels * stage.dtype.itemsize
    channels = 2 * stage.total + (2 * stage.total if checkpointed else 0)
    return channels * stage.pixels * stage.dtype.itemsize
