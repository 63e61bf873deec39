"""What people do while they do nothing: the head sways, the eyes blink. For whoever is driven by speech alone."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from .sequence import MotionSequence, project
from .skeleton import ARKIT_BLENDSHAPES, JOINT_INDEX


_HEAD = [JOINT_INDEX[name] for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")]
_NECK = JOINT_INDEX["neck"]
_EARS = [JOINT_INDEX["left_ear"], JOINT_INDEX["right_ear"]]
_BLINK = [ARKIT_BLENDSHAPES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]

# Degrees of pitch, yaw and roll, and seconds of the slowest wave: calm listeners and speakers stay within some
# degrees, nodding faster than they turn.
_ANGLES = np.array([2.0, 3.2, 1.4])
_PERIODS = np.array([3.6, 5.5, 6.5])
_WAVES = 5
_BLINK_EVERY = 3.7
"""Seconds; adults at rest blink 15 to 20 times a minute (Bentivoglio et al., 1997)."""
_CLOSING, _CLOSED, _OPENING = 0.07, 0.05, 0.14
"""Seconds; lids fall faster than they rise."""


def idle_head_rotation(times: np.ndarray, seed: int = 0, amount: float = 1.0) -> np.ndarray:
    """
    Turns of a head that has nothing to do: sums of slow waves, different for each seed, continuous in time.

    Args:
        times (`np.ndarray` of shape `(N,)`): seconds, at any moments in any order; a moment always gives the same.
        seed (`int`): of the waves.
        amount (`float`): factor of the angles; 1 keeps them within about 7 degrees.

    Returns:
        `np.ndarray` of shape `(N, 3, 3)`, float32: rotations to be multiplied on the head's from the left, in camera
        axes (x right, y down, z away).
    """
    random = np.random.default_rng([seed, 1])
    waves = np.arange(1, _WAVES + 1)
    # periods that never fit each other, amplitudes that fall with the frequency
    frequency = waves * random.uniform(0.75, 1.25, (3, _WAVES)) / _PERIODS[:, None]
    strength = random.uniform(0.6, 1.0, (3, _WAVES)) / waves**1.3
    phase = random.uniform(0, 2 * np.pi, (3, _WAVES))
    times = np.asarray(times, dtype=np.float64)
    angles = (strength * np.sin(2 * np.pi * frequency * times[:, None, None] + phase)).sum(axis=-1)
    angles *= amount * _ANGLES
    return Rotation.from_euler("yxz", angles[:, [1, 0, 2]], degrees=True).as_matrix().astype(np.float32)


def idle_blinks(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """
    How far the eyes are closed by blinks, 0 to 1.

    Args:
        times (`np.ndarray` of shape `(N,)`): seconds, at any moments in any order; a moment always gives the same.
        seed (`int`): of the blinks.

    Returns:
        `np.ndarray` of shape `(N,)`, float32.
    """
    times = np.asarray(times, dtype=np.float64)
    closed = np.zeros(len(times))
    if len(times) == 0:
        return closed.astype(np.float32)
    # one blink in each stretch of time, somewhere; now and then another follows at once
    first, last = int(times.min() // _BLINK_EVERY) - 1, int(times.max() // _BLINK_EVERY)
    for stretch in range(first, last + 1):
        random = np.random.default_rng([seed, 2, stretch + 1_000_000])
        start = (stretch + random.uniform(0.05, 0.85)) * _BLINK_EVERY
        starts = [start, start + 0.38] if random.random() < 0.12 else [start]
        for start in starts:
            moments = start + np.cumsum([0, _CLOSING, _CLOSED, _OPENING])
            closed = np.maximum(closed, np.interp(times, moments, [0, 1, 1, 0]))
    return closed.astype(np.float32)


def idle_motion(motion: MotionSequence, seed: int = 0, amount: float = 1.0, start: int = 0) -> MotionSequence:
    """
    Adds natural head sway and blinks to a motion whose head rests, such as a reference's pose held while speech drives
    the face.

    The head turns about the neck and takes nose, eyes and ears along. Where a face track has blendshapes, its eyes
    blink; its boxes stay, since they say where the face's own driver is cut. Joints of a body in 2D only are left
    alone.

    Args:
        motion (`MotionSequence`): What to add to; it is not changed.
        seed (`int`): Everything random follows from it.
        amount (`float`): Factor of the sway; 1 keeps it within about 7 degrees.
        start (`int`): The frame of the video at which `motion` begins, for a motion that is made piece by piece.

    Returns:
        `MotionSequence`: of the same length, in the same pixels.
    """
    motion = motion.take(np.arange(len(motion)))
    times = (start + np.arange(len(motion))) / motion.fps
    rotation = idle_head_rotation(times, seed, amount)
    camera = (motion.focal_length, motion.width, motion.height)
    solid = motion.body is not None and not np.isnan(motion.body.joints).any()
    if motion.head is not None:
        head = motion.head
        if solid:
            axis = motion.body.joints[:, _NECK]
            depth = motion.body.joints[:, _EARS, 2].mean(axis=1)
        else:
            # a neck as far below the middle of the head as is usual, 1.3 radii
            depth = motion.focal_length * 0.12 / head.radius
        offset = head.center - np.array([motion.width, motion.height]) / 2
        center = np.concatenate([offset * (depth / motion.focal_length)[:, None], depth[:, None]], axis=1)
        if not solid:
            axis = center + np.array([0.0, 0.156, 0.0])
        moved = np.einsum("fab,fb->fa", rotation, center - axis) + axis
        centers = project(moved[:, None], *camera)[:, 0]
        motion.head = replace(
            head, rotation=rotation @ head.rotation, center=centers, radius=head.radius * depth / moved[:, 2]
        )
    if solid:
        joints, axis = motion.body.joints.copy(), motion.body.joints[:, None, _NECK]
        joints[:, _HEAD] = np.einsum("fab,fjb->fja", rotation, joints[:, _HEAD] - axis) + axis
        keypoints = motion.body.keypoints.copy()
        # by as much as the joints move: keypoints need not be their exact projection
        keypoints[:, _HEAD] += project(joints[:, _HEAD], *camera) - project(motion.body.joints[:, _HEAD], *camera)
        motion.body = replace(motion.body, joints=joints, keypoints=keypoints)
    if motion.face is not None:
        face = motion.face
        if face.blendshapes is not None:
            blinks = idle_blinks(times, seed)[:, None]
            blendshapes = face.blendshapes.copy()
            blendshapes[:, _BLINK] = np.maximum(blendshapes[:, _BLINK], blinks)
            face = replace(face, blendshapes=blendshapes)
        motion.face = face
    return motion
