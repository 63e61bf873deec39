import logging
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.bone_lengths import (
    complete_lengths,
    describe_sources,
    length_sources,
    measure_lengths,
)
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
from diffusers_dreamactor.motion.retarget import resize_motion, retarget
from diffusers_dreamactor.motion.sequence import BodyTrack, HeadTrack, MotionSequence, project
from diffusers_dreamactor.motion.skeleton import BONES, JOINT_INDEX, LEFT_HAND, RIGHT_HAND

from .stick_figure import FRAMINGS, StickFigure


ADULT = StickFigure()
# A lanky person with a big head, and a stocky small one.
TALL = StickFigure(torso=0.45, thigh=0.55, shin=0.50, arm=0.36, forearm=0.31, shoulder=0.16, neck=0.19, head=0.14)
CHILD = StickFigure(thigh=0.32, shin=0.30, arm=0.25, shoulder=0.17, hip=0.12, head=0.13).scaled(0.75)

NECK, NOSE = JOINT_INDEX["neck"], JOINT_INDEX["nose"]
HEAD_JOINTS = [JOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
SHOULDERS = [JOINT_INDEX["right_shoulder"], JOINT_INDEX["left_shoulder"]]
HIPS = [JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"]]
LEGS = [JOINT_INDEX[f"{side}_{name}"] for side in ("right", "left") for name in ("knee", "ankle", "toe")]
ARMS = [JOINT_INDEX[f"{side}_{name}"] for side in ("right", "left") for name in ("elbow", "wrist")]
# Bones of a fixed length: not neck to nose, which a nod shortens, nor the hand's wrist, which lies on the body's.
RIGID = [bone for bone in BONES if bone[0] not in (NOSE, LEFT_HAND.start, RIGHT_HAND.start)]


def bones(joints: np.ndarray, which=RIGID) -> np.ndarray:
    children, parents = np.array(which).T
    return joints[..., children, :] - joints[..., parents, :]


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees between vectors; by the cross product, which is exact for small angles."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    sine = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.degrees(np.arctan2(sine, np.sum(first * second, axis=-1)))


def still(figure: StickFigure, framing: str = "full_body", **film) -> MotionSequence:
    return figure.film("stand", 1, framing, **{"width": 480, "height": 640, "zoom": 0.85} | film)


@pytest.fixture
def warnings_text():
    """Collects what the library's logger says; it does not propagate to pytest's own handler."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("diffusers_dreamactor.motion.retarget")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.parametrize("motion", ["stand", "talk", "wave", "walk", "turn", "sit"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_person_on_itself_is_unchanged(motion, framing):
    driver = ADULT.film(motion, 48, framing, zoom=0.9, cut=framing != "half_body")
    if (motion, framing) == ("walk", "portrait"):
        # Who walks through a portrait is not in it at the start.
        driver = driver[20:28]
    result = retarget(driver, driver[:1], 640, 640, align="path")
    seen = (driver.body.confidence >= 0.5) & (driver[:1].body.confidence >= 0.5)
    # What leaves the picture by far is not of interest; near the camera, its error would be large in pixels.
    near = (np.abs(driver.body.keypoints - 320) < 480).all(axis=-1)
    error = np.abs(result.body.keypoints - driver.body.keypoints).max(axis=-1)
    assert error[seen & near].max() < 1.0
    np.testing.assert_allclose(result.head.rotation, driver.head.rotation, atol=1e-6)


@pytest.mark.parametrize("person", [TALL, CHILD])
@pytest.mark.parametrize("motion", ["wave", "walk", "turn", "sit"])
@pytest.mark.parametrize("align", ["framing", "none"])
def test_directions_are_the_drivers_and_lengths_the_references(person, motion, align):
    driver, reference = ADULT.film(motion, 36, cut=False), still(person)
    result = retarget(driver, reference, 640, 480, align=align)
    assert angles(bones(result.body.joints), bones(driver.body.joints)).max() < 0.5
    assert angles(bones(result.body.joints, [(NOSE, NECK)]), bones(driver.body.joints, [(NOSE, NECK)])).max() < 0.5
    lengths = np.linalg.norm(bones(result.body.joints), axis=-1)
    wanted = np.linalg.norm(bones(reference.body.joints), axis=-1)
    np.testing.assert_allclose(lengths, np.tile(wanted, (36, 1)), rtol=0.01)
    np.testing.assert_allclose(
        project(result.body.joints, result.focal_length, 480, 640), result.body.keypoints, atol=1e-2
    )
    assert (result.width, result.height, result.fps, len(result)) == (480, 640, driver.fps, 36)
    result.validate()


def test_the_way_from_neck_to_nose_follows_the_drivers_nod():
    nod = ADULT.film("stand", 25, "half_body", cut=False)
    pitch = Rotation.from_euler("x", np.linspace(0, 25, 25)[:, None], degrees=True).as_matrix()
    pivot = nod.body.joints[:, [NECK]] + [0, -ADULT.neck, 0]
    nod.body.joints[:, HEAD_JOINTS] = np.einsum("fij,fnj->fni", pitch, nod.body.joints[:, HEAD_JOINTS] - pivot) + pivot
    nod.body.keypoints = project(nod.body.joints, nod.focal_length, 640, 640)
    nod.head.rotation = (pitch @ nod.head.rotation).astype(np.float32)
    result = retarget(nod, still(ADULT.scaled(1.3), "half_body"), 640, 480)
    own = np.linalg.norm(bones(nod.body.joints, [(NOSE, NECK)])[:, 0], axis=-1)
    length = np.linalg.norm(bones(result.body.joints, [(NOSE, NECK)])[:, 0], axis=-1)
    assert own[-1] < 0.9 * own[0]
    np.testing.assert_allclose(length / own, 1.3, rtol=0.02)


def hidden(reference: MotionSequence, joints: list[int], lie: bool = True) -> MotionSequence:
    """The reference with joints that are not seen, and whose values are useless."""
    body = BodyTrack(reference.body.joints.copy(), reference.body.keypoints.copy(), reference.body.confidence.copy())
    body.confidence[:, joints] = 0
    if lie:
        body.joints[:, joints], body.keypoints[:, joints] = [0, 0, 0.1], 0
    return replace(reference, body=body)


def test_unseen_bones_get_the_length_of_the_other_side():
    reference = still(TALL)
    right_arm = [JOINT_INDEX["right_elbow"], JOINT_INDEX["right_wrist"], *range(RIGHT_HAND.start, RIGHT_HAND.stop)]
    result = retarget(ADULT.film("wave", 12, cut=False), hidden(reference, right_arm), 640, 480)
    for name, length in (("elbow", TALL.arm), ("wrist", TALL.forearm)):
        child = JOINT_INDEX[f"right_{name}"]
        parent = JOINT_INDEX["right_shoulder" if name == "elbow" else "right_elbow"]
        found = np.linalg.norm(bones(result.body.joints, [(child, parent)]), axis=-1)
        np.testing.assert_allclose(found, length, rtol=0.01)
    left, right = (
        np.linalg.norm(bones(result.body.joints, [bone for bone in RIGID if bone[0] in hand]), axis=-1)
        for hand in (range(20, 41), range(41, 62))
    )
    np.testing.assert_allclose(left, right, rtol=0.01)


def test_bones_seen_on_neither_side_come_from_proportions_at_the_persons_scale():
    arms = [*ARMS, *range(20, 62)]
    for factor in (0.6, 1.0):
        reference = hidden(still(ADULT.scaled(factor)), arms)
        result = retarget(ADULT.film("wave", 5, cut=False), reference, 640, 480)
        bone = [(JOINT_INDEX["left_elbow"], JOINT_INDEX["left_shoulder"])]
        length = np.linalg.norm(bones(result.body.joints, bone), axis=-1)
        np.testing.assert_allclose(length, factor * ADULT.arm, rtol=0.1)


def test_lengths_with_a_wrong_depth_are_repaired():
    joints = still(ADULT).body.joints.astype(np.float64)
    elbow, wrist = JOINT_INDEX["left_elbow"], JOINT_INDEX["left_wrist"]
    right = measure_lengths(joints, np.ones((1, 62), dtype=bool))[JOINT_INDEX["right_wrist"]]
    joints[:, [wrist, *range(20, 41)], 2] -= 0.4
    lengths = complete_lengths(measure_lengths(joints, np.ones((1, 62), dtype=bool)))
    assert lengths[wrist] == pytest.approx(right, rel=1e-6)
    joints[:, [JOINT_INDEX["right_wrist"], *range(41, 62)], 2] -= 5.0
    joints[:, [wrist, *range(20, 41)], 2] -= 5.0
    lengths = complete_lengths(measure_lengths(joints, np.ones((1, 62), dtype=bool)))
    # Five metres on both sides: clamped to twice the average proportion.
    assert lengths[wrist] == pytest.approx(2 * 0.146 / 0.288 * ADULT.torso, rel=0.1)
    assert lengths[elbow] == pytest.approx(ADULT.arm, rel=1e-3)


def test_a_bones_length_comes_from_the_frames_in_which_it_is_stretched():
    """Pointing at the camera it looks as long as the estimator's depth errs, here half as long for most of the clip."""
    rng = np.random.default_rng(0)
    joints = np.tile(still(ADULT).body.joints.astype(np.float64), (60, 1, 1))
    elbow, wrist = JOINT_INDEX["left_elbow"], JOINT_INDEX["left_wrist"]
    forward = np.arange(60) >= 20
    joints[forward, wrist] = joints[forward, elbow] + [0.0, 0.02, -0.5 * ADULT.forearm]
    joints[~forward, wrist] = joints[~forward, elbow] + [0.0, ADULT.forearm, 0.0]
    joints[~forward, wrist] += rng.normal(0, 0.005, (20, 3))
    seen = np.ones((60, 62), dtype=bool)
    assert measure_lengths(joints, seen)[wrist] == pytest.approx(ADULT.forearm, rel=0.02)
    # One frame in which it is far too long does not count.
    joints[3, wrist] = joints[3, elbow] + [0.0, 3 * ADULT.forearm, 0.0]
    assert measure_lengths(joints, seen)[wrist] == pytest.approx(ADULT.forearm, rel=0.02)


def test_it_is_said_which_lengths_were_measured_mirrored_or_taken_from_proportions():
    joints = still(ADULT).body.joints.astype(np.float64)
    seen = np.ones((1, 62), dtype=bool)
    seen[:, [JOINT_INDEX[name] for name in ("right_wrist", "right_ankle", "left_ankle", "right_toe", "left_toe")]] = (
        False
    )
    seen[:, RIGHT_HAND] = False
    sources = length_sources(measure_lengths(joints, seen))
    assert sources["arm"] == sources["torso"] == sources["thigh"] == "measured"
    assert sources["forearm"] == sources["hand"] == "mirrored"
    assert sources["shin"] == sources["foot"] == "proportions"
    assert "; mirrored: forearm, hand; from average proportions: shin, foot" in describe_sources(sources)


def test_bone_scale_lengthens_what_it_names():
    driver, reference = ADULT.film("wave", 8, cut=False), still(TALL)
    plain = retarget(driver, reference, 640, 480).body.joints
    scaled = retarget(driver, reference, 640, 480, bone_scale={"arm": 1.2, "hip": 1.5, "torso": 0.9})
    ratio = np.linalg.norm(bones(scaled.body.joints), axis=-1) / np.linalg.norm(bones(plain), axis=-1)
    children = [child for child, _ in RIGID]
    arms = [children.index(JOINT_INDEX[name]) for name in ("right_elbow", "left_elbow")]
    others = [i for i, child in enumerate(children) if child not in HIPS and i not in arms]
    np.testing.assert_allclose(ratio[:, arms], 1.2, rtol=1e-3)
    np.testing.assert_allclose(ratio[:, others], 1.0, rtol=1e-3)
    width = [np.linalg.norm(np.diff(joints[:, HIPS], axis=1), axis=-1) for joints in (plain, scaled.body.joints)]
    np.testing.assert_allclose(width[1], 1.5 * width[0], rtol=1e-3)
    spine = [
        np.linalg.norm(joints[:, HIPS].mean(1) - joints[:, NECK], axis=-1) for joints in (plain, scaled.body.joints)
    ]
    np.testing.assert_allclose(spine[1], 0.9 * spine[0], rtol=1e-3)
    head = retarget(driver, reference, 640, 480, bone_scale={"face": 1.5}).head
    np.testing.assert_allclose(head.radius, 1.5 * scaled.head.radius, rtol=0.02)


@pytest.mark.parametrize("reference_framing", FRAMINGS)
@pytest.mark.parametrize("driver_framing", FRAMINGS)
def test_the_first_frame_lies_on_the_reference(driver_framing, reference_framing):
    driver = ADULT.film("wave", 36, driver_framing, width=640, height=360, shift=(-0.1, 0.05), zoom=0.8)
    reference = still(CHILD, reference_framing, shift=(0.12, 0.04))
    result = retarget(driver, reference, 640, 480)
    size = np.linalg.norm(np.diff(reference.body.keypoints[0, SHOULDERS], axis=0))
    torso_and_head = [NECK, *SHOULDERS, *HEAD_JOINTS]
    error = np.linalg.norm(result.body.keypoints[0] - reference.body.keypoints[0], axis=-1)
    assert error[torso_and_head].max() < 0.12 * size
    assert np.linalg.norm(result.head.center[0] - reference.head.center[0]) < 0.12 * size
    assert result.head.radius[0] == pytest.approx(reference.head.radius[0], rel=0.03)
    if (driver_framing, reference_framing) == ("portrait", "full_body"):
        # Legs that the driver never shows stand where the reference's stand.
        away = np.linalg.norm(result.body.keypoints[:, LEGS] - reference.body.keypoints[:, LEGS], axis=-1)
        assert away.max() < 0.25 * size
        np.testing.assert_allclose(result.body.confidence[:, LEGS], reference.body.confidence[:, LEGS].repeat(36, 0))
    seen = driver.body.confidence[0] >= 0.5
    np.testing.assert_allclose(result.body.confidence[0, seen], driver.body.confidence[0, seen], atol=1e-6)


def test_the_way_through_the_picture_is_kept_in_body_sizes():
    driver = ADULT.film("stand", 20, "half_body", width=640, height=360)
    # Half a metre to the right, 40 % nearer, by and by.
    move = np.linspace(0, 1, 20)[:, None, None] * np.array([0.5, 0, -0.4 * driver.body.joints[0, NECK, 2]])
    driver.body.joints = driver.body.joints + move.astype(np.float32)
    driver.body.keypoints = project(driver.body.joints, driver.focal_length, 640, 360)
    small = ADULT.scaled(0.6)
    result = retarget(driver, still(small, "half_body"), 640, 480, align="path")

    def in_shoulders(motion):
        width = np.linalg.norm(motion.body.joints[0, SHOULDERS[0]] - motion.body.joints[0, SHOULDERS[1]])
        pixels = width * motion.focal_length / motion.body.joints[0, NECK, 2]
        return (motion.body.keypoints[:, NECK] - motion.body.keypoints[0, NECK]) / pixels

    np.testing.assert_allclose(in_shoulders(result), in_shoulders(driver), atol=0.01)
    nearer = result.body.joints[-1, NECK, 2] / result.body.joints[0, NECK, 2]
    assert 0.59 < nearer < 0.8
    # A reference framed closer than the driver comes nearer by the same factor, never behind the camera.
    closer = retarget(driver, still(small, "portrait"), 640, 480, align="path")
    assert closer.body.joints[-1, NECK, 2] / closer.body.joints[0, NECK, 2] == pytest.approx(0.6, abs=0.03)


def test_who_usually_stands_elsewhere_than_in_the_first_frame_stands_on_the_reference():
    driver = ADULT.film("stand", 60, "half_body", width=640, height=360, cut=False)
    step = np.interp(np.arange(60), [0, 10], [0.45, 0.0])[:, None, None] * np.array([1.0, 0, 0])
    driver.body.joints = driver.body.joints + step.astype(np.float32)
    driver.body.keypoints = project(driver.body.joints, driver.focal_length, 640, 360)
    reference = still(CHILD, "half_body")
    result = retarget(driver, reference, 640, 480)
    away = np.linalg.norm(result.body.keypoints[:, NECK] - reference.body.keypoints[0, NECK], axis=-1)
    shoulders = np.ptp(reference.body.keypoints[0, SHOULDERS, 0])
    assert away[20:].max() < 0.25 * shoulders < shoulders < away[0]


@pytest.mark.parametrize("planar", [False, True])
def test_the_head_stays_in_a_close_picture_and_joints_keep_their_angles(planar):
    driver = ADULT.film("stand", 80, "full_body", cut=False)
    sway = np.sin(np.arange(80) / 6)[:, None, None] * np.array([0.5, 0.3, 0.0])
    driver.body.joints = driver.body.joints + sway.astype(np.float32)
    before = driver.body.keypoints
    driver.body.keypoints = project(driver.body.joints, driver.focal_length, driver.width, driver.height)
    driver.head.center = driver.head.center + (driver.body.keypoints - before)[:, HEAD_JOINTS].mean(axis=1)
    if planar:
        driver.body.joints[:] = np.nan
    reference = still(CHILD, "portrait")

    def outside(motion):
        return ((motion.head.center < 0) | (motion.head.center > [480, 640])).any(axis=1).mean()

    exact, kept = (retarget(driver, reference, 640, 480, align=align) for align in ("path", "framing"))
    assert outside(exact) > 0.3 and outside(kept) < 0.05
    flat = [bones(np.pad(m.body.keypoints, [(0, 0), (0, 0), (0, 1)])) for m in (exact, kept)]
    pairs = flat if planar else [bones(m.body.joints) for m in (exact, kept)]
    assert angles(*pairs).max() < 0.5


def test_who_sits_behind_a_desk_stands_still_on_the_reference(warnings_text):
    driver = ADULT.film("talk", 90, "full_body", cut=False)
    driver.body.confidence[:, LEGS] = 0.1
    # Three frames in which knees are taken to be seen, and a trunk that sways.
    kick = [JOINT_INDEX["right_knee"], JOINT_INDEX["left_knee"]]
    driver.body.confidence[40:43, kick] = 0.9
    driver.body.joints[40:43, kick] += np.array([0.2, -0.3, -0.3], dtype=np.float32)
    driver.body.joints[..., 0] += 0.1 * np.sin(np.arange(90) / 8)[:, None]
    driver.body.keypoints = project(driver.body.joints, driver.focal_length, driver.width, driver.height)
    reference = still(CHILD)
    result = retarget(driver, reference, 640, 480)
    lower = [*HIPS, *LEGS]
    assert np.abs(result.body.keypoints[:, lower] - reference.body.keypoints[:, lower]).max() < 2.0
    assert np.ptp(result.body.keypoints[:, NECK, 0]) > 4.0
    assert not any("thigh" in message for message in warnings_text)


def planted_slide(result: MotionSequence, planted: np.ndarray) -> float:
    """The greatest way in pixels that an ankle makes in the picture while it is planted."""
    ways = []
    for side, ankle in enumerate((JOINT_INDEX["right_ankle"], JOINT_INDEX["left_ankle"])):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], planted[:, side].astype(int), [0]])))
        for start, end in edges.reshape(-1, 2):
            if end - start > 3:
                ways.append(np.ptp(result.body.keypoints[start + 1 : end - 1, ankle], axis=0).max())
    return max(ways)


