"""The tiles of the row kernels as data: for each class of problems, what to use up to how many classes.

A row is (classes at the most, or None for any number; rows of a tile; classes of a tile; threads; stages of the forward's loop). Rows were
chosen so that fastloss.aot finds no register spills (a tile's shape decides how ptxas rounds); none has been timed on a GPU yet. Tiles hold
8 elements a thread, one 16-byte access in half precision and two in float32 (2 to 4 elements in double).
"""

from __future__ import annotations

TUNING: dict[str, tuple[tuple[int | None, int, int, int, int], ...]] = {
    "contiguous_half": (
        (32, 64, 32, 256, 1),
        (256, 8, 256, 256, 1),
        (1024, 1, 1024, 128, 1),
        (None, 1, 4096, 512, 1),
    ),
    "contiguous_single": (
        (32, 64, 32, 256, 1),
        (256, 2, 256, 64, 1),
        (1024, 1, 1024, 128, 1),
        (None, 1, 2048, 256, 1),
    ),
    "contiguous_double": (
        (32, 8, 32, 128, 1),
        (None, 1, 1024, 256, 1),
    ),
    "strided_half": ((None, 128, 8, 128, 1),),
    "strided_single": ((None, 128, 8, 128, 1),),
    "strided_double": ((None, 32, 8, 128, 1),),
}
