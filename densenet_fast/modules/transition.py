"""What halves the image between two blocks."""

from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from ..stage.buffer import memory_format
from .eligibility import (
    AVERAGE_POOLS,
    CONVOLUTIONS,
    NORMS,
    Predicate,
    why_not,
    why_not_conv,
    why_not_norm,
    why_not_parts,
    why_not_pool,
)
from .fusable import Fusable
from .layer import check_counts, check_dims
from .reading import Reading
from .running_stats import Transaction
from .staging import Consumer, run_stage

_HALVES: dict[str, Any] = {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False, "divisor_override": None}


@cache
def _parts(dims: int) -> dict[str, Predicate]:
    return {
        "norm": partial(why_not_norm, dims=dims),
        "relu": partial(why_not, cls=nn.ReLU),
        "conv": partial(why_not_conv, kernel=1, dims=dims),
        "pool": partial(why_not_pool, cls=AVERAGE_POOLS[dims], **_HALVES),
    }


class Transition(Fusable, nn.Sequential):
    """norm relu conv(1x1) pool(2x2 average) between two blocks (Huang et al. 2017, section 3, "Pooling layers").

    Args:
        num_input_features: channels C of the input.
        num_output_features: channels C' of the output.
        backend: see `set_backend`.
        spatial_dims: 1, 2 or 3, of the images.

    Shapes: [N, C, H, W] -> [N, C', H // 2, W // 2], floating, H and W at least 2; with spatial_dims 1 and 3 one and
    three such sizes.

    Raises:
        ValueError: a count below 1, spatial_dims that are none of 1, 2, 3, an unknown backend; on the call: what
            `functional.dense_stage` refuses.
    """

    spatial_dims = 2

    def __init__(self, num_input_features: int, num_output_features: int, backend: str = "auto", spatial_dims: int = 2):
        super().__init__(backend)
        self.spatial_dims = check_dims(spatial_dims)
        check_counts(num_input_features=num_input_features, num_output_features=num_output_features)
        self.norm = NORMS[spatial_dims](num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = CONVOLUTIONS[spatial_dims](num_input_features, num_output_features, 1, bias=False)
        self.pool = AVERAGE_POOLS[spatial_dims](2, 2)

    def fused(self, x: Tensor, reading: Reading, updates: Transaction) -> Tensor:
        """[N, C, H, W] -> [N, C', H // 2, W // 2]."""
        return run_stage(x, updates, None, self.consumer(), backend=self.backend, layout=memory_format(x)).y

    def plain(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)

    def read(self) -> Reading:
        if [name for name, _ in self.named_children()] != ["norm", "relu", "conv", "pool"]:
            return Reading(self, "its children are not norm, relu, conv, pool")
        return Reading(self, why_not_parts(self, _parts(self.spatial_dims)))

    def consumer(self) -> Consumer:
        return Consumer.of("transition", self.norm, self.conv, dims=self.spatial_dims)
