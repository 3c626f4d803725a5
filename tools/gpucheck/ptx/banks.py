"""Shared memory's banks: 32 of 4 bytes each, of which a wavefront takes a word each; lanes that want one word share it.

A warp's access is served in groups of lanes that together ask for at most 128 bytes: all 32 of up to 4 bytes, 16 of 8,
8 of 16 (a matrix of ldmatrix). Without conflicts a group takes one wavefront.
"""

from typing import NamedTuple

import numpy as np

WORD, BANKS = 4, 32


class Wavefronts(NamedTuple):
    taken: int = 0
    least: int = 0

    def plus(self, taken: int, least: int) -> "Wavefronts":
        return Wavefronts(self.taken + taken, self.least + least)


def count(by_line: dict[int, Wavefronts], line: int, lanes: np.ndarray, address: np.ndarray, width: int) -> None:
    """Add an access of `width` bytes by each of the lanes, at an address in its CTA's shared memory."""
    words = (address[:, None] + np.arange(0, max(width, WORD), WORD)) // WORD
    groups = lanes * max(width, WORD) // (BANKS * WORD)
    wanted = np.unique(groups[:, None] << 32 | words)  # of each group each word once
    found, of_group = np.unique(wanted >> 32, return_inverse=True)
    of_bank = np.bincount(of_group * BANKS + wanted % BANKS, minlength=len(found) * BANKS)
    taken = int(of_bank.reshape(-1, BANKS).max(1).sum())
    by_line[line] = by_line.get(line, Wavefronts()).plus(taken, len(found))
