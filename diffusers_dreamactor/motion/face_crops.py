"""Square crops of a face: which square is cut out for a face box, and the cutting."""

import numpy as np
from PIL import Image


def square_around(box: np.ndarray, scale: float, shift: float = 0.0) -> tuple[float, float, float, float]:
    """
    The square that is cut out for a face box.

    Args:
        box (`np.ndarray` of shape `(4,)`): `x0, y0, x1, y1` in pixels.
        scale (`float`): its side as a multiple of the box's longer side.
        shift (`float`): how far it is moved up, as a share of the box's longer side.

    Returns:
        `x0, y0, x1, y1` in pixels; it may leave the picture.
    """
    left, top, right, bottom = (float(value) for value in box)
    side = max(right - left, bottom - top, 1.0)
    x, y = (left + right) / 2, (top + bottom) / 2 - shift * side
    half = scale * side / 2
    return x - half, y - half, x + half, y + half


def cut_square(frame: np.ndarray, square: tuple[float, float, float, float], size: int) -> np.ndarray:
    """
    A square of a frame, resampled. What lies outside the picture is filled with its edge.

    Args:
        frame (`np.ndarray` of shape `(H, W, 3)`): uint8 RGB.
        square (`tuple`): `x0, y0, x1, y1` in pixels.
        size (`int`): side of the crop in pixels.

    Returns:
        `np.ndarray` of shape `(size, size, 3)`, uint8 RGB.
    """
    left, top, right, bottom = square
    height, width = frame.shape[:2]
    # A margin for the resampling filter's support, so that the crop's border is filtered like its middle.
    margin = int(np.ceil(3 * max((right - left) / size, 1)))
    x0, y0 = int(np.floor(left)) - margin, int(np.floor(top)) - margin
    x1, y1 = int(np.ceil(right)) + margin, int(np.ceil(bottom)) + margin
    columns = np.arange(x0, x1).clip(0, width - 1)
    rows = np.arange(y0, y1).clip(0, height - 1)
    region = Image.fromarray(np.ascontiguousarray(frame[rows[:, None], columns[None, :]]))
    shrinks = right - left > size
    crop = region.resize(
        (size, size),
        Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC,
        box=(left - x0, top - y0, right - x0, bottom - y0),
    )
    return np.asarray(crop)
