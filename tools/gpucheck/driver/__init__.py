"""NVIDIA's driver, stood in for on a machine without one: libcuda.c, compiled, and what it noted as Python's tuples.

A process that runs on it is started with `environment(folder)`; in there, `Driver()` looks at what the driver saw. It
is the driver alone: tensors stay on the CPU, and PyTorch believes to have no GPU.
"""

import ctypes
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

LIBRARY = "libcuda.so.1"


def build(folder: Path) -> None:
    """Compile the stand-in into `folder`, with the headers that Triton brings for its own driver module."""
    headers = Path(find_spec("triton").origin).parent / "backends/nvidia/include"
    source = Path(__file__).with_name("libcuda.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-I{headers}", source, "-o", folder / LIBRARY]
    subprocess.run(command, check=True)


def environment(folder: Path) -> dict[str, str]:
    """Of a process whose driver is the one in `folder`, and in which Triton compiles."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return inherited | {"LD_LIBRARY_PATH": str(folder), "TRITON_LIBCUDA_PATH": str(folder)}


class _Function(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("context", ctypes.c_int),
        ("parameters", ctypes.c_int),
        ("offset", ctypes.c_int * 1024),
        ("size", ctypes.c_int * 1024),
        ("registers", ctypes.c_int),
        ("static_shared", ctypes.c_int),
        ("max_threads", ctypes.c_int),
        ("max_dynamic_shared", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.POINTER(_Function)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint),
        ("attributes", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("thread", ctypes.c_uint64),
        ("context", ctypes.c_int),
        ("result", ctypes.c_int),
        ("bytes", ctypes.c_ubyte * 4096),
    )


class Launched(NamedTuple):
    """A launch as the driver got it. thread: as `threading.get_ident` names it. parameters: their bytes, divided as the
    kernel's machine code has them."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    dynamic_shared: int
    attributes: int
    stream: int
    thread: int
    context: int
    result: int
    parameters: tuple[bytes, ...]


class Driver:
    """What the driver of this process noted since `forget`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.stub_launch.restype = ctypes.POINTER(_Launch)
        self._library.stub_call.restype = ctypes.c_char_p

    def forget(self) -> None:
        self._library.stub_forget()

    def calls(self) -> list[str]:
        return [self._library.stub_call(i).decode() for i in range(self._library.stub_num_calls())]

    def launches(self) -> list[Launched]:
        return [self._launched(i) for i in range(self._library.stub_num_launches())]

    def _launched(self, i: int) -> Launched:
        launch = self._library.stub_launch(i).contents
        function = launch.function.contents
        places = [(function.offset[j], function.size[j]) for j in range(function.parameters)]
        parameters = tuple(bytes(launch.bytes[offset : offset + size]) for offset, size in places)
        grid, block = tuple(launch.grid), tuple(launch.block)
        rest = launch.dynamic_shared, launch.attributes, launch.stream, launch.thread, launch.context, launch.result
        return Launched(function.name.decode(), grid, block, *rest, parameters)

    @property
    def context(self) -> int:
        """The calling thread's current context, a device's number + 1; 0 if it has none."""
        return self._library.stub_current_context()

    @context.setter
    def context(self, context: int) -> None:
        self._library.stub_set_current_context(context)

    def fail(self, call: str, error: int) -> None:
        """The next `call` of the driver, by name, gives this CUresult."""
        self._library.stub_fail(call.encode(), error)
