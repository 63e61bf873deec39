"""2D keypoints lifted to 3D joints, for sources that have no depth.

What a picture says about depth is how much shorter a bone looks than it is: with a bone of length L seen at scale s (pixels
per metre, weak perspective) as l pixels, its ends differ in depth by sqrt(L^2 - (l / s)^2) (C. J. Taylor, "Reconstruction
of articulated objects from point correspondences in a single uncalibrated image", 2000). Which end is nearer is not in the
picture; it is taken from how people are built: knees and elbows bend forwards, hands and feet reach forwards, and the
shoulder on the side away from the nose's is nearer. So a limb's foreshortening is kept, and with it the picture that a
retargeted limb gives; its true direction may be the mirrored one in depth. Real 3D sources are better.
"""

import numpy as np
from scipy.ndimage import median_filter, percentile_filter
from scipy.spatial.transform import Rotation

from .camera import back_project, solve_pnp
from .sequence import project
from .skeleton import AVERAGE_TORSO_LENGTH, BODY_PROPORTIONS, BONES, JOINT_INDEX, JOINT_NAMES, NUM_JOINTS


_NECK = JOINT_INDEX["neck"]
_NOSE = JOINT_INDEX["nose"]
_FACE = [JOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
# Nose, eyes and ears of an average head in the head's axes (see `HeadTrack`), metres.
_HEAD = np.array(
    [
        [0.0, 0.011, -0.075],
        [-0.031, -0.026, -0.035],
        [0.031, -0.026, -0.035],
        [-0.074, -0.007, 0.03],
        [0.074, -0.007, 0.03],
    ]
)
# Bones that tell the scale, by child joint: limbs, and across the trunk.
_RULERS = [JOINT_INDEX["nose"]] + [
    JOINT_INDEX[f"{side}_{name}"]
    for side in ("right", "left")
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
]
_TRUNK = [JOINT_INDEX[f"{side}_{name}"] for side in ("right", "left") for name in ("shoulder", "hip")]
# Which way a bone goes in depth, from parent to child, for a person who faces the camera: -1 to the camera.
_DEPTH_SIGNS = {"elbow": -1, "wrist": -1, "knee": -1, "ankle": 1, "toe": -1}
# A bone that looks this much of its length is taken to lie in the picture's plane: near full length, small errors of
# length would be large ones of depth.
_FLAT = 0.93


def _lengths(keypoints: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel length and visibility `(F, 62)` of the bone that ends in each joint."""
    length, seen = np.zeros(confidence.shape), np.zeros(confidence.shape, dtype=bool)
    for child, parent in BONES:
        length[:, child] = np.linalg.norm(keypoints[:, child] - keypoints[:, parent], axis=-1)
        seen[:, child] = np.minimum(confidence[:, child], confidence[:, parent]) >= 0.5
    return length, seen


def estimate_scale(keypoints: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """
    Pixels per metre `(F,)` of an adult of average proportions: the scale at which the bones that look longest just fit,
    since the others are foreshortened; steadied over half a second or so around each frame.

    Args:
        keypoints (`(F, 62, 2)`): pixels.
        confidence (`(F, 62)`): in [0, 1].
    """
    length, seen = _lengths(keypoints, confidence)
    metres = np.array([BODY_PROPORTIONS[name] for name in JOINT_NAMES]) * AVERAGE_TORSO_LENGTH
    scales = np.where(seen, length, np.nan)[:, _RULERS] / metres[_RULERS]
    # The head by the two of its points that are farthest apart: the ears, or the nose and an ear in profile.
    face = np.where(confidence[:, _FACE, None] >= 0.5, keypoints[:, _FACE], np.nan)
    apart = np.linalg.norm(face[:, :, None] - face[:, None], axis=-1).reshape(len(face), -1)
    head = np.nanmax(np.concatenate([apart, np.zeros((len(face), 1))], axis=1), axis=1) / (_HEAD[4, 0] - _HEAD[3, 0])
    scales = np.concatenate([scales, np.where(head > 0, head, np.nan)[:, None]], axis=1)
    known = np.flatnonzero(np.isfinite(scales).any(axis=1))
    if len(known) == 0:
        return np.full(len(keypoints), max(np.ptp(keypoints.reshape(-1, 2), axis=0).max(), 1.0) / 1.7)
    scale = np.nanpercentile(scales[known], 80, axis=1)
    scale = np.interp(np.arange(len(keypoints)), known, scale)
    return np.maximum(percentile_filter(scale, 70, size=min(15, len(scale)), mode="nearest"), 1e-3)


def estimate_heads(
    keypoints: np.ndarray, confidence: np.ndarray, focal_length: float, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Head rotations `(F, 3, 3)` as in `HeadTrack` from nose, eyes and ears, an average head fitted to them
    (perspective-n-point), and their confidence `(F,)`: 0 where fewer than three of the five are seen.
    """
    seen = confidence[:, _FACE] >= 0.5
    known = seen.sum(axis=1) >= 3
    weights = np.where(seen, confidence[:, _FACE], 1e-4)[known]
    rotation = np.tile(np.eye(3), (len(keypoints), 1, 1))
    if known.any():
        points = keypoints[known][:, _FACE]
        expected = focal_length / estimate_scale(keypoints, confidence)[known]
        best = np.full(len(points), np.inf)
        fitted = rotation[known]
        # The fit finds the way within some 60 degrees, so it starts from several sides.
        for yaw in (0, -70, 70, -140, 140):
            start = Rotation.from_euler("y", yaw, degrees=True).as_matrix()
            template = np.broadcast_to(_HEAD @ start.T, (len(points), 5, 3))
            turn, place = solve_pnp(template, points, weights, focal_length, width, height)
            placed = np.einsum("fij,fnj->fni", turn, template) + place[:, None]
            error = np.linalg.norm(project(placed, focal_length, width, height) - points, axis=-1)
            error = np.sqrt((weights * error**2).sum(axis=1) / weights.sum(axis=1)) * place[:, 2] / focal_length
            # Three points fit several poses; the head's size, and that heads are mostly turned less, tell them apart.
            cost = error / 0.01 + np.abs(np.log(np.maximum(place[:, 2], 1e-3) / expected)) / 0.2
            total = turn @ start
            cost += 0.5 * (1 - total[:, 2, 2])
            better = cost < best
            best, fitted = np.where(better, cost, best), np.where(better[:, None, None], total, fitted)
        rotation[known] = fitted
    mean = np.where(seen, confidence[:, _FACE], 0.0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    return rotation, np.where(known, mean, 0.0)


def lift_keypoints(
    keypoints: np.ndarray,
    confidence: np.ndarray,
    width: int,
    height: int,
    focal_length: float,
    head_rotation: np.ndarray,
) -> np.ndarray:
    """
    Joints in the camera frame, metres, whose projection is `keypoints`; see this module for what is known of their depth.

    Args:
        keypoints (`(F, 62, 2)`): pixels, finite also where nothing was seen.
        confidence (`(F, 62)`): in [0, 1].
        width, height, focal_length: the camera.
        head_rotation (`(F, 3, 3)`): as `estimate_heads` gives it.

    Returns:
        `(F, 62, 3)` float64.
    """
    keypoints, confidence = np.asarray(keypoints, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    scale = estimate_scale(keypoints, confidence)
    length, seen = _lengths(keypoints, confidence)
    length = length / scale[:, None]
    metres = np.array([BODY_PROPORTIONS[name] for name in JOINT_NAMES]) * AVERAGE_TORSO_LENGTH
    for joint in range(NUM_JOINTS):
        if not seen[:, joint].any():
            continue
        longest = np.percentile(length[seen[:, joint], joint], 95)
        if joint in _TRUNK:
            # People face the camera at some time; one who seems to stand askew all the time has narrow shoulders.
            metres[joint] = max(longest, 0.5 * metres[joint])
        else:
            # A bone is no shorter than it has been seen.
            metres[joint] = max(metres[joint], longest)
    share = np.minimum(length / np.maximum(_FLAT * metres, 1e-9), 1.0)
    away = _FLAT * metres * np.sqrt(1 - share**2)

    left, right = keypoints[:, JOINT_INDEX["left_shoulder"]], keypoints[:, JOINT_INDEX["right_shoulder"]]
    facing = np.where(right[:, 0] <= left[:, 0], 1.0, -1.0)
    # The nose points to where the body turns, and the shoulder that comes forward is the other one.
    turned = np.sign(keypoints[:, _NOSE, 0] - keypoints[:, _NECK, 0])
    turned = median_filter(turned, size=min(9, len(turned)), mode="nearest")
    depth = np.zeros(confidence.shape)
    for child, parent in BONES:
        name = JOINT_NAMES[child]
        part = name.split("_")[-1]
        if child in _FACE:
            continue
        if part in ("shoulder", "hip"):
            # The right one is nearer when the body turns to the right of the picture; hips only turn, they do not bend.
            sign = turned if name.startswith("left") else -turned
            across = np.abs(keypoints[:, child, 0] - keypoints[:, parent, 0]) / scale
            width_metres = metres[JOINT_INDEX["left_shoulder"]] if part == "shoulder" else 0.1 * metres[child] / 0.5
            step = _FLAT * width_metres * np.sqrt(1 - np.minimum(across / (_FLAT * width_metres), 1.0) ** 2)
        elif "_hand_" in name:
            sign, step = -facing, away[:, child]
        else:
            sign, step = _DEPTH_SIGNS[part] * facing, away[:, child]
        depth[:, child] = depth[:, parent] + sign * np.where(seen[:, child], step, 0.0)
    # The head's points lie as the head is turned, and the head is above the neck, a little in front of it.
    turned_head = np.einsum("fij,nj->fni", head_rotation, _HEAD - _HEAD[3:].mean(axis=0))[..., 2]
    depth[:, _FACE] = turned_head - 0.02 * facing[:, None]
    distance = focal_length / scale
    return back_project(
        keypoints, np.maximum(distance[:, None] + depth, 0.2 * distance[:, None]), focal_length, width, height
    )
