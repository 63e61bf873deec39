"""Where a replaced person goes: the driver's mask, grown to hold the reference's figure, in blocks as Wan-Animate knows them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import label, maximum_filter

from ..frame_sources import FramesInMemory
from ..motion.sequence import MotionSequence
from ..motion.skeleton import BONES, JOINT_INDEX, NUM_BODY_JOINTS, ROOT
from ..pictures import cover


# Eyes and ears lie within the head.
_IN_THE_HEAD = {JOINT_INDEX[f"{side}_{part}"] for side in ("left", "right") for part in ("eye", "ear")}
_BONES = tuple(bone for bone in BONES if bone[0] < NUM_BODY_JOINTS and bone[0] not in _IN_THE_HEAD)
_TORSO = [JOINT_INDEX[name] for name in ("right_shoulder", "left_shoulder", "left_hip", "right_hip")]
_ARMS = {JOINT_INDEX[f"{side}_{joint}"] for side in ("left", "right") for joint in ("elbow", "wrist")}
_HANDS = [JOINT_INDEX[name] for name in ("right_wrist", "left_wrist")]
# Where a picture does not show a bone: half its flesh's thickness, and the reach of a hand, as shares of the head's radius.
_USUAL_RADIUS = 0.45
_HAND_RADIUS = 0.8
# A bone's flesh, clothes and hair are not thicker than this, as a share of the head's radius: what is more is background.
_GREATEST_RADIUS = 1.6
# ... and the arms' no thicker than this: a cloak at a forearm is the trunk's.
_GREATEST_ARM = 0.9
_SEEN = 0.5
# masks of the frames before, at and after a frame
_SMOOTHING = (1.0, 2.0, 1.0)


@dataclass
class Silhouette:
    """
    How thick a person is around the bones, clothes and hair included.

    Args:
        radii (`dict`): pixels around each bone, by its joints (child, parent).
        head (`float`): pixels around the head's middle.
        head_radius (`float`): the head sphere's radius in the same picture.
        depth (`float`): the neck's distance in metres, in focal lengths of the picture; NaN where it is not known.
    """

    radii: dict[tuple[int, int], float]
    head: float
    head_radius: float
    depth: float

    @classmethod
    def measure(cls, mask: np.ndarray | None, motion: MotionSequence) -> "Silhouette":
        """
        From a picture of the person.

        Args:
            mask (`np.ndarray` of shape `(H, W)`, *optional*): in [0, 1]; usual proportions are taken without one.
            motion (`MotionSequence`): the pose, one frame in the picture's pixels.
        """
        center, head_radius = _head(motion, 0)
        step = max(1, round(max(motion.width, motion.height) / 192))
        rows, columns = np.nonzero(mask[::step, ::step] >= 0.5) if mask is not None else np.zeros((2, 0), dtype=int)
        pixels = np.stack([columns, rows], axis=1) * step + step / 2
        # Also bones that the picture does not show take their pixels: a chest is no shoulder.
        bones = list(_BONES) if motion.body is not None else []
        away = [_distance(pixels, *motion.body.keypoints[0, list(bone)].astype(np.float64)) for bone in bones]
        away = np.stack([np.linalg.norm(pixels - center, axis=1), *away])
        # The head's own pixels are nearest to its sphere, not to its middle.
        nearest = np.concatenate([away[:1] - head_radius, away[1:]]).argmin(axis=0)

        def thickness(part: int) -> float | None:
            own = away[part, nearest == part]
            if len(own) < 8:
                return None
            greatest = _GREATEST_ARM if part and bones[part - 1][0] in _ARMS else _GREATEST_RADIUS
            return min(float(np.percentile(own, 95)) + step / 2, greatest * head_radius)

        radii = {bone: thickness(1 + bones.index(bone)) for bone in _drawn_bones(motion, 0)}
        radii = {bone: radius for bone, radius in radii.items() if radius is not None}
        return cls(radii, max(thickness(0) or 0.0, 1.15 * head_radius), head_radius, _depth(motion, 0))

    def draw(self, motion: MotionSequence, index: int) -> np.ndarray:
        """
        The figure in frame `index` of a motion of the same person, at any distance.

        Returns:
            `np.ndarray` of shape `(H, W)`, bool, of the motion's picture; nothing where nobody is.
        """
        picture = Image.new("L", (motion.width, motion.height))
        draw = ImageDraw.Draw(picture)
        center, head_radius = _head(motion, index)
        depth = _depth(motion, index)
        scale = self.depth / depth if np.isfinite(self.depth / depth) else head_radius / self.head_radius

        def disc(middle: np.ndarray, radius: float) -> None:
            (x, y), radius = middle.tolist(), max(radius, 0.5)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)

        if motion.head is not None and motion.head.confidence[index] >= _SEEN:
            disc(center, self.head * scale)
        if motion.body is not None:
            points, seen = motion.body.keypoints[index], motion.body.confidence[index] >= _SEEN
            if seen[_TORSO].all():
                draw.polygon([tuple(point) for point in points[_TORSO].tolist()], fill=1)
            for bone in _drawn_bones(motion, index):
                radius = scale * self.radii.get(bone, _USUAL_RADIUS * self.head_radius)
                start, end = points[list(bone)]
                draw.line([*start.tolist(), *end.tolist()], fill=1, width=max(1, round(2 * radius)))
                disc(start, radius)
                disc(end, radius)
            for wrist in _HANDS:
                if seen[wrist]:
                    disc(points[wrist], _HAND_RADIUS * self.head_radius * scale)
        return np.asarray(picture, dtype=bool)


class CellMasks(FramesInMemory):
    """
    Masks in square cells, a bit each, as frames for a `VideoReader`: a minute of video is below a megabyte.

    Args:
        cells (`np.ndarray` of shape `(F, rows, columns)`): bool, True where the person goes.
        height, width (`int`): the size of the frames in pixels.
    """

    def __init__(self, cells: np.ndarray, height: int, width: int):
        self.shape = cells.shape
        self._bits = np.packbits(cells.reshape(len(cells), -1), axis=1)
        self.height, self.width, self.num_frames = height, width, len(cells)

    @property
    def cells(self) -> np.ndarray:
        """`(F, rows, columns)` bool."""
        count = self.shape[1] * self.shape[2]
        return np.unpackbits(self._bits, axis=1, count=count).astype(bool).reshape(self.shape)

    def _picture(self, index: int) -> np.ndarray:
        bits = np.unpackbits(self._bits[index], count=self.shape[1] * self.shape[2]).reshape(self.shape[1:])
        rows = np.arange(self.height) * self.shape[1] // self.height
        columns = np.arange(self.width) * self.shape[2] // self.width
        grey = 255 * bits[rows[:, None], columns[None]]
        return np.repeat(grey[..., None], 3, axis=2)


def replacement_masks(
    masks: Iterable[np.ndarray | None],
    motion: MotionSequence,
    silhouette: Silhouette,
    cell: int = 8,
    iterations: int = 3,
    k: int = 7,
    w_len: int = 10,
    h_len: int = 20,
) -> CellMasks:
    """
    Where a person is put into the driver's video in place of its own: its mask, smoothed over three frames and grown, together
    with the new person's figure, in blocks, as Wan2.2-Animate's own preparation makes them. (Its `w_len=1, h_len=1` marks
    the whole box around the person; with more blocks, more of the scene is kept.)

    Args:
        masks: for each frame of `motion` the driver's person, `(H, W)` in [0, 1] of the driver's own size, or None where it
            was not found, as `capture.segment` gives them.
        motion (`MotionSequence`): the new person's, in pixels of the video that is made.
        silhouette (`Silhouette`): the new person's.
        cell (`int`): side in pixels of the cells that are masked as a whole; the VAE's scale.
        iterations, k (`int`): how often the mask is dilated by a square of `k` pixels.
        w_len, h_len (`int`): blocks across and down the box around the person; one that has a bit of it is masked.

    Returns:
        `CellMasks` at the motion's size.

    Raises:
        ValueError: a number that is not positive (`iterations` may be 0), or another number of masks than of frames.
    """
    for name, value, least in (("iterations", iterations, 0), ("k", k, 1), ("w_len", w_len, 1), ("h_len", h_len, 1)):
        if value < least:
            raise ValueError(f"`{name}` is {value}, but has to be at least {least}.")
    height, width = motion.height, motion.width
    cells = np.zeros((motion.num_frames, -(-height // cell), -(-width // cell)), dtype=bool)
    count = 0
    for soft in _smoothed(masks, height, width):
        if count == motion.num_frames:
            raise ValueError(f"`masks` are more than the {motion.num_frames} frames of `motion`.")
        figure = silhouette.draw(motion, count)
        mask = figure if soft is None else _connected(soft >= 0.5, figure)
        if iterations:
            mask = maximum_filter(mask, 1 + iterations * (k - 1))
        mask = _blocks(mask | figure, w_len, h_len)
        padded = np.pad(mask, [(0, -height % cell), (0, -width % cell)])
        cells[count] = padded.reshape(cells.shape[1], cell, cells.shape[2], cell).any(axis=(1, 3))
        count += 1
    if count < motion.num_frames:
        raise ValueError(f"`masks` are {count}, but `motion` has {motion.num_frames} frames.")
    return CellMasks(cells, height, width)


def _smoothed(masks: Iterable[np.ndarray | None], height: int, width: int) -> Iterator[np.ndarray | None]:
    """Masks at the new size, each with its neighbours in time; None where none of the three is known."""

    def mean(window: list[np.ndarray | None]) -> np.ndarray | None:
        known = [(weight, mask) for weight, mask in zip(_SMOOTHING, window) if mask is not None]
        return sum(weight * mask for weight, mask in known) / sum(weight for weight, _ in known) if known else None

    before, now, is_first = None, None, True
    for mask in masks:
        after = None if mask is None else np.asarray(cover(Image.fromarray(mask), height, width))
        if not is_first:
            yield mean([before, now, after])
        before, now, is_first = now, after, False
    if not is_first:
        yield mean([before, now, None])


def _connected(mask: np.ndarray, figure: np.ndarray) -> np.ndarray:
    """The parts of a mask that touch a figure: another's arm or a coat on a chair do not."""
    parts, count = label(mask)
    kept = np.zeros(count + 1, dtype=bool)
    kept[np.unique(parts[figure])] = True
    kept[0] = False
    return kept[parts]


