"""Dropout: what stock layers do with the same mask, reproducible under a seed, and dropping nothing on average."""

from types import SimpleNamespace

import torch

from densenet_fast.modules import DenseBlock, layer

from ..oracle import dropped
from .nets import LAYER, check_step, images, net, norms, step, trio

SEED = 7


def test_dropout_is_that_of_stock_layers(backend, shape, monkeypatch):
    """Which are given the masks: of the seeds that a fused net draws, block by block."""

    def start(model):
        torch.manual_seed(SEED)
        blocks = [len(block) for block in model.modules() if isinstance(block, DenseBlock)]
        limits, device = torch.iinfo(torch.int64), backend.device
        seeds = iter([s for layers in blocks for s in torch.randint(limits.min, limits.max, (layers,), device=device)])
        dropout = SimpleNamespace(dropout=lambda y, p, training: dropped(y, p, next(seeds)) if training else y)
        monkeypatch.setattr(layer, "F", dropout)  # torch.nn.functional's own would make every block run plain
        torch.manual_seed(SEED)

    nets = trio(backend, shape=shape, drop_rate=0.3)
    x = images(nets.exact, shape, before=start)
    check_step(backend, nets, x, before=start)
    for model in nets:
        model.eval()
    with torch.no_grad():
        backend.check(*({"output": model(x.to(model.classifier.weight.dtype))} for model in nets))


def test_dropout_is_reproducible(backend):
    model = backend.put(net(LAYER, drop_rate=0.3))
    x, cotangent = images(model, margin=0.0), torch.randn(2, 10, device=backend.device)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        output, gradients = step(model, x, cotangent)
        found.append([output["output"], *(g.clone() for g in gradients.values() if g is not None)])
    assert all(map(torch.equal, found[0], found[1]))
    assert not torch.equal(found[0][0], found[2][0])


def test_dropout_drops_on_average_nothing():
    """The mean over many masks is the output without dropout: the block is linear in its last layer's channels."""
    model = net(LAYER, drop_rate=0.5, num_init_features=3).double().set_backend("eager")
    block = model.features.denseblock1
    for norm in norms(block):
        norm.eval()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        samples = torch.stack([block(x) for _ in range(2000)])
        expected = block.eval()(x)
    deviation = samples.std(0) / 2000**0.5
    assert ((samples.mean(0) - expected).abs() <= 5 * deviation + 1e-12).all()
