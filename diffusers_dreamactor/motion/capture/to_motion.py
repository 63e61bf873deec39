"""From what was seen in each frame to a repaired, smooth `MotionSequence`, with warnings about what was not seen."""

from dataclasses import replace

import numpy as np
from diffusers.utils import logging

from ...media import VideoReader
from ..filtering import fill_gaps, fill_rotations, find_outliers, seen_around, smooth, smooth_boxes, smooth_rotations
from ..sequence import FaceTrack, HeadTrack, MotionSequence, head_yaw_pitch_roll
from ..visibility import believe_before, steady_confidence
from .body_pose import PoseObservations, exchange_sides, lift, repair
from .head_pose import POSE_POINTS_OF_LOOK, FaceLook, HeadEstimate, believable_looks, estimate_heads, face_box
from .selection import frame_ranges


logger = logging.get_logger(__name__)

# Beyond this yaw the face is hidden from the camera.
_BACK_YAW = 100.0
# A face lost for this long is bridged; for longer, its confidence is at most `_UNSEEN_FACE`, below the 0.5 at which a face
# is used.
_FACE_GAP_SECONDS = 0.2
_UNSEEN_FACE = 0.4


def _bridged(detected: np.ndarray, longest: float) -> np.ndarray:
    """Frames `(F,)` bool of gaps of up to `longest` frames between two that are `detected` `(F,)`."""
    frames = np.arange(len(detected))
    seen = np.flatnonzero(detected)
    if len(seen) == 0:
        return np.zeros(len(detected), dtype=bool)
    before, after = seen_around(seen, len(frames))
    return ~detected & (before < frames) & (after > frames) & (after - before - 1 <= longest)


def _repair_heads(heads: HeadEstimate, shots: list[slice], fps: float, smoothed: bool) -> HeadEstimate:
    """Outliers and gaps of the head filled and, if `smoothed`, jitter removed, shot by shot; arrays are changed in place."""
    for shot in shots:
        confidence = heads.confidence[shot]
        num_frames = len(confidence)
        # A head that jumps by half of its size for a frame or two was somebody else's, or none.
        ball = np.concatenate([heads.center[shot], heads.radius[shot, None]], axis=1)
        if (confidence > 0).any():
            size = float(np.median(heads.radius[shot][confidence > 0]))
            wild = find_outliers(ball[:, None], confidence[:, None], threshold=8.0, floor=0.5 * size)[:, 0]
            confidence = np.where(wild, 0.0, confidence)
        known = confidence > 0
        heads.rotation[shot] = fill_rotations(heads.rotation[shot], known)
        ball, filled = fill_gaps(ball[:, None], confidence[:, None], fps)
        box = fill_gaps(heads.box[shot][:, None], confidence[:, None], fps)[0][:, 0]
        ball = ball[:, 0]
        # The boxes of frames without a face come from the pose: they may be bridged, never trusted.
        face = np.where(known, heads.face_confidence[shot], 0.0)
        detected = face > 0
        face = fill_gaps(np.zeros((num_frames, 1, 1)), face[:, None], fps, max_seconds=_FACE_GAP_SECONDS)[1][:, 0]
        # Only gaps between two detections are believed: what follows the last one shows a sleeve or the back of a head.
        face = np.where(detected | _bridged(detected, _FACE_GAP_SECONDS * fps), face, np.minimum(face, _UNSEEN_FACE))
        heads.confidence[shot], heads.face_confidence[shot] = filled[:, 0], face
        if smoothed:
            heads.rotation[shot] = smooth_rotations(heads.rotation[shot], filled[:, 0], fps)
            ball = smooth(ball[:, None], filled, fps)[:, 0]
        heads.center[shot], heads.radius[shot], heads.box[shot] = ball[:, :2], np.maximum(ball[:, 2], 1e-2), box
    return heads


def _refine_faces(
    looks: list[FaceLook | None], observed: PoseObservations, shots: list[slice], fps: float
) -> PoseObservations:
    """
    The pose with nose, eyes, mouth and ears where the face mesh, which is more exact, has them. Where there is no mesh the
    last difference between the two fades, so that nothing jumps.
    """
    difference = np.zeros((len(looks), len(POSE_POINTS_OF_LOOK), 2))
    known = np.zeros(difference.shape[:2])
    for frame in np.flatnonzero(observed.seen):
        if looks[frame] is not None:
            difference[frame] = looks[frame].points - observed.keypoints[frame, POSE_POINTS_OF_LOOK]
            known[frame] = 1
    keypoints = observed.keypoints.copy()
    for shot in shots:
        filled, weight = fill_gaps(difference[shot], known[shot], fps)
        keypoints[shot, POSE_POINTS_OF_LOOK] += weight[..., None] * filled
    return replace(observed, keypoints=keypoints)


