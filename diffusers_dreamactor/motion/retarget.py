"""One person's motion on another person: the driver's bone directions, the reference's bone lengths and framing."""

import numpy as np
from diffusers.utils import logging

from .bone_lengths import (
    PARENT_INDICES,
    body_scale,
    bone_vectors,
    complete_lengths,
    describe_sources,
    length_sources,
    measure_lengths,
    scale_offsets,
    seen_bones,
    size_ratio,
    steady_size,
)
from .camera import back_project, shortest_rotation
from .framing import (
    ANKLES,
    CONTACT_JOINTS,
    NEAREST_DEPTH,
    foot_contact,
    foot_correction,
    kept_in_picture,
    kept_path,
    picture_path,
    seen_weights,
    sits,
    typical_frame,
    world_path,
)
from .head_placement import head_circle, head_rotation, neck_stretch, place_head
from .pose_transfer import (
    HANDS,
    HEAD_JOINTS,
    HIPS,
    LEFT_SHOULDER,
    RIGHT_SHOULDER,
    SHOULDERS,
    complete_pose,
    fill_directions,
    held_hips,
    limb_ratios,
    planted_hips,
    reach_with_arms,
    rotate,
    torso_frames,
    torso_turn,
    trust_chains,
    turned_from_first,
    with_length,
    yaw_between,
)
from .sequence import BodyTrack, HeadTrack, MotionSequence, project
from .skeleton import BONE_GROUPS, BONES, JOINT_INDEX, NUM_JOINTS, ROOT
from .visibility import believe_before, without_isolated


logger = logging.get_logger(__name__)

PARTS = ("face", "head", "body")
ALIGNMENTS = ("framing", "path", "first", "none")

NOSE = JOINT_INDEX["nose"]
BELOW_NECK = [joint for joint in range(NUM_JOINTS) if joint not in HEAD_JOINTS]
ARMS = [*BONE_GROUPS["arm"], *BONE_GROUPS["forearm"]]
FINGERS = list(range(20, NUM_JOINTS))
LEG_BONES = (*BONE_GROUPS["thigh"], *BONE_GROUPS["shin"])
KNEES = list(BONE_GROUPS["thigh"])
LEGS = [*LEG_BONES, *BONE_GROUPS["foot"]]

