#!/usr/bin/env bash
# PyTorch 2.11.0, CPU. A BatchNorm in eval mode saves its running statistics for backward. A training forward of the same
# module changes them in place, but gives them no new version, so autograd does not notice: a backward of the first
# forward afterwards multiplies by the statistics of later. A good guess would be the gradient of the forward that was
# made, or the usual "modified by an inplace operation". Seen 2026-11-28:
#
#   version 0 -> 0, values changed: True
#   gradient of the eval forward: [0.4579, 0.5509]; with the statistics it used: [1.0, 1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(0)
norm = nn.BatchNorm2d(2).double()
x = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
used, version = norm.running_var.clone(), norm.running_var._version
first = norm.eval()(x)
norm.train()(5 * torch.randn(4, 2, 3, 3, dtype=torch.float64))
changed = not torch.equal(used, norm.running_var)
print(f"version {version} -> {norm.running_var._version}, values changed: {changed}")
(gradient,) = torch.autograd.grad(first.sum(), x)
gradient, right, later = gradient[0, :, 0, 0], (used + norm.eps).rsqrt(), (norm.running_var + norm.eps).rsqrt()
show = lambda values: [round(v, 4) for v in values.tolist()]
print(f"gradient of the eval forward: {show(gradient)}; with the statistics it used: {show(right)}")
assert changed and version == norm.running_var._version
assert torch.allclose(gradient, later) and not torch.allclose(gradient, right)
PYTHON
