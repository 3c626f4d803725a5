"""Architectures of the CUDA kernels: TORCH_CUDA_ARCH_LIST as PyTorch reads it, less those that they do not run on."""

import os
import re
import subprocess
import sys

LEAST = (8, 0)  # compute capability: asynchronous copies, bf16 and TF32 products
DEFAULT = "8.0;8.6;8.9;9.0;10.0+PTX"  # whatever GPU is here; PTX serves those to come
NAMES = {  # PyTorch's; "Blackwell+Tegra" is replaced before "Blackwell"
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}


def chosen(nvcc: str) -> tuple[list[str], list[str]]:
    """Architectures, such as "8.0" or "10.0+PTX", and those that are left out, each with the reason.

    Ends the build if TORCH_CUDA_ARCH_LIST cannot be read, or nothing of it is left.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if listed in ("", "native"):
        known = _known_to(nvcc)
        names = _of_the_gpus(known) if listed else DEFAULT.split(";")
        left_out = [f"{n}: nvcc does not know it" for n in names if known and _capability(n) not in known]
        names = [n for n in names if not known or _capability(n) in known]
        if not listed and names and not names[-1].endswith("+PTX"):
            names[-1] += "+PTX"  # for GPUs that come after this nvcc
    else:
        names, left_out = read(listed), []
    old = [name for name in names if _capability(name) < LEAST]
    left_out += [f"{name}: the kernels need compute capability {LEAST[0]}.{LEAST[1]} or higher" for name in old]
    kept = [name for name in names if name not in old]
    if not kept:
        sys.exit(
            f"TORCH_CUDA_ARCH_LIST: got {listed or DEFAULT!r}, of which nothing is left ({'; '.join(left_out)}), "
            "expected an architecture of 8.0 or higher; DENSENET_FAST_BUILD_CUDA=0 leaves the CUDA kernels out"
        )
    return kept, left_out


def read(listed: str) -> list[str]:
    """The architectures that a TORCH_CUDA_ARCH_LIST names, each once."""
    expanded = listed.replace(" ", ";")
    for name, numbers in NAMES.items():
        expanded = expanded.replace(name, numbers)
    names = [name for name in expanded.split(";") if name]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            sys.exit(
                f"TORCH_CUDA_ARCH_LIST: got {name!r}, expected compute capabilities as in {DEFAULT!r}, names such as "
                "'Ampere' or 'Hopper', or 'native'"
            )
    return list(dict.fromkeys(names))


def gencode(architecture: str) -> list[str]:
    """nvcc's flags for one of `chosen`."""
    number = architecture.removesuffix("+PTX").replace(".", "")
    kinds = ["sm", "compute"] if architecture.endswith("+PTX") else ["sm"]
    return [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]


def _capability(architecture: str) -> tuple[int, int]:
    major, minor = architecture.removesuffix("+PTX").rstrip("af").split(".")
    return int(major), int(minor)


def _known_to(nvcc: str) -> set[tuple[int, int]]:
    """Empty where nvcc does not tell."""
    told = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return {(int(major), int(minor)) for major, minor in re.findall(r"compute_(\d+)(\d)\b", told)}


def _of_the_gpus(known: set[tuple[int, int]]) -> list[str]:
    """Of this machine's GPUs, at most the highest that is known; with PTX of the last, as PyTorch takes them."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True).stdout
    except OSError:
        told = ""
    found = {(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d)$", told, re.MULTILINE)}
    if not found:
        sys.exit(
            "TORCH_CUDA_ARCH_LIST: got 'native', but nvidia-smi shows no GPU here, expected one, or capabilities as in "
            f"{DEFAULT!r}"
        )
    names = [f"{major}.{minor}" for major, minor in sorted({min(f, max(known, default=f)) for f in found})]
    return [*names[:-1], f"{names[-1]}+PTX"]
