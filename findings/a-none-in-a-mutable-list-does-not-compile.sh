#!/usr/bin/env bash
# PyTorch 2.11.0, CPU. An operator may declare a list that it writes to and whose elements may be None, Tensor(a!)?[]:
# the schema is accepted, and in eager code a call with None in the list is right. torch.compile takes the same operator
# as long as no element is None; with one, functionalisation raises an AttributeError about a dict without append.
# A list without None, Tensor(a!)[], in which an empty tensor stands for what is not wanted, compiles. Seen 2026-11-29:
#
#   eager, None in the list: [1.0, 1.0]
#   compiled, a tensor in its place: [1.0, 1.0]
#   compiled, None in the list: 'dict' object has no attribute 'append'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch

library = torch.library.Library("finding", "DEF")
library.define("fill(Tensor(a!)?[] into) -> ()")


def fill(into):
    for tensor in into:
        if tensor is not None:
            tensor.fill_(1)


library.impl("fill", fill, "CompositeExplicitAutograd")
library.impl("fill", lambda into: None, "Meta")


def step(first, second):
    torch.ops.finding.fill([first, second])
    return first + 0


def shown(name, function, second):
    try:
        seen = str(function(torch.zeros(2), second).tolist())
    except Exception as error:
        lines = str(error).splitlines()
        seen = next(line for line in lines if "append" in line).partition("AttributeError: ")[2]
    print(f"{name}: {seen}")
    return seen


compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
assert shown("eager, None in the list", step, None) == "[1.0, 1.0]"
assert shown("compiled, a tensor in its place", compiled, torch.zeros(2)) == "[1.0, 1.0]"
assert "no attribute 'append'" in shown("compiled, None in the list", compiled, None)
PYTHON