@pytest.mark.parametrize("person", [TALL, CHILD])
@pytest.mark.parametrize("motion", ["walk", "approach", "sit", "stand"])
def test_standing_feet_do_not_slide(person, motion):
    num_frames = 40 if motion == "approach" else 96
    driver = ADULT.film(motion, num_frames, zoom=0.7, width=960, height=540, cut=False)
    planted = ADULT.pose(motion, num_frames)[3]
    result = retarget(driver, still(person, zoom=0.8), 640, 480)
    assert planted_slide(result, planted) < 1.0
    # The feet stand on the reference's ground from the start, also where the figure crouches.
    ankles = [JOINT_INDEX["right_ankle"], JOINT_INDEX["left_ankle"]]
    ground = still(person, zoom=0.8).body.joints[0, ankles, 1].max()
    assert result.body.joints[0, ankles, 1].max() == pytest.approx(ground, abs=0.02)


def test_standing_feet_do_not_slide_with_a_noisy_driver():
    driver = ADULT.film("walk", 96, zoom=0.7, width=960, height=540, cut=False)
    planted = ADULT.pose("walk", 96)[3]
    generator = np.random.default_rng(0)
    wobble = gaussian_filter1d(generator.normal(size=(96, 62, 3)), 1.5, axis=0, mode="nearest")
    driver.body.joints = (driver.body.joints + 0.005 * wobble / wobble.std()).astype(np.float32)
    driver.body.keypoints = project(driver.body.joints, driver.focal_length, 960, 540)
    result = retarget(driver, still(TALL, zoom=0.8), 640, 480)
    # No worse than the noise itself, although every bone of the chain adds its own.
    zoom = result.focal_length / result.body.joints[0, NECK, 2] / (1152 / driver.body.joints[0, NECK, 2])
    assert planted_slide(result, planted) < zoom * planted_slide(driver, planted)


