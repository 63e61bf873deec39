"""One person's motion on another person: the driver's bone directions, the reference's bone lengths and framing."""

import numpy as np
from diffusers.utils import logging
from scipy.spatial.transform import Rotation

from .bone_lengths import (
    PARENT_INDICES,
    body_scale,
    bone_vectors,
    complete_lengths,
    measure_lengths,
    scale_offsets,
    size_ratio,
)
from .camera import back_project
from .framing import (
    ANKLES,
    CONTACT_JOINTS,
    foot_contact,
    foot_correction,
    kept_path,
    picture_path,
    seen_weights,
    world_path,
)
from .sequence import BodyTrack, HeadTrack, MotionSequence, project
from .skeleton import BONE_GROUPS, BONES, JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND, ROOT


logger = logging.get_logger(__name__)

PARTS = ("face", "head", "body")
ALIGNMENTS = ("framing", "first", "none")

RIGHT_SHOULDER, LEFT_SHOULDER = JOINT_INDEX["right_shoulder"], JOINT_INDEX["left_shoulder"]
RIGHT_HIP, LEFT_HIP = JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"]
SHOULDERS, HIPS = [RIGHT_SHOULDER, LEFT_SHOULDER], [RIGHT_HIP, LEFT_HIP]
HEAD_JOINTS = [JOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
NOSE = JOINT_INDEX["nose"]
BELOW_NECK = [joint for joint in range(NUM_JOINTS) if joint not in HEAD_JOINTS]
ARMS = [*BONE_GROUPS["arm"], *BONE_GROUPS["forearm"]]
LEG_BONES = (*BONE_GROUPS["thigh"], *BONE_GROUPS["shin"])
LEGS = [*LEG_BONES, *BONE_GROUPS["foot"]]
HANDS = {"right": RIGHT_HAND, "left": LEFT_HAND}

# Metres; a capture's depth error must not put a joint behind the camera.
NEAREST_DEPTH = 0.05
# A walk is followed through space unless it comes nearer than this share of the reference's distance.
NEAREST_WALK = 0.3
# The torso gives way to the moving neck by this share of its length before the hips follow, and by this angle in a twist:
# a person who is only seen from the chest up stands still with the rest.
LEAN = 0.25
TWIST = np.radians(30)
# The greatest change of the distance between neck and nose that is followed; more is an error in depth.
NECK_STRETCH = 1.4
# Degrees between two head rotations up to which their pictures are compared.
ALIKE = 30.0
# The middle of nose, eyes and ears is that many head radii before the middle of the head.
HEAD_DEPTH = 0.45
# Where driver and reference are said to differ much: proportions, size in the picture, and distance over the clip.
PROPORTION_TOLERANCE = 1.6
SIZE_TOLERANCE = 3.0

# How bones point that neither was seen nor came with a usable estimate, in the axes of the torso (x from the right to
# the left shoulder, y down the spine, z backwards): arms and legs hang, feet and nose point to the front.
_REST = np.tile([0.0, 1.0, 0.0], (NUM_JOINTS, 1))
for _name, _direction in {
    "nose": (0, -0.85, -0.53),
    "right_eye": (-0.6, -0.7, 0.4),
    "left_eye": (0.6, -0.7, 0.4),
    "right_ear": (-0.45, 0.2, 0.87),
    "left_ear": (0.45, 0.2, 0.87),
    "right_shoulder": (-1, 0, 0),
    "left_shoulder": (1, 0, 0),
    "right_elbow": (-0.15, 0.99, 0),
    "left_elbow": (0.15, 0.99, 0),
    "right_hip": (-0.2, 0.98, 0),
    "left_hip": (0.2, 0.98, 0),
    "right_toe": (0, 0.4, -0.92),
    "left_toe": (0, 0.4, -0.92),
}.items():
    _REST[JOINT_INDEX[_name]] = _direction
del _name, _direction


def resize_motion(motion: MotionSequence, height: int, width: int) -> MotionSequence:
    """
    The motion in a picture of another size, without retargeting: scaled to cover it, then cut around the middle, as its
    frames would be.

    Args:
        motion (`MotionSequence`): any motion.
        height, width (`int`): the new picture size in pixels.

    Returns:
        A `MotionSequence` with keypoints, head and focal length in the new pixels. Joints in metres do not change. Face
        boxes stay in pixels of the driver's own picture, which is where the crops are cut from.

    Raises:
        ValueError: `height` or `width` is no positive whole number.
    """
    _check_size(height, width)
    scale = max(width / motion.width, height / motion.height)

    def move(points: np.ndarray) -> np.ndarray:
        return (points - np.array([motion.width, motion.height]) / 2) * scale + np.array([width, height]) / 2

    body, head = motion.body, motion.head
    if body is not None:
        body = BodyTrack(body.joints, move(body.keypoints), body.confidence)
    if head is not None:
        head = HeadTrack(head.rotation, move(head.center), head.radius * scale, head.confidence)
    focal_length = motion.focal_length * scale
    return MotionSequence(motion.fps, width, height, focal_length, body, head, motion.face, motion.people)


def retarget(
    motion: MotionSequence,
    reference: MotionSequence,
    height: int,
    width: int,
    align: str = "framing",
    bone_scale: dict[str, float] | None = None,
    drive: tuple[str, ...] = PARTS,
) -> MotionSequence:
    """
    Makes the person of `reference` move as the one of `motion` does.

    Bones point as the driver's do and are as long as the reference's. In the first frame the person stands where the
    reference does and is as large; from there on the driver's way through the picture is followed, in body sizes. Where
    whole figures stand on the ground in both, it is the way through space, corrected so that standing feet do not
    slide. Joints that the driver never shows keep the reference's pose on the moving torso: legs stand, arms
    turn with the shoulders. Joints may leave the picture.

    Where 3D joints are missing (all NaN) on one side, the same is done in the image plane: the driver's limbs are scaled
    by the ratio of the limbs' lengths, and the result has no 3D joints either.

    Args:
        motion (`MotionSequence`): the driver, in pixels of its own picture.
        reference (`MotionSequence`): one frame, in pixels of the picture that is generated.
        height, width (`int`): the size of that picture.
        align (`str`): `"framing"`: as above. `"first"`: frame 0 has the reference's own pose, and bones turn from it as the
            driver's turn from their first frame (for a driver that starts much like the reference). `"none"`: the
            person stands where the driver stands in its picture, scaled and cut to the new size, and as large.
        bone_scale (`dict`, *optional*): factors by part, e.g. `{"arm": 1.2}`; the names are those of
            `skeleton.BONE_GROUPS`. "face" also scales the head's radius.
        drive (`tuple`): which of "face", "head" and "body" follow the driver. The others keep the reference's pose: the body
            stands still, the head stays fixed on the torso, and `face` of the result is `None`.

    Returns:
        A `MotionSequence` with the driver's frame rate and number of frames: joints, keypoints and head in the camera and
        the pixels of the reference. Confidence is the driver's where the driver moves a joint, else the reference's, and
        0 while the driver's person is not in the picture. Face boxes stay in pixels of the driver's picture.

    Raises:
        ValueError: an unknown `align`, `drive` or part in `bone_scale`; a factor that is not positive; a `reference` that
            has another size, not one frame, no body track or nobody in it; a `motion` without a part to drive.
    """
    bone_scale = bone_scale or {}
    _check_inputs(motion, reference, height, width, align, bone_scale, drive)
    num_frames = motion.num_frames
    face = motion.face if "face" in drive else None
    body_driven = "body" in drive and motion.body is not None
    head_driven = "head" in drive and (motion.head is not None or motion.body is not None)
    planar = any(m.body is not None and bool(np.isnan(m.body.joints).all()) for m in (motion, reference))
    if align == "none":
        motion = resize_motion(motion, height, width)

    # The reference: a whole skeleton, with estimates where it is not seen.
    person, person_seen = _positions(reference, planar), reference.body.confidence >= 0.5
    measured = measure_lengths(person, person_seen)
    lengths = complete_lengths(measured)
    person = _complete_pose(person[0], person_seen[0], lengths, planar)
    person_frame = _torso_frames(person[None], np.ones(1), planar)[0]

    # The driver: joints, and how much each counts as seen.
    if motion.body is not None:
        driver, driver_seen = _positions(motion, planar), motion.body.confidence >= 0.5
        seen = _trust_chains(seen_weights(motion.body.confidence, motion.fps))
    else:
        driver, driver_seen = np.tile(person, (num_frames, 1, 1)), np.zeros((num_frames, NUM_JOINTS), dtype=bool)
        seen = np.zeros((num_frames, NUM_JOINTS))
    present = np.maximum(seen[:, ROOT], seen[:, HEAD_JOINTS].max(axis=1))
    first = int(np.argmax(present >= 0.5))
    if planar:
        # Sizes in pixels change with the distance: those at the start are the ones to compare.
        window = slice(first, first + max(1, round(motion.fps)))
        driver_lengths = measure_lengths(driver[window], driver_seen[window], percentile=95.0)
    else:
        driver_lengths = measure_lengths(driver, driver_seen)
    ratio = size_ratio(measured, driver_lengths)
    ratio = ratio if np.isfinite(ratio) else 1.0

    # Bone vectors (F, 62, 3): the driver's where its weight is 1, the reference's on the moving torso where it is 0.
    weights = np.minimum(seen, seen[:, PARENT_INDICES])
    weights[:, HEAD_JOINTS] *= head_driven
    weights[:, BELOW_NECK] *= body_driven
    own = bone_vectors(person)
    vectors = bone_vectors(driver)
    if planar:
        vectors = vectors * _limb_ratios(measured, driver_lengths, ratio)[:, None]
    else:
        start = first if align == "first" else None
        stretch = _neck_stretch(vectors[:, NOSE], weights[:, NOSE], own[NOSE], motion.head, reference.head, start)
        lengths = np.tile(lengths, (num_frames, 1))
        lengths[:, NOSE] *= stretch
    if align == "first":
        frames = _torso_frames(driver, seen[:, HIPS].max(axis=1), planar)
        vectors = _turned_from_first(vectors, frames, first, person_frame, own, person_seen[0])
    if not planar:
        vectors = _with_length(vectors, lengths)

    def blend(joints: list[int], held: np.ndarray) -> None:
        weight = weights[:, joints, None]
        mixed = weight * vectors[:, joints] + (1 - weight) * held
        vectors[:, joints] = mixed if planar else _with_length(mixed, lengths[:, joints])

    # From the shoulders down: what is held follows what it hangs on.
    blend(SHOULDERS, own[SHOULDERS])
    anchor = _anchor(person_seen[0], seen, body_driven, head_driven)
    grounded, path = False, None
    if anchor == "neck":
        path = _path(driver[:, ROOT], person[ROOT], first, ratio, align, motion, reference, planar)
        if align != "none" and not planar and person_seen[0, ANKLES].any():
            walk_ratio = size_ratio(lengths[0], driver_lengths, LEG_BONES)
            walked = world_path(driver[:, ROOT], person[ROOT], first, walk_ratio)
            shown = np.mean(weights[:, ANKLES].max(axis=1) >= 0.5) >= 0.5 * np.mean(present >= 0.5)
            grounded = bool(shown and walked[:, 2].min() > NEAREST_WALK * person[ROOT, 2])
            path = walked if grounded else path
    elif anchor == "none":
        path = np.tile(person[ROOT], (num_frames, 1))
    blend(HIPS, _held_hips(own, vectors, None if path is None else path - path[first], planar))
    turn = _torso_turn(vectors, person_frame, planar)
    blend(LEGS, _rotate(_yaw_between(own[HIPS], vectors[:, HIPS], planar), own[LEGS]))
    blend(ARMS, _rotate(turn, own[ARMS]))
    for side, hand in HANDS.items():
        wrist = JOINT_INDEX[f"{side}_wrist"]
        forearm = _rotate(turn, own[[wrist]])[:, 0]
        hand_turn = _shortest_rotation(forearm, vectors[:, wrist]) @ turn
        blend(list(range(hand.start, hand.stop)), _rotate(hand_turn, own[hand]))
    head_rotation = _head_rotation(motion, reference, head_driven, first if align == "first" else None, turn)
    head_turn = turn
    if reference.head is not None:
        head_turn = head_rotation @ reference.head.rotation[0].astype(np.float64).T
    blend(HEAD_JOINTS, _rotate(head_turn, own[HEAD_JOINTS]))
    vectors = scale_offsets(vectors, bone_scale)

    # In the picture.
    relative = np.zeros((num_frames, NUM_JOINTS, 3))
    for child, parent in BONES:
        relative[:, child] = relative[:, parent] + vectors[:, child]
    if anchor == "head":
        goal = person[HEAD_JOINTS].mean(axis=0)
        path = _path(driver[:, HEAD_JOINTS].mean(axis=1), goal, first, ratio, align, motion, reference, planar)
        path = path - relative[:, HEAD_JOINTS].mean(axis=1)
    joints = relative + path[:, None]
    if grounded:
        contact, slide = foot_contact(driver, weights, body_scale(driver_lengths), motion.fps)
        standing = contact[first, : len(ANKLES)] > 0.5
        if standing.any():
            # Who stands stands where the reference stands, also when crouching.
            ground = person[ANKLES, 1][person_seen[0, ANKLES]].max()
            reach = lengths[0, HIPS].mean()
            lift = ground - joints[first, np.array(ANKLES)[standing], 1].max()
            joints[..., 1] += np.clip(lift, -reach, reach)
        joints += foot_correction(joints[:, CONTACT_JOINTS], contact, walk_ratio * slide)[:, None]

    if planar:
        keypoints = joints[..., :2] + np.array([width, height]) / 2
    else:
        joints[..., 2] = np.maximum(joints[..., 2], NEAREST_DEPTH)
        keypoints = project(joints, reference.focal_length, width, height)
    visible = present[:, None] if body_driven else np.ones((num_frames, 1))
    confidence = np.broadcast_to(reference.body.confidence, (num_frames, NUM_JOINTS))
    if motion.body is not None:
        share = weights.copy()
        share[:, ROOT] = seen[:, ROOT] * body_driven
        confidence = share * motion.body.confidence + (1 - share) * confidence
    head = None
    if head_rotation is not None:
        follow = head_driven and motion.head is not None
        head = _place_head(motion, reference, driver, person, joints, head_rotation, follow, ratio, planar)
        head.radius *= np.float32(bone_scale.get("face", 1.0))
        head.confidence *= visible[:, 0].astype(np.float32)
    body = BodyTrack(np.full_like(joints, np.nan) if planar else joints, keypoints, confidence * visible)
    result = MotionSequence(motion.fps, width, height, reference.focal_length, body, head, face, motion.people)
    if body_driven:
        _warn_of_differences(motion, result, reference, measured, driver_lengths, ratio, present > 0.99)
    return result


def _check_size(height: int, width: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive whole number of pixels, but is {value}.")


def _check_inputs(motion, reference, height, width, align, bone_scale, drive) -> None:
    _check_size(height, width)
    if align not in ALIGNMENTS:
        raise ValueError(f"`align` must be one of {', '.join(map(repr, ALIGNMENTS))}, but is {align!r}.")
    if isinstance(drive, str) or not drive or any(part not in PARTS for part in drive):
        raise ValueError(f"`drive` must hold one or more of {', '.join(map(repr, PARTS))}, but is {drive!r}.")
    for part, factor in bone_scale.items():
        if part not in BONE_GROUPS:
            raise ValueError(f"`bone_scale` has the part {part!r}, but the parts are {', '.join(BONE_GROUPS)}.")
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"`bone_scale[{part!r}]` must be a positive number, but is {factor}.")
    if (reference.height, reference.width) != (height, width):
        raise ValueError(
            f"`reference` must be in the pixels of the generated picture, {width} x {height}, but is in those of a picture "
            f"of {reference.width} x {reference.height}; `resize_motion` converts it."
        )
    if reference.num_frames != 1:
        raise ValueError(f"`reference` must have exactly one frame, but has {reference.num_frames}.")
    if reference.body is None or not (reference.body.confidence >= 0.5).any():
        raise ValueError(
            "`reference` shows no person to retarget to (no joint has a confidence of 0.5); give another picture, or use "
            "the motion as it is with `retarget=False`."
        )
    if motion.num_frames == 0 or all(getattr(motion, part) is None for part in drive):
        raise ValueError(
            f"`motion` has none of the parts to drive ({', '.join(drive)}) or no frame; it needs at least one of them."
        )


def _positions(motion: MotionSequence, planar: bool) -> np.ndarray:
    """
    Joints `(F, 62, 3)`: in metres at the depth of the 3D joints, but exactly behind the keypoints, which captures find more
    precisely; or, in the image plane, pixels from the middle of the picture, with depth 0.
    """
    if planar:
        flat = motion.body.keypoints - np.array([motion.width, motion.height]) / 2
        return np.concatenate([flat, np.zeros_like(flat[..., :1])], axis=-1)
    depth = np.maximum(motion.body.joints[..., 2].astype(np.float64), NEAREST_DEPTH)
    return back_project(motion.body.keypoints, depth, motion.focal_length, motion.width, motion.height)


def _trust_chains(seen: np.ndarray) -> np.ndarray:
    """
    A joint between others that are seen counts as seen too: its estimate is held between them. So does the far shoulder
    or hip of a person seen from the side.
    """
    seen = seen.copy()
    for pair in (SHOULDERS, HIPS):
        seen[:, pair] = seen[:, pair].max(axis=1, keepdims=True)
    seen[:, ROOT] = np.maximum(seen[:, ROOT], seen[:, RIGHT_SHOULDER])
    for side, hand in HANDS.items():
        for chain in (("wrist", "elbow"), ("toe", "ankle", "knee")):
            joints = [JOINT_INDEX[f"{side}_{name}"] for name in chain]
            if chain[0] == "wrist":
                joints.insert(0, hand.start)
            for child, parent in zip(joints, joints[1:]):
                seen[:, parent] = np.maximum(seen[:, parent], seen[:, child])
    return seen


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _with_length(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return _normalized(vectors) * lengths[..., None]


def _neck_stretch(
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


def _rotate(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Every rotation `(F, 3, 3)` on every vector `(N, 3)`: `(F, N, 3)`."""
    return np.einsum("fij,nj->fni", rotation, vectors)


def _shortest_rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rotations `(..., 3, 3)` that turn directions `start` onto `end` `(..., 3)` by the shortest way (Rodrigues' formula)."""
    start, end = np.broadcast_arrays(_normalized(start), _normalized(end))
    axis = np.cross(start, end)
    cosine = np.sum(start * end, axis=-1)
    skew = np.zeros(axis.shape + (3,))
    skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0] = axis[..., 0], axis[..., 1], axis[..., 2]
    skew -= np.swapaxes(skew, -1, -2)
    return np.eye(3) + skew + skew @ skew / np.maximum(1 + cosine, 1e-6)[..., None, None]


def _frames(across: np.ndarray, down: np.ndarray, planar: bool) -> np.ndarray:
    """Axes `(F, 3, 3)` of a torso, as columns, from its spine `down` and the line from its right to its left shoulder."""
    y = _normalized(down)
    if planar:
        z = np.broadcast_to([0.0, 0.0, 1.0], y.shape)
        return np.stack([np.cross(y, z), y, z], axis=-1)
    x = _normalized(across - np.sum(across * y, axis=-1, keepdims=True) * y)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def _torso_frames(joints: np.ndarray, hips_seen: np.ndarray, planar: bool) -> np.ndarray:
    """Axes of the torso of `joints` `(F, 62, 3)`; the spine points down in the picture where no hips are seen."""
    spine = _normalized(joints[:, HIPS].mean(axis=1) - joints[:, ROOT])
    down = hips_seen[:, None] * spine + (1 - hips_seen[:, None]) * np.array([0.0, 1.0, 0.0])
    return _frames(joints[:, LEFT_SHOULDER] - joints[:, RIGHT_SHOULDER], down, planar)


def _torso_turn(vectors: np.ndarray, person_frame: np.ndarray, planar: bool) -> np.ndarray:
    """How the torso of bone `vectors` `(F, 62, 3)` is turned against the reference's, `(F, 3, 3)`."""
    across = vectors[:, LEFT_SHOULDER] - vectors[:, RIGHT_SHOULDER]
    return _frames(across, vectors[:, HIPS].mean(axis=1), planar) @ person_frame.T


def _yaw(start: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Angle in radians about the vertical (y, down) from the line `start` `(3,)` to the lines `(F, 3)`, without jumps."""
    angle = np.arctan2(start[2], start[0]) - np.arctan2(line[:, 2], line[:, 0])
    angle = np.unwrap(angle)
    return angle - 2 * np.pi * np.round(angle[0] / (2 * np.pi))


def _yaw_between(start: np.ndarray, pair: np.ndarray, planar: bool) -> np.ndarray:
    """Rotations about the vertical between two (right, left) pairs: `(2, 3)` and `(F, 2, 3)` to `(F, 3, 3)`."""
    if planar:
        return np.tile(np.eye(3), (len(pair), 1, 1))
    angle = _yaw(start[1] - start[0], pair[:, 1] - pair[:, 0])
    return Rotation.from_euler("y", angle[:, None]).as_matrix()


def _held_hips(own: np.ndarray, vectors: np.ndarray, moved: np.ndarray | None, planar: bool) -> np.ndarray:
    """
    Neck-to-hip vectors `(F, 2, 3)` of a person whose hips the driver does not show: they stay where the reference's are
    while the neck `moved` `(F, 3)` a little and the shoulders turn a little, and follow from there on.
    """
    angle = np.zeros(len(vectors))
    if not planar:
        shoulders = vectors[:, LEFT_SHOULDER] - vectors[:, RIGHT_SHOULDER]
        angle = _yaw(own[LEFT_SHOULDER] - own[RIGHT_SHOULDER], shoulders)
        angle = angle - TWIST * np.tanh(angle / TWIST)
    held = _rotate(Rotation.from_euler("y", angle[:, None]).as_matrix(), own[HIPS])
    if moved is not None:
        reach = LEAN * np.linalg.norm(own[HIPS].mean(axis=0))
        held -= (moved * reach / np.sqrt(reach**2 + np.sum(moved**2, axis=-1, keepdims=True)))[:, None]
    return held


def _complete_pose(joints: np.ndarray, seen: np.ndarray, lengths: np.ndarray, planar: bool) -> np.ndarray:
    """
    The reference's whole skeleton `(62, 3)`: seen bones as they point, others as the capture guessed them if the guess is
    of a sane length, else at rest; all with `lengths`.
    """
    vectors = bone_vectors(joints)
    known = np.linalg.norm(vectors, axis=-1)
    usable = (seen & seen[PARENT_INDICES]) | ((known > 0.4 * lengths) & (known < 2.5 * lengths))
    across = vectors[LEFT_SHOULDER] - vectors[RIGHT_SHOULDER]
    across = across if usable[SHOULDERS].all() else np.array([1.0, 0.0, 0.0])
    down = vectors[HIPS].mean(axis=0) if usable[HIPS].all() else np.array([0.0, 1.0, 0.0])
    rest = _normalized(_REST) @ _frames(across[None], down[None], planar)[0].T
    rest[:, 2] *= not planar
    for side, hand in HANDS.items():
        wrist = JOINT_INDEX[f"{side}_wrist"]
        forearm = vectors[wrist] if usable[wrist] else rest[wrist]
        rest[hand] = forearm / max(np.linalg.norm(forearm), 1e-9)
    if not planar:
        vectors = _with_length(vectors, lengths)
    vectors = np.where(usable[:, None], vectors, rest * lengths[:, None])
    completed = np.zeros((NUM_JOINTS, 3))
    for child, parent in BONES:
        completed[child] = completed[parent] + vectors[child]
    base = ROOT if seen[ROOT] else HEAD_JOINTS[0] if seen[HEAD_JOINTS[0]] else int(np.argmax(seen))
    return completed + joints[base] - completed[base]


def _turned_from_first(
    vectors: np.ndarray, frames: np.ndarray, first: int, person_frame: np.ndarray, own: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """
    Bones of the reference turned as the driver's turn from frame `first` on: the torso as a whole, and every bone by its
    shortest rotation within the torso's axes. Where the reference's bone is not seen, the driver's direction counts.
    """
    local = np.einsum("fji,fnj->fni", frames, vectors)
    lengths = np.linalg.norm(local, axis=-1, keepdims=True)
    growth = lengths / np.maximum(lengths[first], 1e-9)
    turned = np.einsum("fnij,nj->fni", _shortest_rotation(local[[first]], local), own @ person_frame) * growth
    turned = np.where((seen & seen[PARENT_INDICES])[:, None], turned, local)
    return np.einsum("fij,fnj->fni", frames @ frames[first].T @ person_frame, turned)


def _limb_ratios(measured: np.ndarray, driver_lengths: np.ndarray, ratio: float) -> np.ndarray:
    """
    Factors `(62,)` from the driver's bones to the reference's in the image plane, one for each part of the body; single
    pictures foreshorten limbs, so they stay near the ratio of the bodies.
    """
    ratios = np.full(NUM_JOINTS, ratio)
    for bones in BONE_GROUPS.values():
        part = size_ratio(measured, driver_lengths, bones)
        if np.isfinite(part):
            ratios[list(bones)] = np.clip(part, ratio / PROPORTION_TOLERANCE, ratio * PROPORTION_TOLERANCE)
    return ratios


def _anchor(person_seen: np.ndarray, seen: np.ndarray, body_driven: bool, head_driven: bool) -> str:
    """What is laid on the reference: its neck, in a portrait (or when no neck is seen) its head, or nothing moves."""
    if not body_driven:
        return "none"
    neck = person_seen[ROOT] and np.mean(seen[:, ROOT]) > 0.5
    head = head_driven and person_seen[HEAD_JOINTS].any() and np.mean(seen[:, HEAD_JOINTS].max(axis=1)) > 0.5
    portrait = not person_seen[[*HIPS, *ARMS]].any()
    return "head" if head and (portrait or not neck) else "neck"


def _path(anchor, target, first, ratio, align, motion, reference, planar) -> np.ndarray:
    """The way of the anchor, `(F, 3)`, by the chosen alignment."""
    if planar:
        return anchor if align == "none" else target + ratio * (anchor - anchor[first])
    if align == "none":
        return kept_path(anchor, ratio, motion, reference)
    return picture_path(anchor, target, first, ratio, motion, reference)


def _head_rotation(motion, reference, head_driven, start, turn) -> np.ndarray | None:
    """Head rotations `(F, 3, 3)`: the driver's (from frame `start` on), or the reference's on the turned torso."""
    own = None if reference.head is None else reference.head.rotation[0].astype(np.float64)
    if head_driven and motion.head is not None:
        rotation = motion.head.rotation.astype(np.float64)
        return rotation if start is None or own is None else rotation @ rotation[start].T @ own
    return None if own is None else turn @ own


def _head_circle(source: MotionSequence, middle: np.ndarray, planar: bool) -> tuple[np.ndarray, np.ndarray]:
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


def _place_head(
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
        moving, radius = _head_circle(motion, driver[:, HEAD_JOINTS].mean(axis=1), planar)
        weight = seen_weights(motion.head.confidence, motion.fps)
        trusted = weight >= 0.5 if (weight >= 0.5).any() else np.ones(len(weight), dtype=bool)
        typical = np.median(radius[trusted])
        offset, size = np.median(moving[trusted], axis=0), typical
        wander = weight[:, None] * (moving - offset)
        if planar:
            typical = radius[np.argmax(trusted)]
            growth = radius / typical
    if reference.head is not None:
        own_offset, own_radius = _head_circle(reference, person[None, HEAD_JOINTS].mean(axis=1), planar)
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


def _warn_of_differences(
    motion: MotionSequence,
    result: MotionSequence,
    reference: MotionSequence,
    measured: np.ndarray,
    driver_lengths: np.ndarray,
    ratio: float,
    present: np.ndarray,
) -> None:
    """Says, with numbers, where the driver fits the reference badly."""
    for group, bones in BONE_GROUPS.items():
        part = size_ratio(measured, driver_lengths, bones) / ratio
        known = np.isfinite(measured[list(bones)] + driver_lengths[list(bones)]).any()
        if (
            group not in ("hip", "hand", "face")
            and known
            and not 1 / PROPORTION_TOLERANCE < part < PROPORTION_TOLERANCE
        ):
            logger.warning(
                f"Relative to the body, the reference's {group} is {part:.2f} times as long as the driver's; where limbs "
                "touch or cross, the result may not. `bone_scale` adjusts lengths."
            )

    def height_in_picture(source: MotionSequence, frame: int) -> float:
        seen = source.body.confidence[frame] >= 0.5
        return float(np.ptp(source.body.keypoints[frame, seen, 1])) / source.height if seen.any() else 0.0

    if not present.any():
        logger.warning("The driver shows no person in any frame: nothing of the body will be drawn.")
        return
    first, num_frames = int(np.argmax(present)), len(present)
    if present.mean() < 0.9:
        logger.warning(f"The driver's person is in {present.sum()} of {num_frames} frames; the others stay empty.")
    heights = height_in_picture(motion, first), height_in_picture(reference, 0)
    if min(heights) > 0 and not 1 / SIZE_TOLERANCE < heights[0] / heights[1] < SIZE_TOLERANCE:
        logger.warning(
            f"The driver's visible body takes {heights[0]:.0%} of its picture's height in frame {first}, the reference's "
            f"{heights[1]:.0%}: the framings differ much."
        )
    line = result.body.keypoints[:, LEFT_SHOULDER, 0] - result.body.keypoints[:, RIGHT_SHOULDER, 0]
    own = np.diff(reference.body.keypoints[0, SHOULDERS, 0])[0]
    wide = 0.05 * min(result.width, result.height)
    if min(abs(own), abs(line[first])) > wide and own * line[first] < 0:
        logger.warning(
            f"In frame {first} the driver shows the {'front' if line[first] > 0 else 'back'}, the reference the other side "
            f"(shoulders {line[first]:.0f} px and {own:.0f} px apart, from right to left)."
        )
    root = result.body.keypoints[:, ROOT]
    outside = present & ((root < 0) | (root > [result.width, result.height])).any(axis=1)
    if outside.mean() > 0.1:
        logger.warning(
            f"The retargeted person's neck is outside the picture in {outside.sum()} of {num_frames} frames."
        )
    depth = result.body.joints[present, ROOT, 2]
    if np.isfinite(depth).all() and depth.max() > SIZE_TOLERANCE * depth.min():
        logger.warning(
            f"The driver's distance changes so much that the person's size in the picture varies "
            f"{depth.max() / depth.min():.1f} times."
        )
