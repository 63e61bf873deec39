"""An analytic stick figure that walks and turns, with joints, projection and head pose known exactly."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.sequence import BodyTrack, FaceTrack, HeadTrack, MotionSequence, project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, JOINT_NAMES, MIRROR


# Rest pose in metres, facing the camera: x to the right of the picture (the person's left), y down, z away from it.
LEFT_SIDE = {
    "neck": (0.0, -0.50, 0.0), "nose": (0.0, -0.68, -0.10), "left_eye": (0.03, -0.72, -0.08),
    "left_ear": (0.075, -0.69, 0.0), "left_shoulder": (0.18, -0.50, 0.0), "left_elbow": (0.27, -0.24, 0.02),
    "left_wrist": (0.33, -0.01, -0.08), "left_hip": (0.10, 0.0, 0.0), "left_knee": (0.12, 0.42, -0.02),
    "left_ankle": (0.13, 0.83, 0.02), "left_toe": (0.16, 0.88, -0.14),
}  # fmt: skip
HEAD = np.array([0.0, -0.70, 0.0])
HEAD_RADIUS = 0.11


def rest_pose() -> np.ndarray:
    pose = np.zeros((len(JOINT_NAMES), 3))
    for name, position in LEFT_SIDE.items():
        pose[JOINT_INDEX[name]] = position
    wrist = np.array(LEFT_SIDE["left_wrist"])
    pose[JOINT_INDEX["left_hand_wrist"]] = wrist
    for finger, name in enumerate(("thumb", "index", "middle", "ring", "little")):
        direction = np.array([0.1 - 0.05 * finger, 0.9, -0.45 + 0.22 * finger])
        direction /= np.linalg.norm(direction)
        for i in range(1, 5):
            reach = (0.03 if name == "thumb" else 0.08) + 0.028 * (i - 1)
            pose[JOINT_INDEX[f"left_hand_{name}_{i}"]] = wrist + reach * direction
    for joint, name in enumerate(JOINT_NAMES):
        if name.startswith("right"):
            pose[joint] = pose[MIRROR[joint]] * (-1, 1, 1)
    return pose


def swing(pose: np.ndarray, names: tuple[str, ...], pivot: str, degrees: float) -> None:
    """Turns joints about the left-right axis through a pivot, in place."""
    joints = [JOINT_INDEX[name] for name in names]
    center = pose[JOINT_INDEX[pivot]].copy()
    pose[joints] = (pose[joints] - center) @ Rotation.from_euler("x", degrees, degrees=True).as_matrix().T + center


def make_motion(
    num_frames: int = 24,
    height: int = 480,
    width: int = 832,
    turn: float = 360.0,
    distance: float = 3.2,
    down: float = -0.02,
    fps: float = 24.0,
) -> MotionSequence:
    """A person walking on the spot who turns by `turn` degrees in all; `distance` metres off, `down` metres below the axis."""
    focal_length = 1.5 * height
    joints, rotations, centers = [], [], []
    for index in range(num_frames):
        phase = 2 * np.pi * index / 12
        pose = rest_pose()
        for side, sign in (("left", 1), ("right", -1)):
            hand = tuple(name for name in JOINT_NAMES if name.startswith(f"{side}_hand"))
            arm = (f"{side}_elbow", f"{side}_wrist") + hand
            swing(pose, arm, f"{side}_shoulder", -35 * sign * np.sin(phase))
            swing(pose, arm[1:], f"{side}_elbow", -30 * (1 + np.sin(sign * phase)))
            leg = (f"{side}_knee", f"{side}_ankle", f"{side}_toe")
            swing(pose, leg, f"{side}_hip", 30 * sign * np.sin(phase))
            swing(pose, leg[1:], f"{side}_knee", 25 * (1 - np.sin(sign * phase)))
        yaw = turn * index / max(num_frames - 1, 1)
        rotation = Rotation.from_euler("y", -yaw, degrees=True).as_matrix()
        offset = np.array([0.0, down, distance])
        joints.append(pose @ rotation.T + offset)
        centers.append(rotation @ HEAD + offset)
        rotations.append(rotation @ Rotation.from_euler("x", 12 * np.sin(phase), degrees=True).as_matrix())
    joints, centers, rotations = np.array(joints), np.array(centers), np.array(rotations)
    center = project(centers, focal_length, width, height)
    radius = HEAD_RADIUS * focal_length / centers[:, 2]
    facing = rotations[:, 2, 2] > 0.2
    return MotionSequence(
        fps=fps,
        width=width,
        height=height,
        focal_length=focal_length,
        body=BodyTrack(
            joints=joints,
            keypoints=project(joints, focal_length, width, height),
            confidence=np.ones(joints.shape[:2]),
        ),
        head=HeadTrack(rotation=rotations, center=center, radius=radius, confidence=np.ones(num_frames)),
        face=FaceTrack(
            boxes=np.concatenate([center - 0.8 * radius[:, None], center + 0.8 * radius[:, None]], axis=1),
            confidence=np.where(facing, 0.9, 0.0),
        ),
    )


@pytest.fixture(scope="session")
def stick_figure():
    return make_motion
