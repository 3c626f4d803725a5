#!/usr/bin/env bash
# PyTorch 2.11.0, CPU. Libraries ask torch._C._functorch.peek_interpreter_stack() whether a torch.func transform is
# active: None means no. In code that Dynamo traces the call returns an object that stands for the result, and "is None"
# is false, without a graph break or a warning, so compiled code takes the branch for transforms.
# torch._C._functorch.maybe_current_level() answers right in both. Seen 2026-11-28:
#
#   peek_interpreter_stack: eager no transform, compiled a transform
#   maybe_current_level: eager no transform, compiled no transform
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def answer(question):
    def added(x):
        return x + (1 if question() is None else 2)

    x = torch.zeros(())
    both = added(x), torch.compile(added, backend="eager", fullgraph=True)(x)
    return ["no transform" if y == 1 else "a transform" for y in both]


for name, expected in (("peek_interpreter_stack", "a transform"), ("maybe_current_level", "no transform")):
    eager, compiled = answer(getattr(torch._C._functorch, name))
    print(f"{name}: eager {eager}, compiled {compiled}")
    assert (eager, compiled) == ("no transform", expected)
PYTHON
