import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.head_pose import (
    believable_looks,
    estimate_heads,
    face_box,
    head_rotation_from_pose,
    rotation_from_face_matrix,
)
from diffusers_dreamactor.motion.capture.to_motion import to_motion
from diffusers_dreamactor.motion.sequence import head_yaw_pitch_roll
from diffusers_dreamactor.processors.face_motion import FaceMotionProcessor

from .standing_person import FOCAL_LENGTH, HEIGHT, WIDTH, Reader, face_look, observations, turned


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


def yaw_of_pose(observed) -> np.ndarray:
    rotation = head_rotation_from_pose(observed.world, observed.keypoints, observed.visibility)
    return head_yaw_pitch_roll(rotation)[:, 0]


@pytest.mark.parametrize("yaw", [-170, -90, -40, 0, 40, 90, 170])
def test_head_rotation_from_ears_eyes_and_nose(yaw):
    # the head in the middle of the picture: rotations are relative to the ray through it
    observed = observations(turned([yaw]), (0.0, 0.62, 3.0))
    rotation = head_rotation_from_pose(observed.world, observed.keypoints, observed.visibility)
    found = head_yaw_pitch_roll(rotation)[0]
    assert found[0] == pytest.approx(yaw, abs=1.0)
    assert abs(found[2]) < 1.0


@pytest.mark.parametrize("yaw", [-80, -50, 20, 65])
def test_a_head_turns_as_far_as_the_picture_shows_however_flat_the_pose_is_guessed(yaw):
    observed = observations(turned([yaw]))
    guessed = observations(turned([0.5 * yaw]))
    guessed.keypoints[:] = observed.keypoints
    assert yaw_of_pose(guessed)[0] == pytest.approx(yaw, abs=6.0)
    # Where the picture shows nothing, the guess is all there is.
    guessed.keypoints[:] = 100.0
    assert yaw_of_pose(guessed)[0] == pytest.approx(0.5 * yaw, abs=3.0)


def test_no_head_turns_round_within_a_frame():
    ahead, aside = face_look(0), face_look(40)
    assert aside.can_follow(ahead, 2 / 24) and not aside.can_follow(ahead, 1 / 24)
    assert ahead.can_follow(aside, 2 / 24) and not ahead.can_follow(aside, 1 / 24)


def believed(yaws, pose_yaw, shots, fps=24.0) -> np.ndarray:
    """Frames (N,) of the faces that are believed of those with `yaws` (None: no face), on a body whose head turns by `pose_yaw`."""
    looks = [None if yaw is None else face_look(yaw) for yaw in yaws]
    observed = observations(turned(np.broadcast_to(pose_yaw, len(yaws))))
    pose = observed.keypoints, observed.world, observed.visibility, observed.seen
    return np.flatnonzero([look is not None for look in believable_looks(looks, *pose, shots, fps)])


def test_faces_that_no_head_can_turn_to_are_not_believed():
    """Two frames show a head that is turned away at once and back; after a cut, or some time, it may look anywhere."""
    yaws = [2.0 * frame for frame in range(20)]
    yaws[9] = yaws[10] = 90.0
    there = [frame for frame in range(20) if frame not in (9, 10)]
    np.testing.assert_array_equal(believed(yaws, 20.0, [slice(0, 20)]), there)
    round_about = [0.0] * 4 + [150.0] * 6
    np.testing.assert_array_equal(believed(round_about, 75.0, [slice(0, 10)]), np.arange(4, 10))
    np.testing.assert_array_equal(believed(round_about, 75.0, [slice(0, 4), slice(4, 10)]), np.arange(10))
    apart = [0.0] * 10 + [None] * 30 + [150.0] * 10
    assert len(believed(apart, 75.0, [slice(0, 50)])) == 20
    # Nobody is slower for being filmed with few pictures a second.
    assert len(believed([0.0, 60.0, 120.0, 60.0], 60.0, [slice(0, 4)], fps=6.0)) == 4


