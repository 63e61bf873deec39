"""From MediaPipe's pose and hand landmarks of one person to joints in one camera frame in metres."""

from dataclasses import dataclass

import numpy as np

from ..camera import back_project, estimate_focal_length, normalized, ray_rotation, solve_translation, weak_perspective
from ..filtering import fill_gaps, find_outliers, find_side_swaps, smooth
from ..sequence import BodyTrack
from ..skeleton import (
    AVERAGE_TORSO_LENGTH,
    BODY,
    BODY_PROPORTIONS,
    BONES,
    JOINT_INDEX,
    JOINT_NAMES,
    LEFT_HAND,
    MEDIAPIPE_POSE_MAPPING,
    RIGHT_HAND,
    map_joints,
)
from ..visibility import without_isolated


# (left, right) of MediaPipe's 33 pose landmarks, as far as estimators swap them together; the nose is 0.
_FACE = [(1, 4), (2, 5), (3, 6), (7, 8), (9, 10)]
_ARMS = [(11, 12), (13, 14), (15, 16), (17, 18), (19, 20), (21, 22)]
_LEGS = [(23, 24), (25, 26), (27, 28), (29, 30), (31, 32)]
_EARS = [7, 8]
# A hand seen for a shorter time than this is a false alarm.
_SHORTEST_HAND_SECONDS = 0.12
# Share of a forearm from the elbow in which no hand begins.
_NEXT_TO_ELBOW = 0.5
# Limbs go up to about 8 m/s in quick gestures, and a hand waved by 15 cm five times a second turns round at 150 m/s2; a jump
# of one frame that is faster, there and back, was another place.
_FASTEST_METRES = 8.0
_HARDEST_METRES = 150.0
# What shakes with more than this (m/s2, the median over so many seconds) is a gap: of wrists in rendered videos 4 % are off
# below it, and half of them above it.
_SHAKING_METRES = 100.0
_SHAKING_SECONDS = 0.33
# Elbows, wrists and what of the hands the pose has.
_ARM_POINTS = slice(13, 23)
# An extent of the person in metres.
_EXTENT_METRES = 1.75
# A jump is only believed of a point that the estimator is this sure to see.
_SURE = 0.7


@dataclass
class PoseObservations:
    """
    MediaPipe's landmarks of one person over a clip.

    Args:
        keypoints (`(F, 33, 2)`): pixels.
        world (`(F, 33, 3)`): metres about the middle of the hips, axes of the viewing ray: x right, y down, z away.
        visibility (`(F, 33)`): in [0, 1]; all 0 in frames without the person.
        hand_keypoints (`(F, 2, 21, 2)`), hand_world (`(F, 2, 21, 3)`): of the left and the right hand.
        hand_score (`(F, 2)`): in [0, 1], 0 where no hand was found.
    """

    keypoints: np.ndarray
    world: np.ndarray
    visibility: np.ndarray
    hand_keypoints: np.ndarray
    hand_world: np.ndarray
    hand_score: np.ndarray

    @classmethod
    def empty(cls, num_frames: int) -> "PoseObservations":
        """Nothing seen in `num_frames` frames."""
        shapes = [(33, 2), (33, 3), (33,), (2, 21, 2), (2, 21, 3), (2,)]
        return cls(*(np.zeros((num_frames, *shape)) for shape in shapes))

    @property
    def seen(self) -> np.ndarray:
        """(F,) bool: the person was found."""
        return self.visibility.any(axis=1)


def is_forearm(hand: np.ndarray, keypoints: np.ndarray, visibility: np.ndarray, side: int) -> bool:
    """
    Whether a hand (21, 2) is a piece of the forearm on `side` (0 left, 1 right) of the pose (33, 2), taken for a hand while the
    hand is behind something: it begins in the half next to the elbow.
    """
    elbow, wrist = keypoints[13 + side], keypoints[15 + side]
    seen = visibility[[13 + side, 15 + side]].min() > 0
    return bool(seen and np.linalg.norm(hand[0] - elbow) < _NEXT_TO_ELBOW * np.linalg.norm(wrist - elbow))


