"""Bytes as people write them."""

import re

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: int | float | str) -> int:
    """24000000000, "24GB", "24 GiB".

    Raises:
        ValueError: it is none of these, or not from 1 to 2^63 - 1.
    """
    match = re.fullmatch(
        r"\s*([\d.]+(?:e\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper().replace("E+", "E"), re.IGNORECASE
    )
    try:
        found = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    except ValueError:
        found = 0
    if not 1 <= found < 2**63:
        raise ValueError(f"got {text!r}, expected bytes, as 24000000000, 24GB or 24GiB")
    return int(found)


def text_of_bytes(count: float) -> str:
    """Whole GiB as such; else three digits, in decimal units."""
    if count and count % 2**30 == 0:
        return f"{count / 2**30:.0f} GiB"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
