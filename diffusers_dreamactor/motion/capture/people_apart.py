"""Whose each pixel is where people touch: by what everybody wears and by where everybody stands."""

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter

from ..skeleton import BONES, JOINT_INDEX, NUM_BODY_JOINTS


_BODY_BONES = tuple(bone for bone in BONES if bone[0] < NUM_BODY_JOINTS)
_TORSO = [JOINT_INDEX[name] for name in ("right_shoulder", "left_shoulder", "left_hip", "right_hip")]
_HEAD = [JOINT_INDEX[name] for name in ("nose", "left_ear", "right_ear")]
_SEEN = 0.5
# Thickness of limbs, and of a head, as shares of the distance from neck to hips.
_LIMB = 0.16
_HEAD_SIZE = 0.42
_BINS = 8
# What is remembered of a person's colours from frame to frame.
_MEMORY = 0.95
# So much nearer to a figure, in its scale, odds are e to one that a pixel is its own.
_NEARER = 0.3
# Most that colours, and that places may say, as logarithms of odds.
_MOST_BY_COLOUR = 4.0
_MOST_BY_PLACE = 2.0
# ... unless one is so much further away, in the figure's scale.
_FAR = 0.8


class Figure:
    """
    Where a person's flesh about is, by its skeleton.

    Args:
        keypoints (`(62, 2)`): pixels of the picture.
        seen (`(62,)` bool): the joints that are known.
        height, width (`int`): of the picture.

    Attributes:
        scale (`float`): about the length of the trunk, in pixels.
        away (`(H, W)`): how far each pixel is from the figure, in its scale; inf where nothing is known.
    """

    def __init__(self, keypoints: np.ndarray, seen: np.ndarray, height: int, width: int):
        bones = [bone for bone in _BODY_BONES if seen[list(bone)].all()]
        known = keypoints[:NUM_BODY_JOINTS][seen[:NUM_BODY_JOINTS]]
        torso = keypoints[_TORSO]
        if seen[_TORSO].all():
            self.scale = float(np.linalg.norm(torso[:2].mean(axis=0) - torso[2:].mean(axis=0)))
        else:
            self.scale = 0.35 * float(np.ptp(known, axis=0).max()) if len(known) else 1.0
        self.scale = max(self.scale, 4.0)
        picture = Image.new("L", (width, height))
        draw = ImageDraw.Draw(picture)
        for bone in bones:
            start, end = keypoints[list(bone)].tolist()
            draw.line([*start, *end], fill=1, width=max(1, round(_LIMB * self.scale)))
        if seen[_TORSO].all():
            draw.polygon([tuple(point) for point in torso.tolist()], fill=1)
        head = keypoints[_HEAD][seen[_HEAD]]
        if len(head):
            (x, y), radius = head.mean(axis=0).tolist(), _HEAD_SIZE / 2 * self.scale
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
        drawn = np.asarray(picture, dtype=bool)
        self.away = distance_transform_edt(~drawn) / self.scale if drawn.any() else np.full((height, width), np.inf)


class Owners:
    """Tells people's pixels apart; learns what they wear while they stand apart."""

    def __init__(self):
        self._colours: dict[int, np.ndarray] = {}

    @property
    def known(self) -> set[int]:
        """The numbers of those whose clothes are known."""
        return set(self._colours)

    def learn(self, picture: np.ndarray, masks: dict[int, np.ndarray]) -> None:
        """
        Takes what people wear, from a frame in which all stand apart.

        Args:
            picture (`(H, W, 3)` uint8).
            masks (`dict[int, np.ndarray]`): `(H, W)` in [0, 1], by number, of those who were cut out.
        """
        for number, mask in masks.items():
            sure = mask >= 0.8
            if sure.sum() >= 16:
                counts = np.bincount(_bin(picture[sure]), minlength=_BINS**3) / sure.sum()
                known = self._colours.get(number)
                self._colours[number] = counts if known is None else _MEMORY * known + (1 - _MEMORY) * counts

    def whose(self, picture: np.ndarray, mask: np.ndarray) -> int | None:
        """
        Who wears most what a mask `(H, W)` in [0, 1] of a picture `(H, W, 3)` shows; None where fewer than two people's
        clothes are known.
        """
        sure = mask >= 0.8
        if len(self._colours) < 2 or not sure.any():
            return None
        colours = _bin(picture[sure])
        return max(self._colours, key=lambda each: np.log(_smooth(self._colours[each])[colours]).mean())

    def odds(self, picture: np.ndarray, figures: dict[int, Figure], own: int) -> np.ndarray:
        """
        Logarithm of the odds `(H, W)` that a pixel that is somebody's is of person `own`, not of any other in `figures`.

        Args:
            picture (`(H, W, 3)` uint8).
            figures (`dict[int, Figure]`): of everybody, by number.
            own (`int`): whose.
        """
        least = np.full(picture.shape[:2], np.inf)
        colours = _bin(picture)
        for number, figure in figures.items():
            if number == own:
                continue
            away = np.nan_to_num(figure.away, posinf=1e3) - np.nan_to_num(figures[own].away, posinf=1e3)
            odds = np.clip(away / _NEARER, -_MOST_BY_PLACE, _MOST_BY_PLACE)
            odds += np.sign(away) * np.minimum(np.maximum(np.abs(away) - _FAR, 0) / _NEARER, _MOST_BY_COLOUR)
            if own in self._colours and number in self._colours:
                ours, theirs = (_smooth(self._colours[each])[colours] for each in (own, number))
                odds += np.clip(gaussian_filter(np.log(ours / theirs), 1.0), -_MOST_BY_COLOUR, _MOST_BY_COLOUR)
            least = np.minimum(least, odds)
        return least


def _bin(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.int64) * _BINS) // 256 @ np.array([_BINS**2, _BINS, 1])


def _smooth(colours: np.ndarray) -> np.ndarray:
    """Shares of colours; light and shade move them to neighbours, and none is impossible."""
    smooth = gaussian_filter(colours.reshape(_BINS, _BINS, _BINS), 0.7, mode="nearest").reshape(-1)
    return (smooth + 1e-4) / (smooth.sum() + 1e-4 * len(smooth))
