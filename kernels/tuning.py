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

# Their sums of rows: (elements of a row at a time, elements of all rows of a program, threads).
ROW_SUMS = (512, 1024, 128)

# The overlap kernels, by what lies beside an element: pixels in aligned vectors (contiguous), classes (channels_last), or neither. A row
# is (classes at the most; classes of a tile, None for all of them; elements of a tile; pixels that a thread adds up before they join its
# sums; threads). Tiles with all classes have 8 elements a thread (4 doubles): with 16 the focal losses spill. As far as that leaves 32
# neighbouring bytes they belong to one warp, since the softmax goes over classes. None has been timed on a GPU yet.
OVERLAP: dict[str, tuple[tuple[int | None, int | None, int, int, int], ...]] = {
    "contiguous_half": ((16, None, 256, 8, 32), (64, None, 1024, 8, 128), (128, None, 2048, 8, 256), (None, 1, 2048, 1, 256)),
    "contiguous_single": ((32, None, 256, 4, 32), (128, None, 1024, 4, 128), (None, 1, 1024, 1, 128)),
    "contiguous_double": ((32, None, 128, 2, 32), (128, None, 512, 2, 128), (None, 1, 1024, 1, 256)),
    "channels_last_half": ((256, None, 256, 1, 32), (1024, None, 1024, 1, 128), (None, 8, 2048, 1, 256)),
    "channels_last_single": ((256, None, 256, 1, 32), (1024, None, 1024, 1, 128), (None, 8, 2048, 1, 256)),
    "channels_last_double": ((128, None, 128, 1, 32), (512, None, 512, 1, 128), (None, 4, 1024, 1, 256)),
    "strided_half": ((128, None, 1024, 1, 128), (None, 1, 1024, 1, 128)),
    "strided_single": ((128, None, 1024, 1, 128), (None, 1, 1024, 1, 128)),
    "strided_double": ((128, None, 512, 1, 128), (None, 1, 512, 1, 128)),
}

# The sort engine's kernels, by the dtype of sums: (elements or ranks of a program, threads). A program of the sweeps over scores goes
# through all channels, so blocks are small enough that an image fills a GPU. None has been timed on a GPU yet.
SORT: dict[torch.dtype, tuple[int, int]] = {torch.float32: (1024, 256), torch.float64: (512, 128)}


# The box kernels: (boxes of a program, threads), and of a matrix of scores (rows, columns, threads). A box is 16 bytes in single precision;
# its loss takes up to 100 registers, so a thread has one or two of them. None has been timed on a GPU yet.
BOX: dict[str, tuple[int, int]] = {
    "contiguous_half": (256, 128),
    "contiguous_single": (256, 128),
    "contiguous_double": (128, 128),
    "strided_half": (256, 128),
    "strided_single": (256, 128),
    "strided_double": (128, 128),
}
BOX_PAIRS: dict[int, tuple[int, int, int]] = {2: (4, 64, 128), 4: (4, 64, 128), 8: (4, 32, 128)}  # by bytes of a coordinate

# The pair kernels, by bytes of a number: (features at the most, own rows of a tile, other rows, features of a step of the scores and of
# the gradient, threads, stages of the loops). Where a step holds all features the own rows are read once. None has been timed on a GPU yet.
PAIR: dict[tuple[str, int], tuple[tuple[int | None, int, int, int, int, int, int], ...]] = {
    ("forward", 2): ((128, 64, 64, 128, 128, 128, 2), (None, 64, 64, 32, 32, 128, 2)),
    ("forward", 4): ((None, 64, 32, 16, 16, 128, 2),),
    ("forward", 8): ((None, 16, 16, 16, 16, 128, 1),),
    ("backward", 2): ((128, 64, 32, 128, 128, 128, 2), (None, 64, 32, 32, 128, 128, 2)),
    ("backward", 4): ((None, 32, 16, 16, 64, 128, 1),),
    ("backward", 8): ((None, 16, 16, 16, 16, 128, 1),),
}

# The divergence kernels: (classes at the most, rows, classes of a tile, threads). Two rows are read at once, so a thread has half of what
# it has in TUNING. None has been timed on a GPU yet.
DIVERGENCE: dict[str, tuple[tuple[int | None, int, int, int], ...]] = {
    "contiguous_half": ((32, 64, 32, 256), (256, 8, 256, 256), (None, 1, 2048, 256)),
    "contiguous_single": ((32, 32, 32, 256), (256, 4, 256, 256), (None, 1, 1024, 256)),
    "contiguous_double": ((32, 8, 32, 128), (None, 1, 512, 256)),
}


def layout_class(contiguous: bool, dtype: torch.dtype, channels_last: bool = False) -> str:
    """The key of a problem in the tables."""
    layout = "channels_last" if channels_last else "contiguous" if contiguous else "strided"
    return layout + {2: "_half", 4: "_single", 8: "_double"}[dtype.itemsize]
