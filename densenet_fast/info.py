"""What is installed and what runs here: `python -m densenet_fast.info`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from . import backends
from ._version import __version__


def lines() -> list[str]:
    """Versions, how the compiled library was built, and for each backend and device why it can run or not."""
    found = [
        f"densenet_fast {__version__}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}",
        f"python {platform.python_version()}, {platform.platform()}",
        f"threads {torch.get_num_threads()}",
        _triton(),
        *_library(),
    ]
    for device in _devices():
        for name in backends.PREFERENCE:
            for dtype in (torch.float32, torch.bfloat16):
                reason = backends.why_unavailable(name, device, dtype)
                state = "available" if reason is None else f"not available: {reason}"
                found.append(f"{device} {_text(dtype)}: {name} {state}")
        chosen = (f"{backends.choose('auto', device, d)} for {_text(d)}" for d in (torch.float32, torch.bfloat16))
        found.append(f"{device}: auto takes {', '.join(chosen)}")
    return found


def _triton() -> str:
    try:
        return f"triton {version('triton')}"
    except PackageNotFoundError:
        return "triton: not installed"


def _library() -> list[str]:
    try:
        from . import _C
    except ImportError as error:
        return [f"compiled library: none ({error})"]
    facts = _C.build_facts()
    return [
        f"compiled library: CPU kernels, {'with' if facts['cuda'] else 'no'} CUDA kernels",
        f"  compiler {facts['compiler']}, flags {facts['flags']}, against torch {facts['torch']}",
        f"  instruction sets compiled: {', '.join(_C.compiled_instruction_sets())}",
        f"  instruction sets that run here: {', '.join(_C.instruction_sets())}; in use: {_C.instruction_set_in_use()}",
    ]


def _devices() -> list[torch.device]:
    cuda = [torch.device("cuda")] if torch.cuda.is_available() else []
    return [*cuda, torch.device("cpu")]


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    print("\n".join(lines()))
