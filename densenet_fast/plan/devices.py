"""Memory and bandwidth of devices by name, as their makers state them."""

from typing import NamedTuple


class Device(NamedTuple):
    """bytes of memory, and bytes per second that it moves at most."""

    memory: float
    bandwidth: float


DEVICES = {
    "a100": Device(80e9, 2.04e12),
    "a100-40gb": Device(40e9, 1.56e12),
    "a10": Device(24e9, 600e9),
    "l4": Device(24e9, 300e9),
    "l40s": Device(48e9, 864e9),
    "h100": Device(80e9, 3.35e12),
    "h100-pcie": Device(80e9, 2.0e12),
    "h200": Device(141e9, 4.8e12),
    "b200": Device(180e9, 8.0e12),
    "rtx3090": Device(24e9, 936e9),
    "rtx4090": Device(24e9, 1.01e12),
    "rtx5090": Device(32e9, 1.79e12),
}
