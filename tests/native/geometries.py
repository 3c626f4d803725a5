"""Sizes at which the CPU kernels are tested."""

from ..calls import Geometry

# One pixel, one image, odd and even sizes, one column, growths 4 to 48, widths 4g and others, odd ones before several
# panels of 16 channels, more than one block of channels (128, 256) and of rows. The CPU kernels divide few rows by
# channels: MANY_ROWS are too many for that. The 3x3 kernels cut large images into tiles of 3x3 outputs, small ones of
# 2x2, of which 20 images of 4x4 are more than one block.
MANY_ROWS = Geometry(3, 11, 9, 37, 20, 5)
GEOMETRIES = [
    Geometry(2, 5, 7, 24, 16, 4),
    Geometry(3, 8, 8, 37, 48, 12),
    Geometry(1, 13, 1, 9, 5, 3),
    Geometry(2, 1, 1, 30, 96, 24),
    Geometry(1, 2, 2, 66, 128, 32),
    Geometry(2, 7, 6, 301, 160, 40),
    Geometry(1, 17, 15, 150, 192, 48),
    Geometry(5, 3, 3, 1, 3, 2),
    MANY_ROWS,
    Geometry(2, 13, 11, 270, 136, 12),
    Geometry(2, 6, 5, 19, 7, 5),
    Geometry(20, 4, 4, 19, 24, 5),
    Geometry(2, 28, 28, 64, 128, 32),
]
SMALL = GEOMETRIES[0]
LARGE_TILES = (GEOMETRIES[6], GEOMETRIES[-1])  # of 3x3 outputs
