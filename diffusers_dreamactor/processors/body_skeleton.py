"""`BodySkeletonProcessor`: the body and the hands of a `MotionSequence` as pictures of coloured lines."""

import colorsys

import numpy as np
from diffusers.configuration_utils import register_to_config

from ..motion.sequence import MotionSequence
from ..motion.skeleton import BODY, BODY_JOINT_NAMES, JOINT_INDEX, LEFT_HAND, RIGHT_HAND
from .processor_mixin import ProcessorMixin


SKELETON_STYLES = ("dreamactor", "wan")

# Edges of a hand: a chain from the wrist along each finger, from the thumb to the little finger.
HAND_EDGES = tuple((0 if i == 0 else 4 * finger + i, 4 * finger + i + 1) for finger in range(5) for i in range(4))

# Wan-Animate's pose picture: limbs as joint indices in drawing order; the i-th colour for the i-th limb and joint.
WAN_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19),
)  # fmt: skip
WAN_COLORS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85), (200, 200, 0), (100, 100, 0),
)  # fmt: skip
WAN_HAND_COLORS = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(edge / 20, 1.0, 1.0)) for edge in range(20)
)
WAN_HAND_JOINT_COLOR = (0, 0, 255)

# Our own style: warm colours on the person's left, cold ones on the right, so that a back view differs from a front view.
# (parent, child): (colour, width as a share of a limb's).
_BODY_LIMBS = {
    ("neck", "left_shoulder"): ((255, 80, 0), 1.0),
    ("left_shoulder", "left_elbow"): ((255, 140, 0), 1.0),
    ("left_elbow", "left_wrist"): ((255, 215, 0), 1.0),
    ("neck", "left_hip"): ((215, 0, 40), 1.0),
    ("left_hip", "left_knee"): ((255, 0, 130), 1.0),
    ("left_knee", "left_ankle"): ((255, 90, 230), 1.0),
    ("left_ankle", "left_toe"): ((160, 60, 160), 1.0),
    ("neck", "right_shoulder"): ((0, 90, 255), 1.0),
    ("right_shoulder", "right_elbow"): ((0, 165, 255), 1.0),
    ("right_elbow", "right_wrist"): ((0, 240, 255), 1.0),
    ("neck", "right_hip"): ((80, 60, 220), 1.0),
    ("right_hip", "right_knee"): ((0, 150, 90), 1.0),
    ("right_knee", "right_ankle"): ((0, 255, 100), 1.0),
    ("right_ankle", "right_toe"): ((150, 190, 0), 1.0),
    ("neck", "nose"): ((235, 235, 235), 1.0),
    ("nose", "left_eye"): ((255, 190, 150), 0.5),
    ("left_eye", "left_ear"): ((255, 150, 110), 0.5),
    ("nose", "right_eye"): ((150, 200, 255), 0.5),
    ("right_eye", "right_ear"): ((110, 160, 255), 0.5),
}
_FINGER_COLORS = ((255, 60, 60), (255, 230, 60), (60, 230, 60), (60, 220, 255), (230, 80, 255))
_FINGER_WIDTH = 0.45


