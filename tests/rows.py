"""Rows of a table of tests, of which some run always and others, more of the same kind, under --thorough."""

from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest


def thorough(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.thorough)


def some(rows: Iterable[Any], always: Container[Any] | Callable[[Any], bool]) -> list[Any]:
    """All rows for pytest.mark.parametrize; those that `always` does not hold are thorough."""
    holds = always if callable(always) else always.__contains__
    return [row if holds(row) else thorough(*(row if type(row) is tuple else (row,))) for row in rows]