def test_parts_that_are_not_driven_hold_the_references_pose():
    driver, reference = ADULT.film("turn", 30, cut=False), still(TALL)
    own = reference.body.keypoints.repeat(30, 0)

    head_only = retarget(driver, reference, 640, 480, drive=("head",))
    below = [joint for joint in range(62) if joint not in HEAD_JOINTS]
    np.testing.assert_allclose(head_only.body.keypoints[:, below], own[:, below], atol=0.1)
    np.testing.assert_allclose(head_only.head.rotation, driver.head.rotation, atol=1e-6)
    assert np.ptp(head_only.body.keypoints[:, NOSE, 0]) > 5
    assert head_only.face is None

    face_only = retarget(driver, reference, 640, 480, drive=("face",))
    np.testing.assert_allclose(face_only.body.keypoints, own, atol=0.1)
    np.testing.assert_allclose(face_only.head.rotation, reference.head.rotation.repeat(30, 0), atol=1e-5)
    np.testing.assert_allclose(face_only.head.center, reference.head.center.repeat(30, 0), atol=0.1)
    np.testing.assert_array_equal(face_only.face.boxes, driver.face.boxes)

    body_only = retarget(driver, reference, 640, 480, drive=("body",))
    rigid_arms = [(JOINT_INDEX["left_elbow"], JOINT_INDEX["left_shoulder"])]
    assert angles(bones(body_only.body.joints, rigid_arms), bones(driver.body.joints, rigid_arms)).max() < 0.5
    # The head turns with the torso, as the reference holds it.
    shoulders = [(SHOULDERS[1], SHOULDERS[0])]
    start = bones(reference.body.joints, shoulders)[0, 0]
    ears = [(JOINT_INDEX["left_ear"], JOINT_INDEX["right_ear"])]
    turned = angles(bones(body_only.body.joints, shoulders)[:, 0], start)
    assert np.abs(body_only.head.rotation - driver.head.rotation).max() > 0.1
    ears_turned = angles(bones(body_only.body.joints, ears)[:, 0], bones(reference.body.joints, ears)[0, 0])
    assert turned.max() > 60
    np.testing.assert_allclose(ears_turned, turned, atol=1.0)


