"""The tiles of the kernels as data: for each class of problems, what to use; for rows, up to how many classes.

A row of TUNING is (classes at the most, or None for any number; rows of a tile; classes of a tile; threads; stages of the forward's loop).
They were chosen so that fastloss.aot finds no register spills (a tile's shape decides how ptxas rounds); none has been timed on a GPU yet.
Tiles hold 8 elements a thread, one 16-byte access in half precision and two in float32 (2 to 4 elements in double).
"""

from __future__ import annotations

import torch

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

# The element-wise kernels: (elements of a program, threads). Contiguous: two 16-byte accesses a thread to each operand, so that enough
# bytes are under way at every occupancy that a loss's registers allow; of doubles one, since with two log_cosh spills 8 bytes. Strided:
# four elements a thread, since the addresses of each take registers of their own. None has been timed on a GPU yet.
ELEMENTWISE: dict[str, tuple[int, int]] = {
    "contiguous_half": (4096, 256),
    "contiguous_single": (2048, 256),
    "contiguous_double": (1024, 512),
    "strided_half": (1024, 256),
    "strided_single": (1024, 256),
    "strided_double": (512, 128),
}

# The sort engine's kernels, by the dtype of sums: (elements or ranks of a program, threads). A program of the sweeps over scores goes
# through all channels, so blocks are small enough that an image fills a GPU. None has been timed on a GPU yet.
SORT: dict[torch.dtype, tuple[int, int]] = {torch.float32: (1024, 256), torch.float64: (512, 128)}


def layout_class(contiguous: bool, dtype: torch.dtype) -> str:
    """The key of a problem in the tables."""
    return ("contiguous" if contiguous else "strided") + {2: "_half", 4: "_single", 8: "_double"}[dtype.itemsize]
