"""What the parts of a person look like in a video, and following a head by it."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .head_pose import head_guess


# Bones of MediaPipe's pose whose colours are compared.
BONES = ((11, 13), (12, 14), (13, 15), (14, 16), (23, 25), (24, 26), (25, 27), (26, 28))
HEAD, TRUNK = 0, 1
NUM_PARTS = 2 + len(BONES)
_FACE = list(range(11))
# Likeness of colours (Bhattacharyya): a part is another's if it is this much more like theirs, and nobody's under this.
_CLEARLY_MORE = 0.1
_NOBODYS = 0.35
# Where a head is, in metres from the middle of the shoulders along the trunk and to both sides of it: without the neck.
_HEAD_BEGINS, _HEAD_ENDS, _HEAD_REACH = 0.08, 0.40, 0.13
# From here on a segmentation is sure of what is the figure's; it dreams up pale heads for headless ones.
_SURELY_FIGURE = 0.9
# Side of a followed head's picture in pixels; it shows this many sides of the face, and is looked for that far around.
_TEMPLATE = 24
_TEMPLATE_SIDES = 1.6
_REACH_SIDES = 0.6
# Normalised correlation from which a head counts as found again.
_FOUND_AGAIN = 0.6


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """Square root `(216,)` of the normalised 6 x 6 x 6 histogram of `(N, 3)` uint8 colours."""
    bins = (pixels.astype(np.int64) * 6) // 256 @ np.array([36, 6, 1])
    return np.sqrt(np.bincount(bins, minlength=216) / max(len(bins), 1))


def _square(frame: np.ndarray, middle: np.ndarray, half: float) -> np.ndarray:
    """Some 16 x 16 colours `(N, 3)` of the square of `frame` around `middle`, as far as it is inside."""
    height, width = frame.shape[:2]
    x0, x1 = np.clip([middle[0] - half, middle[0] + half + 1], 0, width).astype(int)
    y0, y1 = np.clip([middle[1] - half, middle[1] + half + 1], 0, height).astype(int)
    step = max(1, int(half) // 8)
    return frame[y0:y1:step, x0:x1:step].reshape(-1, 3)


def part_colours(frame: np.ndarray, keypoints: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """
    What each part of a person looks like in `frame` (H, W, 3) by its pose `(33, 2)` in pixels: `(10, 216)` square roots of
    colour histograms of head, trunk, upper arms, forearms, thighs and shins (left, right); zeros for parts that the picture
    does not show.
    """
    shoulders, hips = keypoints[[11, 12]].mean(axis=0), keypoints[[23, 24]].mean(axis=0)
    # Seen from the side shoulders are close together; a trunk is about as high as 1.4 shoulders are wide.
    wide = max(np.linalg.norm(keypoints[11] - keypoints[12]), 0.35 * np.linalg.norm(shoulders - hips), 4.0)
    middle, side = head_guess(keypoints)
    colours = np.zeros((NUM_PARTS, 216))
    if visibility[_FACE].max() > 0.5:
        upwards = (middle - shoulders) / max(np.linalg.norm(middle - shoulders), 1.0)
        colours[HEAD] = _histogram(_square(frame, middle + 0.25 * side * upwards, 0.75 * side))
    if visibility[[11, 12]].max() > 0.5:
        # Hips are often out of the picture and only guessed, so the sample stays near the shoulders.
        down = (hips - shoulders) / max(np.linalg.norm(hips - shoulders), 1.0)
        samples = [_square(frame, shoulders + share * wide * down, 0.25 * wide) for share in (0.3, 0.6, 0.9)]
        colours[TRUNK] = _histogram(np.concatenate(samples))
    for part, (start, end) in enumerate(BONES, start=2):
        if visibility[[start, end]].min() > 0.5:
            points = keypoints[start] + np.array([[0.25], [0.5], [0.75]]) * (keypoints[end] - keypoints[start])
            colours[part] = _histogram(np.concatenate([_square(frame, point, 0.1 * wide) for point in points]))
    return colours


def head_outline(mask: np.ndarray, keypoints: np.ndarray, world: np.ndarray) -> float:
    """
    How much of a figure there is above the shoulders, where a head would be, in square metres.

    Args:
        mask (`(H, W)`): in [0, 1], what is the figure's.
        keypoints (`(33, 2)`), world (`(33, 3)`): its pose, in pixels of `mask` and in metres.
    """
    trunk = [11, 12, 23, 24]
    spread, metres = (points[trunk, :2] - points[trunk, :2].mean(axis=0) for points in (keypoints, world))
    scale = max(np.linalg.norm(spread), 1e-6) / max(np.linalg.norm(metres), 1e-6)
    shoulders, hips = keypoints[[11, 12]].mean(axis=0), keypoints[[23, 24]].mean(axis=0)
    up = (shoulders - hips) / max(np.linalg.norm(shoulders - hips), 1e-6)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    x, y = (x - shoulders[0]) / scale, (y - shoulders[1]) / scale
    along, across = x * up[0] + y * up[1], y * up[0] - x * up[1]
    place = (along > _HEAD_BEGINS) & (along < _HEAD_ENDS) & (np.abs(across) < _HEAD_REACH)
    return float((mask[place] > _SURELY_FIGURE).sum() / scale**2)


@dataclass(eq=False)
class Wardrobe:
    """What a person's parts look like, learned while nobody else is near: the sum `(10, 216)` of what was seen."""

    total: np.ndarray = field(default_factory=lambda: np.zeros((NUM_PARTS, 216)))

    def learn(self, colours: np.ndarray) -> None:
        """Takes what `part_colours` gave."""
        # What was seen long ago counts less: light changes.
        self.total = 0.98 * self.total + colours

    def likeness(self, colours: np.ndarray) -> np.ndarray:
        """`(10,)` in [0, 1]; NaN for parts that are not in `colours`, or were never learned."""
        norm = np.linalg.norm(self.total, axis=1)
        known = (norm > 0) & colours.any(axis=1)
        like = (colours * self.total).sum(axis=1) / np.maximum(norm, 1e-9)
        return np.where(known, like, np.nan)


