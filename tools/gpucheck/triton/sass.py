"""Machine code of a cubin: registers and spills, and two scans; and what ptxas says of PTX.

`hazards`: on sm_90 a product may take its first operand from registers and is still reading them when the next
instruction issues. Triton 3.6 can rewrite them too early where such a product is pipelined (triton-lang/triton#9433).
The scan replays the code, every loop with products twice, and reports each write to a register that a product in flight
reads.

`exposed`: a loop hides the latency of its loads if products run between the copy of a tile and the wait for it. With
two stages Triton 3.6 mostly issues the next tile's copies behind the last product, and waits for them at once. Products
of sm_100, whose end is told by barriers in memory, are not followed.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.nvidia.compiler import get_ptxas

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
PRODUCT = re.compile(r"(?:@!?U?P\w+\s+)?(HGMMA|HMMA)\b")
NO_RESULT = re.compile(r"(ST|RED|BRA|BAR|ATOMS?\b|LDGSTS|HGMMA|WARP|ISETP|FSETP|CCTL)")


class Usage(NamedTuple):
    registers: int
    stack: int  # bytes; spills live there
    shared: int  # bytes, those that are not asked for at the launch


def _run(tool: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([BIN / tool, *options, file.name], capture_output=True, text=True, check=True).stdout


def usage(cubin: bytes) -> Usage:
    """Of the only kernel."""
    (found,) = usages(cubin).values()
    return found


def usages(cubin: bytes) -> dict[str, Usage]:
    """By kernel."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", _run("cuobjdump", cubin, "-res-usage"))
    return {kernel: Usage(*map(int, each)) for kernel, *each in found}


def assembled(text: str) -> str:
    """What the ptxas that Triton calls says of PTX: Triton itself keeps it only where ptxas fails."""
    target = re.search(r"^\.target\s+(\w+)", text, re.MULTILINE)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        ptxas = get_ptxas(int(re.sub(r"\D", "", target[1]))).path
        command = [ptxas, "-v", "-lineinfo", f"--gpu-name={target[1]}", file.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def disassemble(cubin: bytes, encoded: bool = False) -> str:
    """`encoded`: with the bits of each instruction."""
    return _run("nvdisasm", cubin, "-c", *["-hex"] * encoded)


def hazards(text: str) -> list[str]:
    """Instructions that write a register which a product in flight reads as its first operand."""
    code, labels = _parse(text)
    found, flying, issued = [], [], set()  # registers of committed groups, oldest first; of the group being issued
    for instruction in (code[i] for i in _twice_through_loops(code, labels)):
        if "HGMMA" in instruction:
            if operand := re.search(r"HGMMA\.\S+\s+R\d+,\s*R(\d+),", instruction):
                first = int(operand[1])
                issued = issued | set(range(first, first + 4))
            if "gsb0" in instruction:
                flying, issued = [*flying, issued], set()
        elif left := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", instruction):
            keep = int(left[1], 16)
            flying = flying[max(0, len(flying) - keep) :]
        elif any(_written(instruction) & group for group in (*flying, issued)) and instruction not in found:
            found.append(instruction)
    return found


def exposed(text: str) -> list[str]:
    """Of the innermost loops with products, those whose loads nothing hides: what waits for them, or loads plainly."""
    code, labels = _parse(text)
    loops = [(first, last) for last, first in _loops(code, labels).items()]
    found: list[str] = []
    for first, last in loops:
        if any(first <= begin and end < last for begin, end in loops):  # it holds another
            continue
        body = [re.sub(r"^@!?U?P\w+\s+", "", instruction) for instruction in code[first:last]]
        if any(instruction.startswith("LDGSTS") for instruction in body):
            found += _waits_at_once(body)
        else:
            found += [instruction for instruction in body if instruction.startswith("LDG.")][:1]
    return found


def _waits_at_once(body: list[str]) -> list[str]:
    """Waits for a group of copies without a product issued since, or in flight when, the group was committed."""
    found: list[str] = []
    flying, groups = 0, []  # groups of products; of copies, oldest first: whether products run meanwhile
    for instruction in 2 * body:
        if PRODUCT.match(instruction):
            groups = [True] * len(groups)
            flying += "gsb0" in instruction
        elif left := re.match(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", instruction):
            flying = min(flying, int(left[1], 16))
        elif instruction.startswith("LDGDEPBAR"):
            groups = [*groups, flying > 0]
        elif left := re.match(r"DEPBAR\.LE SB0, (0x[0-9a-f]+)", instruction):
            landed = max(0, len(groups) - int(left[1], 16))
            if not all(groups[:landed]) and instruction not in found:
                found.append(instruction)
            groups = groups[landed:]
    return found


def _parse(text: str) -> tuple[list[str], dict[str, int]]:
    code, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := INSTRUCTION.match(line):
            code.append(instruction[1])
    return code, labels


def _loops(code: list[str], labels: dict[str, int]) -> dict[int, int]:
    """Place of each branch back over products -> where it goes."""
    loops = {}
    for i, instruction in enumerate(code):
        if branch := re.search(r"BRA(?:\.U)?\s+.*`\((\.L_x_\d+)\)", instruction):
            target = labels.get(branch[1], len(code))
            if target <= i and any(PRODUCT.match(c) for c in code[target:i]):
                loops[i] = target
    return loops


def _twice_through_loops(code: list[str], labels: dict[str, int]) -> list[int]:
    loops = _loops(code, labels)
    order, i = [], 0
    while i < len(code):
        order.append(i)
        i = loops.pop(i, i + 1)
    return order


def _written(instruction: str) -> set[int]:
    instruction = re.sub(r"^@!?U?P\w+\s+", "", instruction)
    target = re.match(r"([A-Z0-9_.]+)\s+(?:P\w+,\s*)?R(\d+)\b", instruction)
    if target is None or NO_RESULT.match(target[1]):
        return set()
    name, first = target[1], int(target[2])
    wide = 4 if ".128" in name or (name.startswith("LDSM") and ".4" in name) else 1
    if ".64" in name or "WIDE" in name or (name.startswith("LDSM") and ".2" in name):
        wide = 2
    return set(range(first, first + wide))
