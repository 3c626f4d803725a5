"""Kernels compiled ahead of time, for any architecture and without a GPU, in a process of their own: in the tests' one
Triton is set to interpret them."""

import os
import pickle
import subprocess
import sys
from importlib import import_module
from typing import NamedTuple

from densenet_fast.backends.triton.launch import Launch


class Compiled(NamedTuple):
    name: str  # of the entry
    ttir: str
    ptx: str
    cubin: bytes
    shared: int  # bytes per CTA


class Variant(NamedTuple):
    """What a launch compiles, as another process can find it."""

    module: str
    kernel: str
    specialization: tuple
    num_warps: int
    num_stages: int
    architecture: int

    @classmethod
    def of(cls, launch: Launch, architecture: int) -> "Variant":
        function = launch.kernel.fn
        return cls(
            function.__module__, function.__name__, launch.specialization, *launch.options.values(), architecture
        )

    def compile(self) -> Compiled:
        from densenet_fast.backends.triton.launch import compile_variant

        kernel = getattr(import_module(self.module), self.kernel)
        made = compile_variant(kernel, self.specialization, self.architecture, self.num_warps, self.num_stages)
        asm, metadata = made.asm, made.metadata
        return Compiled(metadata.name, asm["ttir"], asm["ptx"], asm["cubin"], metadata.shared)


class Compiler:
    """The other process. Variants are compiled once."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", __name__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.done: dict[Variant, Compiled] = {}

    def compile(self, variant: Variant) -> Compiled:
        if variant not in self.done:
            pickle.dump(variant, self.process.stdin)
            self.process.stdin.flush()
            answer = pickle.load(self.process.stdout)
            if isinstance(answer, Exception):
                raise answer
            self.done[variant] = answer
        return self.done[variant]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what the compilers print is not for the other side
    while True:
        try:
            variant = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: object = variant.compile()
        except Exception as error:
            answer = RuntimeError(f"{variant.kernel} for sm_{variant.architecture}: {type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve()