def hand_is_plausible(
    hand: np.ndarray, keypoints: np.ndarray, visibility: np.ndarray, side: int, is_left: bool
) -> tuple[bool, float]:
    """
    Whether a hand (21, 2) that looks like a left one or not belongs to the arm on `side` (0 left, 1 right) of the pose
    (33, 2): its palm of a size that fits the person, its wrist near the arm's. Sleeves hide wrists, so a hand of the right
    side may also begin further out along the forearm; one that looks like the other side has to be right at the wrist.

    Also returns the distance of the wrists in units of the larger of forearm and half the shoulders' width.
    """
    elbow, wrist, other_wrist = keypoints[13 + side], keypoints[15 + side], keypoints[16 - side]
    forearm = wrist - elbow
    reference = max(
        np.linalg.norm(forearm) if visibility[13 + side] > 0.3 else 0.0,
        0.5 * np.linalg.norm(keypoints[11] - keypoints[12]),
        1.0,
    )
    palm = np.linalg.norm(hand[[5, 9, 17]] - hand[0], axis=1).max() / reference
    away = hand[0] - wrist
    distance = float(np.linalg.norm(away) / reference)
    along = float(away @ forearm / max(np.linalg.norm(away) * np.linalg.norm(forearm), 1e-6))
    if is_left != (side == 0):
        limit = 0.25
    else:
        limit = 0.95 if along > 0.5 else 0.5
    nearer = visibility[16 - side] < 0.5 or np.linalg.norm(away) <= np.linalg.norm(hand[0] - other_wrist)
    plausible = distance < limit and nearer and 0.12 < palm < 1.2
    return bool(plausible and not is_forearm(hand, keypoints, visibility, side)), distance


def _size(observed: PoseObservations) -> float:
    """The usual extent of the person in pixels, 1 at least."""
    extent = np.linalg.norm(np.ptp(observed.keypoints[observed.seen, :25], axis=1), axis=1)
    return max(float(np.median(extent)), 1.0)


def exchange_sides(observed: PoseObservations, shots: list[slice]) -> PoseObservations:
    """
    The observations with left and right exchanged where the estimator took one for the other.

    That happens mostly when it takes a person seen from the front for one seen from behind. Hands were looked for at its
    wrists, so they go with their arms. A head that looks out of the other side of the torso than its front goes with
    them, too: its face is mirrored in depth.
    """
    result = PoseObservations(*(array.copy() for array in vars(observed).values()))
    for shot in shots:
        part = PoseObservations(*(array[shot] for array in vars(result).values()))
        if not part.seen.any():
            continue
        points = (part.keypoints, part.world, part.visibility)
        size = _size(part)
        swapped, legs = find_side_swaps(part.keypoints, part.visibility, [_ARMS, _LEGS], size).T
        _exchange(points, legs, _LEGS)
        _exchange(points, swapped, _ARMS)
        for values in (part.hand_keypoints, part.hand_world, part.hand_score):
            values[swapped] = values[swapped][:, ::-1]
        front = part.world[:, 11, 0] > part.world[:, 12, 0]
        ears = part.world[:, _EARS, 2].mean(axis=1)
        backward = swapped & (front == (part.world[:, 0, 2] > ears))
        _exchange(points, backward, _FACE)
        part.world[backward, :11, 2] = 2 * ears[backward, None] - part.world[backward, :11, 2]
    return result


def _exchange(points: tuple[np.ndarray, ...], frames: np.ndarray, pairs: list[tuple[int, int]]) -> None:
    """Left and right of `pairs` exchanged in the arrays `points` (F, 33, ...), in place, in the `frames` (F,) bool."""
    left, right = (list(side) for side in zip(*pairs))
    for values in points:
        exchanged = values[frames]
        exchanged[:, left + right] = exchanged[:, right + left]
        values[frames] = exchanged


