"""shapes10: ten shapes on 32 x 32 pixels, drawn by our own code: a data set for every test and demo
without a download.

The class is the shape; colour, place, size, rotation, stretch, background, clutter and noise are
independent of it.
"""

from cnnlab.data.builders.shapes10.drawing import (
    CLASS_NAMES,
    SPLITS,
    draw,
    draw_many,
    split_labels,
    split_seeds,
)

__all__ = ["CLASS_NAMES", "SPLITS", "draw", "draw_many", "split_labels", "split_seeds"]
