"""3D joints that some other system made, with or without a camera, as a `MotionSequence`."""

import numpy as np

from ..camera import best_rotations, default_focal_length
from ..sequence import BodyTrack, HeadTrack, MotionSequence, project
from ..skeleton import JOINT_INDEX


# Nose, eyes and ears of an average head in the axes of `HeadTrack` (x to the person's left, y down, z to the back),
# metres: MediaPipe's canonical face, as `head_pose` has it.
FACE_JOINTS = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")
FACE_TEMPLATE = np.array(
    [
        [0.0, 0.011, -0.075],
        [-0.031, -0.026, -0.035],
        [0.031, -0.026, -0.035],
        [-0.074, -0.007, 0.03],
        [0.074, -0.007, 0.03],
    ]
)
# The ball that holds the skull, in the same frame.
BALL_CENTER = np.array([0.0, -0.015, 0.03])
BALL_RADIUS = 0.11

_FACE_INDICES = [JOINT_INDEX[name] for name in FACE_JOINTS]
_ACROSS = [
    (JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]),
    (JOINT_INDEX["left_hip"], JOINT_INDEX["right_hip"]),
]


def head_rotation_from_joints(joints: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """
    The best rotation of an average head onto nose, eyes and ears.

    Args:
        joints (`(F, 62, 3)`): camera frame, metres.
        confidence (`(F, 62)`): the weights.

    Returns:
        `(F, 3, 3)` as in `HeadTrack`.
    """
    points = np.asarray(joints, dtype=np.float64)[:, _FACE_INDICES]
    weights = np.asarray(confidence, dtype=np.float64)[:, _FACE_INDICES] + 1e-6
    return best_rotations(FACE_TEMPLATE, points, weights)


def motion_from_joints(
    joints: np.ndarray,
    confidence: np.ndarray,
    fps: float,
    width: int,
    height: int,
    focal_length: float,
    head_rotation: np.ndarray | None = None,
) -> MotionSequence:
    """
    A motion with a body and a head track from joints in the camera frame; there is no face track, since no picture shows
    one.

    Args:
        joints (`(F, 62, 3)`): metres; x right, y down, z away from the camera.
        confidence (`(F, 62)`): in [0, 1].
        fps, width, height, focal_length: as in `MotionSequence`.
        head_rotation (`(F, 3, 3)`, *optional*): where the source knows it; else from nose, eyes and ears.

    Raises:
        ValueError: a joint is not finite, or the shapes do not fit.
    """
    joints, confidence = np.asarray(joints, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    body = BodyTrack(joints, project(joints, focal_length, width, height), confidence)
    motion = MotionSequence(fps, width, height, focal_length, body=body, people=np.zeros(len(joints)))
    motion.validate()
    head_confidence = confidence[:, _FACE_INDICES].min(axis=1)
    if not (head_confidence > 0).any():
        return motion
    if head_rotation is None:
        head_rotation = head_rotation_from_joints(joints, confidence)
    points = joints[:, _FACE_INDICES]
    spread = np.linalg.norm(points - points.mean(axis=1, keepdims=True), axis=-1).mean(axis=1)
    average = np.linalg.norm(FACE_TEMPLATE - FACE_TEMPLATE.mean(axis=0), axis=-1).mean()
    # One head has one size: the median over the clip.
    scale = float(np.median(spread[head_confidence > 0]) / average)
    ball = points.mean(axis=1) + scale * (head_rotation @ (BALL_CENTER - FACE_TEMPLATE.mean(axis=0)))
    radius = scale * BALL_RADIUS * focal_length / np.maximum(ball[:, 2], 1e-3)
    motion.head = HeadTrack(head_rotation, project(ball, focal_length, width, height), radius, head_confidence)
    motion.validate()
    return motion


def add_face_joints(
    joints: np.ndarray, head_rotation: np.ndarray, origin: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """
    Nose, eyes and ears of an average head for a skeleton that has none, in place of those in `joints`.

    Args:
        joints (`(F, 62, 3)`): any metric frame.
        head_rotation (`(F, 3, 3)`): the head's axes (x to the person's left, y down, z to the back) in that frame.
        origin (`(F, 3)`): the point between the ears.
        scale (`float`): size of the head; 1 is an adult's.
    """
    joints = joints.copy()
    template = FACE_TEMPLATE - FACE_TEMPLATE[3:].mean(axis=0)
    joints[:, _FACE_INDICES] = origin[:, None] + scale * np.einsum("fij,nj->fni", head_rotation, template)
    return joints


def place_camera(
    joints: np.ndarray,
    up: np.ndarray,
    width: int,
    height: int,
    focal_length: float | None = None,
    yaw: float = 0.0,
    margin: float = 0.08,
) -> tuple[np.ndarray, np.ndarray, float]:
    """
    A level camera for joints that were recorded without one: in front of the person as it stands in the first frame, so
    near that the whole clip just fits.

    Args:
        joints (`(F, 62, 3)`): metres, in a world frame with any (right-handed) axes.
        up (`(3,)`): the world's direction up.
        width, height (`int`): pixels.
        focal_length (`float`, *optional*): pixels; default `camera.default_focal_length`.
        yaw (`float`): degrees by which the camera goes round the person, towards its left.
        margin (`float`): share of the picture left free on each side.

    Returns:
        Rotation `(3, 3)` and translation `(3,)` from the world to the camera frame, `x_camera = rotation @ x + translation`,
        and the focal length.
    """
    joints = np.asarray(joints, dtype=np.float64)
    focal_length = focal_length or default_focal_length(width, height)
    up = np.asarray(up, dtype=np.float64) / np.linalg.norm(up)
    across = sum(joints[0, left] - joints[0, right] for left, right in _ACROSS)
    across = across - up * (across @ up)
    if np.linalg.norm(across) < 1e-6:
        # Lying on the side, no direction is the front: any level one will do.
        across = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    right = across / np.linalg.norm(across)
    away = np.cross(right, -up)
    turn = np.radians(yaw)
    right, away = np.cos(turn) * right + np.sin(turn) * away, np.cos(turn) * away - np.sin(turn) * right
    rotation = np.stack([right, -up, away])
    points = joints.reshape(-1, 3) @ rotation.T
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    middle = (joints.reshape(-1, 3) @ rotation.T - points)[0]
    room = focal_length / (np.array([width, height]) * (0.5 - margin))
    distance = float(np.max(np.abs(points[:, :2]) * room - points[:, 2:]))
    distance = max(distance, 0.5 - float(points[:, 2].min()))
    return rotation, np.array([0.0, 0.0, distance]) - middle, float(focal_length)
