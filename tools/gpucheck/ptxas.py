"""What ptxas says, with -v, of the code that it makes."""

import re

_WAITING = re.compile(r"\((C75\d\d)\) (?:Potential Performance Loss: )?([^\n]*?) in (?:the )?function")


def serialised(said: str) -> list[str]:
    """Of products (wgmma) that wait for each other, why: messages C7510 and its neighbours, each once."""
    found = ((code, re.sub(r" in around line \d+", "", why)) for code, why in _WAITING.findall(said))
    return list(dict.fromkeys(f"{code} {' '.join(why.split())}" for code, why in found))
