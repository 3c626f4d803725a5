"""Tables, for documents and for the terminal."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    header: Sequence[str]
    rows: list[Sequence[str]]

    def markdown(self) -> str:
        rule = ["---", *("---:" for _ in self.header[1:])]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows))

    def text(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        first, *rest = widths
        return "\n".join(
            "  ".join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], rest, strict=True))]).rstrip()
            for row in (self.header, *self.rows)
        )
