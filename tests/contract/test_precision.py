"""Half-precision nets and autocast: as exact as PyTorch's own layers are in that dtype."""

import torch

from .nets import LAYER, SHAPES, buffers, check_step, gradients, images, trio


def shape_for(backend):
    return LAYER if backend.stand_in else SHAPES["stem-recomputing"]


def test_half_precision_nets(backend, dtype):
    backend, shape = backend._replace(dtype=dtype), shape_for(backend)
    nets = trio(backend, shape=shape)
    check_step(backend, nets, images(nets.exact, shape, margin=0.0))


def test_autocast(backend, dtype):
    """Results in the narrow dtype, gradients and running statistics in float32."""
    backend, shape = backend._replace(dtype=torch.float32), shape_for(backend)
    nets = trio(backend, shape=shape)
    x = images(nets.exact, shape, margin=0.0)
    cotangent = torch.randn(2, 10, device=backend.device)
    narrow = backend._replace(dtype=dtype)
    found = []
    for model in nets:
        with torch.autocast(backend.device.type, dtype=dtype, enabled=model is not nets.exact):
            y = model(x.to(model.classifier.weight.dtype))
        y.backward(cotangent.to(y.dtype))
        found.append({"output": y.detach()})
    assert found[0]["output"].dtype == dtype
    narrow.check(*found)
    narrow.check(*map(gradients, nets))
    narrow.check(*map(buffers, nets))
