"""What several processes need beside Lightning's strategies."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class SynchronisedNorms(Callback):
    """`--trainer.sync_batchnorm`, also on CPUs.

    DistributedDataParallel refuses such norms on a CPU, because PyTorch's own do not run there; those of dense blocks,
    whose statistics the fused path reduces, do. It looks at them when it is made: they are put in behind that, with
    the parameters and buffers that it knows.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            net: Any = pl_module.net
            pl_module.net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
