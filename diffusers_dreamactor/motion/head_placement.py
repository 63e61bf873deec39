"""Where a retargeted person's head is, how it is turned and how large its circle is."""

import numpy as np

from .camera import back_project
from .framing import NEAREST_DEPTH, seen_weights
from .pose_transfer import HEAD_JOINTS
from .sequence import HeadTrack, MotionSequence, project
from .skeleton import JOINT_INDEX


# The greatest change of the distance between neck and nose that is followed; more is an error in depth.
NECK_STRETCH = 1.4
# Degrees between two head rotations up to which their pictures are compared.
ALIKE = 30.0
# The middle of nose, eyes and ears is that many head radii before the middle of the head.
HEAD_DEPTH = 0.45


def neck_stretch(
    vectors: np.ndarray,
    weights: np.ndarray,
    own: np.ndarray,
    head: HeadTrack | None,
    own_head: HeadTrack | None,
    start: int | None,
) -> np.ndarray:
    """
    How long the way from the neck to the nose is in every frame, `(F,)`, relative to the reference's. It is no bone: a nod
    shortens it by a fifth. So it follows the driver's `vectors` `(F, 3)`, relative to the driver's frames in which the head
    is turned most like the reference's. If it is nearly alike there, the two are also made equally long in the picture:
    how far the nose stands out in depth is what captures know least. Given a frame `start`, it is relative to
    that one instead.
    """
    lengths = np.linalg.norm(vectors, axis=-1)
    alike = weights >= 0.5
    if not alike.any():
        return np.ones(len(lengths))
    level = 1.0
    if start is not None:
        alike = np.arange(len(lengths)) == start
    elif head is not None and own_head is not None:
        turned = np.einsum("fij,ij->f", head.rotation, own_head.rotation[0])
        angle = np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1)))
        nearest = angle[alike].min()
        alike &= angle <= nearest + 0.5
        if nearest < ALIKE:
            shown = np.median(np.linalg.norm(vectors[alike, :2], axis=-1) / lengths[alike])
            level = np.linalg.norm(own[:2]) / np.linalg.norm(own) / max(shown, 1e-9)
    change = lengths / max(np.median(lengths[alike]), 1e-9)
    change = np.clip(change, 1 / NECK_STRETCH, NECK_STRETCH) * np.clip(level, 1 / NECK_STRETCH, NECK_STRETCH)
    return 1 + weights * (change - 1)


def head_rotation(motion, reference, head_driven, start, turn) -> np.ndarray | None:
    """Head rotations `(F, 3, 3)`: the driver's (from frame `start` on), or the reference's on the turned torso."""
    own = None if reference.head is None else reference.head.rotation[0].astype(np.float64)
    if head_driven and motion.head is not None:
        rotation = motion.head.rotation.astype(np.float64)
        return rotation if start is None or own is None else rotation @ rotation[start].T @ own
    return None if own is None else turn @ own


def head_circle(source: MotionSequence, middle: np.ndarray, planar: bool) -> tuple[np.ndarray, np.ndarray]:
    """
    Where the head's circle sits, in the head's axes `(F, 3)` and relative to the `middle` `(F, 3)` of the head joints, and
    its radius `(F,)`: metres, the center being behind the face; or pixels along the axes of the picture.
    """
    if planar:
        offset = source.head.center - np.array([source.width, source.height]) / 2 - middle[:, :2]
        return np.concatenate([offset, np.zeros_like(offset[:, :1])], axis=1), source.head.radius.astype(np.float64)
    rotation = source.head.rotation.astype(np.float64)
    radius = source.head.radius * middle[:, 2] / source.focal_length
    depth = middle[:, 2] + HEAD_DEPTH * radius * rotation[:, 2, 2]
    radius = source.head.radius * depth / source.focal_length
    center = back_project(source.head.center, depth, source.focal_length, source.width, source.height)
    return np.einsum("fji,fj->fi", rotation, center - middle), radius


def place_head(
    motion: MotionSequence,
    reference: MotionSequence,
    driver: np.ndarray,
    person: np.ndarray,
    joints: np.ndarray,
    rotation: np.ndarray,
    driven: bool,
    ratio: float,
    planar: bool,
) -> HeadTrack:
    """
    The head's circle: where the reference's sits on the reference's nose, eyes and ears, turned with the head, and as
    large as its distance asks for. How the driver's circle moves against the driver's (noisier) head joints is kept.

    Args:
        driver, person, joints (`(F, 62, 3)`, `(62, 3)`, `(F, 62, 3)`): of the driver, the reference and the result.
        rotation (`(F, 3, 3)`): head rotations of the result.
        driven (`bool`): whether the driver's head track is followed.
        ratio (`float`): size of the reference's body relative to the driver's.
    """
    middle = joints[:, HEAD_JOINTS].mean(axis=1)
    growth = np.ones(len(joints))
    offset = None
    if driven and motion.body is not None:
        moving, radius = head_circle(motion, driver[:, HEAD_JOINTS].mean(axis=1), planar)
        weight = seen_weights(motion.head.confidence, motion.fps)
        trusted = weight >= 0.5 if (weight >= 0.5).any() else np.ones(len(weight), dtype=bool)
        typical = np.median(radius[trusted])
        offset, size = np.median(moving[trusted], axis=0), typical
        wander = weight[:, None] * (moving - offset)
        if planar:
            typical = radius[np.argmax(trusted)]
            growth = radius / typical
    if reference.head is not None:
        own_offset, own_radius = head_circle(reference, person[None, HEAD_JOINTS].mean(axis=1), planar)
        offset_of_result, radius_of_result = own_offset[0], own_radius[0]
    elif offset is not None:
        offset_of_result, radius_of_result = offset * ratio, size * ratio
    else:
        # Neither has a circle to measure: a head is about one and a half times as wide as the ears are apart.
        ears = person[JOINT_INDEX["left_ear"]] - person[JOINT_INDEX["right_ear"]]
        offset_of_result, radius_of_result = np.zeros(3), 0.75 * float(np.linalg.norm(ears))
    local = np.tile(offset_of_result, (len(joints), 1))
    if offset is not None:
        local = local + wander * radius_of_result / typical
    if planar:
        center = middle[:, :2] + local[:, :2] + np.array([reference.width, reference.height]) / 2
        radius = radius_of_result * growth
    else:
        place = middle + np.einsum("fij,fj->fi", rotation, local)
        center = project(place, reference.focal_length, reference.width, reference.height)
        radius = radius_of_result * reference.focal_length / np.maximum(place[:, 2], NEAREST_DEPTH)
    confidence = motion.head.confidence if driven else np.tile(reference.head.confidence, len(joints))
    return HeadTrack(rotation, center, radius, confidence)