def _false_jumps(values: np.ndarray, confidence: np.ndarray, fps: float, floor: float, metre: float) -> np.ndarray:
    """
    Outliers `(F, N)` bool of points `values` `(F, N, D)`: those that `find_outliers` finds, but for those that a fast movement
    explains: seen surely, and reached and left no faster, and turned round no harder, than arms do. A median cuts the peaks of
    gestures. `floor`, the least jump, and a `metre` are in the unit of `values`.
    """
    outlier = find_outliers(values, confidence, threshold=8.0, floor=floor)
    speed = np.linalg.norm(np.diff(values, axis=0), axis=-1) * fps / metre
    turn = np.linalg.norm(np.diff(values, n=2, axis=0), axis=-1) * fps**2 / metre
    for joint in np.flatnonzero(outlier.any(axis=0)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], outlier[:, joint].astype(int), [0]])))
        for start, stop in edges.reshape(-1, 2):
            # On its whole way there and back: within another place a limb is as slow as anywhere.
            way = speed[max(start - 1, 0) : stop, joint]
            # From the frame before to the one after: `turn` begins with the second frame.
            force = turn[max(start - 2, 0) : stop, joint]
            possible = (way < _FASTEST_METRES).all() and (force < _HARDEST_METRES).all()
            if possible and (confidence[start:stop, joint] >= _SURE).all():
                outlier[start:stop, joint] = False
    return outlier


def _shaking(values: np.ndarray, confidence: np.ndarray, fps: float, metre: float) -> np.ndarray:
    """
    Frames `(F, N)` bool in which points `values` `(F, N, D)` shake harder than limbs do: their usual acceleration around the frame
    is beyond `_SHAKING_METRES`. Whatever the estimator says of them, it guesses, mostly because something hides them.
    """
    # Over steps of a 24th of a second: over shorter ones the noise of a still point is as large.
    step = max(1, round(fps / 24))
    reach = round(_SHAKING_SECONDS * fps / 2)
    num_frames = len(values)
    force = np.full(confidence.shape, np.nan)
    if num_frames <= 2 * step:
        return np.zeros(confidence.shape, dtype=bool)
    before, middle, after = slice(0, -2 * step), slice(step, -step), slice(2 * step, None)
    turn = values[before] - 2 * values[middle] + values[after]
    force[middle] = np.linalg.norm(turn, axis=-1) * (fps / step) ** 2 / metre
    known = np.minimum(np.minimum(confidence[before], confidence[middle]), confidence[after]) >= 0.5
    force[middle] = np.where(known, force[middle], np.nan)
    padded = np.pad(force, ((reach, reach), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
    enough = np.isfinite(windows).sum(axis=-1) >= 3
    usual = np.zeros(confidence.shape)
    usual[enough] = np.nanmedian(windows[enough], axis=-1)
    return usual > _SHAKING_METRES


def _drop_false_hands(hands: np.ndarray, hand_score: np.ndarray, keypoints: np.ndarray, fps: float) -> None:
    """Sets `hand_score` (F, 2) to 0 where `hands` (F, 2, 21, 2) are seen too shortly, or jump from where they and the wrists were."""
    # at any rate a single frame
    lasting = without_isolated(hand_score > 0, fps, seconds=max(_SHORTEST_HAND_SECONDS, 1.5 / fps))
    hand_score[~lasting] = 0
    for side in range(2):
        palm = np.linalg.norm(hands[:, side, 9] - hands[:, side, 0], axis=1)
        floor = 0.5 * np.median(palm[hand_score[:, side] > 0]) if (hand_score[:, side] > 0).any() else 0.0
        per_joint = np.repeat(hand_score[:, side, None], 21, axis=1)
        # A fast hand goes with its wrist, and one that goes on in the picture is right while the wrist jumps.
        wild = [
            find_outliers(each, per_joint, threshold=8.0, floor=floor).mean(axis=1) > 0.3
            for each in (hands[:, side] - keypoints[:, None, 15 + side], hands[:, side])
        ]
        hand_score[wild[0] & wild[1], side] = 0


def _repair(observed: PoseObservations, fps: float, smoothed: bool) -> PoseObservations:
    """One shot of observations: outliers and gaps filled, jitter removed."""
    keypoints, world = observed.keypoints.copy(), observed.world.copy()
    confidence = observed.visibility.copy()
    hands, hand_world = observed.hand_keypoints.copy(), observed.hand_world.copy()
    hand_score = observed.hand_score.copy()
    num_frames = len(keypoints)
    seen = observed.seen
    if num_frames > 1 and seen.any():
        size = _size(observed)
        outlier = _false_jumps(keypoints, confidence, fps, 0.04 * size, size / _EXTENT_METRES)
        outlier |= _false_jumps(world, confidence, fps, 0.06, 1.0)
        outlier[:, _ARM_POINTS] |= _shaking(
            keypoints[:, _ARM_POINTS], confidence[:, _ARM_POINTS], fps, size / _EXTENT_METRES
        )
        known = np.where(outlier, 0.0, confidence)
        world = fill_gaps(world, known, fps)[0]

        _drop_false_hands(hands, hand_score, keypoints, fps)
        for side in range(2):
            # Where the pose has no wrist, the hand has.
            there = (hand_score[:, side] > 0) & (known[:, 15 + side] < 0.5)
            keypoints[there, 15 + side] = hands[there, side, 0]
            known[there, 15 + side] = hand_score[there, side]
        # What MediaPipe itself calls invisible stays a guess with its own low confidence; only frames without the person
        # and outliers are gaps.
        keypoints, confidence = fill_gaps(keypoints, known, fps)
        for side in range(2):
            per_joint = np.repeat(hand_score[:, side, None], 21, axis=1)
            # Relative to the wrist: where no hand is found it goes with the arm.
            wrist = keypoints[:, None, 15 + side]
            offset, filled = fill_gaps(hands[:, side] - wrist, per_joint, fps, max_seconds=0.25, decay_seconds=0.1)
            hands[:, side] = wrist + offset
            hand_world[:, side] = fill_gaps(hand_world[:, side], per_joint, fps)[0]
            hand_score[:, side] = filled.min(axis=1)
    if smoothed:
        keypoints = smooth(keypoints, confidence, fps)
        world = smooth(world, confidence, fps)
        for side in range(2):
            per_joint = np.repeat(hand_score[:, side, None], 21, axis=1)
            hands[:, side] = smooth(hands[:, side], per_joint, fps)
            hand_world[:, side] = smooth(hand_world[:, side], per_joint, fps)
    return PoseObservations(keypoints, world, confidence, hands, hand_world, hand_score)


def repair(observed: PoseObservations, shots: list[slice], fps: float, smoothed: bool) -> PoseObservations:
    """
    The observations with outliers and gaps filled and, if `smoothed`, the jitter removed, shot by shot.
    """
    parts = [
        _repair(PoseObservations(*(array[shot] for array in vars(observed).values())), fps, smoothed) for shot in shots
    ]
    return PoseObservations(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts))))


