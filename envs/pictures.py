"""Small coloured grids, enough to watch an embedded task."""

import numpy as np
from jaxtyping import Int, UInt8

EMPTY, SHADED, AGENT, GOOD, BAD, KEY = range(6)
_COLOURS = np.array(
    [(245, 245, 245), (200, 200, 200), (40, 90, 200), (50, 160, 80), (200, 60, 50), (230, 180, 40)], np.uint8
)
_PIXELS = 16


def paint(cells: Int[np.ndarray, "height width"]) -> UInt8[np.ndarray, "pixel_height pixel_width 3"]:
    """Returns a picture with one square of 16 x 16 pixels for every cell, a white line between them."""
    picture = _COLOURS[cells].repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
    picture[::_PIXELS] = picture[:, ::_PIXELS] = 255
    return picture