def parts_of_others(colours: np.ndarray, own: Wardrobe, others: list[Wardrobe]) -> np.ndarray:
    """
    Parts `(10,)` bool of a pose that are not its person's: dressed clearly more like one of the `others`, or, but for the
    head, which changes most as it turns, like nobody.
    """
    ours = own.likeness(colours)
    theirs = np.full(NUM_PARTS, np.nan)
    for other in others:
        theirs = np.fmax(theirs, other.likeness(colours))
    wrong = theirs > ours + _CLEARLY_MORE
    wrong[TRUNK + 1 :] |= ours[TRUNK + 1 :] < _NOBODYS
    return wrong


class HeadFollower:
    """
    Follows a head from frame to frame by what it looks like (normalised cross-correlation of a small picture that is renewed
    slowly), where landmarkers take it for another's or see none.

    Args:
        frame (`(H, W, 3)` uint8): the picture in which the head is known.
        middle (`(2,)`), side (`float`): of the face, in pixels.

    Attributes:
        middle (`(2,)`): where the face's middle is now.
        found (`bool`): whether the head was found in the latest frame.
        likeness (`float`): how much what is there looks like the head (correlation).
    """

    def __init__(self, frame: np.ndarray, middle: np.ndarray, side: float):
        self.middle, self.side = np.array(middle, dtype=np.float64), float(side)
        self.found, self.likeness = True, 1.0
        self._template = self._cut(frame, 1.0)

    def _cut(self, frame: np.ndarray, size: float) -> np.ndarray:
        """The picture around the head, `size` times as wide as the template and in its scale."""
        pixels = int(_TEMPLATE * size)
        half = _TEMPLATE_SIDES / 2 * self.side * size
        square = (*(self.middle - half), *(self.middle + half))
        x0, y0 = (max(int(value) - 1, 0) for value in square[:2])
        region = frame[y0 : int(square[3]) + 2, x0 : int(square[2]) + 2]
        if region.size == 0:
            return np.zeros((pixels, pixels, 3), dtype=np.float32)
        extent = (square[0] - x0, square[1] - y0, square[2] - x0, square[3] - y0)
        picture = Image.fromarray(np.ascontiguousarray(region))
        picture = picture.transform((pixels, pixels), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR)
        return np.asarray(picture, dtype=np.float32)

    def follow(self, frame: np.ndarray) -> None:
        """Looks for the head in the next frame, around where it was."""
        around = self._cut(frame, 1 + 2 * _REACH_SIDES / _TEMPLATE_SIDES)
        windows = np.lib.stride_tricks.sliding_window_view(around, (_TEMPLATE, _TEMPLATE), axis=(0, 1))
        steps = len(windows)
        windows = windows.reshape(steps * steps, -1)
        windows = windows - windows.mean(axis=1, keepdims=True)
        # The sliding windows have the colours first.
        template = self._template.transpose(2, 0, 1).reshape(-1)
        template = template - template.mean()
        norms = np.linalg.norm(windows, axis=1) * np.linalg.norm(template)
        correlation = (windows @ template) / np.maximum(norms, 1e-6)
        offsets = np.stack(np.meshgrid(*[np.arange(steps) - (steps - 1) / 2] * 2), axis=-1).reshape(-1, 2)
        # Of places that look nearly alike the nearer one.
        away = (offsets**2).sum(axis=1) / ((steps - 1) / 2) ** 2
        best = int(np.argmax(correlation - 0.15 * away))
        self.likeness = float(correlation[best])
        self.found = self.likeness > _FOUND_AGAIN
        if self.found:
            self.middle = self.middle + offsets[best] * (_TEMPLATE_SIDES * self.side / _TEMPLATE)
            self._template = 0.7 * self._template + 0.3 * self._cut(frame, 1.0)