def test_the_head_alone_drives_without_a_body():
    driver = replace(ADULT.film("talk", 24, "portrait"), body=None)
    reference = still(TALL, "half_body")
    result = retarget(driver, reference, 640, 480)
    np.testing.assert_allclose(result.head.rotation, driver.head.rotation, atol=1e-6)
    np.testing.assert_allclose(
        result.body.keypoints[:, HIPS], reference.body.keypoints[:, HIPS].repeat(24, 0), atol=0.1
    )
    # Nose, eyes and ears turn with the circle, which stays on them.
    offset = result.body.keypoints[:, HEAD_JOINTS].mean(axis=1) - result.head.center
    assert np.linalg.norm(offset, axis=-1).max() < 0.7 * result.head.radius.min()
    # On the picture, the nose is where the head looks.
    nose = result.body.joints[:, NOSE] - result.body.joints[:, HEAD_JOINTS[3:]].mean(axis=1)
    assert angles(nose, -result.head.rotation[:, :, 2]).max() < 15


def test_the_heads_circle_keeps_the_references_size_and_sits_on_its_head():
    driver, reference = ADULT.film("approach", 24, cut=False), still(TALL, zoom=0.5)
    result = retarget(driver, reference, 640, 480, align="path")
    assert result.head.radius[0] == pytest.approx(reference.head.radius[0], rel=0.02)
    distance = result.body.joints[:, HEAD_JOINTS, 2].mean(axis=1)
    np.testing.assert_allclose(result.head.radius / result.head.radius[0], distance[0] / distance, rtol=0.02)
    across = [JOINT_INDEX["right_ear"], JOINT_INDEX["left_ear"]]
    middle = result.body.keypoints[:, across].mean(axis=1)
    assert (np.linalg.norm(middle - result.head.center, axis=-1) < 0.1 * result.head.radius).all()


