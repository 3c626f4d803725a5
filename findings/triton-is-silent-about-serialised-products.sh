#!/usr/bin/env bash
# Triton 3.6.0 with the ptxas that it brings, no GPU. A matrix product for sm_90 whose first operand is computed in
# registers, here doubled and rounded, compiles without a word. The same PTX given to the same ptxas with -v tells that all
# of the kernel's products (wgmma) are serialised, each waiting for the one before it; without the doubling there is no
# such message. Triton runs ptxas with -v, too, but shows what it says only if ptxas fails. Seen 2026-11-30:
#
#   as loaded: Triton says nothing, ptxas says nothing
#   doubled: Triton says nothing, ptxas says C7515
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet triton==3.6.0
cat > "$folder/finding.py" <<'PYTHON'
import contextlib
import io
import re
import subprocess
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas


@triton.jit
def kernel(x, w, y, K, DOUBLED: tl.constexpr):
    m = tl.arange(0, 64)
    k = tl.arange(0, 64)
    acc = tl.zeros((64, 64), tl.float32)
    for i in range(0, K, 64):
        a = tl.load(x + m[:, None] * K + i + k[None, :])
        b = tl.load(w + m[None, :] * K + i + k[:, None])
        if DOUBLED:
            a = (a.to(tl.float32) * 2).to(tl.bfloat16)
        acc = tl.dot(a, b, acc)
    tl.store(y + m[:, None] * 64 + m[None, :], acc)


types = {"x": "*bf16", "w": "*bf16", "y": "*fp32", "K": "i32", "DOUBLED": "constexpr"}
divisible = {(i,): [["tt.divisibility", 16]] for i in range(4)}
for name, doubled, expected in (("as loaded", False, "nothing"), ("doubled", True, "C7515")):
    source = triton.compiler.ASTSource(kernel, types, {"DOUBLED": doubled}, divisible)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 4, "num_stages": 3})
    assert "wgmma.mma_async" in made.asm["ptx"]
    with open(f"{sys.argv[1]}/kernel.ptx", "w") as file:
        file.write(made.asm["ptx"])
    command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", f"{sys.argv[1]}/kernel.cubin"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = " ".join(sorted(set(re.findall(r"C75\d\d", told)))) or "nothing"
    print(f"{name}: Triton says {said.getvalue() or 'nothing'}, ptxas says {found}")
    assert (said.getvalue(), found) == ("", expected)
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/finding.py" "$folder"
