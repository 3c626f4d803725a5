"""What the CUDA runtime of this process noted, where that is runtime.cpp: PyTorch believes to have two GPUs, whose
memory is the host's, and no kernel is run.

Compile runtime.cpp into a shared library with the soname libcuda.so.1, and start a process with it in LD_PRELOAD.
Kernels are watched that take one structure by value.
"""

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

from .launches import Facts, words


class Runtime:
    """`facts`: of the kernels to be watched, by name; all others are PyTorch's own."""

    _FACTS = ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.POINTER(ctypes.c_int)] * 3)

    def __init__(self, facts: Mapping[str, Facts]):
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.stub_call.restype = ctypes.c_char_p
        self._library.stub_device_of.argtypes = [ctypes.c_void_p]

        def of_kernel(name, *answers):
            for answer, fact in zip(answers, facts.get(name.decode(), ()), strict=False):
                answer[0] = fact

        self._callback = self._FACTS(of_kernel)
        self._library.stub_begin(self._callback)

    def seen(self, run: Callable[[], None]) -> list[str | dict[str, Any]]:
        """What the runtime sees of `run`: names of calls, and launches with all there is to know of them."""
        self._library.stub_clear()
        run()
        calls = [self._library.stub_call(i).decode() for i in range(self._library.stub_calls())]
        return [self._launch(call) if call.startswith("launch ") else call for call in calls]

    def fail_launches(self, fail: bool) -> None:
        self._library.stub_fail_launches(fail)

    def _launch(self, call: str) -> dict[str, Any]:
        _, kernel, *numbers, content = call.split()
        devices = set()

        def is_address(word: int) -> bool:
            device = self._library.stub_device_of(word)
            devices.update({device} - {-1})
            return device >= 0

        parameters = words(bytes.fromhex(content), is_address)
        *extents, shared, stream, device = map(int, numbers)
        return {
            "kernel": kernel,
            "launch": [*extents, shared],
            "parameters": parameters,
            "stream": stream,
            "device": device,
            "memory": sorted(devices),
        }