def _dreamactor_limbs() -> list[tuple[int, int, tuple[int, int, int], float]]:
    limbs = [(JOINT_INDEX[a], JOINT_INDEX[b], color, width) for (a, b), (color, width) in _BODY_LIMBS.items()]
    for hand, paleness in ((LEFT_HAND, 0.0), (RIGHT_HAND, 0.45)):
        for edge, (a, b) in enumerate(HAND_EDGES):
            color = tuple(round(c + paleness * (255 - c)) for c in _FINGER_COLORS[edge // 4])
            limbs.append((hand.start + a, hand.start + b, color, _FINGER_WIDTH))
    return limbs


DREAMACTOR_LIMBS = tuple(_dreamactor_limbs())  # (parent, child, colour, relative width)


def default_stick_width(style: str, height: int, width: int) -> float:
    """Stick width in pixels for a picture size: Wan's integer rule, or 2.2 % of the shorter side (ours)."""
    if style == "wan":
        return max(int(min(height, width) / 200) - 1, 1)
    return 0.022 * min(height, width)


class BodySkeletonProcessor(ProcessorMixin):
    r"""
    Draws body and hands on black.

    Style `"dreamactor"` is what our models are trained on (paper section 3.1, "3D body skeletons"): anti-aliased capsules,
    the nearer limb over the farther one by the joints' depth, a colour for every limb and finger, widths in proportion to
    the picture. Style `"wan"` is the picture that Wan2.2-Animate weights were trained on.

    Args:
        style (`str`): `"dreamactor"` or `"wan"`.
        stick_width (`float`, *optional*): pixels. `"dreamactor"`: a limb's full width; `"wan"`: its half width, as there.
            From the picture's size when `None`.
        draw_hands (`bool`): draw the fingers too.
        threshold (`float`): joints with less confidence are not drawn, nor limbs that end in one.

    Raises:
        ValueError: unknown style, or a stick width that is not positive.
    """

    @register_to_config
    def __init__(
        self,
        style: str = "dreamactor",
        stick_width: float | None = None,
        draw_hands: bool = True,
        threshold: float = 0.5,
    ):
        if style not in SKELETON_STYLES:
            raise ValueError(f"`style` is {style!r}, but it has to be one of {', '.join(SKELETON_STYLES)}.")
        if stick_width is not None and not stick_width > 0:
            raise ValueError(f"`stick_width` is {stick_width}, but it has to be a positive number of pixels or None.")

    def __call__(self, motion: MotionSequence, height: int, width: int) -> np.ndarray:
        """
        Args:
            motion (`MotionSequence`): keypoints in pixels of the picture that is drawn; 3D joints where depth is known.
            height, width (`int`): size of the pictures.

        Returns:
            `np.ndarray` of shape `(F, 3, height, width)`, uint8 RGB; all black where the motion has no body.
        """
        pictures = np.zeros((len(motion), 3, height, width), dtype=np.uint8)
        if motion.body is None:
            return pictures
        keypoints = np.asarray(motion.body.keypoints, dtype=np.float32)
        joints = np.asarray(motion.body.joints, dtype=np.float32)
        visible = np.asarray(motion.body.confidence) >= self.config.threshold
        visible &= np.isfinite(keypoints).all(axis=-1)
        # Far outside, where only a limb's direction matters; keeps the wan style's integer lines short.
        keypoints = keypoints.clip(-1e5, 1e5)
        if not self.config.draw_hands:
            visible[:, BODY.stop :] = False
        stick_width = self.config.stick_width or default_stick_width(self.config.style, height, width)
        for index in range(len(motion)):
            if self.config.style == "wan":
                picture = self._draw_wan(keypoints[index], visible[index], height, width, stick_width)
            else:
                depth = joints[index, :, 2]
                picture = self._draw_dreamactor(keypoints[index], depth, visible[index], height, width, stick_width)
            pictures[index] = picture.transpose(2, 0, 1)
        return pictures

    def _draw_dreamactor(
        self,
        keypoints: np.ndarray,
        depth: np.ndarray,
        visible: np.ndarray,
        height: int,
        width: int,
        stick_width: float,
    ) -> np.ndarray:
        canvas = np.zeros((height, width, 3), dtype=np.float32)
        limbs = [limb for limb in DREAMACTOR_LIMBS if visible[limb[0]] and visible[limb[1]]]
        if np.isfinite(depth[visible]).all():
            limbs.sort(key=lambda limb: -(depth[limb[0]] + depth[limb[1]]))
        # Fingers of a hand that is small in the picture would run together into a blot: no wider than a tenth of the hand.
        finger_width = {}
        for hand in (LEFT_HAND, RIGHT_HAND):
            palm = np.linalg.norm(keypoints[hand][[5, 9, 13, 17]] - keypoints[hand.start], axis=-1).max()
            finger_width[hand.start] = np.clip(0.2 * palm, 1.0, _FINGER_WIDTH * stick_width)
        for first, second, color, relative_width in limbs:
            if first < BODY.stop:
                limb_width = max(relative_width * stick_width, 1.0)
            else:
                limb_width = finger_width[LEFT_HAND.start if first < LEFT_HAND.stop else RIGHT_HAND.start]
            _blend_capsule(canvas, keypoints[first], keypoints[second], limb_width / 2, color)
        return np.rint(canvas).astype(np.uint8)

    def _draw_wan(
        self, keypoints: np.ndarray, visible: np.ndarray, height: int, width: int, stick_width: float
    ) -> np.ndarray:
        stick_width = int(stick_width)
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        for (first, second), color in zip(WAN_LIMBS, WAN_COLORS):
            if visible[first] and visible[second]:
                polygon = _ellipse_polygon(keypoints[first], keypoints[second], stick_width)
                _fill_convex(picture, polygon, tuple(int(0.6 * channel) for channel in color))
        for joint in range(len(BODY_JOINT_NAMES)):
            if visible[joint]:
                _fill_disc(picture, keypoints[joint], stick_width, WAN_COLORS[joint])
        hand_width = max(stick_width // 2, 1)
        for hand in (LEFT_HAND, RIGHT_HAND):
            for (first, second), color in zip(HAND_EDGES, WAN_HAND_COLORS):
                if visible[hand.start + first] and visible[hand.start + second]:
                    start, end = keypoints[hand.start + first], keypoints[hand.start + second]
                    _draw_line(picture, start, end, hand_width, color)
            for joint in range(hand.start, hand.stop):
                if visible[joint]:
                    _fill_disc(picture, keypoints[joint], hand_width, WAN_HAND_JOINT_COLOR)
        return picture


def _blend_capsule(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, color: tuple[int, int, int]
) -> None:
    """Lays the set of points within `radius` of a line segment over a float `(H, W, 3)` canvas, anti-aliased."""
    height, width = canvas.shape[:2]
    margin = radius + 1
    left, top = np.floor(np.minimum(start, end) - margin).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(np.maximum(start, end) + margin).clip(0, (width, height)).astype(int)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - start[0]  # pixel i covers [i, i + 1)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - start[1]
    along_x, along_y = end - start
    share = (x * along_x + y * along_y) / max(along_x**2 + along_y**2, 1e-6)
    share = share.clip(0, 1)
    distance = np.sqrt((x - share * along_x) ** 2 + (y - share * along_y) ** 2)
    coverage = (radius + 0.5 - distance).clip(0, 1)[..., None]
    region = canvas[top:bottom, left:right]
    region += coverage * (np.asarray(color, dtype=np.float32) - region)


def _ellipse_polygon(start: np.ndarray, end: np.ndarray, half_width: int) -> np.ndarray:
    """The integer polygon of the ellipse between two points, one vertex a degree, as OpenPose's limbs are drawn."""
    center = ((start + end) / 2).astype(int)
    half_length = int(np.linalg.norm(end - start) / 2)
    rotation = np.radians(int(np.degrees(np.arctan2(start[1] - end[1], start[0] - end[0]))))
    angle = np.radians(np.arange(361))
    x, y = half_length * np.cos(angle), half_width * np.sin(angle)
    vertices = np.stack(
        [x * np.cos(rotation) - y * np.sin(rotation), x * np.sin(rotation) + y * np.cos(rotation)], axis=-1
    )
    vertices = np.rint(center + vertices).astype(int)
    return vertices[np.append(True, (np.diff(vertices, axis=0) != 0).any(axis=-1))]


def _fill_pixels(picture: np.ndarray, x: np.ndarray, y: np.ndarray, color: tuple[int, int, int]) -> None:
    inside = (x >= 0) & (y >= 0) & (x < picture.shape[1]) & (y < picture.shape[0])
    picture[y[inside], x[inside]] = color


def _fill_disc(picture: np.ndarray, center: np.ndarray, radius: int, color: tuple[int, int, int]) -> None:
    offset = np.arange(-radius, radius + 1)
    x, y = np.meshgrid(offset, offset)
    disc = x**2 + y**2 <= radius**2
    _fill_pixels(picture, int(center[0]) + x[disc], int(center[1]) + y[disc], color)


def _line_pixels(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of Bresenham's lines between integer points `(N, 2)`, each from its left end, as OpenCV draws them."""
    swap = (end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(swap, end, start), np.where(swap, start, end)
    run, rise = end[:, 0] - start[:, 0], end[:, 1] - start[:, 1]
    major, minor = np.maximum(run, abs(rise)), np.minimum(run, abs(rise))
    line = np.repeat(np.arange(len(start)), major + 1)
    step = np.arange(len(line)) - (np.cumsum(major + 1) - major - 1)[line]
    side_step = (2 * minor[line] * step + major[line] - 1) // np.maximum(2 * major[line], 1)
    flat = (run >= abs(rise))[line]
    x = start[line, 0] + np.where(flat, step, side_step)
    y = start[line, 1] + np.sign(rise)[line] * np.where(flat, side_step, step)
    return x, y


def _fill_convex(picture: np.ndarray, polygon: np.ndarray, color: tuple[int, int, int]) -> None:
    """
    Fills a convex polygon of integer vertices `(N, 2)`, the first of them repeated at the end, to the pixel as OpenCV does:
    its outline, and each row between its edges, which are followed downwards in steps of 1 / 65536 and rounded.
    """
    x, y = polygon.T
    if len(polygon) > 1:
        x, y = _line_pixels(polygon[:-1], polygon[1:])
        downwards = (polygon[1:, 1] >= polygon[:-1, 1])[:, None]
        upper = np.where(downwards, polygon[:-1], polygon[1:])
        run, rows = np.where(downwards, polygon[1:], polygon[:-1]).T - upper.T
        slope = np.trunc(((run << 17) + rows) / np.maximum(2 * rows, 1)).astype(int)
        edge = np.repeat(np.arange(len(rows)), rows)
        step = np.arange(len(edge)) - (np.cumsum(rows) - rows)[edge]
        x = np.append(x, ((upper[edge, 0] << 16) + step * slope[edge] + (1 << 15)) >> 16)
        y = np.append(y, upper[edge, 1] + step)
    top, bottom = max(y.min(), 0), min(y.max() + 1, picture.shape[0])
    if top >= bottom:
        return
    left, right = np.full(bottom - top, picture.shape[1]), np.full(bottom - top, -1)
    inside = (y >= top) & (y < bottom)
    np.minimum.at(left, y[inside] - top, x[inside])
    np.maximum.at(right, y[inside] - top, x[inside])
    first, last = max(left.min(), 0), min(right.max() + 1, picture.shape[1])
    if first >= last:
        return
    column = np.arange(first, last)
    picture[top:bottom, first:last][(column >= left[:, None]) & (column <= right[:, None])] = color


def _draw_line(
    picture: np.ndarray, start: np.ndarray, end: np.ndarray, line_width: int, color: tuple[int, int, int]
) -> None:
    """A line between pixels: Bresenham's for one pixel of width; wider ones with round ends."""
    start, end = start.astype(int), end.astype(int)
    if line_width == 1:
        _fill_pixels(picture, *_line_pixels(start[None], end[None]), color)
        return
    along_x, along_y = end - start
    reach = line_width // 2 + 1
    low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach + 1
    low, high = low.clip(0, picture.shape[1::-1]), high.clip(0, picture.shape[1::-1])
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
    share = ((x - start[0]) * along_x + (y - start[1]) * along_y) / max(along_x**2 + along_y**2, 1)
    share = share.clip(0, 1)
    line = np.hypot(x - start[0] - share * along_x, y - start[1] - share * along_y) <= line_width / 2 + 0.35
    _fill_pixels(picture, x[line], y[line], color)