def test_align_first_starts_in_the_references_pose():
    driver = ADULT.film("wave", 30, cut=False)
    reference = TALL.film("wave", 30, width=480, height=640, zoom=0.8)[16:17]
    result = retarget(driver, reference, 640, 480, align="first")
    np.testing.assert_allclose(result.body.keypoints[0], reference.body.keypoints[0], atol=0.5)
    np.testing.assert_allclose(result.head.rotation[0], reference.head.rotation[0], atol=1e-5)
    np.testing.assert_allclose(result.head.center[0], reference.head.center[0], atol=1.0)
    # The waving forearm turns about as far as the driver's.
    forearm = [(JOINT_INDEX["right_wrist"], JOINT_INDEX["right_elbow"])]
    turned, wanted = (bones(motion.body.joints, forearm)[:, 0] for motion in (result, driver))
    np.testing.assert_allclose(angles(turned, turned[0]), angles(wanted, wanted[0]), atol=20)
    assert angles(turned, turned[0]).max() > 30
    same = retarget(driver, driver[:1], 640, 640, align="first")
    np.testing.assert_allclose(same.body.keypoints, driver.body.keypoints, atol=1.0)


def test_align_none_keeps_the_drivers_place_and_size():
    driver = ADULT.film("wave", 10, "half_body", width=640, height=360, shift=(-0.1, 0.1), zoom=0.6)
    resized = resize_motion(driver, 640, 480)
    result = retarget(driver, still(CHILD, "full_body"), 640, 480, align="none")
    np.testing.assert_allclose(result.body.keypoints[:, NECK], resized.body.keypoints[:, NECK], atol=0.1)
    widths = [np.linalg.norm(np.diff(motion.body.keypoints[:, SHOULDERS], axis=1)) for motion in (result, resized)]
    assert widths[0] == pytest.approx(widths[1], rel=0.15)


def test_resize_motion_covers_and_cuts_around_the_middle():
    driver = ADULT.film("wave", 4, width=640, height=360)
    resized = resize_motion(driver, 512, 384)
    scale = 512 / 360
    wanted = (driver.body.keypoints - [320, 180]) * scale + [192, 256]
    np.testing.assert_allclose(resized.body.keypoints, wanted, atol=1e-3)
    np.testing.assert_allclose(project(resized.body.joints, resized.focal_length, 384, 512), wanted, atol=1e-2)
    np.testing.assert_allclose(resized.head.radius, driver.head.radius * scale, rtol=1e-6)
    np.testing.assert_array_equal(resized.face.boxes, driver.face.boxes)
    with pytest.raises(ValueError, match="`width`"):
        resize_motion(driver, 512, 0)


