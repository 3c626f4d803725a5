"""How figures are written in tables: three digits, milliseconds, megabytes per image."""

from .results import Record
from .rounds import Spread


def number(value: float) -> str:
    """Three digits, and no fraction of a thousand."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ms(seconds: float) -> str:
    return number(seconds * 1000)


def times(r: Spread) -> str:
    return f"{r.median:.2f} ({r.p20:.2f}-{r.p80:.2f})"


def megabytes(record: Record, what: str) -> str:
    """`what`, "live" or "peak", in 10^6 bytes per image."""
    return "-" if record.get(what) is None else f"{record[what] / record['batch'] / 1e6:.1f}"