def _blocks(mask: np.ndarray, w_len: int, h_len: int) -> np.ndarray:
    """The blocks of a mask's box that have a bit of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return mask
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    down, across = max((bottom - top) // h_len, 1), max((right - left) // w_len, 1)
    blocked = np.zeros_like(mask)
    for y in range(top, bottom, down):
        for x in range(left, right, across):
            block = slice(y, min(y + down, bottom)), slice(x, min(x + across, right))
            blocked[block] = mask[block].any()
    return blocked


def _drawn_bones(motion: MotionSequence, index: int) -> Iterator[tuple[int, int]]:
    """The body's bones of a frame whose joints are both drawn."""
    if motion.body is not None:
        seen = motion.body.confidence[index] >= _SEEN
        yield from ((child, parent) for child, parent in _BONES if seen[child] and seen[parent])


def _head(motion: MotionSequence, index: int) -> tuple[np.ndarray, float]:
    """Middle and radius of the head in pixels, with or without a head track."""
    if motion.head is not None:
        return motion.head.center[index].astype(np.float64), max(float(motion.head.radius[index]), 1e-3)
    points = motion.body.keypoints[index].astype(np.float64)
    # a head's radius is about a third of the shoulders' breadth, and never less than a share of the torso's length
    shoulders, hips = points[_TORSO[:2]], points[_TORSO[2:]]
    torso = np.linalg.norm(shoulders.mean(axis=0) - hips.mean(axis=0))
    radius = max(np.linalg.norm(shoulders[0] - shoulders[1]) / 3, torso / 4.5, 1e-3)
    return points[JOINT_INDEX["nose"]], float(radius)


def _depth(motion: MotionSequence, index: int) -> float:
    """The neck's distance in metres over the focal length: bones of one length are as large in pixels as this is small."""
    if motion.body is None:
        return float("nan")
    return float(motion.body.joints[index, ROOT, 2]) / motion.focal_length


def _distance(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances `(N,)` of points to a line from `start` to `end`."""
    way = end - start
    along = ((points - start) @ way / max(way @ way, 1e-9)).clip(0, 1)
    return np.linalg.norm(points - start - along[:, None] * way, axis=1)