def _limit_outside(keypoints: np.ndarray, confidence: np.ndarray, width: int, height: int) -> np.ndarray:
    """
    Joints well out of the picture are guesses, whatever the estimator says: at most 1 - d / 6 %, with the distance d from the
    picture in its longer sides, and so under the 0.5 that is drawn from 3 % on.
    """
    beyond = np.maximum(-keypoints, keypoints - np.array([width, height])).max(axis=-1)
    return np.minimum(confidence, np.clip(1 - beyond / (0.06 * max(width, height)), 0.0, 1.0))


def _unseen_hands(joints: np.ndarray, side: str) -> np.ndarray:
    """A straight average hand (F, 21, 3) in the direction of the forearm, for where none was seen; `joints` (F, 62, 3)."""
    wrist, elbow = joints[:, JOINT_INDEX[f"{side}_wrist"]], joints[:, JOINT_INDEX[f"{side}_elbow"]]
    forearm = normalized(wrist - elbow)
    reach = np.zeros(len(JOINT_NAMES))
    for child, parent in BONES:
        reach[child] = reach[parent] + BODY_PROPORTIONS[JOINT_NAMES[child]] * AVERAGE_TORSO_LENGTH
    hand = LEFT_HAND if side == "left" else RIGHT_HAND
    along = reach[hand] - reach[hand][0]
    return wrist[:, None] + forearm[:, None] * along[None, :, None]