def test_a_face_alone_is_not_believed_against_the_pose():
    """Nobody else looks there for a quarter of a second, and the pose's head looks elsewhere."""
    alone = [None] * 20
    alone[10] = 0.0
    assert len(believed(alone, 70.0, [slice(0, 20)])) == 0
    np.testing.assert_array_equal(believed(alone, 20.0, [slice(0, 20)]), [10])
    # It is not alone in a picture, nor where it is seen for some time; there the pose is wrong.
    assert len(believed([0.0], 70.0, [slice(0, 1)])) == 1
    lasting = [0.0 if 8 <= frame < 16 else None for frame in range(24)]
    np.testing.assert_array_equal(believed(lasting, 70.0, [slice(0, 24)]), np.arange(8, 16))


def turning_clip():
    """Somebody who turns from the camera to the back and on; the face is seen up to 60 degrees."""
    yaw = np.linspace(0, 180, 61)
    looks = [face_look(angle) if angle <= 60 else None for angle in yaw]
    return yaw, looks, observations(turned(yaw))


def heads_of(looks, observed):
    pose = observed.keypoints, observed.world, observed.visibility, observed.seen
    return estimate_heads(looks, *pose, FOCAL_LENGTH, WIDTH, HEIGHT, 30.0)


def test_without_a_face_the_body_says_how_large_the_head_is():
    _, _, observed = turning_clip()
    found = heads_of([None] * 61, observed)
    face = observed.keypoints[:, :11].copy()
    observed.keypoints[:, :11] = face.mean(axis=1, keepdims=True) + 0.5 * (face - face.mean(axis=1, keepdims=True))
    heads = heads_of([None] * 61, observed)
    np.testing.assert_allclose(heads.radius, found.radius, rtol=0.1)
    assert np.abs(heads.center - found.center).max() < 0.3 * found.radius.max()


def test_the_head_carries_on_when_the_face_is_turned_away():
    yaw, looks, observed = turning_clip()
    heads = heads_of(looks, observed)
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
    heads = heads_of(looks, observed)
    found = head_yaw_pitch_roll(heads.rotation)[:, 0]
    assert np.abs(found - yaw).max() < 4


def test_a_face_and_a_pose_that_disagree_teach_nothing():
    """For a third of the clip the pose's head is turned away by 90 degrees; the face is lost just after."""
    off = np.where((np.arange(60) >= 20) & (np.arange(60) < 40), 90.0, 0.0)
    looks = [None if 40 <= frame < 50 else face_look(10.0) for frame in range(60)]
    heads = heads_of(looks, observations(turned(10.0 + off)))
    assert np.abs(head_yaw_pitch_roll(heads.rotation)[:, 0] - 10.0).max() < 4


def test_a_head_turned_to_the_back_is_said(warned):
    _, looks, observed = turning_clip()
    motion = to_motion(looks, observed, np.zeros(61, np.int64), [slice(0, 61)], Reader(), "video", True)
    motion.validate()
    said = warned.text
    assert "The head is turned to the back in frames" in said and "The face was lost in frames" in said
    assert motion.head.confidence.min() >= 0.5
    assert motion.face.confidence[:20].min() > 0.5 > motion.face.confidence[30:].max()


def test_no_face_at_all_is_said(warned):
    observed = observations(turned(np.full(20, 30.0)))
    motion = to_motion([None] * 20, observed, np.zeros(20, np.int64), [slice(0, 20)], Reader(), "video", True)
    assert "No face was found in the video" in warned.text
    np.testing.assert_allclose(motion.yaw(), 30, atol=4)


def test_face_boxes_are_square_with_more_room_above():
    tight = np.array([[100.0, 200.0, 180.0, 300.0], [0.0, 0.0, 100.0, 60.0]])
    boxes = face_box(tight)
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    np.testing.assert_allclose(sides[:, 0], np.sqrt(1.3) * np.array([100, 100]))
    above, below = tight[0, 1] - boxes[0, 1], boxes[0, 3] - tight[0, 3]
    assert above == pytest.approx(3 * below) and below > 0


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
