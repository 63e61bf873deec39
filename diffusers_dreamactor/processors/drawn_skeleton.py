"""Recognising a video that shows a drawn skeleton instead of a person."""

from collections.abc import Iterable

import numpy as np


def looks_like_drawn_skeleton(frames: Iterable[np.ndarray]) -> bool:
    """
    Whether frames show skeletons as OpenPose, DWPose and Wan-Animate draw them: thin strokes in the pure colours of the
    rainbow, and perhaps white dots of a face, on black. Video compression may have blurred them.

    A frame counts when at least 80 % of it is black, at least 70 % of the rest that is not dim is a pure colour (the least
    channel below a third of the greatest) or white, and the pure colours fall into at least five of twelve hues. Most of
    the frames that are not wholly black have to count.

    Args:
        frames (iterable of uint8 `(H, W, 3)` arrays): RGB; a few frames, spread over the video, are enough.
    """
    seen = drawn = 0
    for frame in frames:
        brightest = frame.max(axis=2).astype(np.int16)
        lit = brightest >= 80
        if not lit.any():
            continue
        seen += 1
        pixels = frame[lit].astype(np.int16)
        high, low = pixels.max(axis=1), pixels.min(axis=1)
        pure = 3 * low < high
        white = low > 200
        red, green, blue = pixels[pure].T
        high, spread = high[pure], (high - low)[pure]
        hue = np.where(
            high == red,
            (green - blue) / spread % 6,
            np.where(high == green, (blue - red) / spread + 2, (red - green) / spread + 4),
        )
        shares = np.bincount((2 * hue + 0.5).astype(int) % 12, minlength=12) / max(len(hue), 1)
        drawn += (
            (brightest < 40).mean() >= 0.8
            and (pure | white).mean() >= 0.7
            and pure.mean() >= 0.3
            and (shares >= 0.02).sum() >= 5
        )
    return bool(seen) and 2 * drawn > seen
