import logging
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.capture.appearance import part_colours
from diffusers_dreamactor.motion.capture.body_pose import PoseObservations, exchange_sides, hand_is_plausible, repair
from diffusers_dreamactor.motion.capture.contact import Contact
from diffusers_dreamactor.motion.capture.head_pose import (
    FaceLook,
    estimate_heads,
    face_box,
    head_rotation_from_pose,
    rotation_from_face_matrix,
)
from diffusers_dreamactor.motion.capture.to_motion import to_motion
from diffusers_dreamactor.motion.capture.tracking import CutDetector, Person, PersonTracker, colour_histogram
from diffusers_dreamactor.motion.sequence import head_yaw_pitch_roll, project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, LEFT_HAND, RIGHT_HAND
from diffusers_dreamactor.processors.face_motion import FaceMotionProcessor


WIDTH, HEIGHT, FOCAL_LENGTH = 640, 480, 800.0

# An upright person facing the camera, MediaPipe's 33 points in metres about the hips (x right, y down, z away).
STANDING = np.zeros((33, 3))
STANDING[:11] = [
    [0.0, -0.62, -0.12],
    *[[0.015, -0.66, -0.1], [0.03, -0.66, -0.095], [0.045, -0.66, -0.09]],
    *[[-0.015, -0.66, -0.1], [-0.03, -0.66, -0.095], [-0.045, -0.66, -0.09]],
    *[[0.075, -0.64, 0.0], [-0.075, -0.64, 0.0]],
    *[[0.025, -0.59, -0.1], [-0.025, -0.59, -0.1]],
]
for _left, _point in {
    11: (0.18, -0.48, 0.0), 13: (0.22, -0.2, 0.0), 15: (0.24, 0.02, -0.05), 17: (0.25, 0.08, -0.05),
    19: (0.24, 0.1, -0.06), 21: (0.22, 0.07, -0.06), 23: (0.1, 0.0, 0.0), 25: (0.11, 0.42, 0.0),
    27: (0.11, 0.82, 0.05), 29: (0.11, 0.86, 0.08), 31: (0.13, 0.88, -0.08),
}.items():  # fmt: skip
    STANDING[_left] = _point
    STANDING[_left + 1] = np.array(_point) * [-1, 1, 1]


def observations(world, translation=(0.0, 0.0, 3.0)) -> PoseObservations:
    """What a perfect estimator would see of `world` (F, 33, 3)."""
    observed = PoseObservations.empty(len(world))
    observed.world[:] = world
    observed.keypoints[:] = project(world + np.array(translation), FOCAL_LENGTH, WIDTH, HEIGHT)
    observed.visibility[:] = 0.99
    return observed


def turned(yaw_degrees) -> np.ndarray:
    """The standing person turned by yaws (F,), positive to the right of the picture."""
    rotation = Rotation.from_euler("Y", -np.reshape(yaw_degrees, (-1, 1)), degrees=True).as_matrix()
    return np.einsum("fij,nj->fni", rotation, STANDING)


class Reader:
    """Size and rate of a video."""

    width, height, fps = WIDTH, HEIGHT, 30.0


