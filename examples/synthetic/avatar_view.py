"""Where the camera of a clip stands, and which part of the picture a face crop shows. Needs NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


FPS = 12
SIZES = {"portrait": (64, 64), "half_body": (64, 64), "full_body": (96, 64)}
"""Height and width of a clip."""
FACE_SIZE = 64
SUPERSAMPLING = 2
HEAD_RADIUS = 0.13
"""Half the height of the head, metres: the radius of the head sphere."""
HEAD_AXES = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float32)
"""The head bone's axes in the world (z up, face to -y) to those of `HeadTrack` (y down, z to the back)."""
MEAN_HEAD_HEIGHT = 0.657
"""Height of the head's joint above the hips of the mean person, metres."""
CROP_SCALE, CROP_SHIFT = 1.47, 0.26
"""Face crops show the whole head. A capture's face boxes reach from the brows to the chin: this is what
`FaceMotionProcessor` has to make of them (`scale` and `shift`), measured with MediaPipe on 24 rendered portraits."""
FACE_SIDE = 0.27 / CROP_SCALE
"""Side of the face box, metres."""
JOINT_BONES = {
    "shoulder": "upperarm01",
    "elbow": "lowerarm01",
    "wrist": "wrist",
    "hip": "upperleg01",
    "knee": "lowerleg01",
    "ankle": "foot",
    "toe": "toe2-2",
    "eye": "eye",
}
"""The bone at whose head a body joint lies, on either side."""
FOCAL_LENGTHS = (1.1, 1.6)
"""In diagonals of the picture."""
VIEWS = {
    # how many picture heights a metre is; which height of the body, in metres above the hips, is in the middle
    "portrait": ((2.4, 3.2), (0.65, 0.70)),
    "half_body": ((1.0, 1.3), (0.42, 0.5)),
    "full_body": ((0.44, 0.5), (-0.14, -0.04)),
}
DRIFT = 0.1
"""How far the person may be beside the middle, in picture widths."""
YAW_DEGREES = 12


@dataclass
class Camera:
    """
    A pinhole in front of the person: `distance` metres away, at height `z` and shifted by `x`, turned round the person
    by `yaw` radians; the focal length is in pixels, the principal point in the middle of a `height` x `width` picture.
    """

    height: int
    width: int
    focal_length: float
    distance: float
    x: float
    z: float
    yaw: float = 0.0

    @property
    def rotation(self) -> np.ndarray:
        """World to camera `(3, 3)`: the camera's x is to the right, its y down, its z into the picture."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float32)
        return np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float32) @ turn

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points `(..., 3)` in camera axes, metres."""
        offset = np.array([-self.x, self.z, self.distance], dtype=np.float32)
        return points @ self.rotation.T + offset

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera points `(..., 3)` -> pixels and depth `(..., 3)`."""
        depth = np.maximum(points[..., 2:], 0.05)
        pixels = points[..., :2] * self.focal_length / depth + np.array([self.width / 2, self.height / 2])
        return np.concatenate([pixels, points[..., 2:]], axis=-1).astype(np.float32)

    def framed_for(self, avatar) -> Camera:
        """The same picture of a taller or smaller person: camera height and distance follow the person's."""
        ratio = float(avatar.bones[avatar.body.bone_index["head"], 2] / MEAN_HEAD_HEIGHT)
        return replace(self, z=self.z * ratio, distance=self.distance * ratio)

    @classmethod
    def random(cls, random: np.random.Generator, scale: str) -> Camera:
        """A camera that shows a person at one of `avatar_motion.SCALES`."""
        height, width = SIZES[scale]
        focal_length = np.hypot(height, width) * random.uniform(*FOCAL_LENGTHS)
        drawn = {name: (random.uniform(*near), random.uniform(*middle)) for name, (near, middle) in VIEWS.items()}
        per_metre, middle = drawn[scale][0] * height, drawn[scale][1]
        drift = DRIFT * width / per_metre
        yaw = np.deg2rad(random.uniform(-YAW_DEGREES, YAW_DEGREES))
        return cls(
            height,
            width,
            float(focal_length),
            float(focal_length / per_metre),
            float(random.uniform(-drift, drift)),
            float(middle),
            float(yaw),
        )


def face_edges(center, rotation, scale) -> tuple:
    """
    Face boxes as a capture finds them: from the brows to the chin. Arithmetic alone, for NumPy and PyTorch.

    Args:
        center (array of shape `(F, 2)`): the head's middle in pixels.
        rotation (array of shape `(F, 3, 3)`): of the head, as `HeadTrack.rotation`.
        scale (array of shape `(F,)`): pixels of a metre where the head is.

    Returns:
        `x0, y0, x1, y1` in pixels, each `(F,)`.
    """
    half = FACE_SIDE / 2 * scale
    # the face is in front of the head's middle, and its box's middle below the brows
    x = center[:, 0] - 0.175 * CROP_SCALE * half * rotation[:, 0, 2]
    y = center[:, 1] - 0.175 * CROP_SCALE * half * rotation[:, 1, 2] + 2 * CROP_SHIFT * half
    return x - half, y - half, x + half, y + half


def crop_boxes(boxes: np.ndarray) -> np.ndarray:
    """The squares `(F, 4)` to cut out around face boxes `(F, 4)`."""
    side = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - side * [0, CROP_SHIFT]
    return np.concatenate([middle - CROP_SCALE / 2 * side, middle + CROP_SCALE / 2 * side], axis=1)


def jitter_boxes(random: np.random.Generator, boxes: np.ndarray, smoothing: int = 5) -> np.ndarray:
    """Boxes `(F, 4)` smoothed over some frames, shifted and scaled a little, as those of a real detector are."""
    kernel = np.ones(smoothing) / smoothing
    padded = np.pad(boxes, ((smoothing // 2, smoothing // 2), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(padded[:, i], kernel, mode="valid") for i in range(4)], axis=1)
    middle, half = (smooth[:, :2] + smooth[:, 2:]) / 2, (smooth[:, 2:] - smooth[:, :2]) / 2
    middle = middle + half * random.uniform(-0.1, 0.1, 2)
    half = half * random.uniform(0.85, 1.15)
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)


def scale_of(index: int, portraits: float, half_bodies: float) -> str:
    """Which camera scale the motion with this index has: shares are kept in every run of a few motions."""
    position = (index * 0.6180339887) % 1
    if position < portraits:
        return "portrait"
    return "half_body" if position < portraits + half_bodies else "full_body"
