"""2D keypoints of a clip, with or without depth, as a `MotionSequence`: gaps filled, smoothed, placed in the camera frame."""

import numpy as np

from ..camera import back_project
from ..filtering import fill_gaps, fill_rotations, smooth, smooth_boxes, smooth_rotations
from ..lifting import estimate_heads, lift_keypoints
from ..sequence import FaceTrack, MotionSequence
from ..skeleton import BONES
from .from_joints import motion_from_joints
from .head_pose import face_box


def confidence_from_scores(scores: np.ndarray, threshold: float) -> np.ndarray:
    """A detector's scores as confidence: `threshold` becomes 0.5, from which a joint is drawn; twice that is 1."""
    return np.clip(0.5 * np.asarray(scores, dtype=np.float64) / threshold, 0, 1)


def motion_from_keypoints(
    keypoints: np.ndarray,
    confidence: np.ndarray,
    faces: np.ndarray,
    face_confidence: np.ndarray,
    fps: float,
    width: int,
    height: int,
    focal_length: float,
    depth: np.ndarray | None = None,
    smoothed: bool = True,
) -> MotionSequence:
    """
    Args:
        keypoints (`(F, 62, 2)`): pixels.
        confidence (`(F, 62)`): in [0, 1]; 0 where nothing was found.
        faces (`(F, 4)`): tight boxes from the brows to the chin, pixels.
        face_confidence (`(F,)`): 0 where there is no face box.
        fps, width, height, focal_length: as in `MotionSequence`.
        depth (`(F, 62)`, *optional*): metres along the optical axis; else it is lifted from 2D (`motion.lifting`).
        smoothed (`bool`): whether jitter is taken out.

    Returns:
        `MotionSequence` with body and head, and face boxes where faces were found; `people` is 0, or -1 in frames where
        nothing was found.
    """
    seen = (confidence > 0).any(axis=1)
    values = keypoints if depth is None else np.concatenate([keypoints, depth[..., None]], axis=-1)
    values, confidence = fill_gaps(values, confidence, fps)
    # A joint that was never seen lies at its parent's place, where it does no harm.
    never = (confidence == 0).all(axis=0)
    for child, parent in BONES:
        if never[child]:
            values[:, child] = values[:, parent]
    if smoothed:
        values = smooth(values, confidence, fps)
    keypoints = values[..., :2]
    rotation, head_confidence = estimate_heads(keypoints, confidence, focal_length, width, height)
    rotation = fill_rotations(rotation, head_confidence > 0)
    if smoothed:
        rotation = smooth_rotations(rotation, np.maximum(head_confidence, 0.05), fps)
    if depth is None:
        joints = lift_keypoints(keypoints, confidence, width, height, focal_length, rotation)
    else:
        joints = back_project(keypoints, np.maximum(values[..., 2], 0.05), focal_length, width, height)
    motion = motion_from_joints(joints, confidence, fps, width, height, focal_length, rotation)
    if motion.head is not None:
        motion.head.confidence = head_confidence.astype(np.float32)
    motion.people = np.where(seen, 0, -1)
    if face_confidence.any():
        boxes, face_confidence = fill_gaps(faces[:, None], face_confidence[:, None], fps)
        boxes, face_confidence = face_box(boxes[:, 0]), face_confidence[:, 0]
        if smoothed:
            boxes = smooth_boxes(boxes, np.maximum(face_confidence, 0.05), fps)
        motion.face = FaceTrack(boxes, face_confidence)
    motion.validate()
    return motion