def flat(motion: MotionSequence) -> MotionSequence:
    joints = np.full_like(motion.body.joints, np.nan)
    return replace(motion, body=BodyTrack(joints, motion.body.keypoints, motion.body.confidence))


@pytest.mark.parametrize("sides", ["driver", "reference", "both"])
def test_without_3d_limbs_are_scaled_in_the_picture(sides):
    driver, reference = ADULT.film("wave", 24, width=640, height=360, cut=False), still(TALL)
    driver = flat(driver) if sides != "reference" else driver
    reference = flat(reference) if sides != "driver" else reference
    result = retarget(driver, reference, 640, 480)
    assert np.isnan(result.body.joints).all()
    assert np.isfinite(result.body.keypoints).all()
    np.testing.assert_allclose(result.body.keypoints[0, NECK], reference.body.keypoints[0, NECK], atol=0.1)
    limbs = [bone for bone in RIGID if bone[0] < 20 and bone[0] not in HEAD_JOINTS]
    vectors, wanted = (bones(motion.body.keypoints, limbs) for motion in (result, driver))
    cross = vectors[..., 0] * wanted[..., 1] - vectors[..., 1] * wanted[..., 0]
    lengths = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(wanted, axis=-1)
    assert np.degrees(np.abs(np.arcsin(np.clip(cross / lengths, -1, 1)))).max() < 0.5
    # Standing straight, legs are as long as the reference's.
    legs = [
        (JOINT_INDEX["right_knee"], JOINT_INDEX["right_hip"]),
        (JOINT_INDEX["left_ankle"], JOINT_INDEX["left_knee"]),
    ]
    found, own = (np.linalg.norm(bones(motion.body.keypoints, legs), axis=-1) for motion in (result, reference))
    np.testing.assert_allclose(found, own.repeat(24, 0), rtol=0.03)
    same = retarget(flat(ADULT.film("stand", 8)), flat(ADULT.film("stand", 1)), 640, 640)
    np.testing.assert_allclose(same.body.keypoints, ADULT.film("stand", 8).body.keypoints, atol=2.0)


def test_noise_in_the_references_depth_does_not_move_it_in_the_picture():
    driver, reference = ADULT.film("stand", 3), still(ADULT)
    joints = reference.body.joints.copy()
    joints[..., 2] += np.random.default_rng(1).normal(scale=0.03, size=joints.shape[:2])
    noisy = replace(reference, body=BodyTrack(joints, reference.body.keypoints, reference.body.confidence))
    result = retarget(driver, noisy, 640, 480)
    body = [joint for joint in range(20) if joint not in HEAD_JOINTS]
    assert np.abs(result.body.keypoints[0, body] - reference.body.keypoints[0, body]).max() < 12  # of 540 px
    assert np.linalg.norm(result.head.center[0] - reference.head.center[0]) < 6


def test_a_size_that_drifts_in_the_capture_does_not_drift_in_the_result():
    driver, reference = ADULT.film("talk", 96, "half_body"), still(TALL, "half_body")
    steady = retarget(driver, reference, 640, 480)
    # What one camera cannot tell: a person 20 % larger and 20 % farther away looks the same.
    drift = 1 + 0.1 * np.cos(np.linspace(0, 2 * np.pi, 96))[:, None, None]
    drifting = BodyTrack(driver.body.joints * drift, driver.body.keypoints, driver.body.confidence)
    result = retarget(replace(driver, body=drifting), reference, 640, 480)
    for joint in (NECK, NOSE, *SHOULDERS):
        assert np.abs(result.body.keypoints[:, joint] - steady.body.keypoints[:, joint]).max() < 5
    np.testing.assert_allclose(result.head.radius, steady.head.radius, rtol=0.025)


def test_a_face_alone_leaves_body_and_head_as_they_are():
    driver, reference = replace(ADULT.film("talk", 6), body=None, head=None), still(TALL)
    result = retarget(driver, reference, 640, 480)
    np.testing.assert_allclose(result.body.keypoints, reference.body.keypoints.repeat(6, 0), atol=0.1)
    np.testing.assert_allclose(result.head.center, reference.head.center.repeat(6, 0), atol=0.1)
    np.testing.assert_array_equal(result.face.boxes, driver.face.boxes)


def test_joints_come_and_go_without_jumps():
    driver = ADULT.film("wave", 96, "half_body", cut=False)
    right = [JOINT_INDEX["right_elbow"], JOINT_INDEX["right_wrist"], *range(RIGHT_HAND.start, RIGHT_HAND.stop)]
    driver.body.confidence[20:24, right] = 0  # a gap that a capture interpolates
    driver.body.confidence[48:, right] = 0  # and the arm is gone
    reference = still(TALL, "full_body")
    result = retarget(driver, reference, 640, 480)
    whole = retarget(ADULT.film("wave", 96, "half_body", cut=False), reference, 640, 480)
    wrist = JOINT_INDEX["right_wrist"]
    np.testing.assert_allclose(result.body.joints[:44], whole.body.joints[:44], atol=1e-5)
    assert (result.body.confidence[20:24, wrist] == 0).all()
    steps = np.linalg.norm(np.diff(result.body.joints[:, wrist], axis=0), axis=-1)
    assert steps.max() < 0.15
    # In the end the arm hangs as the reference's does.
    arm = [(JOINT_INDEX["right_elbow"], SHOULDERS[0])]
    assert angles(bones(result.body.joints[-10:], arm), bones(reference.body.joints, arm)).max() < 5
    assert (result.body.confidence[-10:, wrist] == reference.body.confidence[0, wrist]).all()
    # It is drawn on all of its way there, and is the driver's before.
    assert (result.body.confidence[49:, wrist] >= 0.99 * reference.body.confidence[0, wrist]).all()
    assert (result.body.confidence[44:48, wrist] > 0.5).all()