def lift(
    observed: PoseObservations, shots: list[slice], fps: float, width: int, height: int, smoothed: bool = True
) -> tuple[BodyTrack, float]:
    """
    Joints in metres in the camera frame from repaired observations (see `repair`).

    The focal length is estimated from the whole clip's 2D-3D pairs (`camera.estimate_focal_length`), the person's place
    per frame (`camera.solve_translation`). World landmarks give each joint's depth relative to the body, and the
    pixels, which are the more accurate, its place across: so `project(joints)` equals `keypoints`. A hand hangs on
    its wrist's depth, scaled so that its size in the picture and in space agree.

    Returns:
        The body track and the focal length in pixels.
    """
    keypoints, confidence = observed.keypoints.copy(), observed.visibility
    weights = np.where(confidence > 0.5, confidence, 0.0) + 1e-3
    # The face is refined in the picture only, so its points are no pairs; it is nearly flat anyway.
    pairs = slice(11, 33)
    focal_length = estimate_focal_length(
        observed.world[:, pairs], keypoints[:, pairs], weights[:, pairs] * observed.seen[:, None], width, height
    )
    middle = np.einsum("fn,fnd->fd", weights, keypoints) / weights.sum(axis=1, keepdims=True)
    turned = np.einsum("fij,fnj->fni", ray_rotation(middle, focal_length, width, height), observed.world)
    translation = solve_translation(turned, keypoints, weights, focal_length, width, height)
    if smoothed:
        # Depth from size is the shakiest of all estimates, and nobody walks to and fro at several hertz.
        for shot in shots:
            sureness = weights[shot].max(axis=1)[:, None]
            log_depth = smooth(np.log(translation[shot, 2:])[:, None], sureness, fps, strength=2.0)
            translation[shot, 2:] = np.exp(log_depth[:, 0])
    depth = np.maximum(turned[..., 2] + translation[:, 2:], 0.2 * translation[:, 2:])

    # Where a hand was found its wrist is the better one; the weight is smooth so that the arm does not jump.
    for side in range(2):
        weight = observed.hand_score[:, side] > 0
        if smoothed:
            weight = np.concatenate(
                [
                    np.clip(smooth(weight[shot, None, None], np.ones((len(weight[shot]), 1)), fps), 0, 1)
                    for shot in shots
                ]
            )
        keypoints[:, 15 + side] += np.reshape(weight, (-1, 1)) * (
            observed.hand_keypoints[:, side, 0] - keypoints[:, 15 + side]
        )

    points = back_project(keypoints, depth, focal_length, width, height)
    joints, joint_confidence = map_joints(points, confidence, MEDIAPIPE_POSE_MAPPING)
    for side, name in enumerate(("left", "right")):
        hand = LEFT_HAND if side == 0 else RIGHT_HAND
        wrist_depth = joints[:, JOINT_INDEX[f"{name}_wrist"], 2].astype(np.float64)
        hand_keypoints, hand_world = observed.hand_keypoints[:, side], observed.hand_world[:, side]
        scale = weak_perspective(hand_world, hand_keypoints, np.ones(hand_world.shape[:2]))[0]
        stretch = np.clip(scale * wrist_depth / focal_length, 0.5, 2.0)
        hand_depth = wrist_depth[:, None] + stretch[:, None] * (hand_world[..., 2] - hand_world[:, :1, 2])
        hand_depth = np.maximum(hand_depth, 0.1 * wrist_depth[:, None])
        found = observed.hand_score[:, side] > 0
        joints[:, hand] = np.where(
            found[:, None, None],
            back_project(hand_keypoints, hand_depth, focal_length, width, height),
            _unseen_hands(joints, name),
        )
        joint_confidence[:, hand] = np.where(found, observed.hand_score[:, side], 0.0)[:, None]
    depth = np.maximum(joints[..., 2:], 1e-3)
    pixels = joints[..., :2] / depth * focal_length + np.array([width / 2, height / 2])
    pixels[:, BODY], _ = (each[:, BODY] for each in map_joints(keypoints, confidence, MEDIAPIPE_POSE_MAPPING))
    # The neck is the shoulders' middle in the picture; at its own depth that is the point to project.
    neck = JOINT_INDEX["neck"]
    joints[:, neck] = back_project(pixels[:, neck], joints[:, neck, 2], focal_length, width, height)
    joint_confidence = _limit_outside(pixels, np.clip(joint_confidence, 0, 1), width, height)
    return BodyTrack(joints=joints, keypoints=pixels, confidence=joint_confidence), focal_length
