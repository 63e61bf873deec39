"""A built-in motion: the person of a picture turns to one side and to the other."""

import numpy as np
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.sequence import MotionSequence, project
from diffusers_dreamactor.motion.skeleton import JOINT_NAMES


NECK = JOINT_NAMES.index("neck")
EARS = [JOINT_NAMES.index("left_ear"), JOINT_NAMES.index("right_ear")]


def turning_motion(reference: MotionSequence, num_frames: int, max_yaw: float = 60.0) -> MotionSequence:
    """
    Turns a person about the vertical axis through the neck: ahead, to image right, to image left and back.

    Args:
        reference (`MotionSequence`): One frame with a body in 3D and, optionally, a head.
        num_frames (`int`): Frames to make.
        max_yaw (`float`): The furthest turn to either side in degrees.

    Returns:
        `MotionSequence`: In the pixels of `reference`; without a face track.

    Raises:
        ValueError: When the reference has no body, or a body in 2D only.
    """
    if reference.body is None or np.isnan(reference.body.joints).any():
        raise ValueError("`reference` has no body in 3D, but a turn needs one.")
    turn = max_yaw * np.sin(np.linspace(0, 2 * np.pi, num_frames))
    # y points down, so a turn of the face towards image right is a negative rotation about y
    rotation = Rotation.from_euler("y", -turn[:, None], degrees=True).as_matrix().astype(np.float32)
    motion = reference.hold(num_frames)
    camera = (motion.focal_length, motion.width, motion.height)
    axis = reference.body.joints[0, NECK]

    joints = (motion.body.joints - axis) @ rotation.transpose(0, 2, 1) + axis
    motion.body.joints = joints.astype(np.float32)
    motion.body.keypoints = project(joints, *camera).astype(np.float32)
    motion.face = None
    if motion.head is not None:
        depth = reference.body.joints[0, EARS, 2].mean()
        offset = reference.head.center[0] - np.array([motion.width, motion.height]) / 2
        center = np.array([*(offset * depth / motion.focal_length), depth])
        centers = (rotation @ (center - axis)) + axis
        motion.head.rotation = rotation @ motion.head.rotation
        motion.head.center = project(centers, *camera).astype(np.float32)
        motion.head.radius = (motion.head.radius * depth / centers[:, 2]).astype(np.float32)
    return motion
