"""Which backends exist, which can run, and which `auto` takes.

A backend is a module of this package that implements every operation of `densenet_fast/contract`; it is imported when
it is first asked for. Beside the backends, "plain" runs a model's own layers under ordinary autograd.
"""

import os
import sys
import threading
import warnings
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

from .. import contract, installation

PREFERENCE = ("native", "triton", "eager")  # best first, for `auto`
# On a GPU nobody has yet measured native against triton, whose kernels are the simpler ones.
_PREFERENCE_ON_CUDA = ("triton", "native", "eager")
NAMES = ("auto", *PREFERENCE, "plain")
_COMPILED = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels of native and triton compute in

_loaded: set[str] = set()
_loading = threading.Lock()
_told: set[str] = set()  # the kinds of devices whose missing kernels were told


def why_unavailable(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """The reason why backend `name` cannot run on `device` for activations of `dtype`, as a clause; None if it can.

    Raises:
        ValueError: it is none of `PREFERENCE`.
    """
    if name == "native":
        return _why_not_native(device, dtype)
    if name == "triton":
        return _why_not_triton(device, dtype)
    if name != "eager":
        raise ValueError(f"unknown backend: got {name!r}, expected one of {', '.join(PREFERENCE)}")
    return None


def _why_not_native(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"it has kernels for CPU and CUDA, not for {device.type}"
    if dtype not in _COMPILED:
        return _why_not_in(dtype)
    return why_no_library() or (_why_not_cuda(device) if device.type == "cuda" else None)


def _why_not_in(dtype: torch.dtype) -> str:
    *names, last = (str(d).removeprefix("torch.") for d in (*_COMPILED, dtype))
    return f"its kernels compute in {', '.join(names[:-1])} and {names[-1]}, not in {last}"


def _why_not_cuda(device: torch.device) -> str | None:
    """Why the CUDA kernels of the library, which can be loaded, do not run on `device`."""
    from .. import _C

    if "architectures" not in (facts := _C.build_facts()):
        return f"the compiled library was built without CUDA kernels: {installation.why_left_out('CUDA')}"
    if (reason := _C.why_not_cuda()) is not None:
        return reason
    if not torch.cuda.is_available():
        return "no CUDA device can be used here"
    return why_not_compiled_for(torch.cuda.get_device_capability(device), facts["architectures"].split())


def why_not_compiled_for(capability: tuple[int, int], architectures: list[str]) -> str | None:
    """Why no kernels compiled for `architectures`, for instance "8.0" or "10.0+PTX", run on a GPU of `capability`.

    Machine code runs on its own major version from its minor version on; PTX on everything from its version on.
    """
    major, minor = capability
    for architecture in architectures:
        number, _, ptx = architecture.partition("+")
        compiled_major, compiled_minor = (int(n.rstrip("af")) for n in number.split("."))
        if (compiled_major == major and compiled_minor <= minor) or (
            ptx and (compiled_major, compiled_minor) <= capability
        ):
            return None
    return f"its CUDA kernels were compiled for {', '.join(architectures)}, not for a GPU of {major}.{minor}"


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in _COMPILED:
        return _why_not_in(dtype)
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels run on CUDA devices; on the CPU they are interpreted, for tests, with TRITON_INTERPRET=1"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "PyTorch finds no CUDA device"
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return f"its kernels need compute capability 8.0, {device} has {capability[0]}.{capability[1]}"
    elif device.type != "cpu":
        return f"its kernels run on CUDA devices, not on {device.type}"
    return None


@cache
def why_no_library() -> str | None:
    """Why the compiled library cannot be loaded; loads it."""
    library = f"{__package__.rpartition('.')[0]}._C"
    with _loading:
        # Not find_spec, which would take another copy's: an editable install answers for all modules of its package.
        if PathFinder.find_spec(library, sys.modules[library.rpartition(".")[0]].__path__) is None:
            return f"the compiled library was not built: {installation.why_left_out('CPU')}"
        try:
            import_module(library)
        except ImportError as error:
            built = installation.built_against()
            return f"the compiled library{built} cannot be loaded by torch {torch.__version__}: {error}"
    return None


def why_hollow(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[str, str] | None:
    """Why "auto" runs without compiled kernels on `device`, and what to type to have them, as clauses.

    None where it runs with them, or there are none to be had."""
    if device.type not in ("cpu", "cuda") or dtype not in _COMPILED or sys.platform != "linux" or torch.version.hip:
        return None
    part = device.type.upper()
    if _best(device, dtype) != "eager" or (part == "CUDA" and torch.cuda.get_device_capability(device) < (8, 0)):
        return None
    reason = why_unavailable("native", device, dtype)
    assert reason is not None
    mend = installation.to_mend(part)
    if part == "CUDA":
        triton = why_unavailable("triton", device, dtype)
        return f"{triton}, and {reason}", f"install Triton ({installation.install('triton')}), or {mend}"
    return reason, mend


def _tell_if_hollow(device: torch.device, dtype: torch.dtype) -> None:
    """Once for each kind of device, with a warning."""
    if device.type in _told or os.environ.get("DENSENET_FAST_QUIET") == "1":
        return
    if (hollow := why_hollow(device, dtype)) is None:
        return
    with _loading:
        if device.type in _told:
            return
        _told.add(device.type)
    reason, mend = hollow
    warnings.warn(
        f"densenet_fast runs on {device.type} without compiled kernels (same results, less speed): {reason}. To have "
        f"them, {mend}  (DENSENET_FAST_QUIET=1, or a backend asked for by name, silences this; "
        "python -m densenet_fast.info tells more)",
        stacklevel=_level_of_the_caller(),
    )


def _level_of_the_caller() -> int:
    """warnings.warn's stacklevel of the line that called a model: the first outside this package and PyTorch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("densenet_fast", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def check_name(name: str) -> str:
    """`name` if it can be given as a backend.

    Raises:
        ValueError: it is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown backend: got {name!r}, expected one of {', '.join(NAMES)}")
    return name


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs on `device` for `dtype` when `name` was asked for: itself, or for "auto" the best one.

    Raises:
        ValueError: `name` is no backend, or "plain", which only modules have.
        RuntimeError: the backend asked for cannot run, with the reason.
    """
    if check_name(name) == "plain":
        raise ValueError(
            f"no operations: got backend 'plain', the layers of a module, expected {', '.join(PREFERENCE)}"
        )
    if name == "auto":
        return _best(device, dtype)
    reason = why_unavailable(name, device, dtype)
    if reason is not None:
        best = _best(device, dtype)
        raise RuntimeError(
            f"backend {name!r} is not available on {device}: {reason}; expected a backend that runs here, for instance "
            f"{best!r}, which backend='auto' takes (python -m densenet_fast.info lists all)"
        )
    return name


def _best(device: torch.device, dtype: torch.dtype) -> str:
    preference = _PREFERENCE_ON_CUDA if device.type == "cuda" else PREFERENCE
    found = (b for b in preference if why_unavailable(b, device, dtype) is None)
    return next(b for b in found if b != "triton" or device.type != "cpu")  # the interpreter is for tests


def operations(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, tells: bool = True
) -> contract.Operations:
    """The operations of the backend that `choose` gives, loaded.

    `tells`: warn once where "auto" runs without compiled kernels that could be had.
    """
    chosen = choose(name, device, dtype)
    if tells and name == "auto" and chosen == "eager":
        _tell_if_hollow(device, dtype)
    if chosen not in _loaded:
        with _loading:
            if chosen not in _loaded:  # by another thread, in the meantime
                module = import_module(f"{__name__}.{chosen}")
                contract.register(chosen, module, module.DISPATCH_KEY)
                _loaded.add(chosen)
    contract.serve_modes()
    return contract.of(chosen)
