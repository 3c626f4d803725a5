"""Triton's kernels compiled ahead of time, for any architecture and without a GPU, in a process of their own: in the
tests' one Triton may be set to interpret them."""

import os
import pickle
import subprocess
import sys
from typing import Any, NamedTuple, Protocol


class Variant(Protocol):
    """A kernel with its types, constants, warps and stages; hashable and picklable."""

    kernel: str
    architecture: int  # compute capability times ten

    def compile(self) -> Any:
        """What `triton.compile` returns."""


class Compiled(NamedTuple):
    name: str  # of the entry
    ttir: str
    ptx: str
    cubin: bytes
    shared: int  # bytes per CTA


def compiled(variant: Variant) -> Compiled:
    made = variant.compile()
    return Compiled(made.metadata.name, made.asm["ttir"], made.asm["ptx"], made.asm["cubin"], made.metadata.shared)


class Compiler:
    """The other process. Variants are compiled once."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
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
            answer: object = compiled(variant)
        except Exception as error:
            answer = RuntimeError(f"{variant.kernel} for sm_{variant.architecture}: {type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()