# Head rotation


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 0, 0), (-35, 0, 0), (0, 20, 0), (0, 0, 25), (30, -15, 10)])
def test_rotation_from_mediapipe_face_matrix(angles):
    """MediaPipe's camera is OpenGL's: turning about y by a positive angle takes the nose (+z) to the right (+x)."""
    yaw, pitch, roll = angles
    # About x a positive angle takes the nose down, about z the head counterclockwise: signs of our pitch and roll.
    rotation = Rotation.from_euler("YXZ", [yaw, -pitch, -roll], degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 1.02 * rotation, [2.0, -3.0, -40.0]
    found = rotation_from_face_matrix(matrix)
    np.testing.assert_allclose(head_yaw_pitch_roll(found), angles, atol=1e-4)
    nose = found @ [0, 0, -1]
    assert nose[0] == pytest.approx(np.sin(np.radians(yaw)) * np.cos(np.radians(pitch)), abs=1e-6)


@pytest.mark.parametrize("yaw", [-170, -90, -40, 0, 40, 90, 170])
def test_head_rotation_from_ears_eyes_and_nose(yaw):
    found = head_yaw_pitch_roll(head_rotation_from_pose(turned([yaw]), np.ones((1, 33))))[0]
    assert found[0] == pytest.approx(yaw, abs=1.0)
    assert abs(found[2]) < 1.0


def face_look(yaw, middle=(320.0, 100.0)) -> FaceLook:
    middle = np.array(middle)
    return FaceLook(
        box=np.concatenate([middle - 20, middle + 20]),
        points=middle + np.array([[0, 3], [8, -6], [-8, -6], [6, 12], [-6, 12], [20, 0], [-20, 0]]),
        rotation=Rotation.from_euler("Y", -yaw, degrees=True).as_matrix(),
        ray_through=np.array([WIDTH / 2, HEIGHT / 2]),
        center=middle,
        radius=32.0,
        blendshapes=np.full(52, 0.3),
    )


def test_no_head_turns_round_within_a_frame():
    ahead, aside = face_look(0), face_look(40)
    assert aside.can_follow(ahead, 2 / 24) and not aside.can_follow(ahead, 1 / 24)
    assert ahead.can_follow(aside, 2 / 24) and not ahead.can_follow(aside, 1 / 24)


def turning_clip():
    """Somebody who turns from the camera to the back and on; the face is seen up to 60 degrees."""
    yaw = np.linspace(0, 180, 61)
    looks = [face_look(angle) if angle <= 60 else None for angle in yaw]
    return yaw, looks, observations(turned(yaw))


def test_without_a_face_the_body_says_how_large_the_head_is():
    _, _, observed = turning_clip()
    arguments = (observed.world, observed.visibility, observed.seen, FOCAL_LENGTH, WIDTH, HEIGHT, 30.0)
    found = estimate_heads([None] * 61, observed.keypoints, *arguments)
    guessed = observed.keypoints.copy()
    face = guessed[:, :11]
    guessed[:, :11] = face.mean(axis=1, keepdims=True) + 0.5 * (face - face.mean(axis=1, keepdims=True))
    heads = estimate_heads([None] * 61, guessed, *arguments)
    np.testing.assert_allclose(heads.radius, found.radius, rtol=0.1)
    assert np.abs(heads.center - found.center).max() < 0.3 * found.radius.max()


def test_the_head_carries_on_when_the_face_is_turned_away():
    yaw, looks, observed = turning_clip()
    heads = estimate_heads(
        looks,
        observed.keypoints,
        observed.world,
        observed.visibility,
        observed.seen,
        FOCAL_LENGTH,
        WIDTH,
        HEIGHT,
        30.0,
    )
    found = head_yaw_pitch_roll(heads.rotation)[:, 0]
    error = (found - yaw + 180) % 360 - 180
    assert np.abs(error).max() < 6.0
    seen = np.array([look is not None for look in looks])
    assert heads.confidence[seen].min() > heads.confidence[~seen].max() >= 0.5
    # The ball stays on the head, at its size.
    np.testing.assert_allclose(heads.radius, 32.0, rtol=0.12)
    assert np.abs(heads.center - [320.0, 100.0]).max() < 16


def test_the_head_carries_on_with_what_the_pose_is_off_by_there():
    """The estimator's heads are off by 0 degrees at first and by 30 at last; faces are lost for a while in both halves."""
    yaw = np.full(120, 10.0)
    off = np.where(np.arange(120) < 60, 0.0, 30.0)
    looks = [None if 25 <= frame % 60 < 35 else face_look(angle) for frame, angle in enumerate(yaw)]
    observed = observations(turned(yaw + off))
    heads = estimate_heads(
        looks,
        observed.keypoints,
        observed.world,
        observed.visibility,
        observed.seen,
        FOCAL_LENGTH,
        WIDTH,
        HEIGHT,
        30.0,
    )
    found = head_yaw_pitch_roll(heads.rotation)[:, 0]
    assert np.abs(found - yaw).max() < 4


def warnings_of(caplog) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def warned(caplog):
    """The library's warnings, which do not propagate by default."""
    logger = logging.getLogger("diffusers_dreamactor")
    before = logger.propagate
    logger.propagate = True
    root = logging.getLogger("diffusers")
    root_before, root.propagate = root.propagate, True
    caplog.set_level(logging.WARNING)
    yield caplog
    logger.propagate, root.propagate = before, root_before


def test_a_head_turned_to_the_back_is_said(warned):
    _, looks, observed = turning_clip()
    motion = to_motion(looks, observed, np.zeros(61, np.int64), [slice(0, 61)], Reader(), "video", True)
    motion.validate()
    said = warnings_of(warned)
    assert "The head is turned to the back in frames" in said and "The face was lost in frames" in said
    assert motion.head.confidence.min() >= 0.5
    assert motion.face.confidence[:20].min() > 0.5 > motion.face.confidence[30:].max()


def test_no_face_at_all_is_said(warned):
    observed = observations(turned(np.full(20, 30.0)))
    motion = to_motion([None] * 20, observed, np.zeros(20, np.int64), [slice(0, 20)], Reader(), "video", True)
    assert "No face was found in the video" in warnings_of(warned)
    np.testing.assert_allclose(motion.yaw(), 30, atol=4)


# Body


def test_joints_project_onto_keypoints_and_have_the_right_lengths():
    sway = STANDING + 0.02 * np.sin(np.arange(30) / 5)[:, None, None] * [1.0, 0.0, 0.5]
    observed = observations(sway, translation=(0.3, 0.0, 3.0))
    motion = to_motion([face_look(0)] * 30, observed, np.zeros(30, np.int64), [slice(0, 30)], Reader(), "video", False)
    pixels = project(motion.body.joints, motion.focal_length, WIDTH, HEIGHT)
    assert np.abs(pixels - motion.body.keypoints).max() < 1e-2
    joints = motion.body.joints

    def length(a, b):
        return np.linalg.norm(joints[:, JOINT_INDEX[a]] - joints[:, JOINT_INDEX[b]], axis=-1)

    assert length("left_shoulder", "right_shoulder") == pytest.approx(0.36, rel=0.04)
    assert length("left_hip", "left_knee") == pytest.approx(0.42, rel=0.04)
    # Depth is what the camera's focal length makes of the size in the picture.
    expected = 3.0 * motion.focal_length / FOCAL_LENGTH
    assert joints[:, JOINT_INDEX["neck"], 2] == pytest.approx(expected, rel=0.05)
    assert (motion.body.confidence[:, LEFT_HAND] == 0).all() and (motion.body.confidence[:, RIGHT_HAND] == 0).all()


def seen_from_behind(observed: PoseObservations, frames: list[int]) -> PoseObservations:
    """What an estimator sees in `frames` that takes the person's front for the back, or the back for the front."""
    wrong = PoseObservations(*(array.copy() for array in vars(observed).values()))
    sides = np.array(
        [0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9, *(index + 1 - 2 * (index % 2 == 0) for index in range(11, 33))]
    )
    for values in (wrong.keypoints, wrong.world, wrong.visibility):
        values[frames] = values[frames][:, sides]
    for values in (wrong.hand_keypoints, wrong.hand_world, wrong.hand_score):
        values[frames] = values[frames][:, ::-1]
    ears = wrong.world[frames][:, [7, 8], 2].mean(axis=1)
    wrong.world[frames, :11, 2] = 2 * ears[:, None] - wrong.world[frames, :11, 2]
    return wrong


@pytest.mark.parametrize("yaw", [10, 170])
def test_a_front_taken_for_the_back_is_turned_round_with_hands_and_head(yaw):
    observed = observations(turned(np.full(30, yaw)))
    observed.hand_keypoints[:] = observed.keypoints[:, [15, 16], None] + np.arange(42).reshape(21, 2)
    observed.hand_score[:, 0], observed.hand_score[:, 1] = 0.9, 0.8
    wrong = seen_from_behind(observed, [4, 5, 6, 20])
    assert np.abs(wrong.hand_keypoints - observed.hand_keypoints).max() > 50
    right = exchange_sides(wrong, [slice(0, 12), slice(12, 30)])
    for name, values in vars(observed).items():
        np.testing.assert_allclose(getattr(right, name), values, atol=1e-9, err_msg=name)


def test_who_turns_round_keeps_the_sides():
    observed = observations(turned(np.linspace(0, 360, 60)))
    right = exchange_sides(observed, [slice(0, 60)])
    np.testing.assert_array_equal(right.keypoints, observed.keypoints)
    np.testing.assert_array_equal(right.world, observed.world)


def test_a_short_false_hand_is_dropped_and_a_lasting_one_kept():
    observed = observations(np.repeat(STANDING[None], 40, axis=0))
    hand = np.stack([np.arange(21) % 5, np.arange(21) // 5], axis=-1) * 4.0
    observed.hand_keypoints[:, :] = hand + observed.keypoints[0, 15]
    observed.hand_world[:, :, :, :2] = hand / 300
    observed.hand_score[10:12, 0] = 0.9
    observed.hand_score[5:30, 1] = 0.9
    observed.hand_score[15:18, 1] = 0
    repaired = repair(observed, [slice(0, 40)], 30.0, smoothed=True)
    assert (repaired.hand_score[:, 0] == 0).all()
    assert (repaired.hand_score[5:30, 1] >= 0.5).all()
    assert (repaired.hand_score[33:, 1] < 0.5).all()


def test_a_hand_belongs_to_the_wrist_it_is_at():
    keypoints = observations(STANDING[None]).keypoints[0]
    visibility = np.ones(33)
    shape = np.zeros((21, 2))
    shape[[5, 9, 17]] = [[0, 25], [3, 25], [6, 25]]
    at_left = shape + keypoints[15]
    assert hand_is_plausible(at_left, keypoints, visibility, side=0, is_left=True)[0]
    assert hand_is_plausible(at_left, keypoints, visibility, side=0, is_left=False)[0]
    assert not hand_is_plausible(at_left, keypoints, visibility, side=1, is_left=True)[0]
    # Further along the forearm only with the right handedness; never sideways; never of a giant.
    along = at_left + 0.6 * (keypoints[15] - keypoints[13])
    assert hand_is_plausible(along, keypoints, visibility, side=0, is_left=True)[0]
    assert not hand_is_plausible(along, keypoints, visibility, side=0, is_left=False)[0]
    assert not hand_is_plausible(at_left + [60, 0], keypoints, visibility, side=0, is_left=True)[0]
    assert not hand_is_plausible(shape * 6 + keypoints[15], keypoints, visibility, side=0, is_left=True)[0]


def test_face_boxes_are_square_with_more_room_above():
    tight = np.array([[100.0, 200.0, 180.0, 300.0], [0.0, 0.0, 100.0, 60.0]])
    boxes = face_box(tight)
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    np.testing.assert_allclose(sides[:, 0], np.sqrt(1.3) * np.array([100, 100]))
    above, below = tight[0, 1] - boxes[0, 1], boxes[0, 3] - tight[0, 3]
    assert above == pytest.approx(3 * below) and below > 0


# Several people


def person(x, colour, rng) -> Person:
    histogram = np.zeros(216)
    histogram[colour : colour + 20] = rng.uniform(0.5, 1, 20)
    return Person(
        keypoints=STANDING[:, :2] * 200 + [x, 300] + rng.normal(0, 1.5, (33, 2)),
        world=STANDING,
        visibility=np.full(33, 0.95),
        appearance=histogram / np.linalg.norm(histogram),
    )


def test_people_who_cross_keep_their_numbers():
    rng = np.random.default_rng(0)
    tracker = PersonTracker(fps=30)
    numbers = []
    for frame in range(90):
        red, blue = person(100 + 8 * frame, 0, rng), person(820 - 8 * frame, 100, rng)
        people = [blue, red] if frame % 3 else [red, blue]
        if abs(frame - 45) < 8:
            # In the middle blue hides red.
            people = [blue]
        found = tracker.update(frame, people)
        numbers.append([found[people.index(red)] if red in people else None, found[people.index(blue)]])
    reds = {red for red, _ in numbers if red is not None}
    blues = {blue for _, blue in numbers}
    assert len(tracker.tracks) == 2 and len(reds) == len(blues) == 1 and reds != blues
    assert tracker.overlaps


def test_somebody_who_comes_back_is_known_and_a_stranger_is_not():
    rng = np.random.default_rng(1)
    tracker = PersonTracker(fps=30)
    for frame in range(20):
        tracker.update(frame, [person(400 + 20 * frame, 0, rng)])
    for frame in range(20, 80):
        tracker.update(frame, [])
    assert tracker.update(80, [person(100, 0, rng)]) == [0]
    for frame in range(81, 140):
        tracker.update(frame, [])
    assert tracker.update(140, [person(100, 100, rng)]) == [1]


def test_who_comes_out_from_behind_somebody_in_another_light_is_known_unless_others_are_as_much_alike():
    def dressed(x, mixture):
        histogram = np.zeros(216)
        for colour, share in mixture.items():
            histogram[colour : colour + 20] = np.sqrt(share / 20)
        return replace(person(x, 0, np.random.default_rng(3)), appearance=histogram)

    for other, number in ((100, 0), (0, 2)):
        tracker = PersonTracker(fps=30)
        for frame in range(20):
            tracker.update(frame, [dressed(100, {0: 1.0}), dressed(900, {other: 1.0})])
        for frame in range(20, 60):
            tracker.update(frame, [dressed(900, {other: 1.0})])
        found = tracker.update(60, [dressed(900, {other: 1.0}), dressed(400, {0: 0.4, 50: 0.6})])
        assert found == [1, number]


def test_cuts_are_noticed_and_motion_and_light_are_not():
    rng = np.random.default_rng(2)
    texture = rng.integers(0, 256, (24, 60, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    other = (texture[::-1, :, ::-1] // 2).astype(np.uint8)
    detector = CutDetector()
    scene = [texture[:, 4 * i : 4 * i + 320] for i in range(20)]
    brighter = [np.clip(scene[-1] * (1 + 0.02 * i), 0, 255).astype(np.uint8) for i in range(10)]
    cuts = [detector.update(frame) for frame in [*scene, *brighter, *[other[:, :320]] * 5, scene[0]]]
    assert [index for index, cut in enumerate(cuts) if cut] == [30, 35]


# The real thing: MediaPipe on real video


@pytest.fixture(scope="module")
def capture(capture_models):
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    return MediaPipeCapture.from_pretrained(capture_models)


@pytest.fixture(scope="module")
def man(media):
    """Frames of a talking man, 504 x 616."""
    return [np.asarray(Image.fromarray(frame).resize((616, 504))) for frame in VideoReader(media / "carphone.mp4")]


@pytest.fixture(scope="module")
def boy(media):
    """Frames of an animated boy near the camera, 720 x 570."""
    return [frame[:, 330:900] for frame in VideoReader(media / "cartoon_character.mp4").frames(80, 140)]


def scene(*pictures) -> np.ndarray:
    """A grey picture 720 x 1280 with `(picture, x)` standing on its lower edge, as far as they are inside."""
    canvas = np.full((720, 1280, 3), (96, 110, 120), np.uint8)
    for picture, x in pictures:
        height, width = picture.shape[:2]
        left, right = max(x, 0), min(x + width, 1280)
        if right > left:
            canvas[720 - height :, left:right] = picture[:, left - x : right - x]
    return canvas


def test_every_frame_of_the_talking_man_has_a_face_and_a_head(capture, media):
    motion = capture.capture(media / "carphone.mp4", progress=False)
    motion.validate()
    assert len(motion) == 120 and motion.fps == pytest.approx(30000 / 1001)
    assert (motion.head.confidence >= 0.5).all() and (motion.face.confidence >= 0.5).all()
    assert (motion.people == motion.people[0]).all()
    confidence = motion.body.confidence
    assert (
        confidence[:, [JOINT_INDEX["nose"], JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]] >= 0.5
    ).all()
    # Legs and hands are out of the picture.
    assert (confidence[:, [JOINT_INDEX["left_knee"], JOINT_INDEX["right_ankle"]]] < 0.5).all()
    assert (confidence[:, 20:] < 0.5).all()
    # The nose lies in the face box, the box within about the head, and he hardly turns.
    nose = motion.body.keypoints[:, JOINT_INDEX["nose"]]
    assert ((nose > motion.face.boxes[:, :2]) & (nose < motion.face.boxes[:, 2:])).all()
    side = motion.face.boxes[:, 2] - motion.face.boxes[:, 0]
    assert (np.linalg.norm(motion.head.center - nose, axis=1) < motion.head.radius).all()
    assert np.abs(side / (2 * motion.head.radius) - 0.8).max() < 0.15
    assert np.abs(motion.yaw()).max() < 30
    error = np.abs(
        project(motion.body.joints, motion.focal_length, motion.width, motion.height) - motion.body.keypoints
    )
    assert error.max() < 1e-2
    # Smooth: heads do not jump by more than a few degrees from frame to frame.
    steps = Rotation.from_matrix(motion.head.rotation[:-1].transpose(0, 2, 1) @ motion.head.rotation[1:]).magnitude()
    assert np.degrees(steps).max() < 6
    # He opens his mouth wide near the end.
    jaw = motion.face.blendshapes[:, 24]
    assert jaw.max() > 0.3 and jaw.min() < 0.05


def test_the_walking_boy_has_a_body_and_a_head_from_the_start(capture, media):
    motion = capture.capture(VideoReader(media / "cartoon_character.mp4", fps=12), progress=False)
    motion.validate()
    assert len(motion) == 82 and motion.fps == 12
    shoulders = [JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]
    has_body = (motion.body.confidence[:, shoulders] >= 0.5).all(axis=1)
    has_head = motion.head.confidence >= 0.5
    assert has_body.mean() >= 0.95 and has_head.mean() >= 0.90 and (motion.face.confidence >= 0.5).mean() >= 0.9
    # He walks towards the camera: nearer and bigger. In the first frames he is small and the pose must be redone.
    assert motion.head.radius[75] > 1.6 * motion.head.radius[0]
    assert motion.body.joints[0, 1, 2] > 1.4 * motion.body.joints[75, 1, 2]
    below = motion.body.keypoints[:, shoulders, 1].min(axis=1) - motion.head.center[:, 1]
    assert (below > 0.8 * motion.head.radius).all()
    # He looks to the right of the picture at the end.
    assert motion.yaw()[75:].min() > 8
    # He holds up his right hand in the second half, which is on the left of the picture; the left one is out of it.
    right, left = motion.body.confidence[55:, RIGHT_HAND.start], motion.body.confidence[55:, LEFT_HAND.start]
    assert (right >= 0.5).mean() > 0.9 and (left < 0.5).all()
    wrist = motion.body.keypoints[65, RIGHT_HAND.start]
    assert 400 < wrist[0] < 560 and 520 < wrist[1] < 720


@pytest.mark.parametrize("name", ["elf", "scholar"])
def test_a_picture_gives_one_frame(capture, media, name):
    picture = Image.open(media / f"reference_{name}.jpeg")
    motion = capture.capture(picture, progress=False, face_size=64)
    motion.validate()
    assert len(motion) == 1 and (motion.width, motion.height) == picture.size
    assert motion.head.confidence[0] >= 0.5 and abs(motion.yaw()[0]) < 15
    # Both figures face the camera and hold their heads about level.
    assert abs(head_yaw_pitch_roll(motion.head.rotation)[0, 1]) < 6
    assert motion.face.crops.shape == (1, 64, 64, 3)
    assert (motion.body.confidence[0, [2, 3, 4, 5, 6, 7]] >= 0.5).all()
    # Both hands can be seen in both pictures.
    assert motion.body.confidence[0, RIGHT_HAND.start] >= 0.5 and motion.body.confidence[0, LEFT_HAND.start] >= 0.5
    x = motion.body.keypoints[0, :, 0]
    assert x[RIGHT_HAND.start] < x[JOINT_INDEX["neck"]] < x[LEFT_HAND.start]


def test_a_mirrored_picture_gives_the_mirrored_pose(capture, media):
    picture = Image.open(media / "reference_scholar.jpeg")
    motion = capture.capture(picture, progress=False)
    mirrored = capture.capture(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), progress=False)
    assert mirrored.yaw()[0] == pytest.approx(-motion.yaw()[0], abs=4)
    assert mirrored.head.center[0, 0] == pytest.approx(picture.width - motion.head.center[0, 0], abs=8)


def test_the_person_asked_for_is_followed(capture, man, boy, warned):
    frames = [scene((man[i], 12), (boy[i], 670)) for i in range(6)]
    largest = capture.capture(frames, progress=False)
    assert (largest.head.center[:, 0] > 670).all()
    assert "2 people were found; the largest is followed" in warnings_of(warned)
    for choice in (1, (330, 450), (40, 230, 620, 715)):
        other = capture.capture(frames, person=choice, progress=False)
        assert (other.head.center[:, 0] < 600).all() and (other.head.confidence >= 0.5).all()


def test_bad_choices_are_named(capture, man):
    frames = [scene((man[i], 12)) for i in range(2)]
    for choice, message in [
        (1, "`person` is 1, but 1 person was found"),
        ((1200, 20), r"`person` is the point \(1200, 20\), but people were first seen at"),
        ((900, 0, 1200, 300), r"`person` is the box"),
        ("him", "`person` must be None, an index"),
    ]:
        with pytest.raises(ValueError, match=message):
            capture.capture(frames, person=choice, progress=False)


def test_people_who_cross_are_not_swapped(capture, man, boy, warned):
    steps = 18
    frames = []
    for i in range(steps):
        t = i / (steps - 1)
        frames.append(scene((boy[2 * i][:, 50:550], int(20 + 700 * t)), (man[2 * i][:, 80:560], int(740 - 720 * t))))
    motion = capture.capture(frames, fps=6, person=(250, 300), progress=False)
    # The boy is behind; he walks from the left to the right, and there is no frame in which the man stands in for him.
    path = np.linspace(20, 720, steps) + 220
    seen = motion.head.confidence >= 0.5
    assert seen[:4].all() and seen[-3:].all() and not seen.all()
    assert np.abs(motion.head.center[seen, 0] - path[seen]).max() < 130
    assert "People overlap or cross" in warnings_of(warned)


def test_a_person_who_leaves_and_returns_is_said(capture, man, warned):
    place = [300, 320, 700, *[1300] * 8, 700, 320, 300]
    frames = [scene((man[i], x)) for i, x in enumerate(place)]
    motion = capture.capture(frames, fps=6, progress=False)
    assert (motion.people[3:11] == -1).all()
    assert motion.people[0] == motion.people[-1] >= 0
    assert motion.head.confidence[0] >= 0.5 and motion.head.confidence[-1] >= 0.5
    assert motion.head.confidence[6] < 0.5 and (motion.body.confidence[6] < 0.5).all()
    assert "The person left the picture or was not found in frames 3-10 (8 of 14)" in warnings_of(warned)


def test_a_cut_is_said_and_nothing_is_smoothed_across(capture, man, boy, warned):
    frames = [scene((boy[i], 350)) for i in range(8)] + [np.ascontiguousarray(man[i]) for i in range(0)]
    room = np.full((720, 1280, 3), (30, 20, 160), np.uint8)
    for i in range(8):
        room[216:, 40:656] = man[i]
        frames.append(room.copy())
    motion = capture.capture(frames, progress=False)
    assert "The video cuts to another scene at frame 8" in warnings_of(warned)
    x = motion.head.center[:, 0]
    assert (x[:8] > 500).all() and (x[8:] < 450).all()
    assert (motion.head.confidence >= 0.5).all()


def test_a_face_lost_midway_is_said(capture, boy, warned):
    frames = [frame.copy() for frame in boy[:24]]
    for frame in frames[8:17]:
        frame[230:430, 130:380] = frame[230:430, 130:380].mean(axis=(0, 1))
    motion = capture.capture(frames, fps=12, progress=False)
    said = warnings_of(warned)
    assert "The face was lost in frame" in said or "was not found in frame" in said
    assert (motion.face.confidence[:8] >= 0.5).all() and (motion.face.confidence[-5:] >= 0.5).all()
    assert motion.face.confidence[12] < 0.5


def test_nobody_is_an_error(capture):
    with pytest.raises(ValueError, match="`video` shows no person"):
        capture.capture([scene()] * 3, progress=False)
    with pytest.raises(ValueError, match="`image` shows no person"):
        capture.capture(Image.new("RGB", (320, 240), "grey"), progress=False)
    with pytest.raises(ValueError, match="`face_size` must be"):
        capture.capture([scene()], face_size=0)


def test_fps_and_face_crops(capture, media):
    motion = capture.capture(VideoReader(media / "carphone.mp4", fps=5), progress=False, face_size=48)
    assert motion.fps == 5 and len(motion) == 21
    assert motion.face.crops.shape == (21, 48, 48, 3)
    # The crop is the picture inside its box, which is the face's box and as much again around it.
    x0, y0, x1, y1 = motion.face.boxes[3]
    box = motion.face.crop_boxes[3]
    half = (x1 - x0) / 2
    np.testing.assert_allclose(box, [x0 - half, y0 - half, x1 + half, y1 + half], atol=0.1)
    frame = list(VideoReader(media / "carphone.mp4", fps=5))[3]
    shown = np.pad(frame, ((100, 100), (100, 100), (0, 0)), mode="edge")
    expected = Image.fromarray(shown).crop([100 + round(float(v)) for v in box]).resize((48, 48))
    assert np.abs(motion.face.crops[3].astype(float) - np.asarray(expected)).mean() < 8


def test_saved_and_loaded(capture, tmp_path):
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    capture.save_pretrained(tmp_path / "capture")
    again = MediaPipeCapture.from_pretrained(tmp_path / "capture")
    assert sorted(path.name for path in again.folder.iterdir()) == [
        "face_landmarker.task",
        "hand_landmarker.task",
        "pose_landmarker_full.task",
    ]


def test_missing_models_are_named_with_both_ways_to_get_them(monkeypatch, tmp_path):
    pytest.importorskip("mediapipe")
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    monkeypatch.setenv("DREAMACTOR_CAPTURE_MODELS", str(tmp_path))
    with pytest.raises(OSError) as error:
        MediaPipeCapture.from_pretrained()
    for words in ("pose_landmarker_full.task", "hand_landmarker.task", "face_landmarker.task"):
        assert words in str(error.value)
    assert "dreamactor capture --download" in str(error.value) and "DREAMACTOR_CAPTURE_MODELS" in str(error.value)
    with pytest.raises(OSError, match="neither a folder nor a Hub repository"):
        MediaPipeCapture.from_pretrained("nobody/no-such-repository")


@pytest.mark.parametrize("brief", [[], [14, 15]])
def test_a_body_seen_briefly_does_not_keep_a_face_from_being_found(capture, man, monkeypatch, brief):
    """Bodies of drawn people are found in a few frames or none, their faces in all of them."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = [np.asarray(Image.fromarray(frame).crop((60, 0, 560, 504))) for frame in man[:20]]
    numbers = {frame[::40, ::40].tobytes(): index for index, frame in enumerate(frames)}
    find = Landmarkers.find_people

    def find_in_few(self, frame, worker=0):
        return find(self, frame, worker) if numbers[frame[::40, ::40].tobytes()] in brief else []

    monkeypatch.setattr(Landmarkers, "find_people", find_in_few)
    monkeypatch.setattr(Landmarkers, "find_person", lambda *arguments: None)
    motion = capture.capture(frames, fps=10, progress=False)
    assert (motion.face.confidence >= 0.5).all()


# People in contact


def dressed(picture: np.ndarray, person: Person, trunk, face, limbs) -> Person:
    """Paints a person into `picture` in flat colours, with a textured face; returns it with its colours."""
    points = person.keypoints.round().astype(int)

    def box(point, half, colour):
        y, x = np.maximum(point[1] - half, 0), np.maximum(point[0] - half, 0)
        picture[y : point[1] + half, x : point[0] + half] = colour

    low, high = points[[12, 11, 24, 23]].min(axis=0), points[[12, 11, 24, 23]].max(axis=0)
    picture[low[1] - 8 : high[1] + 8, low[0] - 8 : high[0] + 8] = trunk
    for start, end in ((11, 13), (12, 14), (13, 15), (14, 16), (23, 25), (24, 26), (25, 27), (26, 28)):
        for share in np.linspace(0, 1, 30):
            box((points[start] + share * (points[end] - points[start])).astype(int), 7, limbs)
    middle = points[:11].mean(axis=0).astype(int)
    size = face.shape[0] // 2
    picture[middle[1] - size : middle[1] + size, middle[0] - size : middle[0] + size] = face
    return replace(
        person,
        appearance=colour_histogram(picture, person),
        colours=part_colours(picture, person.keypoints, person.visibility),
    )


def standing_at(x: float) -> Person:
    return Person(STANDING[:, :2] * 200 + [x, 250], STANDING, np.full(33, 0.95))


def test_of_people_who_touch_every_part_is_the_persons_own_or_lost():
    """The landmarks that a detection takes from the other person are left out, and the other's face is not taken."""
    rng = np.random.default_rng(5)
    # Two faces of the same colours: only place tells them apart.
    faces = [rng.permutation(np.repeat([200, 60], 50))[:, None].repeat(3, 1).reshape(10, 10, 3) for _ in range(2)]
    faces = [face.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8) for face in faces]
    tracker = PersonTracker(fps=10)
    frames, clothes = [], ((180, 30, 30), (30, 30, 180))
    for index in range(16):
        apart = max(150 - 12 * index, 55)
        frame = np.full((480, 640, 3), 128, np.uint8)
        people = [
            dressed(frame, standing_at(320 + sign * apart), clothes[i], faces[i], clothes[i])
            for i, sign in enumerate((-1, 1))
        ]
        frames.append(frame)
        # From contact on the detector finds only one of them, with the other's head and right forearm.
        if index >= 9:
            mixed = people[0].keypoints.copy()
            mixed[:11] = people[1].keypoints[:11]
            mixed[[14, 16, 18, 20, 22]] = people[1].keypoints[[14, 16, 18, 20, 22]]
            people = [replace(people[0], keypoints=mixed)]
        tracker.update(index, people)
    red = tracker.tracks[0]
    assert len(tracker.tracks) == 2 and len(red.detections) == 16
    contact = Contact(red, tracker.tracks, tracker.near)
    for index, frame in enumerate(frames):
        contact.next_frame(frame, index)
        person = contact.own_parts(frame, red.detections[index])
        apart = max(150 - 12 * index, 55)
        own, other = (np.array([320 + sign * apart, 250 - 126]) for sign in (-1, 1))
        lost = person.visibility == 0
        if index < 9:
            assert not lost.any() and not contact.parts_lost
        else:
            assert contact.doubtful and contact.parts_lost
            assert lost[:11].all() and lost[[16, 18, 20, 22]].all()
            assert not lost[[11, 13, 15, 23, 24, 25, 26, 27, 28]].any()
            assert contact.is_own_head(own, 30.0) and contact.is_own_head(other, 30.0) is False
            np.testing.assert_allclose(contact.head_place()[0], own, atol=4)
    # All of it the other's: nobody.
    assert contact.own_parts(frames[-1], standing_at(320 + 55)) is None


def test_who_is_hidden_behind_a_face_like_its_own_is_not_taken_for_it():
    """Blue walks past before red, and then nobody is found for some frames."""
    rng = np.random.default_rng(7)
    face = rng.permutation(np.repeat([200, 60], 50))
    alike = np.where(rng.uniform(size=100) < 0.12, 260 - face, face)
    faces = [each.astype(np.uint8).reshape(10, 10, 1).repeat(3, 2).repeat(4, 0).repeat(4, 1) for each in (face, alike)]
    tracker = PersonTracker(fps=10)
    frames, clothes = [], ((180, 30, 30), (30, 30, 180))
    places = [(280.0, 520.0 - 12 * index) for index in range(40)]
    for index, ends in enumerate(places):
        frame = np.full((480, 640, 3), 128, np.uint8)
        people = [dressed(frame, standing_at(x), clothes[i], faces[i], clothes[i]) for i, x in enumerate(ends)]
        frames.append(frame)
        hidden = abs(ends[0] - ends[1]) < 80
        tracker.update(index, [] if 22 <= index < 25 else people[1:] if hidden else people)
    red = tracker.tracks[0]
    contact = Contact(red, tracker.tracks, tracker.near, tracker.max_gap)
    hidden = 0
    for index, (frame, (own, other)) in enumerate(zip(frames, places)):
        contact.next_frame(frame, index)
        if index in red.detections:
            continue
        hidden += 1
        assert contact.doubtful
        # The face's middle is a little lower than where the head was followed to.
        for down in (0, 10):
            assert not contact.is_own_head(np.array([other, 250 - 126 + down]), 30.0)
        if contact.head_place() is not None:
            assert abs(contact.head_place()[0][0] - own) < 10
    assert hidden > 10 and 22 not in red.detections


def test_who_is_hidden_behind_another_stays_near_until_somebody_is_seen_apart_again():
    tracker = PersonTracker(fps=10)
    rng = np.random.default_rng(6)
    both = [person(300, 0, rng), person(420, 100, rng)]
    for index in range(4):
        tracker.update(index, both)
    for index in range(4, 60):
        tracker.update(index, both[:1])
    tracker.update(60, [both[0], person(900, 100, rng)])
    assert sorted(tracker.near) == list(range(60)) and len(tracker.tracks) == 2
    tracker.update(61, [], cut=True)
    tracker.update(62, both[:1])
    assert 62 not in tracker.near


def test_in_a_hug_body_head_and_face_stay_one_persons(capture, media, warned):
    """The man in black, whose head the pose takes for the other's from the 6th frame on, and the one in grey."""
    reader = VideoReader(media / "drivers" / "two_in_contact.mp4")
    frames = [frame[180:980, 600:1240] for frame in list(reader)[8:72:4]]
    # Where the black and the grey man's heads are, by hand: frame, x of each.
    truth = {0: (428, 128), 4: (437, 156), 7: (405, 224), 10: (388, 285), 13: (386, 302), 15: (382, 299)}
    # Places in the trunk and the trousers of each.
    inside = {
        0: (((430, 280), (420, 480)), ((110, 294), (130, 480))),
        7: (((400, 280), (400, 520)), ((189, 282), (150, 520))),
        10: (((394, 270), (390, 520)), ((205, 300), (150, 540))),
        13: (((404, 294), (400, 540)), ((190, 345), (130, 560))),
    }
    for click, column in (((400, 400), 0), ((130, 400), 1)):
        warned.clear()
        motion = capture.capture(frames, fps=7.5, person=click, progress=False)
        for frame, places in truth.items():
            if motion.head.confidence[frame] >= 0.5:
                assert abs(motion.head.center[frame, 0] - places[column]) < 45
            body = motion.body.confidence[frame] >= 0.5
            shown = motion.body.keypoints[frame, [1, 2, 5], 0][body[[1, 2, 5]]]
            if len(shown):
                error = np.abs(shown - places[column])
                assert (error < np.abs(shown - places[1 - column])).all()
        assert (motion.head.confidence >= 0.5).mean() > 0.8
        said = [record.getMessage() for record in warned.records if "People overlap or cross" in record.getMessage()]
        assert len(said) == 1 and "is left out in frames" in said[0]

        # Who is lost in part is not made up of the other.
        masks = list(capture.segment(frames, motion, progress=False))
        for frame, places in inside.items():
            own, other = (
                [masks[frame][y - 10 : y + 10, x - 10 : x + 10] for x, y in each]
                for each in (places[column], places[1 - column])
            )
            assert np.mean(np.array(other) >= 0.5) < 0.1
            assert column == 1 and frame > 7 or min((patch >= 0.5).mean() for patch in own) > 0.9
    # Of a head alone it is not known what is another's.
    motion.body.confidence[:], motion.head.radius = 0.0, 4 * motion.head.radius
    assert len(list(capture.segment(frames[:6], motion[:6], progress=False))) == 6


# Nobody


def chart() -> np.ndarray:
    picture = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(picture)
    for index, height in enumerate((120, 260, 180, 340, 90)):
        draw.rectangle(
            [90 + 100 * index, 430 - height, 150 + 100 * index, 430], fill=(40 * index, 90, 220 - 40 * index)
        )
    draw.ellipse([430, 20, 560, 150], fill=(240, 200, 40), outline="black")
    return np.asarray(picture)


def test_hands_a_headless_torso_and_a_chart_are_nobody(capture, media):
    turns = list(VideoReader(media / "drivers" / "fashion_turns.mp4"))
    sitting = list(VideoReader(media / "drivers" / "sitting.mp4"))[48:60:2]
    elf = np.asarray(Image.open(media / "reference_elf.jpeg").convert("RGB"))
    nobody = {
        "headless, standing": [frame[190:] for frame in turns[:12:2]],
        "headless, arms up": [frame[190:] for frame in turns[-12::2]],
        "hands in a lap": [frame[760:1100, 200:560] for frame in sitting],
        "one hand": [elf[380:580, 1000:1200]],
        "chart": [chart()] * 6,
    }
    for what, frames in nobody.items():
        with pytest.raises(ValueError, match="shows no person"):
            capture.capture(frames if len(frames) > 1 else Image.fromarray(frames[0]), progress=False)
            pytest.fail(what)


def test_a_headless_figure_within_the_picture_is_nobody(capture, media):
    """The pose landmarker sees it as surely as a person; from behind, people have no face either."""
    turns = list(VideoReader(media / "drivers" / "fashion_turns.mp4"))
    for frames in (turns[20:32:2], turns[-12::2]):
        headless = [frame.copy() for frame in frames]
        for frame in headless:
            # the wall, down to the collarbones
            frame[:215, 265:455] = np.median(frame[:215, :20], axis=1, keepdims=True)
        with pytest.raises(ValueError, match="shows no person"):
            capture.capture(headless, fps=12, progress=False)
    back = np.asarray(Image.open(media / "drivers" / "reference_full_body.png").convert("RGB"))
    motion = capture.capture([back] * 6, fps=12, progress=False)
    assert (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all()


def test_a_head_is_what_goes_on_above_the_shoulders():
    from diffusers_dreamactor.motion.capture.appearance import head_outline

    world, keypoints = np.zeros((33, 3)), np.zeros((33, 2))
    world[[11, 12, 23, 24], :2] = [[0.2, -0.5], [-0.2, -0.5], [0.1, 0], [-0.1, 0]]
    y, x = np.mgrid[:300, :200]
    trunk = (np.abs(x - 100) < 50) & (y > 140) & (y < 240)
    head = np.hypot((x - 100) / 16, (y - 95) / 24) < 1
    for turn in (0, 90):
        turned = Rotation.from_euler("z", turn, degrees=True).as_matrix()[:2, :2]
        keypoints[:] = 200 * world[:, :2] @ turned.T + ([100, 240] if turn == 0 else [60, 100])
        for shape, area in ((trunk, 0.0), (trunk | head, np.pi * 0.08 * 0.12)):
            mask = np.where(shape, 1.0, 0.5)
            mask = mask if turn == 0 else np.rot90(mask, -1)
            assert abs(head_outline(mask, keypoints, world) - area) < 0.003


def test_a_pattern_that_looks_like_a_face_for_once_is_nobody(capture, media, monkeypatch):
    """The mirrored picture has to give the face as well; and one frame of many is no person."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = [np.full((256, 256, 3), 90 + index, np.uint8) for index in range(12)]
    frames[5] = next(iter(VideoReader(media / "drivers" / "cartoon_woman.gif")))
    with pytest.raises(ValueError, match="shows no person"):
        capture.capture(frames, fps=12, progress=False)
    find = Landmarkers._look_at_face

    def see_one_side(self, frame, middle, side):
        return None if frame.strides[1] < 0 else find(self, frame, middle, side)

    woman = list(VideoReader(media / "drivers" / "cartoon_woman.gif"))[:8]
    assert (capture.capture(woman, progress=False).face.confidence >= 0.5).all()
    monkeypatch.setattr(Landmarkers, "_look_at_face", see_one_side)
    with pytest.raises(ValueError, match="shows no person"):
        capture.capture(woman, progress=False)


def test_an_ear_that_is_taken_for_a_face_turns_no_head_over(capture, media, monkeypatch):
    """What does not fit the pose has to be found in the mirrored picture, too; otherwise the pose says where the head looks."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = list(VideoReader(media / "drivers" / "fashion_turns.mp4").frames(20, 32))
    expected = capture.capture(frames, fps=24, progress=False)
    find = Landmarkers._look_at_face
    marks = {frame[::16, ::16].tobytes() for frame in frames[4:7]}

    def find_upside_down(self, frame, middle, side):
        look = find(self, frame, middle, side)
        if look is None or frame[::16, ::16].tobytes() not in marks:
            return look
        return replace(
            look,
            points=2 * look.middle - look.points,
            rotation=np.diag([-1.0, -1.0, 1.0]) @ look.rotation,
        )

    monkeypatch.setattr(Landmarkers, "_look_at_face", find_upside_down)
    motion = capture.capture(frames, fps=24, progress=False)
    turned = np.einsum("fij,fij->f", motion.head.rotation, expected.head.rotation)
    assert (np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))) < 30).all()
    assert (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all() and (motion.head.confidence >= 0.5).all()
    np.testing.assert_allclose(motion.body.keypoints[:, 1], expected.body.keypoints[:, 1], atol=8)


def test_who_is_first_seen_with_a_wrong_pose_is_somebody(capture, media):
    """The boy is small in his first frames, and the pose is found too large, on his trunk; his face says where it is."""
    frames = list(VideoReader(media / "cartoon_character.mp4").frames(0, 5))
    motion = capture.capture(frames, fps=24, progress=False)
    assert (motion.head.confidence >= 0.5).all() and (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all()


def test_somebody_without_a_face_and_a_painting_are_people(capture, media):
    for name in ("reference_full_body.png", "reference_painting_arms.jpg"):
        motion = capture.capture(Image.open(media / "drivers" / name).convert("RGB"), progress=False)
        assert (motion.body.confidence[0, [1, 2, 5]] >= 0.5).all()


def test_nothing_of_mediapipe_reaches_stderr(capture_models, media, tmp_path):
    """From a process's first use on, also where a landmarker gives its first result late."""
    code = (
        "import sys; from diffusers_dreamactor.media import VideoReader\n"
        "from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture\n"
        "frames = list(VideoReader(sys.argv[1]))\n"
        "MediaPipeCapture.from_pretrained(sys.argv[2]).capture(frames[18:40:3], fps=8, progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(media / "drivers" / "cartoon_woman.gif"), str(capture_models)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if re.match(r"[IWEF]\d{4} |WARNING: All log|INFO: ", line)]
    assert lines == []


def test_a_face_is_looked_for_backwards_from_where_it_is_found(capture, man, boy, monkeypatch):
    """He comes across the picture among others, and his body is only found at the end."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    place = np.linspace(640, 20, 20).astype(int)
    frames = [scene((boy[i], 700), (man[i][:, 80:540], place[i] // 2)) for i in range(20)]
    numbers = {frame[::16, ::16].tobytes(): index for index, frame in enumerate(frames)}
    find = Landmarkers.find_people

    def find_late(self, frame, worker=0):
        index = numbers[frame[::16, ::16].tobytes()]
        return [each for each in find(self, frame, worker) if index >= 16 or each.keypoints[0, 0] > 800]

    monkeypatch.setattr(Landmarkers, "find_people", find_late)
    motion = capture.capture(frames, fps=4, person=(230, 400), progress=False)
    assert (motion.face.confidence >= 0.5).all()
    middle = (motion.face.boxes[:, 0] + motion.face.boxes[:, 2]) / 2
    assert np.ptp(middle - place // 2) < 60


def test_after_a_cut_faces_are_looked_for_anew(capture, media, monkeypatch):
    """A drawn woman, whose body is not found, elsewhere and smaller after the cut."""
    woman = list(VideoReader(media / "drivers" / "cartoon_woman.gif"))[:8]
    frames = []
    for index, picture in enumerate(woman + woman):
        after = index >= len(woman)
        canvas = np.full((512, 512, 3), (30, 60, 120) if after else (220, 200, 160), np.uint8)
        size = 320 if after else 256
        picture = np.asarray(Image.fromarray(picture).resize((size, size)))
        corner = (190, 180) if after else (0, 20)
        canvas[corner[1] : corner[1] + size, corner[0] : corner[0] + size] = picture
        frames.append(canvas)
    motion = capture.capture(frames, fps=12, progress=False)
    assert (motion.face.confidence >= 0.5).all()
    x = motion.face.boxes[:, ::2].mean(axis=1)
    assert (x[: len(woman)] < 190).all() and (x[len(woman) :] > 250).all()


def test_the_crop_that_is_held_is_of_the_last_face_that_was_found():
    """Not of the last frame that was guessed: it shows a sleeve by then. Short gaps between two finds are no loss."""
    observed = observations(turned(np.zeros(60)))
    found = [index < 13 or 17 <= index < 25 or index >= 45 for index in range(60)]
    looks = [face_look(0) if each else None for each in found]
    motion = to_motion(looks, observed, np.zeros(60, np.int64), [slice(0, 60)], Reader(), "video", True)
    frames = [np.full((HEIGHT, WIDTH, 3), index, np.uint8) for index in range(60)]
    processor = FaceMotionProcessor(size=16)
    crops = processor(frames, motion.face.boxes, motion.face.confidence)[0]
    shown = np.round(crops[:, 0, 8, 8].astype(np.float64)).astype(int)
    expected = [24 if 25 <= index < 45 else index for index in range(60)]
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("length", [1, 3])
def test_a_wrist_that_is_elsewhere_for_some_frames_is_no_gesture(length):
    """However still it is there: it got there faster than arms go. A fast gesture keeps its peak."""
    fps, size = 24.0, 350.0
    steady = observations(np.repeat(STANDING[None], 48, axis=0))
    elsewhere = PoseObservations(*(array.copy() for array in vars(steady).values()))
    elsewhere.keypoints[20 : 20 + length, 15] += [0.6 * size, 0.0]
    repaired = repair(elsewhere, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(repaired.keypoints[:, 15], steady.keypoints[:, 15], atol=1.0)
    wave = PoseObservations(*(array.copy() for array in vars(steady).values()))
    wave.keypoints[:, 15, 0] += 0.1 * size * np.exp(-(((np.arange(48) - 20) / 1.2) ** 2))
    kept = repair(wave, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(kept.keypoints[:, 15], wave.keypoints[:, 15], atol=1.0)


@pytest.mark.parametrize("fps", [24.0, 60.0])
def test_a_wrist_that_shakes_as_no_arm_can_is_a_gap(fps):
    """Something hides it, and the estimator is as sure of it as ever. A hand that is waved is seen."""
    time = np.arange(int(3 * fps)) / fps
    observed = observations(np.repeat(STANDING[None], len(time), axis=0))
    still = observed.keypoints[0, 15].copy()
    metre = np.linalg.norm(np.ptp(observed.keypoints[0, :25], axis=0)) / 1.75
    hidden = (time > 1.0) & (time < 1.9)
    observed.keypoints[hidden, 15] += np.random.default_rng(0).normal(0, 0.15 * metre, (hidden.sum(), 2))
    wave = observed.keypoints[:, 16]
    wave[:, 0] += 0.15 * metre * np.sin(2 * np.pi * 3 * time)
    repaired = repair(observed, [slice(0, len(time))], fps, smoothed=False)
    away = np.linalg.norm(repaired.keypoints[hidden, 15] - still, axis=-1) / metre
    assert np.median(away) < 0.15 and away.max() < 0.4
    middle = (time > 1.35) & (time < 1.55)
    assert (repaired.visibility[middle, 15] < 0.5).all()
    assert (repaired.visibility[(time < 0.7) | (time > 2.2), 15] > 0.9).all()
    np.testing.assert_allclose(repaired.keypoints[:, 16], wave)


def test_a_wrist_that_leaps_for_one_frame_is_no_gesture_however_near():
    """Arms come to rest, and turn round, within what muscles can do: 25 cm there and back within a twelfth of a second is too much."""
    fps, size = 24.0, 350.0
    steady = observations(np.repeat(STANDING[None], 48, axis=0))
    leaping = PoseObservations(*(array.copy() for array in vars(steady).values()))
    leaping.keypoints[20, [15, 16]] += [0.1 * size, 0.0]
    repaired = repair(leaping, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(repaired.keypoints[:, [15, 16]], steady.keypoints[:, [15, 16]], atol=1.0)