def test_a_hand_reaches_where_the_drivers_is_when_the_elbow_is_a_guess():
    driver = ADULT.film("wave", 48, cut=False)
    elbow, wrist = JOINT_INDEX["left_elbow"], JOINT_INDEX["left_wrist"]
    reference = still(ADULT.scaled(0.7), zoom=0.7)
    clear = retarget(driver, reference, 640, 480)
    guess = np.random.default_rng(2).normal(scale=0.04, size=(48, 3)).astype(np.float32)
    driver.body.joints[:, elbow] += guess
    driver.body.keypoints[:, elbow] = project(driver.body.joints[:, elbow], driver.focal_length, 640, 640)
    seen = retarget(driver, reference, 640, 480)
    driver.body.confidence[:, elbow] = 0.3
    result = retarget(driver, reference, 640, 480)
    error = [np.linalg.norm((m.body.keypoints - clear.body.keypoints)[:, wrist], axis=-1) for m in (result, seen)]
    assert error[0].mean() < 1.5 < error[1].mean()
    lengths = np.linalg.norm(bones(result.body.joints, [(elbow, SHOULDERS[1]), (wrist, elbow)]), axis=-1)
    np.testing.assert_allclose(lengths, np.tile([0.7 * ADULT.arm, 0.7 * ADULT.forearm], (48, 1)), rtol=0.01)
    # It is drawn all the same: a forearm hangs on an upper arm.
    assert (result.body.confidence[:, elbow] == 0.5).all()


def test_nobody_is_drawn_while_the_driver_is_away(warnings_text):
    driver = ADULT.film("wave", 72, cut=False)
    driver.body.confidence[30:60] = driver.head.confidence[30:60] = 0
    result = retarget(driver, still(TALL), 640, 480)
    assert (result.body.confidence[36:54] < 0.5).all()
    assert (result.head.confidence[36:54] < 0.5).all()
    assert (result.body.confidence[:26] == 1).all()
    assert any("42 of 72 frames" in message for message in warnings_text)


def test_great_differences_are_said_with_numbers(warnings_text):
    retarget(ADULT.film("stand", 4), still(ADULT), 640, 480)
    assert warnings_text == []
    retarget(ADULT.film("stand", 4), still(StickFigure(thigh=0.2, shin=0.2)), 640, 480)
    assert any("thigh is 0.48 times" in message for message in warnings_text)
    warnings_text.clear()
    retarget(ADULT.film("stand", 4, zoom=0.2), still(ADULT), 640, 480)
    assert warnings_text == []
    retarget(ADULT.film("stand", 4, zoom=0.2), still(ADULT), 640, 480, align="path")
    assert any("17% of its picture's height" in message and "framings" in message for message in warnings_text)
    warnings_text.clear()
    back = ADULT.film("stand", 4)
    back.body.joints[..., 0] *= -1
    back.body.keypoints[..., 0] = 640 - back.body.keypoints[..., 0]
    retarget(back, still(ADULT), 640, 480)
    assert any("shows the back" in message for message in warnings_text)
    warnings_text.clear()
    retarget(ADULT.film("walk", 96), still(ADULT), 640, 480, align="path")
    assert any("head is outside the picture in" in message for message in warnings_text)


def test_a_long_clip_is_the_same_every_time():
    driver, reference = ADULT.film("walk", 10_000, cut=False), still(TALL)
    first = retarget(driver, reference, 640, 480)
    second = retarget(driver, reference, 640, 480)
    np.testing.assert_array_equal(first.body.joints, second.body.joints)
    np.testing.assert_array_equal(first.head.center, second.head.center)


def test_inputs_are_not_changed():
    driver, reference = ADULT.film("wave", 6), still(TALL)
    retarget(driver, reference, 640, 480, bone_scale={"face": 1.3, "arm": 0.8})
    np.testing.assert_array_equal(driver.body.joints, ADULT.film("wave", 6).body.joints)
    np.testing.assert_array_equal(reference.head.radius, still(TALL).head.radius)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"align": "second"}, "`align` must be one of 'framing', 'path', 'first', 'none', but is 'second'"),
        ({"drive": ("legs",)}, "`drive` must hold one or more of"),
        ({"drive": ()}, "`drive` must hold one or more of"),
        ({"drive": "face"}, "`drive` must hold one or more of"),
        ({"bone_scale": {"wing": 2}}, "`bone_scale` has the part 'wing'"),
        ({"bone_scale": {"arm": 0}}, "must be a positive number, but is 0"),
        ({"height": 320}, "`reference` must be in the pixels of the generated picture, 480 x 320"),
        ({"width": 0}, "`width` must be a positive whole number"),
        ({"reference": ADULT.film("stand", 2, width=480, height=640)}, "exactly one frame, but has 2"),
        ({"reference": replace(still(ADULT), body=None)}, "no person.*`retarget=False`"),
        ({"reference": hidden(still(ADULT), list(range(62)), lie=False)}, "no person.*`retarget=False`"),
        ({"motion": replace(ADULT.film("stand", 2), body=None), "drive": ("body",)}, "none of the parts to drive"),
        ({"motion": ADULT.film("stand", 2)[:0]}, "none of the parts to drive .* or no frame"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"motion": ADULT.film("stand", 2), "reference": still(ADULT), "height": 640, "width": 480} | change
    with pytest.raises(ValueError, match=message):
        retarget(**arguments)


