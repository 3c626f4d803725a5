"""Kernels compiled before they are needed, by many processes, for an architecture that need not be present.

Triton compiles a kernel when it is first launched, one after the other: half a minute for a net. `compile_all` fills
Triton's cache on disk with what a list of launches (`launch.recorded`) takes; the first step then only loads it.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from multiprocessing import connection, get_context
from typing import Any, NamedTuple

from triton.backends.nvidia.driver import CudaLauncher, CudaUtils, libcuda_dirs

from .launch import Launch, compile_variant


class Variant(NamedTuple):
    """What a launch compiles, as another process can find it."""

    module: str
    kernel: str
    specialization: tuple[Any, ...]
    num_warps: int
    num_stages: int
    maxnreg: int | None
    architecture: int

    @classmethod
    def of(cls, launch: Launch, architecture: int) -> "Variant":
        function = launch.kernel.fn
        options = launch.num_warps, launch.num_stages, launch.maxnreg
        return cls(function.__module__, function.__name__, launch.specialization, *options, architecture)

    def compile(self) -> Any:
        """Triton's compiled kernel."""
        kernel = getattr(import_module(self.module), self.kernel)
        options = self.num_warps, self.num_stages, self.maxnreg
        return compile_variant(kernel, self.specialization, self.architecture, *options)


def compile_all(
    launches: Iterable[Launch], architecture: int, processes: int | None = None
) -> dict[Variant, str | None]:
    """Compile the variants of `launches` for compute capability `architecture` / 10 and, where there is a driver to
    link, the code that launches them. `processes`: how many at a time, one for each core if not given.

    Needs no GPU and touches none: it may run beside one that is busy. A compiler that crashes costs its variant alone.

        with launch.recorded(Device(90, 132)) as launches: ...  # a step on the meta device, or benchmarks.planned
        wrong = {variant: why for variant, why in compile_all(launches, 90).items() if why}

    Returns:
        Of each variant why it does not compile, None if it does.
    """
    variants = list(dict.fromkeys(Variant.of(launch, architecture) for launch in launches))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # A process of its own has no threads and no CUDA context that a fork would break.
    command = [sys.executable, "-m", __name__]
    request = pickle.dumps((variants, processes or len(os.sched_getaffinity(0))))
    answer = subprocess.run(command, input=request, stdout=subprocess.PIPE, env=environment, check=True)
    return pickle.loads(answer.stdout)


def _outcomes(variants: Iterable[Variant], processes: int) -> Iterator[tuple[Variant, str | None]]:
    """Each variant compiled in a process forked for it, and why it does not compile, in the order in which they end."""
    context, waiting = get_context("fork"), iter(variants)
    running: dict[Any, tuple[Variant, Any]] = {}  # by the pipe's end that the outcome comes out of
    while True:
        while len(running) < processes and (variant := next(waiting, None)):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_compile, args=(variant, sender))
            process.start()
            sender.close()
            running[receiver] = variant, process
        if not running:
            return
        ended: list[Any] = connection.wait(list(running))
        for receiver in ended:
            variant, process = running.pop(receiver)
            try:
                why = receiver.recv()
            except EOFError:
                process.join()
                why = f"the compiler crashed with exit code {process.exitcode}"
            process.join()
            yield variant, why


def _compile(variant: Variant, sender: Any) -> None:
    why = None
    try:
        compiled = variant.compile()
        if _has_driver():
            CudaLauncher(compiled.src, compiled.metadata)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    sender.send(why)


@cache
def _has_driver() -> bool:
    """Whether the driver's library, to which launchers are linked, is here."""
    try:
        return bool(libcuda_dirs())
    except AssertionError:  # its way to say no
        return False


def _serve() -> None:
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # what the compilers print is not for the other side
    variants, processes = pickle.load(sys.stdin.buffer)
    for variant in variants:
        import_module(variant.module)
    if _has_driver():
        CudaUtils()  # C code, too
    pickle.dump(dict(_outcomes(variants, processes)), answer)


if __name__ == "__main__":
    _serve()