def _warn(looks: list[FaceLook | None], seen: np.ndarray, heads: HeadEstimate, fps: float, what: str) -> None:
    """Says what of the person was not seen, and what stands in for it."""
    found = np.array([look is not None for look in looks])
    present = seen | found
    if not present.all():
        logger.warning(
            f"The person left the picture or was not found in {frame_ranges(~present)}; short gaps are bridged, in longer ones "
            "the pose fades out."
        )
    if not seen.any():
        logger.warning(f"Only a face was found in the {what}, no body: the motion has no body track.")
    yaw = np.abs(head_yaw_pitch_roll(heads.rotation)[:, 0])
    back = present & ~found & (yaw > _BACK_YAW) & (heads.confidence > 0)
    if back.any():
        logger.warning(
            f"The head is turned to the back in {frame_ranges(back)}; its pose is carried on from ears and shoulders there, "
            "and the face's expression is held."
        )
    lost = present & ~found & ~back
    if not found.any():
        if not back.all():
            logger.warning(
                f"No face was found in the {what}: head pose comes from the body's ears, eyes and shoulders, and there is "
                "no facial expression to transfer."
            )
    elif lost.any():
        logger.warning(
            f"The face was lost in {frame_ranges(lost)}; head pose is carried on from ears, eyes and shoulders there, and "
            "the expression is held."
        )


def to_motion(
    looks: list[FaceLook | None],
    observed: PoseObservations,
    people: np.ndarray,
    shots: list[slice],
    reader: VideoReader,
    what: str,
    smoothed: bool,
) -> MotionSequence:
    """
    Repairs, smooths and lifts the observations of one person.

    Args:
        looks (`list` of length F): the face found in each frame, or None.
        observed (`PoseObservations`): of F frames.
        people (`(F,)` int64): the person's number, -1 where it is not seen.
        shots (`list[slice]`): stretches between cuts.
        reader (`VideoReader`): frame rate and size.
        what (`str`): "video" or "picture", for messages.
        smoothed (`bool`): remove jitter.
    """
    width, height, fps = reader.width, reader.height, reader.fps
    seen = observed.seen
    observed = exchange_sides(observed, shots)
    pose = observed.keypoints, observed.world, observed.visibility, seen
    looks = believable_looks(looks, *pose, shots, fps)
    repaired = repair(_refine_faces(looks, observed, shots, fps), shots, fps, smoothed)
    body, focal_length = lift(repaired, shots, fps, width, height, smoothed)
    if smoothed:
        for shot in shots:
            steady = steady_confidence(body.confidence[shot], fps)
            body.confidence[shot] = np.where(repaired.seen[shot, None], believe_before(steady, middle=False), 0.0)
    heads = estimate_heads(looks, *pose, focal_length, width, height, fps)
    heads = _repair_heads(heads, shots, fps, smoothed)
    _warn(looks, seen, heads, fps, what)

    boxes = face_box(heads.box)
    blendshapes = np.zeros((len(looks), 52))
    for frame, look in enumerate(looks):
        if look is not None:
            blendshapes[frame] = look.blendshapes
    found = np.array([look is not None for look in looks], dtype=np.float64)
    for shot in shots:
        per_shape = np.repeat(found[shot, None], 52, axis=1)
        blendshapes[shot] = fill_gaps(blendshapes[shot][..., None], per_shape, fps)[0][..., 0]
        if smoothed:
            boxes[shot] = smooth_boxes(boxes[shot], np.maximum(heads.face_confidence[shot], 0.05), fps)
    confidence = np.clip(heads.confidence, 0, 1)
    return MotionSequence(
        fps=fps,
        width=width,
        height=height,
        focal_length=focal_length,
        body=body if seen.any() else None,
        head=HeadTrack(heads.rotation, heads.center, heads.radius, confidence),
        face=FaceTrack(boxes, np.clip(heads.face_confidence, 0, 1), blendshapes=np.clip(blendshapes, 0, 1)),
        people=np.where(people < 0, np.where(seen | (found > 0), people.max(initial=0), -1), people),
    )