# A walk is followed through space unless it comes nearer than this share of the reference's distance.
NEAREST_WALK = 0.3
# Where driver and reference are said to differ much: proportions, size in the picture, and distance over the clip.
PROPORTION_TOLERANCE = 1.6
SIZE_TOLERANCE = 3.0


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

    Bones point as the driver's do and are as long as the reference's. Where the driver usually is, the person stands where
    the reference does and is as large; around it the driver's way through the picture is followed, in body sizes. Where
    whole figures stand on the ground in both, it is the way through space, corrected so that standing feet do not
    slide. A driver who sits, kneels or crouches for most of the clip sits on the ground of a standing reference, the pelvis at
    rest. Joints that the driver does not show keep the reference's pose on the moving torso: legs stand, arms turn with
    the shoulders. One that is lost for more than a second goes back to it, slowly. If no leg is driven, pelvis and feet stay
    where the reference has them. A head that would leave the picture while the driver's does not is kept in it, as a camera
    operator would. Other joints may leave the picture.

    Two things are not taken as they come: the distance between neck and nose, which is no bone, follows the driver's nods;
    and a hand whose elbow the driver's picture does not show reaches to where the driver's is.

    Where 3D joints are missing (all NaN) on one side, the same is done in the image plane: the driver's limbs are scaled
    by the ratio of the limbs' lengths, and the result has no 3D joints either.

    Args:
        motion (`MotionSequence`): the driver, in pixels of its own picture.
        reference (`MotionSequence`): one frame, in pixels of the picture that is generated.
        height, width (`int`): the size of that picture.
        align (`str`): `"framing"`: as above. `"path"`: in the first frame the person stands where the reference does, and
            from there on the driver's way is followed exactly, also out of the picture. `"first"`: frame 0 has the
            reference's own pose, and bones turn from it as the driver's turn from their first frame (for a driver that
            starts much like the reference). `"none"`: the person stands where the driver stands in its picture, scaled
            and cut to the new size, and as large.
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
    logger.info(f"Bones of the reference {describe_sources(length_sources(measured))}.")
    person = complete_pose(person[0], person_seen[0], lengths, planar)
    person_frame = torso_frames(person[None], np.ones(1), planar)[0]

    # The driver: joints, and how much each counts as seen.
    if motion.body is not None:
        driver = _positions(motion, planar)
        driver_seen = without_isolated(motion.body.confidence >= 0.5, motion.fps)
        self_seen = seen_weights(motion.body.confidence, motion.fps)
        seen = trust_chains(self_seen)
        if not planar:
            radius = None
            if motion.head is not None:
                radius = head_circle(motion, driver[:, HEAD_JOINTS].mean(axis=1), planar)[1]
                radius = np.where(motion.head.confidence >= 0.5, radius, np.nan)
            driver = steady_size(driver, driver_seen, radius, motion.fps)
    else:
        driver, driver_seen = np.tile(person, (num_frames, 1, 1)), np.zeros((num_frames, NUM_JOINTS), dtype=bool)
        self_seen = seen = np.zeros((num_frames, NUM_JOINTS))
    surely_seen = seen > 0.9999
    present = surely_seen[:, [ROOT, *HEAD_JOINTS]].any(axis=1)
    first = int(np.argmax(present))
    if align == "framing" and motion.body is not None:
        shown = present & _in_picture(motion.body.keypoints[:, ROOT], motion)
        if shown.any():
            size = body_scale(measure_lengths(driver, driver_seen))
            first = typical_frame(driver[:, ROOT], shown, size if np.isfinite(size) else 0.0)
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
    anchor = _anchor(person_seen[0], seen, body_driven, head_driven)
    # Whose legs are not driven stands: the torso moves above a pelvis and feet that stay.
    planted = bool(
        align == "framing" and anchor == "neck" and person_seen[0, ANKLES].any() and not weights[:, LEGS].any()
    )
    if planted and _in_picture(motion.body.keypoints[:, KNEES], motion)[present].mean() > 0.5:
        # Knees in the picture that are not seen are behind something, and so may be the hips.
        weights[:, HIPS] = 0
    own = bone_vectors(person)
    frames = torso_frames(driver, seen[:, HIPS].max(axis=1), planar)
    vectors = fill_directions(bone_vectors(driver), seen_bones(surely_seen), frames)
    if planar:
        vectors = vectors * limb_ratios(measured, driver_lengths, ratio)[:, None]
    else:
        start = first if align == "first" else None
        stretch = neck_stretch(vectors[:, NOSE], weights[:, NOSE], own[NOSE], motion.head, reference.head, start)
        lengths = np.tile(lengths, (num_frames, 1))
        lengths[:, NOSE] *= stretch
    if align == "first":
        vectors = turned_from_first(vectors, frames, first, person_frame, own, person_seen[0])
    if not planar:
        vectors = with_length(vectors, lengths)
        if align != "first":
            arms = np.where(np.isfinite(driver_lengths), driver_lengths, lengths[0] / ratio)
            guessed = {
                side: weights[:, wrist] * (1 - self_seen[:, elbow])
                for side, elbow, wrist in (("right", *ARMS[::2]), ("left", *ARMS[1::2]))
            }
            vectors = reach_with_arms(vectors, driver, lengths[0], arms, guessed, motion.fps)

    def blend(joints: list[int], held: np.ndarray) -> None:
        weight = weights[:, joints, None]
        mixed = weight * vectors[:, joints] + (1 - weight) * held
        vectors[:, joints] = mixed if planar else with_length(mixed, lengths[:, joints])

    # From the shoulders down: what is held follows what it hangs on.
    blend(SHOULDERS, own[SHOULDERS])
    grounded, path = False, None
    if anchor == "neck":
        path = _path(driver[:, ROOT], person[ROOT], first, ratio, align, motion, reference, planar)
        if align != "none" and not planar and person_seen[0, ANKLES].any():
            walk_ratio = size_ratio(lengths[0], driver_lengths, LEG_BONES)
            walked = world_path(driver[:, ROOT], person[ROOT], first, walk_ratio)
            shown = np.mean(weights[:, ANKLES].max(axis=1) >= 0.5) >= 0.5 * np.mean(present)
            grounded = bool(shown and walked[:, 2].min() > NEAREST_WALK * person[ROOT, 2])
            path = walked if grounded else path
    elif anchor == "none":
        path = np.tile(person[ROOT], (num_frames, 1))
    blend(HIPS, held_hips(own, vectors, None if path is None else path - path[first], planar))
    if planted:
        vectors[:, HIPS] = planted_hips(own, vectors, planar)
    turn = torso_turn(vectors, person_frame, planar)
    blend(LEGS, rotate(yaw_between(own[HIPS], vectors[:, HIPS], planar), own[LEGS]))
    blend(ARMS, rotate(turn, own[ARMS]))
    for side, hand in HANDS.items():
        wrist = JOINT_INDEX[f"{side}_wrist"]
        forearm = rotate(turn, own[[wrist]])[:, 0]
        hand_turn = shortest_rotation(forearm, vectors[:, wrist]) @ turn
        blend(list(range(hand.start, hand.stop)), rotate(hand_turn, own[hand]))
    turned_head = head_rotation(motion, reference, head_driven, first if align == "first" else None, turn)
    head_turn = turn
    if reference.head is not None:
        head_turn = turned_head @ reference.head.rotation[0].astype(np.float64).T
    blend(HEAD_JOINTS, rotate(head_turn, own[HEAD_JOINTS]))
    vectors = scale_offsets(vectors, bone_scale)

    # In the picture.
    relative = np.zeros((num_frames, NUM_JOINTS, 3))
    for child, parent in BONES:
        relative[:, child] = relative[:, parent] + vectors[:, child]
    if anchor == "head":
        goal = person[HEAD_JOINTS].mean(axis=0)
        path = _path(driver[:, HEAD_JOINTS].mean(axis=1), goal, first, ratio, align, motion, reference, planar)
        path = path - relative[:, HEAD_JOINTS].mean(axis=1)
    if planted:
        path = person[HIPS].mean(axis=0) - relative[:, HIPS].mean(axis=1)
    joints = relative + path[:, None]
    if anchor == "neck" and align != "none" and not planar and not planted and person_seen[0, ANKLES].any():
        ground = person[ANKLES, 1][person_seen[0, ANKLES]].max()
        contact, slide = foot_contact(driver, weights, body_scale(driver_lengths), motion.fps)
        standing = contact[first, : len(ANKLES)] > 0.5
        sitting = sits(joints, weights, lengths, present)
        if sitting:
            # On the reference's ground, on whatever is lowest: who sits where a figure stood sits down there.
            if align == "framing":
                pelvis = joints[:, HIPS].mean(axis=1)
                joints += (np.median(pelvis[present], axis=0) - pelvis)[:, None]
            lowest = joints[:, [*HIPS, *KNEES, *ANKLES], 1].max(axis=1)
            joints[..., 1] += ground - np.median(lowest[present])
        elif grounded and standing.any():
            # Who stands stands where the reference stands, also when crouching.
            reach = lengths[0, HIPS].mean()
            lift = ground - joints[first, np.array(ANKLES)[standing], 1].max()
            joints[..., 1] += np.clip(lift, -reach, reach)
        if grounded and not (sitting and align == "framing"):
            joints += foot_correction(joints[:, CONTACT_JOINTS], contact, walk_ratio * slide)[:, None]

    def in_pixels(points: np.ndarray) -> np.ndarray:
        if planar:
            return points[..., :2] + np.array([width, height]) / 2
        return project(points, reference.focal_length, width, height)

    if not planar:
        joints[..., 2] = np.maximum(joints[..., 2], NEAREST_DEPTH)
    if align == "framing" and body_driven:
        own_head = in_pixels(person[HEAD_JOINTS])
        margin = np.linalg.norm(np.ptp(own_head, axis=0)) if reference.head is None else reference.head.radius[0]
        counted = present & _in_picture(motion.body.keypoints[:, HEAD_JOINTS].mean(axis=1), motion)
        head_way = in_pixels(joints[:, HEAD_JOINTS]).mean(axis=1)
        margin = 0.7 * float(margin)
        shift = kept_in_picture(head_way, counted, own_head.mean(axis=0), margin, width, height, not grounded)
        scale = 1.0 if planar else joints[:, HEAD_JOINTS, 2].mean(axis=1, keepdims=True) / reference.focal_length
        joints[..., :2] += (shift * scale)[:, None]
    keypoints = in_pixels(joints)
    visible = present[:, None].astype(np.float32) if body_driven else np.ones((num_frames, 1), dtype=np.float32)
    confidence = np.broadcast_to(reference.body.confidence, (num_frames, NUM_JOINTS))
    if motion.body is not None:
        share = weights.copy()
        share[:, ROOT] = seen[:, ROOT] * body_driven
        # A joint that the driver has lost for good is not gone: it moves on to the reference's pose.
        lost = ~driver_seen & (share < 0.9999)
        driver_confidence = np.where(lost, np.maximum(motion.body.confidence, confidence), motion.body.confidence)
        confidence = share * driver_confidence + (1 - share) * confidence
        # On its way between the driver's pose and the reference's, a hand's fingers mean nothing.
        confidence[:, FINGERS] *= np.abs(2 * share[:, FINGERS] - 1)
        confidence = believe_before(confidence, middle=True)
    head = None
    if turned_head is not None:
        follow = head_driven and motion.head is not None
        head = place_head(motion, reference, driver, person, joints, turned_head, follow, ratio, planar)
        head.radius *= np.float32(bone_scale.get("face", 1.0))
        head.confidence = head.confidence * visible[:, 0]
    body = BodyTrack(np.full_like(joints, np.nan) if planar else joints, keypoints, confidence * visible)
    result = MotionSequence(motion.fps, width, height, reference.focal_length, body, head, face, motion.people)
    if body_driven:
        _warn_of_differences(motion, result, reference, measured, driver_lengths, ratio, present, align)
    return result


