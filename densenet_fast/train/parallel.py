"""What several processes need beside Lightning's strategies."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints that are one file: `--trainer.strategy fsdp2`."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def shard(net: nn.Module, mesh: Any) -> None:
    """Divide the parameters among the processes of the mesh; they are together while the net runs.

    As one group: a DenseNet's parameters are small beside its activations, and groups of its parts would keep those
    from running fused with their neighbours.
    """
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # FSDP2 takes no other weights
    fully_shard(net, mesh=mesh["data_parallel"])


class SynchronisedNorms(Callback):
    """`--trainer.sync_batchnorm`, also on CPUs.

    DistributedDataParallel refuses such norms on a CPU, because PyTorch's own do not run there; those of dense blocks,
    whose statistics the fused path reduces, do. It looks at them when it is made: they are put in behind that, with
    the parameters and buffers that it knows. Sharded parameters cannot move: there, they are put in before.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FullySharded):
            self._convert(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, FullySharded):
            self._convert(trainer, pl_module)

    def _convert(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            net: Any = pl_module.net
            pl_module.net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
