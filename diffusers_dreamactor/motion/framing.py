"""Where a retargeted person stands: the path of the root through the reference's picture, and feet that do not slide."""

import numpy as np
from scipy.linalg import solveh_banded
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, uniform_filter1d

from .camera import back_project
from .sequence import MotionSequence, project
from .skeleton import JOINT_INDEX
from .visibility import without_isolated


# Metres; a capture's depth error must not put a joint behind the camera.
NEAREST_DEPTH = 0.05
# No part of the picture shows what is nearer than this share of the reference's distance.
NEAREST_SHARE = 0.15
# Contact of a foot with the ground, in units of the driver's torso length: the greatest speed (a second) and height.
CONTACT_SPEED = 0.8
CONTACT_HEIGHT = 0.25
# Below this speed a foot in contact is taken to stand still and the rest to be noise; faster, it slides or pivots on
# purpose.
STILL_SPEED = 0.1
# Weights of the foot correction's least-squares problem, relative to 1 for a foot in contact: a pull towards the
# uncorrected path (it reaches 1 / sqrt(PULL) = 1000 frames) and against acceleration.
PULL = 1e-6
SMOOTHNESS = 3e-2

CONTACT_JOINTS = [JOINT_INDEX[name] for name in ("right_ankle", "left_ankle", "right_toe", "left_toe")]
ANKLES = CONTACT_JOINTS[:2]
_HIPS = [JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"]]
_KNEES = [JOINT_INDEX["right_knee"], JOINT_INDEX["left_knee"]]
# The height of the hips of somebody who sits, at most, as a share of the leg's length.
_SITTING = 0.7


def seen_weights(confidence: np.ndarray, fps: float) -> np.ndarray:
    """
    How much each joint counts as seen, `(F, ...)` in [0, 1], from its confidence: 1 from a confidence of 0.5 on and in gaps of
    up to a second, fading slowly (over a second) before a joint comes and after it goes, as a person would move. Detections of
    less than a quarter of a second are none.
    """
    seen = without_isolated(confidence.reshape(len(confidence), -1) >= 0.5, fps).reshape(confidence.shape)
    if seen.all() or not seen.any():
        return seen.astype(np.float64)
    half = int(np.ceil(0.5 * fps))

    def widen(mask: np.ndarray) -> np.ndarray:
        return maximum_filter1d(mask, 2 * half + 1, axis=0, mode="constant")

    closed = ~widen(~widen(seen)) | seen
    weights = uniform_filter1d(widen(closed).astype(np.float64), 2 * half + 1, axis=0, mode="nearest")
    return np.clip(weights * weights * (3 - 2 * weights), 0.0, 1.0)


def typical_frame(anchor: np.ndarray, shown: np.ndarray, size: float) -> int:
    """
    The frame in which somebody stands where they usually do: nearest to the median place; of frames that are about as near,
    the earliest, so that who hardly moves starts there.

    Args:
        anchor (`(F, 3)`): a joint of the trunk; any unit.
        shown (`(F,)` bool): frames that count, one at least.
        size (`float`): the person's torso length in that unit.
    """
    frames = np.flatnonzero(shown)
    # Depth is the shakiest.
    away = np.linalg.norm((anchor[frames] - np.median(anchor[frames], axis=0)) * [1, 1, 0.5], axis=1)
    return int(frames[np.argmax(away <= away.min() + 0.15 * size)])


def kept_in_picture(
    head: np.ndarray, counted: np.ndarray, own: np.ndarray, margin: float, width: int, height: int, damped: bool
) -> np.ndarray:
    """
    What a camera operator does for a head that would leave the picture: the view moves once, for the whole clip, and if the
    head's way is longer than the picture, it is damped.

    Args:
        head (`(F, 2)`): the head's middle in pixels.
        counted (`(F,)` bool): frames in which the head should be in the picture.
        own (`(2,)`): where the reference's head is. That is always near enough to the middle.
        margin (`float`): pixels to keep from the picture's edges.
        width, height (`int`): of the picture.
        damped (`bool`): whether the way may be made shorter; feet on the ground would slide.

    Returns:
        `(F, 2)`: pixels by which to move the person; 0 where all is well.
    """
    shift = np.zeros_like(head)
    if not counted.any():
        return shift
    for axis, size in enumerate((width, height)):
        edge = min(margin, 0.25 * size)
        least, most = min(edge, own[axis]), max(size - edge, own[axis])
        low, high = np.percentile(head[counted, axis], [1, 99])
        gain = min(1.0, (most - least) / max(high - low, 1e-6)) if damped else 1.0
        middle = np.median(head[counted, axis])
        low, high = middle + gain * (low - middle), middle + gain * (high - middle)
        shift[:, axis] = (gain - 1) * (head[:, axis] - middle) + max(least - low, 0.0) - max(high - most, 0.0)
    return shift


def picture_path(
    anchor: np.ndarray, target: np.ndarray, first: int, ratio: float, motion: MotionSequence, reference: MotionSequence
) -> np.ndarray:
    """
    The driver's picture cut, scaled and moved so that in frame `first` (any frame) its anchor lies on the reference's, with the
    person in the same size.

    Sideways the anchor then moves by as many body sizes as it does in the driver's picture. In depth it moves by as many
    body sizes too, unless the reference is framed closer than the driver: there that could end behind the camera, and
    it comes nearer by the same factor instead.

    Args:
        anchor (`(F, 3)`): the driver's anchor (neck or head), metres in the frame of `motion`'s camera.
        target (`(3,)`): the reference's, in the frame of `reference`'s camera.
        ratio (`float`): size of the reference's body relative to the driver's.

    Returns:
        `(F, 3)` metres in the frame of `reference`'s camera.
    """
    start = anchor[first, 2]
    gain = min(1.0, target[2] / (ratio * start))
    depth = target[2] + gain * ratio * (anchor[:, 2] - start)
    depth = np.maximum(depth, NEAREST_SHARE * target[2])
    zoom = (reference.focal_length * ratio / target[2]) / (motion.focal_length / start)
    pixels = project(anchor, motion.focal_length, motion.width, motion.height)
    middle = project(target, reference.focal_length, reference.width, reference.height)
    pixels = middle + zoom * (pixels - pixels[first])
    return back_project(pixels, depth, reference.focal_length, reference.width, reference.height)


def world_path(anchor: np.ndarray, target: np.ndarray, first: int, ratio: float) -> np.ndarray:
    """The driver's path in space from frame `first` on, scaled by `ratio`, starting at `target`; arguments as above."""
    return target + ratio * (anchor - anchor[first])


def kept_path(anchor: np.ndarray, ratio: float, motion: MotionSequence, reference: MotionSequence) -> np.ndarray:
    """The driver's place and size in the picture; `motion` has the reference's picture size (see `resize_motion`)."""
    depth = ratio * anchor[:, 2] * reference.focal_length / motion.focal_length
    pixels = project(anchor, motion.focal_length, motion.width, motion.height)
    return back_project(pixels, depth, reference.focal_length, reference.width, reference.height)


def sits(joints: np.ndarray, weights: np.ndarray, lengths: np.ndarray, present: np.ndarray) -> bool:
    """
    Whether somebody sits, kneels or crouches for most of a clip: the legs are driven, and the hips are less than 70 % of a
    leg's length above the lower ankle.

    Args:
        joints (`(F, 62, 3)`): metres.
        weights (`(F, 62)`): how much each joint is driven, in [0, 1].
        lengths (`(F, 62)`): of the bones, metres.
        present (`(F,)` bool): frames that count.
    """
    driven = present & (weights[:, _KNEES].max(axis=1) >= 0.5)
    if not driven.any() or driven.sum() < 0.5 * present.sum():
        return False
    leg = lengths[0, _KNEES].mean() + lengths[0, ANKLES].mean()
    height = joints[driven][:, ANKLES, 1].max(axis=1) - joints[driven][:, _HIPS, 1].mean(axis=1)
    return bool(np.median(height) < _SITTING * leg)


def foot_contact(joints: np.ndarray, weights: np.ndarray, scale: float, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """
    How surely each of the `CONTACT_JOINTS` stands on the ground, and how far it slides there.

    A foot stands while it is slow and low. "Low" is measured along the person's mean direction from the head to the feet,
    so that a camera that looks down does no harm, against the lowest point of either foot within a second.

    Args:
        joints (`(F, 62, 3)`): the driver's, metres.
        weights (`(F, 62)`): how much each joint is seen, in [0, 1].
        scale (`float`): the driver's torso length in metres.

    Returns:
        Contact `(F, 4)` in [0, 1], and the slide from each frame to the next `(F - 1, 4, 3)` in metres.
    """
    feet = joints[:, CONTACT_JOINTS]
    smoothed = gaussian_filter1d(feet, max(0.5, 0.06 * fps), axis=0, mode="nearest")
    velocity = np.gradient(smoothed, axis=0) * fps if len(feet) > 1 else np.zeros_like(feet)
    speed = np.linalg.norm(velocity, axis=-1) / scale
    down = (joints[:, ANKLES].mean(axis=1) - joints[:, JOINT_INDEX["neck"]]).mean(axis=0)
    down /= max(np.linalg.norm(down), 1e-9)
    depth = feet @ down
    # Ankles are higher than toes even on the ground: each kind has its own ground.
    window = 2 * int(round(0.5 * fps)) + 1
    ground = np.stack([depth[:, :2].max(axis=1), depth[:, 2:].max(axis=1)], axis=1)
    padded = np.pad(ground, [(window // 2, window // 2), (0, 0)], mode="edge")
    ground = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).max(axis=-1)
    height = (ground[:, [0, 0, 1, 1]] - depth) / scale
    slow = np.clip(1.5 - speed / CONTACT_SPEED, 0.0, 1.0)
    low = np.clip(1.5 - height / CONTACT_HEIGHT, 0.0, 1.0)
    moving = np.clip(speed / STILL_SPEED - 1.0, 0.0, 1.0)
    slide = np.minimum(moving[1:], moving[:-1])[..., None] * np.diff(feet, axis=0)
    return slow * low * weights[:, CONTACT_JOINTS], slide


def foot_correction(feet: np.ndarray, contact: np.ndarray, slide: np.ndarray) -> np.ndarray:
    """
    A smooth movement of the whole person that keeps standing feet in place.

    The correction C minimises, summed over frames, `contact * |C[t+1] - C[t] + feet[t+1] - feet[t] - slide[t]|^2` for
    every contact point, plus `PULL |C|^2` and `SMOOTHNESS` times its squared second difference (a banded linear system).

    Args:
        feet (`(F, 4, 3)`): the retargeted contact joints.
        contact (`(F, 4)`), slide (`(F - 1, 4, 3)`): from `foot_contact`, the slide scaled to the reference.

    Returns:
        `(F, 3)`, zero in the first frame; to be added to every joint.
    """
    num_frames = len(feet)
    if num_frames < 3:
        return np.zeros((num_frames, 3))
    hold = np.minimum(contact[1:], contact[:-1]) ** 2
    weight = hold.sum(axis=1)
    excess = (hold[..., None] * (np.diff(feet, axis=0) - slide)).sum(axis=1)

    # Lower bands of the symmetric matrix: row k holds the entries (i + k, i).
    bands = np.zeros((3, num_frames))
    bands[0] = PULL
    bands[0, :-1] += weight
    bands[0, 1:] += weight
    bands[1, :-1] -= weight
    for offset, factor in enumerate((1.0, -2.0, 1.0)):
        bands[0, offset : num_frames - 2 + offset] += SMOOTHNESS * factor**2
    bands[1, : num_frames - 2] += -2.0 * SMOOTHNESS
    bands[1, 1 : num_frames - 1] += -2.0 * SMOOTHNESS
    bands[2, : num_frames - 2] += SMOOTHNESS
    right = np.zeros((num_frames, 3))
    right[:-1] += excess
    right[1:] -= excess
    correction = solveh_banded(bands, right, lower=True)
    return correction - correction[0]