def check_fit(align: str, bone_scale: dict[str, float]) -> None:
    """Raises `ValueError` for an `align` or a `bone_scale` that [`retarget`] does not take."""
    if align not in ALIGNMENTS:
        raise ValueError(f"`align` must be one of {', '.join(map(repr, ALIGNMENTS))}, but is {align!r}.")
    for part, factor in bone_scale.items():
        if part not in BONE_GROUPS:
            raise ValueError(f"`bone_scale` has the part {part!r}, but the parts are {', '.join(BONE_GROUPS)}.")
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"`bone_scale[{part!r}]` must be a positive number, but is {factor}.")


def _check_size(height: int, width: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a positive whole number of pixels, but is {value}.")


def _check_inputs(motion, reference, height, width, align, bone_scale, drive) -> None:
    _check_size(height, width)
    check_fit(align, bone_scale)
    if isinstance(drive, str) or not drive or any(part not in PARTS for part in drive):
        raise ValueError(f"`drive` must hold one or more of {', '.join(map(repr, PARTS))}, but is {drive!r}.")
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


def _in_picture(pixels: np.ndarray, motion: MotionSequence) -> np.ndarray:
    """Whether points `(..., 2)` are in the picture of `motion`."""
    return ((pixels >= 0) & (pixels <= [motion.width, motion.height])).all(axis=-1)


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


def _warn_of_differences(
    motion: MotionSequence,
    result: MotionSequence,
    reference: MotionSequence,
    measured: np.ndarray,
    driver_lengths: np.ndarray,
    ratio: float,
    present: np.ndarray,
    align: str,
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
    # "framing" keeps the reference's own, however the driver is framed.
    if align != "framing" and min(heights) > 0 and not 1 / SIZE_TOLERANCE < heights[0] / heights[1] < SIZE_TOLERANCE:
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
    # A close portrait shows no neck; the head is what should not leave it.
    outside = present & ~_in_picture(result.body.keypoints[:, HEAD_JOINTS].mean(axis=1), result)
    if outside.mean() > 0.1:
        logger.warning(
            f"The retargeted person's head is outside the picture in {outside.sum()} of {num_frames} frames."
        )
    depth = result.body.joints[present, ROOT, 2]
    if np.isfinite(depth).all() and depth.max() > SIZE_TOLERANCE * depth.min():
        logger.warning(
            f"The driver's distance changes so much that the person's size in the picture varies "
            f"{depth.max() / depth.min():.1f} times."
        )