def test_a_reference_without_a_head_track_gets_the_drivers_circle_in_its_size():
    driver, reference = ADULT.film("talk", 12), replace(still(ADULT.scaled(0.5)), head=None)
    result = retarget(driver, reference, 640, 480)
    wanted = still(ADULT.scaled(0.5)).head
    assert isinstance(result.head, HeadTrack)
    assert result.head.radius[0] == pytest.approx(wanted.radius[0], rel=0.05)
    assert np.linalg.norm(result.head.center[0] - wanted.center[0]) < 0.25 * wanted.radius[0]


@pytest.mark.parametrize("name", ["reference_scholar.jpeg", "reference_elf.jpeg"])
def test_a_real_talking_head_starts_on_a_real_reference(media, capture_models, name):
    pytest.importorskip("mediapipe")
    capture = MediaPipeCapture.from_pretrained(capture_models)
    with PIL.Image.open(media / name) as picture:
        reference = resize_motion(capture.capture(picture.convert("RGB"), progress=False), 480, 848)
    frames = [frame for frame, _ in zip(VideoReader(media / "carphone.mp4"), range(8))]
    driver = capture.capture(np.stack(frames), fps=30000 / 1001, progress=False)
    result = retarget(driver, reference, 480, 848)
    shoulders = np.linalg.norm(np.diff(reference.body.keypoints[0, SHOULDERS], axis=0))
    own = np.linalg.norm(np.diff(result.body.keypoints[0, SHOULDERS], axis=0))
    assert own == pytest.approx(shoulders, rel=0.15)
    np.testing.assert_allclose(result.body.keypoints[0, NECK], reference.body.keypoints[0, NECK], atol=1.0)
    # The driver leans to one side: the circle overlaps the reference's head by most of its width.
    assert np.linalg.norm(result.head.center[0] - reference.head.center[0]) < 0.6 * reference.head.radius[0]
    assert result.head.radius[0] == pytest.approx(reference.head.radius[0], rel=0.1)
    # What a talking head does not show stays where the picture has it.
    away = np.linalg.norm(result.body.keypoints - reference.body.keypoints, axis=-1)
    seen = reference.body.confidence[0] >= 0.5
    assert away[:, [joint for joint in HIPS + LEGS if seen[joint]] or [NECK]].max() < 0.1 * shoulders


def test_who_sits_sits_on_the_ground_of_a_standing_reference():
    """The neck is not put where the standing reference's is, legs in the air; camera shake does not move the pelvis."""
    driver = ADULT.film("stand", 60, "full_body", cut=False)
    joints = driver.body.joints.astype(np.float64)
    # Knees bent before the trunk, feet near the hips: as on the ground, seen by a camera that sways.
    for side in ("right", "left"):
        hip, knee, ankle, toe = (JOINT_INDEX[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "toe"))
        thigh = np.linalg.norm(joints[:, knee] - joints[:, hip], axis=-1, keepdims=True)
        shin = np.linalg.norm(joints[:, ankle] - joints[:, knee], axis=-1, keepdims=True)
        step = joints[:, toe] - joints[:, ankle]
        joints[:, knee] = joints[:, hip] + thigh * np.array([0.0, -0.6, -0.8])
        joints[:, ankle] = joints[:, knee] + shin * np.array([0.0, 0.8, -0.6])
        joints[:, toe] = joints[:, ankle] + step
    joints += np.sin(np.arange(60) / 9)[:, None, None] * np.array([0.08, 0.05, 0.0])
    driver.body.joints = joints.astype(np.float32)
    driver.body.keypoints = project(joints, driver.focal_length, driver.width, driver.height)
    reference = still(CHILD)
    result = retarget(driver, reference, reference.height, reference.width)
    ankles = [JOINT_INDEX["right_ankle"], JOINT_INDEX["left_ankle"]]
    ground = reference.body.joints[0, ankles, 1].max()
    lowest = result.body.joints[:, [*HIPS, *ankles], 1].max(axis=1)
    size = np.linalg.norm(reference.body.joints[0, HIPS].mean(axis=0) - reference.body.joints[0, JOINT_INDEX["neck"]])
    np.testing.assert_allclose(lowest, ground, atol=0.05 * size)
    assert np.ptp(result.body.joints[:, HIPS].mean(axis=1), axis=0).max() < 1e-3
    # Who stands still stands.
    standing = retarget(ADULT.film("stand", 20, "full_body", cut=False), reference, reference.height, reference.width)
    np.testing.assert_allclose(standing.body.joints[:, ankles, 1].max(axis=1), ground, atol=0.05 * size)


def test_who_has_a_face_and_no_body_for_a_while_does_not_vanish():
    driver, reference = ADULT.film("talk", 60, "portrait", cut=False), still(CHILD, "half_body")
    driver.body.confidence[:30] = 0
    result = retarget(driver, reference, 640, 480)
    seen = reference.body.confidence[0] >= 0.5
    # But for fingers, on their way from one pose to another.
    assert (result.body.confidence[:30, :20][:, seen[:20]] >= 0.5).all()
    assert (result.head.confidence >= 0.5).all()
    # With neither face nor body there is nobody.
    driver.head.confidence[:30] = 0
    assert (retarget(driver, reference, 640, 480).body.confidence[:10] < 0.5).all()
