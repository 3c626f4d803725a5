"""What is installed and what runs here: `python -m densenet_fast.info`."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version

import torch

from . import backends, installation
from ._version import __version__

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lines() -> list[str]:
    """Versions, how the compiled library was built, and for each backend and device why it can run or not."""
    found = [
        f"densenet_fast {__version__}, imported from {installation.PACKAGE}",
        *_other_copies(),
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}",
        f"python {platform.python_version()}, {platform.platform()}",
        f"threads {torch.get_num_threads()}",
        _triton(),
        *_library(),
    ]
    for device in _devices():
        for name in backends.PREFERENCE:
            for dtype in _DTYPES:
                reason = backends.why_unavailable(name, device, dtype)
                state = "available" if reason is None else f"not available: {reason}"
                found.append(f"{device} {_text(dtype)}: {name} {state}")
        if (hollow := backends.why_hollow(device)) is not None:
            found.append(f"{device}: runs without compiled kernels; to have them, {hollow[1]}")
        chosen = (f"{backends.choose('auto', device, d)} for {_text(d)}" for d in _DTYPES)
        found.append(f"{device}: auto takes {', '.join(chosen)}")
    return found


def _other_copies() -> list[str]:
    return [
        f"  not from {copy}, later in sys.path, {'with' if installation.has_library(copy) else 'without'} kernels"
        for copy in installation.other_copies()
    ]


def _triton() -> str:
    try:
        return f"triton {version('triton')}"
    except PackageNotFoundError:
        return "triton: not installed"


def _library() -> list[str]:
    if (reason := backends.why_no_library()) is not None:
        return [f"compiled library: none in use; {reason}", *(f"    {line}" for line in installation.said("CPU"))]
    from . import _C

    facts = _C.build_facts()
    no_amx = [f"  no amx_bf16: {reason}"] if (reason := _C.why_not_amx()) is not None else []
    no_cuda = [] if "nvcc" in facts else [f"  no CUDA kernels: {installation.why_left_out('CUDA')}"]
    return [
        f"compiled library: CPU kernels, {'with' if 'nvcc' in facts else 'no'} CUDA kernels",
        f"  compiler {facts['compiler']}, flags {facts['flags']}, against torch {facts['torch']}",
        f"  instruction sets compiled: {', '.join(_C.compiled_instruction_sets())}",
        f"  instruction sets that run here: {', '.join(_C.instruction_sets())}; in use: {_C.instruction_set_in_use()}",
        *no_amx,
        *no_cuda,
        *(f"    {line}" for line in installation.said("CUDA")),
        *_cuda_kernels(facts, _C.cuda_kernels()),
    ]


def _cuda_kernels(facts: dict[str, str], kernels: list[tuple[str, str, int, int, int]]) -> list[str]:
    """nvcc's version and architectures, and a line for each kernel: its tile, and for each architecture its registers,
    static shared memory and spilled bytes."""
    if "nvcc" not in facts:
        return []
    found = [
        f"  nvcc {facts['nvcc']}, architectures {facts['architectures']}; for each kernel registers/shared/spilled:"
    ]
    of_kernel: dict[str, list[str]] = {}
    for name, architecture, registers, shared, spilled in kernels:
        short = re.sub(r"\w+::|\(anonymous namespace\)::|^void ", "", name).rpartition("(")[0]
        of_kernel.setdefault(short, []).append(f"sm_{architecture} {registers}/{shared}/{spilled}")
    found += [f"    {name}: {', '.join(sorted(resources))}" for name, resources in sorted(of_kernel.items())]
    return found


def _devices() -> list[torch.device]:
    cuda = [torch.device("cuda")] if torch.cuda.is_available() else []
    return [*cuda, torch.device("cpu")]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    print("\n".join(lines()))
