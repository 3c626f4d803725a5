#!/usr/bin/env bash
# Lightning 2.6.6 with torchdata 0.11.0's StatefulDataLoader, CPU. ModelCheckpoint(every_n_train_steps=n) also saves behind
# the last step of an epoch, before its validation. Resuming from that file goes on with an epoch without a single batch:
# the loader's state is its end, and the epoch is counted as run. No warning; three epochs of four steps become eight
# steps. Seen 2026-11-29:
#
#   never stopped: 12 steps; resumed from step 4: 8 steps, epochs seen [2]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.3.5 lightning==2.6.6 torchdata==0.11.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

warnings.simplefilter("ignore")


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.epochs = torch.nn.Linear(1, 1), set()

    def training_step(self, batch, batch_idx):
        self.epochs.add(self.current_epoch)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(path=None):
    net, data = Net(), torch.zeros(8, 1)
    saving = ModelCheckpoint("saved", "{step}", every_n_train_steps=4, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[saving], **quiet)
    trainer.fit(net, StatefulDataLoader(data, batch_size=2), DataLoader(data), ckpt_path=path, weights_only=False)
    return trainer.global_step, sorted(net.epochs)


whole, resumed = fit(), fit("saved/step=4.ckpt")
print(f"never stopped: {whole[0]} steps; resumed from step 4: {resumed[0]} steps, epochs seen {resumed[1]}")
assert whole == (12, [0, 1, 2])
assert resumed == (8, [2])
PYTHON
