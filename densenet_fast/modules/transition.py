"""What halves the image between two blocks."""

from abc import abstractmethod

from torch import Tensor, nn

from ..stage.buffer import memory_format
from .eligibility import AVERAGE_POOLS, CONVOLUTIONS, NORMS
from .fusable import Fusable
from .layer import check_counts, check_dims
from .reading import Reading
from .running_stats import Transaction
from .staging import Consumer, run_stage
from .views import TransitionView, view_transition


class FusableTransition(Fusable):
    """A transition of any class; `view` reads it."""

    def forward(self, input: Tensor) -> Tensor:
        return self._call(input)

    def fused(self, x: Tensor, reading: Reading, updates: Transaction) -> Tensor:
        """[N, C, H, W] -> [N, C', H // 2, W // 2], or [N, C', H, W] if it does not pool."""
        return run_stage(x, updates, None, self.consumer(), backend=self.backend, layout=memory_format(x)).y

    def read(self) -> Reading:
        view = self.view()
        return Reading(self, view if isinstance(view, str) else None)

    def consumer(self) -> Consumer:
        """Of a transition that can run fused."""
        view = self.view()
        assert not isinstance(view, str)
        return Consumer.of("transition", view.norm, view.conv, self.spatial_dims, view.pools)

    @abstractmethod
    def view(self) -> TransitionView | str:
        """What the fused path sees of it, or why it cannot run fused."""


class Transition(FusableTransition, nn.Sequential):
    """norm relu conv(1x1) pool(2x2 average) between two blocks (Huang et al. 2017, section 3, "Pooling layers").

    Args:
        num_input_features: channels C of the input.
        num_output_features: channels C' of the output.
        backend: see `set_backend`.
        spatial_dims: 1, 2 or 3, of the images.
        pools: False for a transition that keeps the size of the image, whose `pool` is nn.Identity, as in front of
            dilated blocks.

    Shapes: [N, C, H, W] -> [N, C', H // 2, W // 2], floating, H and W at least 2, or [N, C', H, W] if it does not
    pool; with spatial_dims 1 and 3 one and three such sizes.

    Raises:
        ValueError: a count below 1, spatial_dims that are none of 1, 2, 3, an unknown backend; on the call: what
            `functional.dense_stage` refuses.
    """

    def __init__(
        self,
        num_input_features: int,
        num_output_features: int,
        backend: str = "auto",
        spatial_dims: int = 2,
        pools: bool = True,
    ):
        super().__init__(backend)
        self.spatial_dims = check_dims(spatial_dims)
        check_counts(num_input_features=num_input_features, num_output_features=num_output_features)
        self.norm = NORMS[spatial_dims](num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = CONVOLUTIONS[spatial_dims](num_input_features, num_output_features, 1, bias=False)
        self.pool = AVERAGE_POOLS[spatial_dims](2, 2) if pools else nn.Identity()

    def plain(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)

    def view(self) -> TransitionView | str:
        if list(self._modules) != ["norm", "relu", "conv", "pool"]:
            return "its children are not norm, relu, conv, pool"
        return view_transition(self._modules, self.spatial_dims)
