"""Faults planted into the package, each of which a named few tests must catch. Outside CI: most of an hour.

    python -m tests.faults                     # all of them
    python -m tests.faults triton "frozen"     # those whose part and name have all these words
    python -m tests.faults --list              # what there is, and whether its text is still found

Run it before and after tests are cut or sources move. A fault whose text is no longer found must be planted anew where
the code went; one for which the package no longer imports or compiles, or whose tests fail without it, proves nothing
and is said to be broken. More faults: a `Fault` in one of the lists here, or a module with `FAULTS` in `PARTS`.
"""

from typing import NamedTuple

PARTS = ("stage", "modules", "conversion", "eager", "triton", "native", "cuda")


class Fault(NamedTuple):
    """`before` occurs once in `file`, from the root of the repository, and becomes `after`; `tests`: arguments of
    pytest that must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def contract(words: str, *files: str) -> tuple[str, ...]:
    """Tests of the contract in these files, `words` choosing a backend and more."""
    return (*(f"tests/contract/{name}" for name in files), "-k", words)
