#!/usr/bin/env bash
# PyTorch 2.11.0, CPU. A custom operator that draws random numbers is declared so by its tag, nondeterministic_seeded, and
# called twice with equal arguments. In eager code the draws differ, and so they do where the graph has no backward. Where
# it has one, torch.compile makes one call of the two, without a warning: the pass that removes common expressions knows
# PyTorch's own random operators by a list and does not look at the tag, though the partitioner around it does. torch.rand
# in its place stays two draws. Seen 2026-11-29:
#
#   torch.rand: eager differ, compiled differ, compiled with a backward differ
#   tagged operator: eager differ, compiled differ, compiled with a backward are equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch

library = torch.library.Library("finding", "DEF")
library.define("draw(int n) -> Tensor", tags=[torch.Tag.nondeterministic_seeded])
library.impl("draw", lambda n: torch.rand(n), "CompositeExplicitAutograd")
torch.library.register_fake("finding::draw", lambda n: torch.empty(n), lib=library)


def differ(call, x):
    first, second = call(x)
    return "are equal" if torch.equal(first, second) else "differ"


for name, draw, expected in (
    ("torch.rand", torch.rand, "differ"),
    ("tagged operator", torch.ops.finding.draw.default, "are equal"),
):
    twice = lambda x, draw=draw: (x * draw(5), x * draw(5))  # noqa: E731
    plain, leaf = torch.ones(5), torch.ones(5, requires_grad=True)
    found = differ(twice, plain), differ(torch.compile(twice), plain), differ(torch.compile(twice), leaf)
    print(f"{name}: eager {found[0]}, compiled {found[1]}, compiled with a backward {found[2]}")
    assert found == ("differ", "differ", expected)
PYTHON
